"""Oracle of the states of many chunks."""

import struct

from volcore.kernels.pure.checks import UINT8_MAX, check_lengths, unsigned, view
from volcore.kernels.pure.crc32c import crc32c

CHUNK_BLOCKS, PACKED_BYTES, MIXED, ZERO = 1024, 256, 3, 2
HEAD = struct.Struct("<IQB")
CHUNK_AT = 4


def read_states(rows: object, layer_id: int) -> tuple[bytes, bytes]:
    """See the public face."""
    left, seed = bytes(view(rows)), crc32c(struct.pack("<Q", unsigned(layer_id)))
    pieces: list[bytes] = []
    while left:
        has_head = len(left) >= HEAD.size
        end = HEAD.size + (PACKED_BYTES if has_head and left[HEAD.size - 1] == MIXED else 0)
        if len(left) < end:
            raise ValueError("the last row is cut off")
        pieces.append(left[:end])
        left = left[end:]
    chunks, states = [-1], bytearray()
    for row in pieces:
        proof, chunk, form = HEAD.unpack_from(row)
        number = int.from_bytes(row[HEAD.size :], "little")
        found = [
            number >> 2 * block & 3 if form == MIXED else form for block in range(CHUNK_BLOCKS)
        ]
        if crc32c(row[CHUNK_AT:], seed) != proof or chunk <= chunks[-1] or max(found) > ZERO:
            raise ValueError("a row is not what was written")
        chunks.append(chunk)
        states += bytes(found)
    return struct.pack(f"={len(chunks) - 1}Q", *chunks[1:]), bytes(states)


def fill(kinds: object, places: object, below: object, unknown: int) -> None:
    """See the public face."""
    open_kind = unsigned(unknown, UINT8_MAX)
    blocks, numbers, other = view(kinds, writable=True), view(places, "Q"), view(below)
    if len(blocks) % CHUNK_BLOCKS:
        raise ValueError(f"{len(blocks)} blocks are no whole number of chunks")
    check_lengths(len(numbers) * CHUNK_BLOCKS, other)
    for place in numbers:
        if place >= len(blocks) // CHUNK_BLOCKS:
            raise ValueError(f"there is no chunk {place}")
    for at, kind in enumerate(other):
        block = numbers[at // CHUNK_BLOCKS] * CHUNK_BLOCKS + at % CHUNK_BLOCKS
        if kind and blocks[block] == open_kind:
            blocks[block] = kind
