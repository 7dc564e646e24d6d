"""Snapshots and clones of live volumes on a real Ceph, against librbd and Cinder's driver.

What it isolates: metadata only, with Ceph's default pause of a second between changes of a map.
Contenders of a scenario take turns on a cluster of the run's own; `volcore` is a server in a
process of its own, `backend` the same path without server and catalog. `librbd` keeps its image
open, as a client that has nothing else to do would; Cinder's driver connects and opens for each
call. Attached volumes are open, with the lock, in another client; their snapshots go through
librbd, from so many threads at once.

    .venv/bin/python -m benchmarks snapshot_rbd --store bluestore --rounds 20 --json DIR/s.json
"""

import argparse
import contextlib
import os
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.bench_clone_rbd import FEATURES, ORDER, Bench
from benchmarks.local.report import Figure, Sample, print_table, write_json
from benchmarks.local.sampling import Turns
from volcore.limits import GIB, MIB
from volcore.testing import cluster
from volcore.testing.cluster import CephCluster

SIZE_BYTES = 10 * GIB
ATTACHED = 100
QUICK_MAPS = "paxos propose interval = 0.02\npaxos min wait = 0.01\n"
"""What test clusters change to save time."""
assert QUICK_MAPS in cluster._CONF


def figure(
    scenario: str, ours: str, rival: str, turns: Turns, *, at_most: float | None = None
) -> Figure:
    times = {key: Sample(tuple(v * 1e3 for v in turns.times_s[key])) for key in (ours, rival)}
    return Figure(
        scenario=scenario, name=ours, unit="ms", ours=times[ours],
        rival=rival, theirs=times[rival], at_most=at_most,
    )  # fmt: skip


def make(bench: Bench, name: str) -> None:
    """The same volume, with some bytes, in each pool."""
    bench.rbd.RBD().create(bench.ioctx, name, SIZE_BYTES, ORDER, False, FEATURES)
    bench.backend.create(name, SIZE_BYTES)
    with bench.rbd.Image(bench.ioctx, name) as image:
        image.write(bytes(MIB), 0)
    with bench.backend.open_device(name, read_only=False) as device:
        device.write(0, bytes(MIB))
    bench.client.create_volume(f"pools/p/volumes/{name}", size_bytes=SIZE_BYTES)


def detached(bench: Bench, rounds: int) -> Iterator[Figure]:
    """Snapshots of one volume, back to back."""
    make(bench, "v")
    with bench.rbd.Image(bench.ioctx, "v") as image:
        turns = Turns().run(
            {
                "volcore": lambda _: bench.client.create_snapshot(
                    f"pools/p/volumes/v/snapshots/{bench.fresh('s')}"
                ),
                "backend": lambda _: bench.backend.create_snapshot("v", bench.fresh("s")),
                "librbd": lambda _: image.create_snap(bench.fresh("s")),
                "two writes": lambda _: bench.two_writes(),
            },
            rounds=rounds,
            warm_up=2,
        )
    yield figure("snapshot, detached", "volcore", "librbd", turns, at_most=0.02)
    yield figure("snapshot, detached", "backend", "librbd", turns, at_most=0.02)
    yield figure("snapshot, detached", "backend", "two writes", turns)


def cinder_clone(bench: Bench, source: str) -> None:
    """create_cloned_volume of Cinder's driver."""
    name = bench.fresh("c")
    snapshot = f"{name}.clone_snap"
    with bench._connection() as connection, connection.open_ioctx("plain") as ioctx:
        with bench.rbd.Image(ioctx, source) as image:
            image.create_snap(snapshot)
            image.protect_snap(snapshot)
            bench.rbd.RBD().clone(ioctx, source, snapshot, ioctx, name, FEATURES, ORDER)
        with (
            bench.rbd.Image(ioctx, source, read_only=True) as image,
            contextlib.suppress(bench.rbd.ImageNotFound),
        ):
            image.parent_info()


def live(bench: Bench, rounds: int) -> Iterator[Figure]:
    """A volume from a volume that nobody has open."""
    make(bench, "w")
    turns = Turns().run(
        {
            "volcore": lambda _: bench.client.create_volume(
                f"pools/p/volumes/{bench.fresh('c')}", volume="pools/p/volumes/w"
            ),
            "backend": lambda _: bench.backend.clone("w", None, bench.fresh("c"), SIZE_BYTES),
            "Cinder's calls": lambda _: cinder_clone(bench, "w"),
        },
        rounds=rounds,
        warm_up=2,
    )
    yield figure("volume from volume", "volcore", "Cinder's calls", turns, at_most=0.10)
    yield figure("volume from volume", "backend", "Cinder's calls", turns, at_most=0.10)


def attached(bench: Bench, rounds: int) -> Iterator[Figure]:
    """Snapshots of many volumes at once that another client writes to."""
    names = [f"a{number}" for number in range(ATTACHED)]
    with bench._connection() as connection, connection.open_ioctx("served") as ioctx:
        before = set(bench.rbd.RBD().list(ioctx))
        for name in names:
            bench.client.create_volume(f"pools/p/volumes/{name}", size_bytes=SIZE_BYTES)
        with contextlib.ExitStack() as undo:
            for name in set(bench.rbd.RBD().list(ioctx)) - before:
                image = undo.enter_context(bench.rbd.Image(ioctx, name))
                image.write(b"attached", 0)
            times_s = []
            for _ in range(rounds):
                start = time.perf_counter()
                spread_snapshots(bench, names, bench.fresh("s"))
                times_s.append(time.perf_counter() - start)
    yield Figure(
        scenario=f"{ATTACHED} attached volumes together", name="volcore", unit="s",
        ours=Sample(tuple(times_s)), at_most=3.0,
    )  # fmt: skip


def spread_snapshots(bench: Bench, volumes: list[str], snapshot: str) -> None:
    """Ask for a snapshot of each volume, all at the same time."""

    def ask(volume: str) -> None:
        bench.client.create_snapshot(f"pools/p/volumes/{volume}/snapshots/{snapshot}")

    with ThreadPoolExecutor(len(volumes)) as pool:
        list(pool.map(ask, volumes))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", choices=["bluestore", "memstore"], default="bluestore")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    figures: list[Figure] = []
    with contextlib.ExitStack() as undo:
        work = Path(undo.enter_context(tempfile.TemporaryDirectory()))
        cluster._CONF = cluster._CONF.replace(QUICK_MAPS, "")
        access = undo.enter_context(CephCluster(store=chosen.store))
        bench = Bench(access, work / "server", undo)
        figures += detached(bench, chosen.rounds)
        figures += live(bench, chosen.rounds)
        figures += attached(bench, max(2, chosen.rounds // 7))
    facts = [chosen.store, f"{os.cpu_count()} processors", "one monitor, one OSD, size 1"]
    print_table(figures, facts)
    if chosen.json is not None:
        write_json(chosen.json, figures, facts)


if __name__ == "__main__":
    main()
