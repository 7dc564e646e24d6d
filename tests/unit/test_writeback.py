"""What a growing file has of dirty pages, as Linux counts them (cachestat, since 6.5)."""

import ctypes
import os
import time

import pytest

from volcore.limits import MIB
from volcore.writeback import PIECE_BYTES, Writeback

CACHESTAT = 451
SIZE_BYTES = 64 * MIB
LONG_BEFORE_THE_KERNEL_S = 10


def dirty_bytes(descriptor):
    """Pages of a file that nobody has begun to write."""
    whole, found = (ctypes.c_uint64 * 2)(0, 0), (ctypes.c_uint64 * 5)()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(CACHESTAT, descriptor, whole, found, 0):
        pytest.skip(f"this kernel does not count them: {os.strerror(ctypes.get_errno())}")
    return found[1] * os.sysconf("SC_PAGE_SIZE")


def test_no_more_than_a_piece_waits(tmp_path):
    """Goal: no burst. Method: write a file in small steps; little of it waits for the kernel."""
    with (tmp_path / "file").open("wb", buffering=0) as file:
        file.write(bytes(PIECE_BYTES))
        if not dirty_bytes(file.fileno()):
            pytest.skip("a file system without writeback")
        writeback = Writeback(file.fileno())
        writeback.wrote(PIECE_BYTES)
        for at in range(PIECE_BYTES, SIZE_BYTES, MIB):
            file.write(b"x" * MIB)
            writeback.wrote(at + MIB)
        deadline = time.monotonic() + LONG_BEFORE_THE_KERNEL_S
        while dirty_bytes(file.fileno()) >= PIECE_BYTES:
            assert time.monotonic() < deadline
            time.sleep(0.05)
