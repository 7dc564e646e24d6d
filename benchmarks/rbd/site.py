"""A Ceph of the run's own, a server on it, and plain librbd beside it.

few       pool of the server, with few volumes (its pool `p`)
warm      pool of the server, with a stock of ready clones
many      pool of the server, filled on demand: 10,000 volumes, 8,000 of them of one image
direct    pool of a backend in this process: the same path without server and catalog
plain     pool of the rivals
"""

import contextlib
import itertools
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from benchmarks.rbd.counters import Requests
from benchmarks.report import Figure, Sample
from benchmarks.sampling import Turns
from volcore.backends.contract import ShortPathState
from volcore.backends.rbd import Cluster, RbdBackend
from volcore.backends.rbd.connection import ClusterOptions
from volcore.limits import GIB, MIB
from volcore.testing.cluster import CephCluster, stop_daemons
from volcore.testing.server import RunningServer
from volcore.v1.pool_pb2 import PoolShortPath

FEATURES = 61
ORDER = 22
POOLS = ("few", "warm", "many", "direct", "plain")
WARM_CLONES = 256
VOLUMES = "pools/p/volumes"
IMAGE_BYTES = 8 * MIB
DEPLOYED_AT_ONCE = 500
PACE_KEYS = ("paxos propose interval", "paxos min wait")
USUAL_PACE_S = (1.0, 0.05)
QUICK_PACE_S = (0.02, 0.01)
"""Of Ceph as it comes, and of the cluster while it is prepared."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One contender of one scenario."""

    scenario: str
    name: str
    store: str
    ms: Sample
    requests: Requests | None = None

    def plain(self) -> dict[str, object]:
        """For JSON."""
        found = {
            "scenario": self.scenario,
            "name": self.name,
            "store": self.store,
            "count": len(self.ms.values),
            "requests": None,
        }
        found |= {f"p{n}_ms": self.ms.percentile(n) for n in (50, 95, 99)}
        if self.requests is not None:
            one = self.requests
            found["requests"] = {"reads": one.reads, "writes": one.writes, "monitor": one.monitor}
        return found


@dataclass(slots=True)
class Outcome:
    """What a run has found so far."""

    lines: list[Line] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    notes: dict[str, str] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)


class Site:
    """One store; everything ends with `undo`."""

    def __init__(
        self,
        store: Literal["bluestore", "memstore"],
        directory: Path,
        undo: contextlib.ExitStack,
        outcome: Outcome,
        *,
        tiny: bool,
    ) -> None:
        import rados
        import rbd

        self.store, self.directory, self.outcome, self.tiny = store, directory, outcome, tiny
        self.rados, self.rbd = rados, rbd
        self.ceph = undo.enter_context(CephCluster(directory / "ceph", store=store))
        self._patient_watches()
        for pool in POOLS:
            self.ceph.create_pool(pool)
        self.conf = str(self.ceph.conf_path)
        self.plain_socket = directory / "plain.asok"
        self.cluster = undo.enter_context(self.connection(admin_socket=str(self.plain_socket)))
        self.ioctx = undo.enter_context(self.cluster.open_ioctx("plain"))
        self.backend = RbdBackend(
            Cluster(ClusterOptions(conf_path=self.conf)), "direct", direct=True
        )
        self.backend.open()
        undo.callback(self.backend.close)
        assert self.backend.wait_for_short_path().state is ShortPathState.ON
        self.server = undo.enter_context(self._server())
        self.client = undo.enter_context(self.server.client())
        self._wait_for_short_path()
        channel = undo.enter_context(grpc.insecure_channel(self.server.endpoint))
        self._health = health_pb2_grpc.HealthStub(channel)
        self._numbers = itertools.count()
        self._parents: set[str] = set()
        self._crowded = False
        self.base_file = directory / "base.raw"
        with self.base_file.open("wb") as file:
            file.truncate(10 * GIB)

    @property
    def server_socket(self) -> Path:
        """Admin socket of the server's connection."""
        return self.directory / f"client.volcore.{self.server.pid}.asok"

    def _server(self) -> RunningServer:
        conf = self.directory / "server.conf"
        text = self.ceph.conf_path.read_text()
        conf.write_text(f"{text}\n[client]\nadmin socket = {self.directory}/$name.$pid.asok\n")
        lines = f'backend = "rbd"\nceph_conf = "{conf}"\nuser = "volcore"\n'
        pools = f'pool = "few"\n{lines}\n[pools.many]\npool = "many"\n{lines}'
        pools += f'\n[pools.warm]\npool = "warm"\nwarm_clones = {WARM_CLONES}\n{lines}'
        return RunningServer(self.directory / "site", pools)

    def _patient_watches(self) -> None:
        """Give clients the time that Ceph gives them: on a busy machine 5 s are not enough."""
        text = self.ceph.conf_path.read_text()
        line = "osd client watch timeout = {}\n"
        assert line.format(5) in text
        self.ceph.conf_path.write_text(text.replace(line.format(5), line.format(30)))
        self.ceph.restart_osd(0)

    def _wait_for_short_path(self) -> None:
        deadline = time.monotonic() + 60
        while any(
            pool.short_path.state != PoolShortPath.STATE_ON for pool in self.client.list_pools()
        ):
            assert time.monotonic() < deadline, list(self.client.list_pools())
            time.sleep(0.1)

    def connection(self, **settings: str) -> Any:
        """Return a new connection of a rival, not yet open."""
        settings |= {"rbd_default_clone_format": "2"}
        return self.rados.Rados(conffile=self.conf, rados_id="admin", conf=settings)

    def fresh(self, stem: str = "v") -> str:
        """Return a name that was never used."""
        return f"{stem}-{next(self._numbers)}"

    def count(self, full: int, tiny: int = 1) -> int:
        return tiny if self.tiny else full

    def empty_call(self) -> None:
        """The standard health service answers from memory."""
        self._health.Check(health_pb2.HealthCheckRequest())

    def write_image(self, name: str) -> Path:
        """Return a small file that the server can import."""
        path = self.server.directory / f"{name}.raw"
        path.write_bytes(bytes(range(256)) * (IMAGE_BYTES // 256))
        return path

    def clone(self, parent: str, target: str = "") -> None:
        """Make a volume through the server."""
        source = f"{VOLUMES}/{parent}/snapshots/s"
        self.client.create_volume(f"{VOLUMES}/{target or self.fresh()}", snapshot=source)

    def parents(self, name: str, size_bytes: int, *, depth: int = 0, data_bytes: int = 0) -> None:
        """A snapshot `s` of volume `name` in each pool, with so many ancestors.

        Blank, but for `data_bytes` in the rivals' pool, which only a full copy cares for.
        """
        if name in self._parents:
            return
        self._parents.add(name)
        librbd, last = self.rbd.RBD(), ""
        for level in range(depth + 1):
            now = name if level == depth else f"{name}-{level}"
            if level == 0:
                librbd.create(self.ioctx, now, size_bytes, ORDER, False, FEATURES)
                self.backend.create(now, size_bytes)
                self.client.create_volume(f"{VOLUMES}/{now}", size_bytes=size_bytes)
            else:
                librbd.clone(self.ioctx, last, "s", self.ioctx, now, FEATURES, ORDER)
                self.backend.clone(last, "s", now, size_bytes)
                source = f"{VOLUMES}/{last}/snapshots/s"
                self.client.create_volume(f"{VOLUMES}/{now}", snapshot=source)
            with self.rbd.Image(self.ioctx, now) as image:
                for at in range(0, data_bytes, MIB):
                    image.write(bytes([1]) * MIB, at)
                image.create_snap("s")
            self.backend.create_snapshot(now, "s")
            self.client.create_snapshot(f"{VOLUMES}/{now}/snapshots/s")
            last = now

    def crowd(self) -> tuple[int, int]:
        """Fill the pool `many` once: images `crowd`, `rest`, `small`; return volumes and children.

        Most volumes are children of `crowd`, ten are of `small`.
        """
        total, children = self.count(10_000, 60), self.count(8_000, 40)
        if self._crowded:
            return total, children
        self._crowded = True
        path = str(self.write_image("crowd"))
        for name, share in (("crowd", children), ("rest", total - children - 10), ("small", 10)):
            image = f"pools/many/images/{name}"
            self.client.import_image(image, server_path=path)
            names = [f"{name}-{number:05}" for number in range(share)]
            for at in range(0, share, DEPLOYED_AT_ONCE):
                made = self.client.deploy_volumes(image, names[at : at + DEPLOYED_AT_ONCE])
                assert not any(isinstance(one, Exception) for one in made), made[0]
        return total, children

    @contextlib.contextmanager
    def usual_pace(self) -> Iterator[None]:
        """A monitor as Ceph comes: a second between two snapshot numbers; preparing is quicker."""
        self._pace(QUICK_PACE_S, USUAL_PACE_S)
        try:
            yield
        finally:
            self._pace(USUAL_PACE_S, QUICK_PACE_S)

    def _pace(self, old: tuple[float, float], new: tuple[float, float]) -> None:
        """Start the monitor anew with other settings; clients find it again."""
        text = self.ceph.conf_path.read_text()
        for key, was, becomes in zip(PACE_KEYS, old, new, strict=True):
            text = text.replace(f"{key} = {was}\n", f"{key} = {becomes}\n")
        assert f"{PACE_KEYS[0]} = {new[0]}\n" in text
        self.ceph.conf_path.write_text(text)
        stop_daemons(self.ceph.conf_path, daemon=("ceph-mon", "a"))
        command = ["ceph-mon", "-i", "a", "-c", self.conf]
        subprocess.run(command, check=True, capture_output=True, env=os.environ | {"CEPH_ARGS": ""})
        self.cluster.wait_for_latest_osdmap()

    def rbd_tool(self, *words: str) -> str:
        """Run `rbd` on the pool `plain`."""
        command = ["rbd", "--conf", self.conf, "--rbd-default-clone-format", "2", *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def lines(
        self, scenario: str, turns: Turns, requests: dict[str, Requests] | None = None
    ) -> dict[str, Sample]:
        """Keep the times of all contenders; return them in milliseconds."""
        found = {name: turns.s(name).scaled(1e3) for name in turns.times_s}
        for name, sample in found.items():
            self.outcome.lines.append(
                Line(
                    scenario=scenario, name=name, store=self.store, ms=sample,
                    requests=(requests or {}).get(name),
                )
            )  # fmt: skip
        return found

    def figure(
        self,
        scenario: str,
        name: str,
        ours: Sample,
        *,
        rival: str = "",
        theirs: Sample | None = None,
        unit: str = "ms",
        at_most: float | None = None,
        at_least: float | None = None,
    ) -> None:
        """Keep a comparison."""
        self.outcome.figures.append(
            Figure(
                scenario=scenario, name=name, unit=unit, ours=ours, rival=rival, theirs=theirs,
                at_most=at_most, at_least=at_least, setting=self.store,
            )
        )  # fmt: skip


def sum_of(*samples: Sample) -> Sample:
    """Return what one after the other takes, round by round."""
    return Sample(tuple(map(sum, zip(*(one.values for one in samples), strict=True))))
