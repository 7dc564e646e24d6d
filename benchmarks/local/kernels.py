"""The loops over bytes, interleaved with what they are measured by, GB/s = 10**9 bytes a second.

chunk     4 MiB, warm: as fast as caches allow
RAM       1 GiB, more than caches keep: memcpy counts the bytes it copies, so its memory traffic is
          twice its figure; the bound is a loop that only reads
"""

import ctypes
import random
import subprocess
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.report import Figure
from benchmarks.sampling import Context, Turns
from volcore.kernels import crc32c, zero
from volcore.limits import BLOCK_SIZE_BYTES, CHUNK_SIZE_BYTES, GIB, MIB

CALLS = 8
AWSCRT_MIN = 0.95
RAM_MIN = 2.0
ZERO_MIN = 0.9


def run(context: Context) -> Iterator[Figure]:
    """Measure; see the module."""
    yield from _chunk(context)
    yield from _memory(context)


def _chunk(context: Context) -> Iterator[Figure]:
    data = random.Random(1).randbytes(CHUNK_SIZE_BYTES)
    # Not bytes(n): its pages would all be the one page of zeroes of the kernel.
    zeroes, target = b"\0" * CHUNK_SIZE_BYTES, memoryview(bytearray(CHUNK_SIZE_BYTES))
    flags = memoryview(bytearray(CHUNK_SIZE_BYTES // BLOCK_SIZE_BYTES))
    rival = _awscrt()
    contenders = {
        "crc32c": lambda: crc32c.crc32c(data),
        "zero": lambda: zero.find_zero_blocks(zeroes, BLOCK_SIZE_BYTES, flags),
        "memcpy": lambda: _copy(target, zeroes),
    }
    if rival is not None:
        contenders["awscrt"] = lambda: rival(data)
    turns = _turns(contenders, rounds=context.size(200, 2), calls=CALLS)
    rates = {name: turns.s(name).rates(CALLS * len(data) / 1e9) for name in contenders}
    yield Figure(
        scenario="kernels",
        name="CRC-32C of 4 MiB",
        unit="GB/s",
        ours=rates["crc32c"],
        rival="awscrt" if rival is not None else "awscrt (not installed)",
        theirs=rates.get("awscrt"),
        at_least=AWSCRT_MIN if rival is not None else None,
    )
    yield Figure(
        scenario="kernels",
        name="zero detection, 4 MiB",
        unit="GB/s",
        ours=rates["zero"],
        rival="memcpy",
        theirs=rates["memcpy"],
        at_least=ZERO_MIN,
    )


def _memory(context: Context) -> Iterator[Figure]:
    size_bytes = context.size(GIB, MIB)
    buffers = bytearray(size_bytes), bytearray(size_bytes)
    data, target = map(memoryview, buffers)
    for view in (data, target):  # otherwise all pages are the one page of zeroes of the kernel
        for at in range(0, size_bytes, MIB):
            view[at : at + MIB] = bytes(MIB)
    loops = _read_loops(context, buffers[0])
    contenders: dict[str, Callable[[], Any]] = {
        "crc32c": lambda: crc32c.crc32c(data),
        "memcpy": lambda: _copy(target, data),
        **loops,
    }
    turns = _turns(contenders, rounds=context.size(8, 2), calls=1)
    rates = {name: turns.s(name).rates(size_bytes / 1e9) for name in contenders}
    bound = max((rates[name] for name in loops), key=lambda rate: rate.median)
    for name, ours, bar in (
        ("CRC-32C from RAM", rates["crc32c"], RAM_MIN),
        ("bound: the best loop that only reads RAM", bound, None),
    ):
        yield Figure(
            scenario="kernels",
            name=name,
            unit="GB/s",
            ours=ours,
            rival="memcpy",
            theirs=rates["memcpy"],
            at_least=bar,
        )


def _read_loops(context: Context, data: bytearray) -> dict[str, Callable[[], Any]]:
    """Compile and return the loops of `read_bound.c` over `data`."""
    source, library = Path(__file__).with_name("read_bound.c"), context.directory / "bound.so"
    subprocess.run(
        ["cc", "-O3", "-march=native", "-shared", "-fPIC", "-o", library, source], check=True
    )
    loaded = ctypes.CDLL(str(library))
    start = (ctypes.c_char * len(data)).from_buffer(data)
    return {
        name: lambda loop=loaded[name]: loop(start, ctypes.c_size_t(len(data)))
        for name in ("read_ahead", "read_pages")
    }


def _turns(contenders: dict[str, Callable[[], Any]], *, rounds: int, calls: int) -> Turns:
    def repeat(call: Callable[[], Any]) -> None:
        for _ in range(calls):
            call()

    acts = {name: lambda _, call=call: repeat(call) for name, call in contenders.items()}
    return Turns().run(acts, rounds=rounds, warm_up=1)


def _copy(target: memoryview, source: bytes | memoryview) -> None:
    target[:] = source


def _awscrt() -> Callable[[bytes], int] | None:
    try:
        found: Callable[[bytes], int] = import_module("awscrt.checksums").crc32c
    except ImportError:
        return None
    return found
