"""The states of many chunks at once: what a diff reads instead of whole maps.

A chunk has 1024 blocks. *Buffers*: contiguous, one dimension, any alignment; nothing is kept after
return; buffers of one call may not overlap. *Atomicity*: a refused call changes nothing.
*Concurrency*: the GIL is given up. *Complexity*: one pass.

All raise TypeError for what is no buffer or no int, BufferError for a strided or read-only one,
ValueError for a wrong item type or length, and OverflowError for a number out of range.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from volcore.kernels import select

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from volcore.kernels.pure import mapscan as _kernel
else:
    _kernel = select.load("mapscan")

MIXED: Final = 3
"""The form of a row whose blocks are not all alike."""


def read_states(rows: Buffer, layer_id: int) -> tuple[bytes, bytes]:
    """Read rows of one layer, each proven by its checksum.

    A row is, all little-endian: CRC-32C of `layer_id` (uint64) and of what follows (uint32); index
    of the chunk (uint64); form (uint8), which is the state of all blocks, or MIXED and then 256
    bytes of states as `chunkmap.pack` makes them.

    Args:
        rows: one after the other, their chunks ascending.
        layer_id: 0 to 2**64 - 1.

    Returns:
        The indexes of the chunks, `(chunk_count,) uint64` in the machine's order, and the states,
        `(chunk_count * 1024,) uint8`.

    Raises:
        ValueError: a row is not what was written, or the chunks do not ascend.
    """
    return _kernel.read_states(rows, layer_id)


def fill(kinds: Buffer, places: Buffer, below: Buffer, unknown: int) -> None:
    """Take what is unknown of some chunks from what lies below them, where that is not 0.

    Args:
        kinds: writable, `(chunk_count * 1024,) uint8`.
        places: `(below_count,) uint64`: for each chunk of `below`, which one of `kinds` it is.
        below: `(below_count * 1024,) uint8`.
        unknown: the kind that stands for an unknown block, 0 to 255.
    """
    _kernel.fill(kinds, places, below, unknown)
