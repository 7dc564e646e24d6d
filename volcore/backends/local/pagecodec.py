"""One chunk of one layer as a row: its form on the disk, and the checksum that proves it.

Version 4 is written: states and CRCs packed (`kernels.chunkmap.pack`), states with their chunk and
a checksum of their own, so that looking what changed needs no CRCs (`kernels.mapscan`). Versions 2
and 3 had the states alone, version 1 a byte and a CRC for each of the 1024 blocks. Lengths tell
them apart; all are read for ever. The checksum covers what the row means, in either form: a flipped
state would show the parent's data as good.
"""

import struct
import sys
from array import array
from dataclasses import dataclass
from typing import Final

from volcore.errors import IntegrityError, Reason
from volcore.kernels import chunkmap, crc32c, mapscan
from volcore.limits import CHUNK_BLOCKS

CRCS_BYTES: Final = 4 * CHUNK_BLOCKS
_UNIFORM: Final = tuple(bytes([state]) * CHUNK_BLOCKS for state in range(chunkmap.ZERO + 1))
"""For each block state, the states of a chunk that has no other."""
_NO_CRCS: Final = bytes(CRCS_BYTES)
_PROOF_BYTES: Final = 4
_HEAD: Final = struct.Struct("<QB")
"""Chunk and form, behind the checksum."""
_HEAD_END: Final = _PROOF_BYTES + _HEAD.size
PROVEN_LENGTHS: Final = (_HEAD_END, _HEAD_END + CHUNK_BLOCKS // 4)
"""Of states that have a checksum of their own: of one kind, and mixed."""
_KNOWN: Final = bytes(range(chunkmap.ZERO + 1))

Row = tuple[int, int, bytes, bytes, int]
"""(layer_id, chunk_index, states, crcs, checksum)."""


@dataclass(frozen=True, slots=True)
class Page:
    """States and CRCs of one chunk of one layer, one of each for every block."""

    layer_id: int
    chunk_index: int
    states: bytes
    crcs: "array[int]"


def encoded(page: Page) -> Row:
    """Return the page as a row."""
    states, crcs = chunkmap.pack(page.states, page.crcs)
    proven = _with_proof(page.layer_id, page.chunk_index, states)
    return page.layer_id, page.chunk_index, proven, crcs, _checksum(page)


def decoded(layer_id: int, chunk_index: int, states: bytes, crcs: bytes, checksum: int) -> Page:
    """Return the page that a row of any version holds.

    Raises:
        IntegrityError: BAD_CHECKSUM, the row is damaged.
    """
    found = array("I", _NO_CRCS)
    try:
        if len(states) in PROVEN_LENGTHS:
            states = _without_proof(layer_id, chunk_index, states)
        if len(states) == CHUNK_BLOCKS:
            if states.translate(None, _KNOWN):
                raise damaged(layer_id, chunk_index)
            page = Page(layer_id, chunk_index, states, _from_version_1(crcs))
        elif len(states) == 1 and len(crcs) == CRCS_BYTES * (states[0] == chunkmap.DATA):
            if crcs:
                found = _from_version_1(crcs)
            page = Page(layer_id, chunk_index, _UNIFORM[states[0]], found)
        else:
            unpacked = bytearray(CHUNK_BLOCKS)
            chunkmap.unpack(states, crcs, unpacked, found)
            page = Page(layer_id, chunk_index, bytes(unpacked), found)
    except (ValueError, IndexError, TypeError) as err:
        raise damaged(layer_id, chunk_index) from err
    if _checksum(page) != checksum:
        raise damaged(layer_id, chunk_index)
    return page


def damaged(layer_id: int, chunk_index: int) -> IntegrityError:
    """Return the error for a row that is not what was written."""
    return IntegrityError(
        f"the map of chunk {chunk_index} in layer {layer_id} is damaged; restore the volumes "
        "that use it",
        reason=Reason.BAD_CHECKSUM,
        layer=layer_id,
        chunk_index=chunk_index,
    )


def _with_proof(layer_id: int, chunk_index: int, packed: bytes) -> bytes:
    """Return packed states as `mapscan.read_states` takes them."""
    if len(packed) == 1:
        body = _HEAD.pack(chunk_index, packed[0])
    else:
        body = _HEAD.pack(chunk_index, mapscan.MIXED) + packed
    proof = crc32c.crc32c(body, crc32c.crc32c(struct.pack("<Q", layer_id)))
    return struct.pack("<I", proof) + body


def _without_proof(layer_id: int, chunk_index: int, proven: bytes) -> bytes:
    """Return the packed states of a row."""
    _, form = _HEAD.unpack_from(proven, _PROOF_BYTES)
    packed = proven[_HEAD_END:] or bytes([form])
    if _with_proof(layer_id, chunk_index, packed) != proven:
        raise damaged(layer_id, chunk_index)
    return packed


def _checksum(page: Page) -> int:
    seed = crc32c.crc32c(struct.pack("<QQ", page.layer_id, page.chunk_index))
    crcs = page.crcs
    if sys.byteorder == "big":
        crcs = array("I", crcs)
        crcs.byteswap()
    return crc32c.crc32c(memoryview(crcs).cast("B"), crc32c.crc32c(page.states, seed))


def _from_version_1(raw: bytes) -> "array[int]":
    """Return the CRCs of all blocks of a chunk."""
    if len(raw) != CRCS_BYTES:
        raise ValueError(f"{len(raw)} bytes are not the CRCs of a chunk")
    crcs = array("I", raw)
    if sys.byteorder == "big":
        crcs.byteswap()
    return crcs
