"""Extent algebra: where the bytes of a striped image lie, lists of extents, tables of many.

*Units*: bytes, 0 to 2**64 - 1; the end of an extent must be in that range too. *Concurrency*: pure
functions; the GIL is held, except by `of_blocks`.

All raise TypeError for what is no int, OverflowError for a number or an end out of range, and
ValueError for a layout that is not one.

Source: Ceph, doc/dev/file-striping.rst, and Striper::file_to_extents and extent_to_file in
src/osdc/Striper.cc.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from volcore.kernels import select

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from volcore.kernels.pure import extents as _kernel
else:
    _kernel = select.load("extents")


def map_extents(
    offset_bytes: int,
    length_bytes: int,
    *,
    object_size_bytes: int,
    stripe_unit_bytes: int,
    stripe_count: int,
) -> list[tuple[int, int, int, int]]:
    """Map a byte range of an image to its objects, as librbd lays them out.

    Args:
        offset_bytes: start of the range in the image; any alignment.
        length_bytes: length of the range; 0 gives an empty list.
        object_size_bytes: size of an object, a multiple of `stripe_unit_bytes`.
        stripe_unit_bytes: bytes in one object before the next object goes on.
        stripe_count: objects that are striped over; 1 is the plain layout.

    Returns:
        (object_index, object_offset_bytes, length_bytes, buffer_offset_bytes) in ascending order of
        the buffer, merged where contiguous in both the object and the buffer.

    *Complexity*: the number of items returned; bound the length.
    """
    return _kernel.map_extents(
        offset_bytes,
        length_bytes,
        object_size_bytes=object_size_bytes,
        stripe_unit_bytes=stripe_unit_bytes,
        stripe_count=stripe_count,
    )


def object_to_image(
    object_index: int,
    object_offset_bytes: int,
    *,
    object_size_bytes: int,
    stripe_unit_bytes: int,
    stripe_count: int,
) -> int:
    """Return the offset in the image of a byte of an object: the inverse of `map_extents`.

    Raises:
        ValueError: the byte is not within an object, or the layout is not one.
        OverflowError: the byte lies past 2**64 - 1 in the image.
    """
    return _kernel.object_to_image(
        object_index,
        object_offset_bytes,
        object_size_bytes=object_size_bytes,
        stripe_unit_bytes=stripe_unit_bytes,
        stripe_count=stripe_count,
    )


def merge_extents(extents: Sequence[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """Return extents sorted, without overlap, neighbours of the same kind joined.

    Where extents overlap, the later in the list wins; empty ones vanish.

    Args:
        extents: (offset_bytes, length_bytes, kind) in any order, kind 0 to 255.

    *Complexity*: linear in items for a sorted list without overlap, else n log n.
    """
    return _kernel.merge_extents(extents)


def of_blocks(chunks: Buffer, kinds: Buffer, block_size_bytes: int, end_bytes: int) -> bytes:
    """Return the extents of blocks that are alike, as a table; kind 0 is left out.

    Args:
        chunks: `(chunk_count,) uint64`, indexes of chunks, ascending; all end below 2**63 bytes.
        kinds: `(chunk_count * block_count,) uint8`, those of the chunks' blocks one after the
            other; `block_count` is at most 2**20.
        block_size_bytes: 1 to 2**32.
        end_bytes: what lies behind it is left out.

    Returns:
        `(extent_count, 3) uint64` in the machine's order, ascending: offset and length in bytes,
        kind; neighbours differ in kind.

    Raises:
        BufferError: a buffer is not contiguous.

    *Complexity*: one pass.
    """
    return _kernel.of_blocks(chunks, kinds, block_size_bytes, end_bytes)
