"""Import of a raw file into a local pool, against `qemu-img convert` of it to raw.

Random bytes with 1/16 holes, warm, a quiet disk before each. An import is durable at its end and
has hashed the content; the rival is shown as it ends, and until what it wrote is durable as well.
"""

import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

from benchmarks.bench_import import HOLE_SHARE, Rows, ours, sync_file
from benchmarks.report import Figure, Sample
from benchmarks.sampling import Context
from volcore.limits import MIB

RATIO_MIN = 1.0


def run(context: Context) -> Iterator[Figure]:
    """Measure; see the module."""
    directory = context.place("import")
    size_mib = context.size(1024, 8)
    source = directory / "source.raw"
    random_bytes(source, size_mib, hole_share=HOLE_SHARE)
    rows = Rows()
    for number in range(context.size(5, 1) + 1):
        if number == 1:  # the first round warms everything up
            rows = Rows()
        contenders = (_rival, ours) if number % 2 else (ours, _rival)
        for contender in contenders:
            os.sync()
            contender(rows, source, directory)
    for name in ("qemu-img convert", "qemu-img convert and sync"):
        yield Figure(
            scenario="import",
            name=f"raw, {size_mib} MiB",
            unit="MiB/s",
            ours=_rates(rows, "volcore import", size_mib),
            rival=name,
            theirs=_rates(rows, name, size_mib),
            at_least=RATIO_MIN,
        )


def _rates(rows: Rows, name: str, size_mib: int) -> Sample:
    return Sample(tuple(rows.wall[name])).rates(size_mib)


def random_bytes(path: Path, size_mib: int, *, hole_share: float = 0) -> None:
    """Write a raw image, a share of whose mebibytes are holes."""
    generator = random.Random(1)
    with path.open("wb") as file:
        for _ in range(size_mib):
            if generator.random() < hole_share:
                file.seek(MIB, os.SEEK_CUR)
            else:
                file.write(os.urandom(MIB))
        file.truncate(size_mib * MIB)


def _rival(rows: Rows, source: Path, directory: Path) -> None:
    target = directory / "rival.raw"
    command = ["qemu-img", "convert", "-f", "raw", "-O", "raw", source, target]
    rows.measure("qemu-img convert", lambda: subprocess.run(command, check=True, timeout=120))
    rows.measure("its sync", lambda: sync_file(target))
    rows.add(
        "qemu-img convert and sync",
        rows.wall["qemu-img convert"][-1] + rows.wall["its sync"][-1],
        rows.cpu["qemu-img convert"][-1] + rows.cpu["its sync"][-1],
    )
    target.unlink()
