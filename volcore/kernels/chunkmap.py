"""The three-state block map of a chunk, and the resolution of a stack of them.

A map is two arrays of one item per block: states, `(block_count,) uint8`, and CRC-32Cs,
`(block_count,) uint32` in the machine's order. `block_count` is the length of the buffers (1024
for a 4 MiB chunk of 4 KiB blocks, but nothing here depends on it). Owners, `(block_count,)
uint16`, name for each block the layer that holds its data.

*Buffers*: contiguous, one dimension, any alignment; nothing is kept after return. Buffers of one
call may not overlap. *Atomicity*: a refused call changes nothing. *Concurrency*: the GIL is held
(a call lasts one or two microseconds), so calls on the same map exclude each other. *Complexity*:
one pass.

All raise TypeError for what is no buffer, BufferError for a strided or read-only one, ValueError
for a wrong item type or length, a range outside of the map or an unknown state, and OverflowError
for a number that does not fit 64 bits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from volcore.kernels import select

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from volcore.kernels.pure import chunkmap as _kernel
else:
    _kernel = select.load("chunkmap")

ABSENT: Final = 0  # read the parent
DATA: Final = 1
ZERO: Final = 2  # trimmed: do not read the parent
ZERO_OWNER: Final = 0xFFFE
UNRESOLVED: Final = 0xFFFF


def mark(states: Buffer, first_block: int, block_count: int, state: int) -> None:
    """Set `block_count` blocks of writable `states`, from `first_block` on, to `state`."""
    _kernel.mark(states, first_block, block_count, state)


def overlay(
    owners: Buffer, crcs: Buffer, layer_states: Buffer, layer_crcs: Buffer, layer_index: int
) -> int:
    """Resolve what is still open in `owners` from one layer; return how many blocks stay open.

    Call it from the top layer down, with `owners` all UNRESOLVED at first. A block of the layer
    with DATA gives its owner and CRC; ZERO gives ZERO_OWNER and leaves the CRC; ABSENT leaves it
    open.

    Args:
        owners: writable, `(block_count,) uint16`.
        crcs: writable, `(block_count,) uint32`.
        layer_states: `(block_count,) uint8`.
        layer_crcs: `(block_count,) uint32`.
        layer_index: the owner to note, 0 to ZERO_OWNER - 1.
    """
    return _kernel.overlay(owners, crcs, layer_states, layer_crcs, layer_index)


def resolve_runs(owners: Buffer, first_block: int, block_count: int) -> list[tuple[int, int, int]]:
    """Return the range as (first_block, block_count, owner) in maximal runs, in order.

    What no layer has reads as zeroes: UNRESOLVED is reported as ZERO_OWNER.
    """
    return _kernel.resolve_runs(owners, first_block, block_count)


def state_runs(states: Buffer, first_block: int, block_count: int) -> list[tuple[int, int, int]]:
    """Return the range as (first_block, block_count, state) in maximal runs, in order."""
    return _kernel.state_runs(states, first_block, block_count)


def freeze(states: Buffer, crcs: Buffer) -> tuple[int, int]:
    """Make a map canonical: CRC 0 wherever there is no DATA. *Idempotent*.

    Args:
        states: `(block_count,) uint8`.
        crcs: writable, `(block_count,) uint32`.

    Returns:
        How many blocks are DATA, and how many ZERO.
    """
    return _kernel.freeze(states, crcs)


def diff(changed: Buffer, layer_states: Buffer) -> int:
    """Note in `changed` every block that a layer wrote or trimmed; return how many are noted.

    The union over the layers between two snapshots is what differs between them. *Idempotent*.

    Args:
        changed: writable, `(block_count,) uint8`, 0 where nothing is noted.
        layer_states: `(block_count,) uint8`.
    """
    return _kernel.diff(changed, layer_states)


def merge(
    lower_states: Buffer, lower_crcs: Buffer, upper_states: Buffer, upper_crcs: Buffer
) -> None:
    """Lay an upper map over a lower one, in place in the lower. *Idempotent*.

    Where the upper is ABSENT the lower stays; else it takes the state and the CRC (0 for ZERO).

    Args:
        lower_states: writable, `(block_count,) uint8`.
        lower_crcs: writable, `(block_count,) uint32`.
        upper_states: `(block_count,) uint8`.
        upper_crcs: `(block_count,) uint32`.
    """
    _kernel.merge(lower_states, lower_crcs, upper_states, upper_crcs)


def pack(states: Buffer, crcs: Buffer) -> tuple[bytes, bytes]:
    """Return the form of a map on the disk: its states, and the CRCs of its DATA blocks.

    States take one byte when all are the same, else two bits a block: block `b` is in byte
    `b // 4`, at bits `2 * (b % 4)` and the next higher one. CRCs are uint32 little-endian, in the
    order of their blocks.

    Args:
        states: `(block_count,) uint8`; `block_count` is a multiple of 4, from 8 to 1024.
        crcs: `(block_count,) uint32`.
    """
    return _kernel.pack(states, crcs)


def unpack(packed_states: Buffer, packed_crcs: Buffer, states: Buffer, crcs: Buffer) -> None:
    """Fill a map from what `pack` returned; CRCs of blocks without DATA become 0.

    ValueError also when the number of CRCs is not that of the DATA blocks.

    Args:
        packed_states: bytes.
        packed_crcs: bytes.
        states: writable, `(block_count,) uint8`.
        crcs: writable, `(block_count,) uint32`.
    """
    _kernel.unpack(packed_states, packed_crcs, states, crcs)
