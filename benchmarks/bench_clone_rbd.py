"""Clones on a real Ceph: the short path against librbd and the call sequence of Cinder's driver.

What it isolates: metadata only; no byte of a disk is read or written while the clock runs. All
contenders of a scenario take turns, on a cluster of the run's own (or that of --ceph-conf).
`volcore` is a server in a process of its own, asked over its socket; `backend` is the same path
without server and catalog. The floor is two small writes and an empty call. Deleting goes on
outside of the clock.

    .venv/bin/python -m benchmarks clone_rbd --store bluestore --rounds 60 --json DIR/clone.json
"""

import argparse
import contextlib
import itertools
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from benchmarks.local.report import Figure, Sample, print_table, write_json
from benchmarks.local.sampling import Turns
from volcore.backends.contract import ShortPathState
from volcore.backends.rbd import Cluster, RbdBackend
from volcore.backends.rbd.connection import ClusterOptions
from volcore.limits import GIB, MIB, TIB
from volcore.testing.cluster import CephAccess, CephCluster
from volcore.testing.server import RunningServer
from volcore.v1.pool_pb2 import PoolShortPath

FEATURES = 61
ORDER = 22
SMALL = b"x" * 64
POOLS = ("served", "warm", "direct", "plain")
DEPTH = 8
WARM = 256
"""Clones in stock: more than a scenario claims, so that none is made while the clock runs."""


class Bench:
    """The pools: one of the server, one of a backend here, one of plain librbd."""

    def __init__(self, access: CephAccess, directory: Path, undo: contextlib.ExitStack) -> None:
        import rados
        import rbd

        self.rbd = rbd
        self.rados = rados
        self.conf = str(access.conf_path)
        for pool in POOLS:
            access.create_pool(pool)
        self.cluster = undo.enter_context(self._connection())
        self.ioctx = undo.enter_context(self.cluster.open_ioctx("plain"))
        self.backend = RbdBackend(
            Cluster(ClusterOptions(conf_path=self.conf)), "direct", direct=True
        )
        self.backend.open()
        undo.callback(self.backend.close)
        assert self.backend.wait_for_short_path().state is ShortPathState.ON
        ceph = f'backend = "rbd"\nceph_conf = "{self.conf}"\npool'
        pools = f'{ceph} = "served"\n[pools.w]\n{ceph} = "warm"\nwarm_clones = {WARM}\n'
        self.server = undo.enter_context(RunningServer(directory, pools))
        self.client = undo.enter_context(self.server.client())
        while PoolShortPath.STATE_PROVING in self._states():
            time.sleep(0.1)
        assert self._states() == {PoolShortPath.STATE_ON}
        channel = undo.enter_context(grpc.insecure_channel(self.server.endpoint))
        self._health = health_pb2_grpc.HealthStub(channel)
        self._numbers = itertools.count()

    def _states(self) -> set[int]:
        return {int(pool.short_path.state) for pool in self.client.list_pools()}

    def _connection(self) -> Any:
        settings = {"rbd_default_clone_format": "2"}
        return self.rados.Rados(conffile=self.conf, rados_id="admin", conf=settings)

    def fresh(self, stem: str) -> str:
        return f"{stem}-{next(self._numbers)}"

    def parents(self, name: str, size_bytes: int, depth: int = 0) -> None:
        """A snapshot `s` of `name` in each pool, with so many ancestors."""
        client, librbd = self.client, self.rbd.RBD()
        last = ""
        for level in range(depth + 1):
            now = name if level == depth else f"{name}-{level}"
            if level == 0:
                librbd.create(self.ioctx, now, size_bytes, ORDER, False, FEATURES)
                self.backend.create(now, size_bytes)
                client.create_volume(f"pools/p/volumes/{now}", size_bytes=size_bytes)
            else:
                librbd.clone(self.ioctx, last, "s", self.ioctx, now, FEATURES, ORDER)
                self.backend.clone(last, "s", now, size_bytes)
                source = f"pools/p/volumes/{last}/snapshots/s"
                client.create_volume(f"pools/p/volumes/{now}", snapshot=source)
            with self.rbd.Image(self.ioctx, now) as image:
                image.create_snap("s")
            self.backend.create_snapshot(now, "s")
            client.create_snapshot(f"pools/p/volumes/{now}/snapshots/s")
            last = now

    def served(self, parent: str) -> None:
        source = f"pools/p/volumes/{parent}/snapshots/s"
        self.client.create_volume(f"pools/p/volumes/{self.fresh('v')}", snapshot=source)

    def stock(self, size_bytes: int) -> None:
        """Ask for so many that the stock reaches its bound, and wait for that."""
        names = [self.fresh("seed") for _ in range(WARM // 2)]
        self.client.deploy_volumes("pools/w/images/image", names, size_bytes=size_bytes)
        while self.client.get_pool("pools/w").warm_clones.ready_count < WARM:
            time.sleep(0.1)

    def claimed(self, size_bytes: int) -> None:
        made = self.client.create_volume(
            f"pools/w/volumes/{self.fresh('v')}",
            image="pools/w/images/image",
            size_bytes=size_bytes,
        )
        assert made.backend_name.startswith("warm-")

    def direct(self, parent: str, size_bytes: int) -> None:
        self.backend.clone(parent, "s", self.fresh("v"), size_bytes)

    def librbd(self, parent: str) -> None:
        name = self.fresh("v")
        self.rbd.RBD().clone(self.ioctx, parent, "s", self.ioctx, name, FEATURES, ORDER)

    def cinder(self, parent: str) -> None:
        """create_volume_from_snapshot: each step connects anew."""
        with self._connection() as cluster, cluster.open_ioctx("plain") as ioctx:
            with self.rbd.Image(ioctx, parent, read_only=True) as image:
                image.stripe_unit()
            with self._connection() as second, second.open_ioctx("plain") as target:
                name = self.fresh("v")
                self.rbd.RBD().clone(ioctx, parent, "s", target, name, FEATURES, ORDER)

    def empty_call(self) -> None:
        """The standard health service answers from memory."""
        self._health.Check(health_pb2.HealthCheckRequest())

    def one_write(self) -> None:
        self.ioctx.write_full("floor", SMALL)

    def two_writes(self) -> None:
        self.one_write()
        self.one_write()


def one(bench: Bench, rounds: int) -> Iterator[Figure]:
    """One clone of 10 GiB after the other."""
    turns = Turns().run(
        {
            "volcore": lambda _: bench.served("gold"),
            "backend": lambda _: bench.direct("gold", 10 * GIB),
            "rbd.clone": lambda _: bench.librbd("gold"),
            "Cinder's calls": lambda _: bench.cinder("gold"),
            "two writes": lambda _: bench.two_writes(),
            "empty call": lambda _: bench.empty_call(),
        },
        rounds=rounds,
        warm_up=3,
    )
    sample = {name: Sample(tuple(v * 1e3 for v in s)) for name, s in turns.times_s.items()}
    pairs = zip(sample["two writes"].values, sample["empty call"].values, strict=True)
    floor = Sample(tuple(a + b for a, b in pairs))
    for ours, rival, bar in (
        ("volcore", "rbd.clone", 0.40),
        ("volcore", "Cinder's calls", None),
        ("backend", "rbd.clone", 0.20),
    ):
        yield Figure(
            scenario="one clone", name=ours, unit="ms", ours=sample[ours],
            rival=rival, theirs=sample[rival], at_most=bar,
        )  # fmt: skip
    yield Figure(
        scenario="one clone", name="volcore", unit="ms", ours=sample["volcore"],
        rival="two writes + an empty call", theirs=floor, at_most=2.5,
    )  # fmt: skip
    yield Figure(
        scenario="one clone", name="backend", unit="ms", ours=sample["backend"],
        rival="two writes", theirs=sample["two writes"],
    )  # fmt: skip


def warm(bench: Bench, image_path: Path, rounds: int) -> Iterator[Figure]:
    """One clone of 10 GiB after the other, claimed from the stock of an image."""
    bench.client.import_image("pools/w/images/image", server_path=str(image_path))
    bench.stock(10 * GIB)
    turns = Turns().run(
        {
            "claimed": lambda _: bench.claimed(10 * GIB),
            "rbd.clone": lambda _: bench.librbd("gold"),
            "one write": lambda _: bench.one_write(),
            "empty call": lambda _: bench.empty_call(),
        },
        rounds=min(rounds, WARM // 2 - 4),
        warm_up=3,
    )
    sample = {name: Sample(tuple(v * 1e3 for v in s)) for name, s in turns.times_s.items()}
    pairs = zip(sample["one write"].values, sample["empty call"].values, strict=True)
    for rival, theirs, bar in (
        ("rbd.clone", sample["rbd.clone"], 0.15),
        ("one write + an empty call", Sample(tuple(a + b for a, b in pairs)), None),
    ):
        yield Figure(
            scenario="one clone", name="volcore, claimed warm", unit="ms", ours=sample["claimed"],
            rival=rival, theirs=theirs, at_most=bar,
        )  # fmt: skip


def deep(bench: Bench, rounds: int) -> Iterator[Figure]:
    """A parent with seven ancestors against one with none."""
    bench.parents("deep", 10 * GIB, DEPTH - 1)
    turns = Turns().run(
        {
            "deep": lambda _: bench.served("deep"),
            "flat": lambda _: bench.served("gold"),
            "librbd deep": lambda _: bench.librbd("deep"),
        },
        rounds=rounds,
        warm_up=2,
    )
    yield compared("depth 8 / depth 1", "volcore", turns, "deep", "flat", 1.15)
    yield compared("depth 8", "volcore", turns, "deep", "librbd deep", None)


def large(bench: Bench, rounds: int) -> Iterator[Figure]:
    """Sizes: what grows is the object map."""
    for name, size_bytes in (("1t", TIB), ("16t", 16 * TIB)):
        bench.parents(name, size_bytes)
    turns = Turns().run(
        {
            "1 TiB": lambda _: bench.served("1t"),
            "10 GiB": lambda _: bench.served("gold"),
            "16 TiB": lambda _: bench.served("16t"),
            "librbd 1 TiB": lambda _: bench.librbd("1t"),
            "librbd 16 TiB": lambda _: bench.librbd("16t"),
        },
        rounds=max(8, rounds // 3),
        warm_up=2,
    )
    yield compared("1 TiB / 10 GiB", "volcore", turns, "1 TiB", "10 GiB", 1.5)
    yield compared("1 TiB", "volcore", turns, "1 TiB", "librbd 1 TiB", None)
    yield compared("16 TiB", "volcore", turns, "16 TiB", "librbd 16 TiB", 0.25)


def compared(
    scenario: str, name: str, turns: Turns, ours: str, theirs: str, bar: float | None
) -> Figure:
    found = {key: Sample(tuple(v * 1e3 for v in turns.times_s[key])) for key in (ours, theirs)}
    return Figure(
        scenario=scenario, name=name, unit="ms", ours=found[ours],
        rival=theirs, theirs=found[theirs], at_most=bar,
    )  # fmt: skip


def many(bench: Bench, image_path: Path, rounds: int) -> Iterator[Figure]:
    """Rates: one call for 64, and 200 calls from 32 callers, against 16 threads of librbd."""
    bench.client.import_image("pools/p/images/image", server_path=str(image_path))
    rates: dict[str, list[float]] = {}
    for _ in range(rounds):
        for name, count, act in (
            ("batch", 64, lambda: bench.client.deploy_volumes(
                "pools/p/images/image", [bench.fresh("b") for _ in range(64)])),
            ("singles", 200, lambda: spread(lambda: bench.served("gold"), 200, 32)),
            ("librbd", 64, lambda: spread(lambda: bench.librbd("gold"), 64, 16)),
        ):  # fmt: skip
            start = time.perf_counter()
            act()
            rates.setdefault(name, []).append(count / (time.perf_counter() - start))
    librbd = Sample(tuple(rates["librbd"]))
    for name, bar in (("batch", 4.0), ("singles", 2.5)):
        yield Figure(
            scenario="clones per second", name=f"volcore, {name}", unit="/s",
            ours=Sample(tuple(rates[name])), rival="librbd, 16 threads", theirs=librbd,
            at_least=bar,
        )  # fmt: skip


def spread(act: Callable[[], object], count: int, callers: int) -> None:
    """Call so often from so many threads."""
    gate = threading.Barrier(callers)
    shares = [count // callers + (number < count % callers) for number in range(callers)]

    def work(share: int) -> None:
        gate.wait()
        for _ in range(share):
            act()

    with ThreadPoolExecutor(callers) as pool:
        list(pool.map(work, shares))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", choices=["bluestore", "memstore"], default="bluestore")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--only", choices=["one", "warm", "deep", "large", "many"])
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    figures: list[Figure] = []
    with contextlib.ExitStack() as undo:
        work = Path(undo.enter_context(tempfile.TemporaryDirectory()))
        access = undo.enter_context(CephCluster(store=chosen.store))
        bench = Bench(access, work / "server", undo)
        image = work / "server" / "image.raw"
        image.write_bytes(bytes(range(256)) * (MIB // 256) * 8)
        bench.parents("gold", 10 * GIB)
        rounds = chosen.rounds
        for name, scenario in {
            "one": lambda: one(bench, rounds),
            "warm": lambda: warm(bench, image, rounds),
            "deep": lambda: deep(bench, rounds),
            "large": lambda: large(bench, rounds),
            "many": lambda: many(bench, image, max(3, rounds // 15)),
        }.items():
            if chosen.only in (None, name):
                figures += scenario()
    facts = [chosen.store, f"{os.cpu_count()} processors", "one monitor, one OSD, size 1"]
    print_table(figures, facts)
    if chosen.json is not None:
        write_json(chosen.json, figures, facts)


if __name__ == "__main__":
    main()
