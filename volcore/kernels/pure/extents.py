"""Oracle of the extent algebra.

Source: Ceph, doc/dev/file-striping.rst, and Striper::file_to_extents and extent_to_file in
src/osdc/Striper.cc.
"""

import struct
from collections.abc import Sequence
from itertools import groupby, pairwise

from volcore.kernels.pure.checks import UINT8_MAX, UINT64_MAX, unsigned, view


def _check_layout(object_size_bytes: int, stripe_unit_bytes: int, stripe_count: int) -> None:
    numbers = [unsigned(each) for each in (object_size_bytes, stripe_unit_bytes, stripe_count)]
    if 0 in numbers:
        raise ValueError("object_size_bytes, stripe_unit_bytes and stripe_count must be positive")
    if object_size_bytes % stripe_unit_bytes:
        raise ValueError(
            f"object size {object_size_bytes} is no multiple of stripe unit {stripe_unit_bytes}"
        )


def _end(offset_bytes: int, length_bytes: int) -> int:
    end = unsigned(offset_bytes) + unsigned(length_bytes)
    if end > UINT64_MAX:
        raise OverflowError(f"{offset_bytes} + {length_bytes} is past 2**64 - 1")
    return end


def map_extents(
    offset_bytes: int,
    length_bytes: int,
    *,
    object_size_bytes: int,
    stripe_unit_bytes: int,
    stripe_count: int,
) -> list[tuple[int, int, int, int]]:
    """See the public face."""
    _check_layout(object_size_bytes, stripe_unit_bytes, stripe_count)
    stripes_per_object = object_size_bytes // stripe_unit_bytes
    at, end = offset_bytes, _end(offset_bytes, length_bytes)
    extents: list[tuple[int, int, int, int]] = []
    while at < end:
        unit, unit_offset = divmod(at, stripe_unit_bytes)
        stripe, place = divmod(unit, stripe_count)
        object_set, stripe_in_object = divmod(stripe, stripes_per_object)
        object_index = object_set * stripe_count + place
        object_offset = stripe_in_object * stripe_unit_bytes + unit_offset
        length = min(end - at, stripe_unit_bytes - unit_offset)
        buffer_offset = at - offset_bytes
        if extents:
            last_index, last_offset, last_length, last_buffer = extents[-1]
            if (last_index, last_offset + last_length) == (object_index, object_offset):
                extents.pop()
                object_offset, length = last_offset, last_length + length
                buffer_offset = last_buffer
        extents.append((object_index, object_offset, length, buffer_offset))
        at = offset_bytes + buffer_offset + length
    return extents


def object_to_image(
    object_index: int,
    object_offset_bytes: int,
    *,
    object_size_bytes: int,
    stripe_unit_bytes: int,
    stripe_count: int,
) -> int:
    """See the public face."""
    _check_layout(object_size_bytes, stripe_unit_bytes, stripe_count)
    object_set, place = divmod(unsigned(object_index), stripe_count)
    stripe_in_object, unit_offset = divmod(unsigned(object_offset_bytes), stripe_unit_bytes)
    if object_offset_bytes >= object_size_bytes:
        raise ValueError(f"offset {object_offset_bytes} is past the object's {object_size_bytes}")
    stripe = object_set * (object_size_bytes // stripe_unit_bytes) + stripe_in_object
    return unsigned((stripe * stripe_count + place) * stripe_unit_bytes + unit_offset)


def merge_extents(extents: Sequence[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """See the public face. Cuts at every start and end, then asks who covers each piece last."""
    if len(extents) == 0:
        return []
    spans = [(at, _end(at, length), unsigned(kind, UINT8_MAX)) for at, length, kind in extents]
    cuts = sorted({cut for start, end, _ in spans for cut in (start, end)})
    merged: list[tuple[int, int, int]] = []
    for left, right in pairwise(cuts):
        kinds = [kind for start, end, kind in spans if start <= left and right <= end]
        if not kinds:
            continue
        if merged and sum(merged[-1][:2]) == left and merged[-1][2] == kinds[-1]:
            left = merged.pop()[0]
        merged.append((left, right - left, kinds[-1]))
    return merged


def _check_chunks(chunks: memoryview, block_count: int, block_size: int) -> None:
    if not 0 < block_size <= 1 << 32 or block_count > 1 << 20:
        raise ValueError(f"{block_count} blocks of {block_size} bytes are no chunk")
    if any(one >= other for one, other in pairwise(chunks)):
        raise ValueError("the chunks do not ascend")
    if chunks[-1] >= (1 << 63) // (block_count * block_size):
        raise ValueError(f"chunk {chunks[-1]} lies past 2**63 bytes")


def of_blocks(chunks: object, kinds: object, block_size_bytes: int, end_bytes: int) -> bytes:
    """See the public face."""
    indexes, blocks = view(chunks, "Q"), view(kinds)
    block_size, end = unsigned(block_size_bytes), unsigned(end_bytes)
    if not len(indexes) and not len(blocks):
        return b""
    if not len(indexes) or not len(blocks) or len(blocks) % len(indexes):
        raise ValueError(f"{len(blocks)} blocks are not those of {len(indexes)} chunks")
    block_count = len(blocks) // len(indexes)
    _check_chunks(indexes, block_count, block_size)
    table: list[tuple[int, int, int]] = []
    for number, index in enumerate(indexes):
        at = index * block_count
        for kind, group in groupby(blocks[number * block_count : (number + 1) * block_count]):
            first, count = at * block_size, len(list(group))
            length, at = min(count * block_size, end - first), at + count
            if length <= 0 or not kind:
                continue
            if table and (sum(table[-1][:2]), table[-1][2]) == (first, kind):
                first, length = table[-1][0], table.pop()[1] + length
            table.append((first, length, kind))
    return struct.pack(f"={3 * len(table)}Q", *(word for row in table for word in row))
