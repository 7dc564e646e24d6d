"""Kernels: three rows each - native, pure, nearest rival - on this machine.

    python benchmarks/bench_kernels.py [--fast]

Layouts, and what each isolates:
  chunk      4 MiB of random bytes, warm: the work of one chunk, as fast as caches allow
  block      4 KiB: what a call costs
  memory     256 MiB: larger than any cache, the memory is the limit
  map        1024 blocks, runs of 1 to 64: the block map of one chunk
Rates are the best of several runs (GB/s = 10**9 bytes a second). Nothing is asserted. `awscrt` is
shown where it is installed; it is no dependency.
"""

import argparse
import random
import zlib
from array import array
from importlib import import_module
from time import perf_counter

from volcore.kernels import kernel_name, select

BLOCK_BYTES = 4096
CHUNK_BYTES = 4 << 20
MEMORY_BYTES = 256 << 20
STRIPES = {"object_size_bytes": 4 << 20, "stripe_unit_bytes": 64 << 10, "stripe_count": 16}


def best_seconds(call, seconds):
    """Best time of one call, trying for about `seconds`."""
    call()
    best, until, loops = float("inf"), perf_counter() + seconds, 1
    while True:
        start = perf_counter()
        for _ in range(loops):
            call()
        now = perf_counter()
        best = min(best, (now - start) / loops)
        if now > until:
            return best
        if now - start < 1e-4:
            loops *= 2


def show(layout, row, seconds, size_bytes=0):
    rate = f"{size_bytes / seconds / 1e9:10.2f} GB/s" if size_bytes else " " * 15
    print(f"{layout:34} {row:24} {seconds * 1e6:12.2f} us {rate}")


class Bench:
    def __init__(self, seconds):
        self.seconds = seconds
        self.pure = {name: import_module(f"volcore.kernels.pure.{name}") for name in select.KERNELS}
        self.native = None
        if select.CHOICE == select.NATIVE:
            names = select.KERNELS
            self.native = {n: import_module(f"volcore.kernels._native.{n}") for n in names}

    def rows(self, layout, kernel, call, rivals, *, size_bytes=0, pure_share=1):
        """Native, pure (on 1/pure_share of the work, scaled up), rivals."""
        if self.native:
            seconds = best_seconds(lambda: call(self.native[kernel], 1), self.seconds)
            show(layout, "native", seconds, size_bytes)
        pure = best_seconds(lambda: call(self.pure[kernel], pure_share), 0) * pure_share
        show(layout, "pure", pure, size_bytes)
        for name, rival in rivals:
            show(layout, name, best_seconds(rival, self.seconds), size_bytes)
        print()


def whole_rivals(data):
    rivals = [("zlib.crc32", lambda: zlib.crc32(data))]
    try:
        from awscrt.checksums import crc32c as rival
    except ImportError:
        return rivals
    return [*rivals, ("awscrt.checksums.crc32c", lambda: rival(data))]


def bench_crc32c(bench):
    data = random.Random(1).randbytes(CHUNK_BYTES)
    count = CHUNK_BYTES // BLOCK_BYTES
    target, out = bytearray(CHUNK_BYTES), array("I", bytes(4 * count))
    view, to, crcs = memoryview(data), memoryview(target), memoryview(out)

    def part(share):
        return view[: CHUNK_BYTES // share], crcs[: count // share]

    def copy():
        to[:] = view

    if bench.native:
        kernel = bench.native["crc32c"]
        chosen = kernel.implementation()
        for name in kernel.implementations():
            kernel.use_implementation(name)
            seconds = best_seconds(lambda: kernel.crc32c(data), bench.seconds)
            show("crc32c chunk", f"native {name}", seconds, CHUNK_BYTES)
        kernel.use_implementation(chosen)
    bench.rows(
        "crc32c chunk",
        "crc32c",
        lambda k, share: k.crc32c(part(share)[0]),
        [*whole_rivals(data), ("memcpy", copy)],
        size_bytes=CHUNK_BYTES,
        pure_share=64,
    )
    block = data[:BLOCK_BYTES]
    bench.rows(
        "crc32c block",
        "crc32c",
        lambda k, _: k.crc32c(block),
        whole_rivals(block),
        size_bytes=BLOCK_BYTES,
    )
    blocks = [data[at : at + BLOCK_BYTES] for at in range(0, CHUNK_BYTES, BLOCK_BYTES)]
    each = [("zlib.crc32, a call a block", lambda: [zlib.crc32(block) for block in blocks])]
    bench.rows(
        "crc32c_blocks chunk",
        "crc32c",
        lambda k, share: k.crc32c_blocks(part(share)[0], BLOCK_BYTES, part(share)[1]),
        each,
        size_bytes=CHUNK_BYTES,
        pure_share=64,
    )
    bench.rows(
        "find_bad_block chunk, none bad",
        "crc32c",
        lambda k, share: k.find_bad_block(part(share)[0], BLOCK_BYTES, part(share)[1]),
        each,
        size_bytes=CHUNK_BYTES,
        pure_share=64,
    )
    bench.rows(
        "copy_crc32c_blocks chunk",
        "crc32c",
        lambda k, share: k.copy_crc32c_blocks(
            to[: CHUNK_BYTES // share], part(share)[0], BLOCK_BYTES, part(share)[1]
        ),
        [("memcpy", copy)],
        size_bytes=CHUNK_BYTES,
        pure_share=64,
    )
    bench.rows(
        "crc32c_combine",
        "crc32c",
        lambda k, _: k.crc32c_combine(0x12345678, 0x9ABCDEF0, CHUNK_BYTES),
        [("zlib.crc32 of 4 KiB", lambda: zlib.crc32(block))],
    )


def bench_memory(bench):
    data, target = bytearray(MEMORY_BYTES), bytearray(MEMORY_BYTES)
    view, to = memoryview(data), memoryview(target)

    def copy():
        to[:] = view

    bench.rows(
        "crc32c memory",
        "crc32c",
        lambda k, share: k.crc32c(view[: MEMORY_BYTES // share]),
        [*whole_rivals(data), ("memcpy", copy)],
        size_bytes=MEMORY_BYTES,
        pure_share=4096,
    )
    bench.rows(
        "is_zero memory",
        "zero",
        lambda k, share: k.is_zero(view[: MEMORY_BYTES // share]),
        [("memcpy", copy)],
        size_bytes=MEMORY_BYTES,
        pure_share=4096,
    )


def bench_zero(bench):
    zeroes, target = bytes(CHUNK_BYTES), bytearray(CHUNK_BYTES)
    to, count = memoryview(target), CHUNK_BYTES // BLOCK_BYTES
    flags = memoryview(bytearray(count))

    def copy():
        to[:] = zeroes

    for layout, data in (
        ("find_zero_blocks chunk, all zero", zeroes),
        ("find_zero_blocks chunk, random", random.Random(2).randbytes(CHUNK_BYTES)),
    ):
        view, zero = memoryview(data), bytes(BLOCK_BYTES)
        parts = [data[at : at + BLOCK_BYTES] for at in range(0, CHUNK_BYTES, BLOCK_BYTES)]
        bench.rows(
            layout,
            "zero",
            lambda k, share, view=view: k.find_zero_blocks(
                view[: CHUNK_BYTES // share], BLOCK_BYTES, flags[: count // share]
            ),
            [
                ("memcpy", copy),
                ("block == zeroes", lambda parts=parts, zero=zero: [p == zero for p in parts]),
            ],
            size_bytes=CHUNK_BYTES,
            pure_share=16,
        )


def bench_chunkmap(bench):
    rng, states = random.Random(3), bytearray()
    while len(states) < 1024:
        states += bytes([rng.randrange(3)]) * rng.randint(1, 64)
    states = states[:1024]
    crcs, owners = array("I", bytes(4096)), array("H", [0xFFFF] * 1024)
    fresh, other = bytes(owners), bytearray(8192)

    def overlay(kernel, _):
        memoryview(owners).cast("B")[:] = fresh
        return kernel.overlay(owners, crcs, states, crcs_below, 3)

    def copy():
        other[:] = source

    crcs_below, source = array("I", range(1024)), bytes(8192)
    rival = [("memcpy of as many bytes", copy)]
    changed, lower = bytearray(1024), bytearray(states)
    bench.rows("overlay map", "chunkmap", overlay, rival)
    bench.rows("resolve_runs map", "chunkmap", lambda k, _: k.resolve_runs(owners, 0, 1024), rival)
    bench.rows("state_runs map", "chunkmap", lambda k, _: k.state_runs(states, 0, 1024), rival)
    bench.rows("freeze map", "chunkmap", lambda k, _: k.freeze(states, crcs), rival)
    bench.rows("diff map", "chunkmap", lambda k, _: k.diff(changed, states), rival)
    bench.rows("merge map", "chunkmap", lambda k, _: k.merge(lower, crcs, states, crcs), rival)
    bench.rows("mark map, 16 blocks", "chunkmap", lambda k, _: k.mark(lower, 100, 16, 1), rival)


def bench_extents(bench):
    pieces = [(at, 0, 65536, at << 16) for at in range(64)]
    bench.rows(
        "map_extents 4 MiB, 64 pieces",
        "extents",
        lambda k, _: k.map_extents(1 << 40, 4 << 20, **STRIPES),
        [("copy of 64 tuples", lambda: [(a, b, c, d) for a, b, c, d in pieces])],
    )
    ordered = [(at * 8192, 4096 * (1 + at % 2), at % 3) for at in range(1000)]
    mixed = random.Random(4).sample(ordered, len(ordered))
    for name, items in (("in order", ordered), ("mixed", mixed)):
        bench.rows(
            f"merge_extents 1000, {name}",
            "extents",
            lambda k, share, items=items: k.merge_extents(items[: len(items) // share]),
            [("sorted", lambda items=items: sorted(items))],
            pure_share=4,
        )


def main():
    parser = argparse.ArgumentParser(description="Measure the kernels.")
    parser.add_argument("--fast", action="store_true", help="short runs; rough numbers")
    bench = Bench(0.02 if parser.parse_args().fast else 0.5)
    print(f"kernels: {kernel_name()}\n")
    for part in (bench_crc32c, bench_memory, bench_zero, bench_chunkmap, bench_extents):
        part(bench)


if __name__ == "__main__":
    main()
