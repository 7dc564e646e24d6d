"""Zero detection: which blocks need no space.

*Buffers*: anything contiguous with one dimension of unsigned bytes, any alignment; nothing is
kept after return. *Concurrency*: calls run side by side; those over 32 KiB release the GIL, and
the caller keeps others from writing to the buffers meanwhile.

Both raise TypeError for what is no buffer, BufferError for a strided or read-only one, ValueError
for a wrong item type or length, and OverflowError for a number out of range.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from volcore.kernels import select

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from volcore.kernels.pure import zero as _kernel
else:
    _kernel = select.load("zero")


def is_zero(data: Buffer) -> bool:
    """Return whether every byte of `data` is 0; true for no bytes. Stops early."""
    return _kernel.is_zero(data)


def find_zero_blocks(data: Buffer, block_size_bytes: int, out: Buffer) -> int:
    """Write 1 to `out` for each block of zeroes, 0 for each other; return how many are zero.

    Stops early in each block.

    Args:
        data: a whole number of blocks; none is allowed.
        block_size_bytes: size of a block, 1 or more.
        out: writable, `(len(data) / block_size_bytes,) uint8`.
    """
    return _kernel.find_zero_blocks(data, block_size_bytes, out)
