"""A long day of an rbd pool: many callers, users of `rbd`, OSDs that restart, `kill -9`.

    python -m volcore.testing.rbd_soak --operations 10000 --callers 16

Callers create, deploy, snapshot, clone, resize, revert, flatten, delete, and write and read their
volumes through librbd as a VM does; clones take the short path, or librbd's for parents that are
unusual. Beside them `rbd` looks at the volumes and works on images of its own. The server is
killed, OSDs are restarted. At the end `rbd_judge` compares all bytes, links and objects with what
the callers know; then all is deleted, and nothing may be left.
"""

import argparse
import json
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

from volcore.backends.rbd.direct.family import is_sibling
from volcore.backends.rbd.opening import settled
from volcore.errors import VolcoreError
from volcore.testing.cluster import CephAccess, CephCluster
from volcore.testing.rbd_judge import Disk, Judge
from volcore.testing.rbd_soak_callers import IMAGE_BYTES, IMAGES, STEP_BYTES, Caller, World
from volcore.testing.rbd_soak_tools import ToolUser
from volcore.testing.server import RunningServer
from volcore.testing.soak import repeated

SETTLED_S: Final = 90.0
"""How long work behind answers, and the OSDs' trimming, may take once nobody calls."""
POLL_S: Final = 0.5
FENCED: Final = "has taken the lock"
"""What a server logs that is fenced off; whoever runs it starts it again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much of what."""

    operations: int
    callers: int = 16
    tool_users: int = 2
    kill_every: int = 400
    """Operations, about."""
    osd_every: int = 1500
    seed: int = 1


@dataclass
class Report:
    """What happened."""

    seconds: float = 0
    counts: dict[str, int] = field(default_factory=dict)
    tool_calls: int = 0
    kills: int = 0
    osd_restarts: int = 0
    checks: int = 0
    """Of the pool, while all that happened."""
    fenced: int = 0
    """Servers that a client has shut out because they were late with a lock: a busy machine."""
    volumes: int = 0
    snapshots: int = 0
    siblings: int = 0
    """Of the snapshots of images."""
    foreign: int = 0
    needless_marks: int = 0
    """Objects that librbd calls written although its zeroes changed nothing, see `Disk.zeroed`."""
    failures: list[str] = field(default_factory=list)


class Soak:
    """One run on one pool, which is empty before and after."""

    def __init__(self, access: CephAccess, pool: str, place: Path, plan: Plan) -> None:
        self._access, self._pool, self._place, self._plan = access, pool, place, plan
        user = "volcore" if isinstance(access, CephCluster) else "admin"
        lines = {"backend": "rbd", "pool": pool, "ceph_conf": access.conf_path, "user": user}
        self._server = RunningServer(
            place / "site", "".join(f'{key} = "{value}"\n' for key, value in lines.items())
        )
        self._command = ["rbd", "--conf", str(access.conf_path), "--pool", pool]
        self._command += ["--rbd-default-clone-format", "2"]
        self._seen = 0
        self.report = Report()

    def run(self) -> Report:
        """Do all of it."""
        import rados

        start_s = time.monotonic()
        with ExitStack() as undo:
            connection = rados.Rados(conffile=str(self._access.conf_path), rados_id="admin")
            ioctx = undo.enter_context(undo.enter_context(connection).open_ioctx(self._pool))
            judge = Judge(ioctx, self._access.conf_path, self._pool)
            undo.enter_context(self._server)
            client = undo.enter_context(self._server.client())
            world = World(ioctx, self._plan.operations)
            self._prepare(client, world)
            seed = self._plan.seed
            callers = [Caller(world, n, seed, client) for n in range(self._plan.callers)]
            users = [
                ToolUser(
                    world, n, seed, command=self._command, pool=self._pool,
                    scratch=self._place / f"scratch{n}", others=callers,
                )
                for n in range(self._plan.tool_users)
            ]  # fmt: skip
            self._work(client, world, callers, users)
            self.report.failures += world.failures
            if not self.report.failures:
                self._judge(client, judge, world, callers, users)
            if not self.report.failures:
                self._clear(client, judge, callers, users)
        self.report.seconds = round(time.monotonic() - start_s, 1)
        return self.report

    def _prepare(self, client: Any, world: World) -> None:
        """Wait for the short path; import an image that takes it, and one that must not."""
        import rbd

        self._server.wait_for_short_path()
        for number, image in enumerate(IMAGES):
            tags = dict.fromkeys(range(0, IMAGE_BYTES, 3 * STEP_BYTES), 7 + number)
            disk = Disk(IMAGE_BYTES, tags)
            path = self._place / "site" / f"image{number}.raw"
            path.write_bytes(disk.piece(0, IMAGE_BYTES))
            made = client.import_image(image, server_path=str(path))
            world.gold[image] = disk
        with rbd.Image(world.ioctx, made.backend_name) as odd:
            odd.metadata_set("conf_rbd_cache", "true")  # foreign metadata: librbd makes its clones

    def _work(
        self, client: Any, world: World, callers: list[Caller], users: list[ToolUser]
    ) -> None:
        """Let all loose until the callers have done what there was to do."""
        for thread in (*callers, *users):
            thread.start()
        trouble = threading.Thread(target=self._trouble, args=(world,), name="trouble")
        trouble.start()
        auditor = threading.Thread(target=self._audit, args=(client, world), name="audit")
        auditor.start()
        for caller in callers:
            caller.join()
        world.stopped.set()
        auditor.join()
        for user in users:
            user.join()
        trouble.join()
        self.report.counts = dict(sorted(world.counts.items()))
        self.report.tool_calls = sum(user.count for user in users)

    def _audit(self, client: Any, world: World) -> None:
        """Check the pool over and over: whatever is under way, there is nothing to find."""
        try:
            while not world.stopped.is_set():
                try:
                    found = client.check_pool("pools/p", objects=True)
                except VolcoreError as err:  # cut off by a kill, which may be sooner than its end
                    if not err.retryable:
                        raise
                    world.stopped.wait(POLL_S)
                    continue
                for fault in found.faults:
                    world.fail(f"a check of the busy pool: {fault.kind} {fault.concerns}")
                self.report.checks += 1
                world.stopped.wait(POLL_S)
        except Exception as err:  # a thread's failure belongs into the report
            world.fail(f"audit: {type(err).__name__}: {err}")

    def _trouble(self, world: World) -> None:
        """Kill the server and restart OSDs, by the count of operations."""
        plan = self._plan
        try:
            while not world.stopped.wait(0.2):
                if world.done // plan.kill_every > self.report.kills:
                    self._restart()
                    self.report.kills += 1
                if FENCED in self._server.log()[self._seen :]:
                    self._restart()
                    self.report.fenced += 1
                owns = isinstance(self._access, CephCluster)
                if owns and world.done // plan.osd_every > self.report.osd_restarts:
                    hard = bool(self.report.osd_restarts % 2)
                    self._access.restart_osd(0, hard=hard)  # type: ignore[attr-defined]
                    self.report.osd_restarts += 1
        except Exception as err:  # a thread's failure belongs into the report
            world.fail(f"trouble: {type(err).__name__}: {err}")

    def _restart(self) -> None:
        self._server.kill()
        self._seen = len(self._server.log())
        self._server.start()

    def _judge(
        self,
        client: Any,
        judge: Judge,
        world: World,
        callers: list[Caller],
        users: list[ToolUser],
    ) -> None:
        """Compare everything with what its owners know."""
        failures = self.report.failures
        models = {name: m for caller in callers for name, m in caller.models.items()}
        shown = {one.name.rpartition("/")[2]: one for one in client.list_volumes("pools/p")}
        for name in sorted(set(shown) ^ set(models)):
            failures.append(f"{name}: {'listed, but not made' if name in shown else 'lost'}")
        self.report.volumes = len(models)
        self.report.snapshots = sum(len(model.snapshots) for model in models.values())
        disks = {model.image: model.disk() for model in models.values()}
        for image in IMAGES:
            name = client.get_image(image).backend_name
            gold = world.gold[image]
            live = _snapshots(world.ioctx, name)
            (snapshot,) = (one for one in live if not is_sibling(one))
            self.report.siblings += len(live) - 1
            disks[name] = Disk(gold.size_bytes, gold.tags, {snapshot: gold})
        ours = set(disks)
        foreign = {model.image: model.disk() for user in users for model in user.models.values()}
        self.report.foreign = len(foreign)
        disks |= foreign
        self._settled(client)
        failures += self._quiet(lambda: _faults(client))
        assert self._server.stop() == 0
        self._server.start()  # collects what kills have left
        failures += self._quiet(lambda: judge.structure(ours, foreign))
        with ThreadPoolExecutor(2) as pool:
            for found in pool.map(lambda name: judge.content(name, disks[name]), sorted(disks)):
                failures += found
        failures += judge.tools(disks)
        self.report.needless_marks = judge.needless_marks
        by_image = {model.image: model for model in models.values()}
        for text in list(failures):
            if (model := by_image.get(text.partition(":")[0].partition("@")[0])) is not None:
                failures.append(f"  history of {model.image}: {'; '.join(model.history)}")

    def _clear(
        self, client: Any, judge: Judge, callers: list[Caller], users: list[ToolUser]
    ) -> None:
        """Delete everything and look for leftovers."""
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda worker: worker.delete_all(), [*callers, *users]))
        for image in IMAGES:
            repeated(partial(client.delete_image, image))
        self._settled(client)
        self.report.failures += self._quiet(lambda: judge.structure(()))
        self.report.failures += _faults(client)

    def _settled(self, client: Any) -> None:
        """Wait for the operations that have not ended; deletes may still be queued."""
        for operation in list(client.list_operations("pools/p")):
            if not operation.HasField("end_time"):
                repeated(partial(client.wait_operation, operation.name))

    def _quiet(self, look: Callable[[], list[str]]) -> list[str]:
        """Return findings that stay."""
        deadline = time.monotonic() + SETTLED_S
        while (findings := look()) and time.monotonic() < deadline:
            time.sleep(POLL_S)
        return findings


def _faults(client: Any) -> list[str]:
    """Return what the server itself finds wrong."""
    found = client.check_pool("pools/p", objects=True).faults
    return [f"{fault.concerns}: {fault.kind}: {fault.meaning}" for fault in found]


def _snapshots(ioctx: Any, name: str) -> list[str]:
    import rbd

    with settled(rbd.Image(ioctx, name, read_only=True)) as image:
        return [snap["name"] for snap in image.list_snaps() if snap["namespace"] == 0]


def main() -> int:
    """Soak on a cluster of its own; one line of JSON says how it was."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--operations", type=int, default=10_000)
    parser.add_argument("--callers", type=int, default=16)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--store", choices=["bluestore", "memstore"], default="bluestore")
    parser.add_argument("--keep", type=Path, help="directory to work in, kept afterwards")
    options = parser.parse_args()
    place = options.keep or Path(tempfile.mkdtemp(prefix="volcore-soak-"))
    place.mkdir(exist_ok=True)
    plan = Plan(operations=options.operations, callers=options.callers, seed=options.seed)
    try:
        with CephCluster(place / "ceph", store=options.store) as cluster:
            cluster.create_pool("soak", pg_count=32)
            report = Soak(cluster, "soak", place, plan).run()
    finally:
        if options.keep is None:
            shutil.rmtree(place)
    print(json.dumps(asdict(report)))
    return 1 if report.failures else 0


if __name__ == "__main__":
    sys.exit(main())
