"""Two servers on one pool of a real Ceph, callers that know only their endpoints, and kill -9.

    python -m volcore.testing.failover --calls 10000 --kills 20

Each caller makes mixed calls with default settings and knows what must be there after each. The
server that has the pool is killed, the other one takes it over, and the killed one comes back on
standby. No call may fail, and at the end the pool must be what the callers know.
"""

import argparse
import json
import math
import random
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

from volcore.client import Client
from volcore.errors import NotFoundError
from volcore.limits import MIB
from volcore.testing.cluster import CephAccess, CephCluster
from volcore.testing.server import SERVER_MODULE, RunningServer
from volcore.v1 import volume_pb2

POOL: Final = "pools/p"
IMAGE: Final = f"{POOL}/images/failover"
SOURCE: Final = f"{POOL}/volumes/failover-source"
PREFIX: Final = f"{POOL}/volumes/caller"
SIZE_BYTES: Final = 8 * MIB
_VOLUMES_MIN: Final = 5
_VOLUMES_MAX: Final = 20
"""Of one caller: a pool that grows all the time shows what a list of it costs."""
_POLL_S: Final = 0.02


class Pair:
    """Two servers on one pool: the one that has it, and the other.

    `modules` run instead of `volcore` itself, see `RunningServer`.
    """

    def __init__(
        self,
        access: CephAccess,
        pool: str,
        directory: Path,
        *,
        more: str = "",
        modules: tuple[str, str] = (SERVER_MODULE, SERVER_MODULE),
    ) -> None:
        lines = f'backend = "rbd"\npool = "{pool}"\nceph_conf = "{access.conf_path}"\n{more}'
        self.leader = RunningServer(directory / "a", lines, module=modules[0])
        self.other = RunningServer(directory / "b", lines, module=modules[1])
        self.endpoint = f"{self.leader.endpoint},{self.other.endpoint}"

    @contextmanager
    def running(self) -> "Iterator[Pair]":
        """Start both; kill both at the end."""
        try:
            self.leader.start()
            self.leader.wait_for_short_path()  # once for a pool, which then stays proven
            self.other.start(standby=True)
            yield self
        finally:
            self.leader.kill()
            self.other.kill()

    def client(self) -> Client:
        """Return a new client of both, with default settings."""
        return Client(self.endpoint)

    def kill(self) -> None:
        """Kill the one that has the pool; the other one is expected to take it."""
        self.leader.kill()
        self.leader, self.other = self.other, self.leader

    def restart(self) -> None:
        """Start the one that was killed, and wait until it stands by."""
        self.other.start(standby=True)


@dataclass(frozen=True, slots=True)
class Timed:
    """A call that has ended."""

    kind: str
    start_s: float
    end_s: float


@dataclass
class Report:
    """What happened; times in seconds."""

    seed: int = 1
    calls: int = 0
    kills: int = 0
    under_way_at_a_kill: int = 0
    p50_under_way_s: float = 0.0
    p99_under_way_s: float = 0.0
    max_under_way_s: float = 0.0
    p99_all_s: float = 0.0
    max_all_s: float = 0.0
    seconds: float = 0.0
    counts: dict[str, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)


class Run:
    """Callers at work until they have made so many calls, and somebody who kills beside them."""

    def __init__(
        self,
        pair: Pair,
        *,
        calls: int,
        kills: int,
        callers: int,
        seed: int,
        seconds_max: float = math.inf,
    ) -> None:
        self._pair = pair
        self._end_s = time.monotonic() + seconds_max
        self._calls, self._kills, self._seed = calls, kills, seed
        self._lock = threading.Lock()
        self.timed: list[Timed] = []
        self.kill_times_s: list[float] = []
        self.failures: list[str] = []
        self.callers = [Caller(self, number, seed) for number in range(callers)]

    def run(self) -> Report:
        """Return when all calls are made, with both servers up."""
        start_s = time.monotonic()
        with self._pair.client() as client:
            if not any(image.name == IMAGE for image in client.list_images(POOL)):
                client.create_volume(SOURCE, size_bytes=SIZE_BYTES)
                client.create_snapshot(f"{SOURCE}/snapshots/s")
                client.publish_image(IMAGE, f"{SOURCE}/snapshots/s")
        threads = [threading.Thread(target=caller.run) for caller in self.callers]
        for thread in threads:
            thread.start()
        try:
            self._kill_beside()
        finally:
            for thread in threads:
                thread.join()
        report = self._report()
        report.seconds = round(time.monotonic() - start_s, 1)
        return report

    @property
    def goes_on(self) -> bool:
        """Whether another call is to be made."""
        in_time = time.monotonic() < self._end_s
        return len(self.timed) < self._calls and in_time and not self.failures

    def timing(self, kind: str, call: Callable[[Client], None], client: Client) -> None:
        """Make a call and note how long it took."""
        start_s = time.monotonic()
        call(client)
        end_s = time.monotonic()
        with self._lock:
            self.timed.append(Timed(kind, start_s, end_s))

    def fail(self, words: str) -> None:
        """Note a failure, which ends the run."""
        with self._lock:
            self.failures.append(words)

    def _kill_beside(self) -> None:
        dice = random.Random(self._seed)  # noqa: S311 - repeatable on purpose
        for number in range(self._kills):
            due = self._calls * (number + 1) // (self._kills + 1)
            while self.goes_on and len(self.timed) < due:
                time.sleep(_POLL_S)
            if not self.goes_on:
                return
            time.sleep(dice.random() * 0.2)
            self.kill_times_s.append(time.monotonic())
            self._pair.kill()
            self._pair.restart()

    def _report(self) -> Report:
        took = sorted(one.end_s - one.start_s for one in self.timed)
        hit = sorted(
            one.end_s - one.start_s
            for one in self.timed
            if any(one.start_s <= kill_s <= one.end_s for kill_s in self.kill_times_s)
        )
        return Report(
            seed=self._seed,
            calls=len(took),
            kills=len(self.kill_times_s),
            under_way_at_a_kill=len(hit),
            p50_under_way_s=_quantile(hit, 0.5),
            p99_under_way_s=_quantile(hit, 0.99),
            max_under_way_s=_quantile(hit, 1),
            p99_all_s=_quantile(took, 0.99),
            max_all_s=_quantile(took, 1),
            counts=dict(Counter(one.kind for one in self.timed)),
            failures=self.failures,
        )


class Caller:
    """One caller, whose volumes nobody else touches."""

    def __init__(self, run: Run, number: int, seed: int) -> None:
        self._run = run
        self._prefix = f"{PREFIX}{number}-"
        self._dice = random.Random(f"{seed}-{number}")  # noqa: S311 - the same
        self._count = 0
        self.volumes: dict[str, int] = {}
        """Sizes by full name."""
        self.snapshots: set[str] = set()
        self.attached: set[str] = set()

    def run(self) -> None:
        """Make calls until there are enough of them."""
        acts = (
            *(self._create, self._clone, self._deploy, self._delete, self._delete),
            *(self._get, self._get, self._list, self._resize, self._snapshot),
            *(self._attach, self._detach),
        )
        try:
            with self._run._pair.client() as client:
                while self._run.goes_on:
                    many = len(self.volumes) >= _VOLUMES_MAX
                    act = self._delete if many else self._dice.choice(acts)
                    self._run.timing(act.__name__.strip("_"), act, client)
        except Exception:
            self._run.fail(traceback.format_exc())

    def _new(self) -> str:
        self._count += 1
        return f"{self._prefix}{self._count}"

    def _any(self) -> str | None:
        return self._dice.choice(sorted(self.volumes)) if self.volumes else None

    def _create(self, client: Client) -> None:
        name = self._new()
        made = client.create_volume(name, size_bytes=SIZE_BYTES)
        assert (made.name, made.size_bytes) == (name, SIZE_BYTES)
        self.volumes[name] = SIZE_BYTES

    def _clone(self, client: Client) -> None:
        name = self._new()
        assert client.create_volume(name, image=IMAGE).size_bytes == SIZE_BYTES
        self.volumes[name] = SIZE_BYTES

    def _deploy(self, client: Client) -> None:
        names = [self._new() for _ in range(3)]
        made = client.deploy_volumes(IMAGE, [name.rpartition("/")[2] for name in names])
        assert [isinstance(one, volume_pb2.Volume) for one in made] == [True] * 3, made
        self.volumes |= dict.fromkeys(names, SIZE_BYTES)

    def _get(self, client: Client) -> None:
        if (name := self._any()) is not None:
            assert client.get_volume(name).size_bytes == self.volumes[name]
        else:
            with suppress(NotFoundError):
                raise AssertionError(client.get_volume(self._new()))

    def _list(self, client: Client) -> None:
        shown = {one.name for one in client.list_volumes(POOL)}
        assert {name for name in shown if name.startswith(self._prefix)} == set(self.volumes)

    def _resize(self, client: Client) -> None:
        if (name := self._any()) is None:
            return self._create(client)
        size_bytes = self.volumes[name] + MIB
        assert client.resize_volume(name, size_bytes).size_bytes == size_bytes
        self.volumes[name] = size_bytes
        return None

    def _snapshot(self, client: Client) -> None:
        if (name := self._any()) is None:
            return self._clone(client)
        self._count += 1
        snapshot = f"{name}/snapshots/s{self._count}"
        assert client.create_snapshot(snapshot).name == snapshot
        self.snapshots.add(snapshot)
        return None

    def _attach(self, client: Client) -> None:
        if (name := self._any()) is None:
            return self._deploy(client)
        assert client.attach_volume(name, "host").rbd.image
        self.attached.add(name)
        return None

    def _detach(self, client: Client) -> None:
        name = self._dice.choice(sorted(self.attached)) if self.attached else None
        if name is None:
            return self._get(client)
        client.detach_volume(name, "host")
        self.attached.discard(name)
        return None

    def _delete(self, client: Client) -> None:
        name = self._any()
        if name is None or len(self.volumes) < _VOLUMES_MIN:
            return self._create(client)
        if name in self.attached:
            client.detach_volume(name, "host")
            self.attached.discard(name)
        client.delete_volume(name, force=True)
        del self.volumes[name]
        self.snapshots = {one for one in self.snapshots if not one.startswith(f"{name}/")}
        return None


def judge(pair: Pair, callers: list[Caller]) -> list[str]:
    """Return how the catalog differs from what the callers know."""
    wrong = []
    with pair.client() as client:
        for operation in client.list_operations(POOL):
            with suppress(NotFoundError):  # of ended deletes the last 1,000 are kept
                client.wait_operation(operation.name, timeout_s=120)
        volumes = [one for one in client.list_volumes(POOL) if one.name.startswith(PREFIX)]
        found = {one.name: one.size_bytes for one in volumes}
        known = {name: size for caller in callers for name, size in caller.volumes.items()}
        if found != known:
            wrong.append(f"volumes: {sorted(found.items() ^ known.items())}")
        for name in sorted(known):
            snapshots = {one.name for one in client.list_snapshots(name)}
            expected = {
                one for caller in callers for one in caller.snapshots if one.startswith(f"{name}/")
            }
            if snapshots != expected:
                wrong.append(f"snapshots: {sorted(snapshots ^ expected)}")
    return wrong


def _quantile(ordered: list[float], part: float) -> float:
    """Return the least value that is not below `part` of all."""
    return round(ordered[math.ceil(part * len(ordered)) - 1], 3) if ordered else 0.0


def main() -> int:
    """Run it on a Ceph of its own and print the report as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=10_000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--callers", type=int, default=16)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds-max", type=float, default=math.inf)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="volcore-failover-") as name:
        place = Path(name)
        with CephCluster(place / "ceph") as cluster:
            pool = "failover"
            cluster.create_pool(pool)
            with Pair(cluster, pool, place, more='user = "admin"\n').running() as pair:
                run = Run(
                    pair,
                    calls=options.calls,
                    kills=options.kills,
                    callers=options.callers,
                    seed=options.seed,
                    seconds_max=options.seconds_max,
                )
                report = run.run()
                print(json.dumps(asdict(report), indent=1), flush=True)
                if not report.failures:
                    report.failures += judge(pair, run.callers)
                    print(json.dumps({"differences": report.failures}))
    return 1 if report.failures else 0


if __name__ == "__main__":
    sys.exit(main())
