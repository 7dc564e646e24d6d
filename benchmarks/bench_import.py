"""Import of a qcow2 file into a local pool, against `qemu-img convert` of the same file.

What it isolates: one uncompressed qcow2 of random bytes with some holes, warm in the page cache,
into the same directory, interleaved round by round, with a quiet disk before each. The rival is
measured twice: as it ends (its output may be lost by a power failure), and until its output is
durable, which is what an import promises at its end. Prints medians; asserts nothing.

    .venv/bin/python benchmarks/bench_import.py --size-mib 2048 --rounds 5 --directory DIR
"""

import argparse
import os
import random
import resource
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from volcore.backends.local import LocalBackend, LocalStore
from volcore.images.convert import convert_into
from volcore.images.inspect import inspect
from volcore.limits import MIB

HOLE_SHARE = 1 / 16


def make_source(directory: Path, size_mib: int) -> Path:
    raw, source = directory / "source.raw", directory / "source.qcow2"
    generator = random.Random(1)
    with raw.open("wb") as file:
        for _ in range(size_mib):
            if generator.random() < HOLE_SHARE:
                file.seek(MIB, os.SEEK_CUR)
            else:
                file.write(os.urandom(MIB))
        file.truncate(size_mib * MIB)
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, source], check=True)
    raw.unlink()
    return source


def sync_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


class Rows:
    """Seconds and processor seconds of each contender."""

    def __init__(self) -> None:
        self.wall: dict[str, list[float]] = {}
        self.cpu: dict[str, list[float]] = {}

    def measure(self, name: str, work: Callable[[], None]) -> None:
        before, start = _cpu_s(), time.perf_counter()
        work()
        self.add(name, time.perf_counter() - start, _cpu_s() - before)

    def add(self, name: str, wall_s: float, cpu_s: float) -> None:
        self.wall.setdefault(name, []).append(wall_s)
        self.cpu.setdefault(name, []).append(cpu_s)

    def wall_s(self, name: str) -> float:
        return statistics.median(self.wall[name])


def _cpu_s() -> float:
    return sum(
        used.ru_utime + used.ru_stime
        for used in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def rival(rows: Rows, source: Path, directory: Path) -> None:
    target = directory / "rival.raw"
    command = ["qemu-img", "convert", "-f", "qcow2", "-O", "raw", source, target]
    rows.measure("qemu-img convert", lambda: subprocess.run(command, check=True))
    rows.measure("its sync", lambda: sync_file(target))
    rows.add(
        "qemu-img convert, sync",
        rows.wall["qemu-img convert"][-1] + rows.wall["its sync"][-1],
        rows.cpu["qemu-img convert"][-1] + rows.cpu["its sync"][-1],
    )
    target.unlink()


def ours(rows: Rows, source: Path, directory: Path) -> None:
    with tempfile.TemporaryDirectory(dir=directory) as place:
        backend = LocalBackend(LocalStore.open(Path(place) / "pool"))
        backend.open()
        try:
            rows.measure("volcore import", lambda: _import(backend, source))
        finally:
            backend.close()


def _import(backend: LocalBackend, source: Path) -> None:
    with source.open("rb") as file:
        facts = inspect(file)
        backend.create("volume", facts.virtual_size_bytes)
        with backend.open_device("volume", read_only=False) as device:
            convert_into(file, facts, device, progress=lambda done, total: None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size-mib", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--directory", type=Path, default=Path(tempfile.gettempdir()))
    options = parser.parse_args()
    rows = Rows()
    with tempfile.TemporaryDirectory(dir=options.directory, prefix="bench-import-") as place:
        directory = Path(place)
        source = make_source(directory, options.size_mib)
        for number in range(options.rounds + 1):
            if number == 1:  # the first round warms everything up
                rows = Rows()
            for contender in (rival, ours):
                os.sync()
                contender(rows, source, directory)
    print(f"{options.size_mib} MiB qcow2, {options.rounds} rounds, {os.cpu_count()} processors")
    for name, values in rows.wall.items():
        cpu = statistics.median(rows.cpu[name])
        spread = f"{min(values):.2f} to {max(values):.2f}"
        print(f"{name:<24} {rows.wall_s(name):6.2f} s ({spread})  CPU {cpu:5.2f} s")
    for name in ("qemu-img convert", "qemu-img convert, sync"):
        print(f"ratio to {name:<24} {rows.wall_s('volcore import') / rows.wall_s(name):.2f}")


if __name__ == "__main__":
    main()
