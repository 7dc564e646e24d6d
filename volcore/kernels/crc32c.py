"""CRC-32C (Castagnoli): the checksum of every block that volcore stores.

Invariants: a checksum is an int from 0 to 2**32 - 1 with the usual inversions done, so that 0 is
the checksum of no bytes and `crc32c(b"123456789") == 0xE3069283`; every implementation gives the
same.

*Buffers*: `data` is anything contiguous with one dimension of unsigned bytes, any alignment;
checksums are `(block_count,) uint32` in the machine's order (`array("I")`, a memoryview cast to
"I"). Nothing is kept after return. *Concurrency*: calls run side by side; those over 32 KiB
release the GIL, and the caller keeps others from writing to the buffers meanwhile.

All raise TypeError for what is no buffer, BufferError for a strided or read-only one, ValueError
for a wrong item type or length, and OverflowError for a number out of range.

Source: RFC 3720 section 12.1 and appendix B.4.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from volcore.kernels import select

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from volcore.kernels.pure import crc32c as _kernel
else:
    _kernel = select.load("crc32c")


def crc32c(data: Buffer, value: int = 0) -> int:
    """Return the checksum of `data`, continuing from `value`.

    `crc32c(b, crc32c(a)) == crc32c(a + b)`. *Complexity*: one pass.
    """
    return _kernel.crc32c(data, value)


def crc32c_blocks(data: Buffer, block_size_bytes: int, out: Buffer) -> None:
    """Write the checksum of each block of `data` to `out`.

    Args:
        data: a whole number of blocks; none is allowed.
        block_size_bytes: size of a block, 1 or more.
        out: writable, `(len(data) / block_size_bytes,) uint32`.
    """
    _kernel.crc32c_blocks(data, block_size_bytes, out)


def find_bad_block(data: Buffer, block_size_bytes: int, expected: Buffer) -> int:
    """Return the index of the first block whose checksum is not the expected one, or -1.

    Args:
        data: a whole number of blocks; none is allowed.
        block_size_bytes: size of a block, 1 or more.
        expected: `(len(data) / block_size_bytes,) uint32`.
    """
    return _kernel.find_bad_block(data, block_size_bytes, expected)


def copy_crc32c_blocks(target: Buffer, source: Buffer, block_size_bytes: int, out: Buffer) -> None:
    """Copy `source` to `target` and write the checksum of each block to `out`, in one pass.

    The checksums are those of the bytes that arrived in `target`: when a guest changes `source`
    meanwhile, what is stored still agrees with its checksums. `target` and `source` may overlap
    (as with memmove); `out` may not overlap either.

    Args:
        target: writable, as long as `source`.
        source: a whole number of blocks; none is allowed.
        block_size_bytes: size of a block, 1 or more.
        out: writable, `(len(source) / block_size_bytes,) uint32`.
    """
    _kernel.copy_crc32c_blocks(target, source, block_size_bytes, out)


def crc32c_combine(crc_first: int, crc_second: int, second_length_bytes: int) -> int:
    """Return the checksum of two byte strings put together, without their bytes.

    *Complexity*: logarithmic in `second_length_bytes` (0 to 2**64 - 1).
    """
    return _kernel.crc32c_combine(crc_first, crc_second, second_length_bytes)


def implementations() -> list[str]:
    """Return the implementations that this CPU runs, fastest first."""
    return _kernel.implementations()


def implementation() -> str:
    """Return the implementation in use: the fastest, unless a test chose another."""
    return _kernel.implementation()


def use_implementation(name: str) -> None:
    """Use the named implementation in this process from now on; for tests and benchmarks.

    Raises:
        ValueError: this CPU or build does not have it.
    """
    _kernel.use_implementation(name)
