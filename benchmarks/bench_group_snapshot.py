"""How long a group snapshot of a local pool keeps writers waiting.

What it isolates: threads write 4 KiB blocks to every volume of the group through open devices, each
flushing now and then, while groups are cut and deleted. Pause: the longest time during a cut in
which no writer at all ended a write; beside it the same between cuts (flushes, the disk, the
machine), which no snapshot explains. Prints medians and maxima; asserts nothing.

    .venv/bin/python benchmarks/bench_group_snapshot.py --volumes 8 --rounds 20 --directory DIR
"""

import argparse
import random
import statistics
import tempfile
import threading
import time
from itertools import pairwise
from pathlib import Path

from volcore.backends.local import LocalBackend, LocalStore
from volcore.limits import BLOCK_SIZE_BYTES, GIB

FLUSH_EVERY = 256
SPAN_BLOCKS = 16_384
"""Blocks that a writer writes to: 64 MiB."""


class Writer(threading.Thread):
    """Writes random blocks of one volume; notes when each write ended."""

    def __init__(self, backend: LocalBackend, volume: str, stop: threading.Event) -> None:
        super().__init__()
        self._device = backend.open_device(volume, read_only=False)
        self._stop_event = stop
        self.ends: list[float] = []

    def run(self) -> None:
        generator, data = random.Random(self.name), bytes(range(256)) * 16
        with self._device as device:
            while not self._stop_event.is_set():
                offset = generator.randrange(SPAN_BLOCKS) * BLOCK_SIZE_BYTES
                device.write(offset, data)
                self.ends.append(time.perf_counter())
                if len(self.ends) % FLUSH_EVERY == 0:
                    device.flush()


def measure(backend: LocalBackend, volumes: list[str], rounds: int) -> None:
    stop = threading.Event()
    writers = [Writer(backend, volume, stop) for volume in volumes]
    for writer in writers:
        writer.start()
    cuts: list[tuple[float, float]] = []
    for number in range(rounds):
        time.sleep(0.2)
        start = time.perf_counter()
        members = [(volume, f"s{number}") for volume in volumes]
        backend.sync_ahead(volumes)
        backend.create_group_snapshot(members)
        cuts.append((start, time.perf_counter()))
        for volume, snapshot in members:
            backend.delete_snapshot(volume, snapshot)
    stop.set()
    for writer in writers:
        writer.join()
    ends = sorted(end for writer in writers for end in writer.ends)
    gaps = list(pairwise(ends))
    pauses = [max(b - a for a, b in gaps if a < end and b > begin) for begin, end in cuts]
    others = [b - a for a, b in gaps if not any(a < end and b > begin for begin, end in cuts)]
    calls = [end - begin for begin, end in cuts]
    print(f"{len(volumes)} volumes, {len(ends) / (ends[-1] - ends[0]):.0f} writes/s")
    for name, values in (("call", calls), ("pause", pauses)):
        middle, most = statistics.median(values) * 1e3, max(values) * 1e3
        print(f"  {name:<6} median {middle:7.1f} ms   longest {most:7.1f} ms")
    print(f"  between cuts                   longest {max(others) * 1e3:7.1f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--volumes", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--directory", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.directory) as directory:
        backend = LocalBackend(LocalStore.open(Path(directory) / "pool"))
        backend.open()
        volumes = [f"v{index}" for index in range(options.volumes)]
        for volume in volumes:
            backend.create(volume, GIB)
        for count in sorted({1, options.volumes}):
            measure(backend, volumes[:count], options.rounds)
        backend.close()


if __name__ == "__main__":
    main()
