"""Lists of what changed since a snapshot, against librbd's own and the `rbd` command.

What it isolates: an image of 100 GiB, all of it written once (4 KiB in each object), 0.5 % of its
objects written again after a snapshot. No byte of data is read while the clock runs. Contenders
take turns; their lists are compared before.

    .venv/bin/python -m benchmarks diff_rbd --store memstore --rounds 10 --json DIR/diff.json
"""

import argparse
import contextlib
import json
import os
import random
import subprocess
import tempfile
from pathlib import Path

from benchmarks.local.report import Figure, Sample, print_table, write_json
from benchmarks.local.sampling import Turns
from volcore.backends.rbd import Cluster, RbdBackend, extents
from volcore.backends.rbd.connection import ClusterOptions
from volcore.limits import CHUNK_SIZE_BYTES, GIB
from volcore.model.extent import ExtentKind
from volcore.testing.cluster import CephCluster

SIZE_BYTES = 100 * GIB
CHANGED = 0.005
PIECE = 4 << 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", choices=["bluestore", "memstore"], default="memstore")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    import rbd

    with contextlib.ExitStack() as undo:
        undo.enter_context(tempfile.TemporaryDirectory())
        access = undo.enter_context(CephCluster(store=chosen.store))
        access.create_pool("p")
        options = ClusterOptions(conf_path=str(access.conf_path))
        backend = RbdBackend(Cluster(options), "p")
        backend.open()
        undo.callback(backend.close)
        fill(backend)

        def exact() -> list[extents.Extent]:
            with rbd.Image(backend._session().ioctx, "v") as image:
                return extents._diff(image, 0, image.size(), "s")

        def command() -> list[dict[str, object]]:
            words = ["rbd", "--conf", str(access.conf_path), "diff", "--from-snap", "s", "p/v"]
            found = subprocess.run([*words, "--format", "json"], capture_output=True, check=True)
            return list(json.loads(found.stdout))

        ours = backend.diff("v", "s", None)
        assert ours == exact()
        pairs = [(int(str(one["offset"])), int(str(one["length"]))) for one in command()]
        assert extents._merged((*pair, True) for pair in sorted(pairs)) == ours
        assert all(one.kind == ExtentKind.DATA for one in ours)
        turns = Turns().run(
            {
                "volcore": lambda _: backend.diff("v", "s", None),
                "librbd, exact": lambda _: exact(),
                "rbd diff": lambda _: command(),
            },
            rounds=chosen.rounds,
            warm_up=1,
        )
    sample = {name: Sample(tuple(v * 1e3 for v in s)) for name, s in turns.times_s.items()}
    figures = [
        Figure(
            scenario="0.5 % of 100 GiB", name="volcore", unit="ms", ours=sample["volcore"],
            rival=rival, theirs=sample[rival], at_most=bar,
        )
        for rival, bar in (("rbd diff", 0.05), ("librbd, exact", None))
    ]  # fmt: skip
    facts = [chosen.store, f"{os.cpu_count()} processors", "one monitor, one OSD, size 1"]
    print_table(figures, facts)
    if chosen.json is not None:
        write_json(chosen.json, figures, facts)


def fill(backend: RbdBackend) -> None:
    """Write all objects, freeze them, write some of them again."""
    chunk_count = SIZE_BYTES // CHUNK_SIZE_BYTES
    dice = random.Random(1)
    backend.create("v", SIZE_BYTES)
    with backend.open_device("v", read_only=False) as device:
        for chunk in range(chunk_count):
            device.write(chunk * CHUNK_SIZE_BYTES, bytes([1]) * PIECE)
        backend.create_snapshot("v", "s")
        for chunk in dice.sample(range(chunk_count), int(chunk_count * CHANGED)):
            device.write(chunk * CHUNK_SIZE_BYTES + dice.randrange(64) * PIECE, bytes([2]) * PIECE)


if __name__ == "__main__":
    main()
