"""One chunk of one layer as a row: its form on the disk, and the checksum that proves it.

Version 2 packs states and CRCs (`kernels.chunkmap.pack`); version 1 kept a byte and a CRC for each
of the 1024 blocks. Lengths tell them apart; both are read for ever, version 2 is written. The
checksum covers what the row means, in either form: a flipped state would show the parent's data as
good.

A chunk whose blocks are all alike has a `brief` as well: its state with a checksum of its own, so
that looking what changed needs neither CRCs nor blobs.
"""

import struct
import sys
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from volcore.errors import IntegrityError, Reason
from volcore.kernels import chunkmap, crc32c
from volcore.limits import CHUNK_BLOCKS

CRCS_BYTES: Final = 4 * CHUNK_BLOCKS
UNIFORM: Final = tuple(bytes([state]) * CHUNK_BLOCKS for state in range(chunkmap.ZERO + 1))
"""For each block state, the states of a chunk that has no other."""
_NO_CRCS: Final = bytes(CRCS_BYTES)
_PROVEN: Final = struct.Struct("<QQB")
"""What the checksum of a brief covers: layer, chunk, state."""
_LOW: Final = (1 << 32) - 1
_STATES: Final = frozenset(range(chunkmap.ZERO + 1))
_KNOWN: Final = bytes(_STATES)

Row = tuple[int, int, bytes, bytes, int, int | None]
"""(layer_id, chunk_index, states, crcs, checksum, brief)."""


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
    brief = None
    if len(states) == 1:
        brief = make_brief(page.layer_id, page.chunk_index, states[0])
    return page.layer_id, page.chunk_index, states, crcs, _checksum(page), brief


def decoded(layer_id: int, chunk_index: int, states: bytes, crcs: bytes, checksum: int) -> Page:
    """Return the page that a row of any version holds.

    Raises:
        IntegrityError: BAD_CHECKSUM, the row is damaged.
    """
    found = array("I", _NO_CRCS)
    try:
        if len(states) == CHUNK_BLOCKS:
            if states.translate(None, _KNOWN):
                raise damaged(layer_id, chunk_index)
            page = Page(layer_id, chunk_index, states, _from_version_1(crcs))
        elif len(states) == 1 and len(crcs) == CRCS_BYTES * (states[0] == chunkmap.DATA):
            if crcs:
                found = _from_version_1(crcs)
            page = Page(layer_id, chunk_index, UNIFORM[states[0]], found)
        else:
            unpacked = bytearray(CHUNK_BLOCKS)
            chunkmap.unpack(states, crcs, unpacked, found)
            page = Page(layer_id, chunk_index, bytes(unpacked), found)
    except (ValueError, IndexError, TypeError) as err:
        raise damaged(layer_id, chunk_index) from err
    if _checksum(page) != checksum:
        raise damaged(layer_id, chunk_index)
    return page


def make_brief(layer_id: int, chunk_index: int, state: int) -> int:
    """Return the brief of a chunk that has one state: that, above a CRC-32C of it and its place."""
    return state << 32 | crc32c.crc32c(_PROVEN.pack(layer_id, chunk_index, state))


def read_briefs(rows: Sequence[tuple[int, int, int]]) -> list[int]:
    """Return the states of chunks that have one each, by (layer_id, chunk_index, brief).

    Raises:
        IntegrityError: BAD_CHECKSUM, a brief is damaged.
    """
    proofs = array("I", bytes(4 * len(rows)))
    pack = _PROVEN.pack
    packed = b"".join([pack(layer, at, brief >> 32 & 255) for layer, at, brief in rows])
    crc32c.crc32c_blocks(packed, _PROVEN.size, proofs)
    states = [brief >> 32 for _, _, brief in rows]
    if array("I", [brief & _LOW for _, _, brief in rows]) != proofs or set(states) - _STATES:
        for (layer_id, chunk_index, brief), proof in zip(rows, proofs, strict=True):
            if brief & _LOW != proof or brief >> 32 not in _STATES:
                raise damaged(layer_id, chunk_index)
    return states


def damaged(layer_id: int, chunk_index: int) -> IntegrityError:
    """Return the error for a row that is not what was written."""
    return IntegrityError(
        f"the map of chunk {chunk_index} in layer {layer_id} is damaged; restore the volumes "
        "that use it",
        reason=Reason.BAD_CHECKSUM,
        layer=layer_id,
        chunk_index=chunk_index,
    )


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
