"""The server dies at every step of every change; the next one leaves all or nothing."""

import contextlib
import time

import pytest

from volcore.backends.memory import MemoryBackend
from volcore.catalog.sqlite import SqliteCatalog
from volcore.database import Database
from volcore.engine.engine import Engine, EngineSettings
from volcore.engine.views import CreateVolume, SourceRef
from volcore.errors import NotFoundError, VolcoreError
from volcore.limits import MIB
from volcore.model.records import (
    GroupSnapshot,
    Image,
    Intent,
    Operation,
    Snapshot,
    SourceKind,
    State,
    TrashedVolume,
    Volume,
)
from volcore.testing.crash import Crash, CrashingBackend, CrashingCatalog, CrashSwitch

SIZE = 8 * MIB
DAY_S = 24 * 3600


def start(backend, catalog) -> Engine:
    engine = Engine(EngineSettings(server_id="test"))
    engine.add_pool("p", backend, catalog, None, trash_retention_s=DAY_S)
    return engine


def finished(engine: Engine, switch: CrashSwitch | None = None) -> Engine:
    """Wait for what goes on behind the calls, or until the process is dead."""
    assert engine.deletions.wait(60)
    if switch is not None:
        switch.alive()
    return engine


def prepare(engine: Engine) -> None:
    """A volume with a snapshot, an image, and a clone; and one in the trash."""
    engine.volumes.create("p", CreateVolume(name="lost", size_bytes=SIZE))
    engine.snapshots.create("p", "lost", "s")
    engine.volumes.delete("p", "lost", force=True)
    engine.volumes.create("p", CreateVolume(name="src", size_bytes=SIZE))
    engine.snapshots.create("p", "src", "s")
    engine.images.publish("p", "gold", "src", "s")
    engine.volumes.deploy("p", "gold", ["old", "one", "two"])
    engine.group_snapshots.create("p", "g", ["one", "two"])


def deploy(engine: Engine) -> None:
    """Twice: the second time the image was seen lately, and nothing is looked at."""
    for names in (["a", "b"], ["c", "d"]):
        for result in engine.volumes.deploy("p", "gold", names, size_bytes=2 * SIZE):
            if isinstance(result, VolcoreError):
                raise result


def publish(engine: Engine) -> None:
    engine.images.publish("p", "gold2", "src", "s")


def create_clone(engine: Engine) -> None:
    ref = SourceRef(kind=SourceKind.VOLUME, key="old")
    engine.volumes.create("p", CreateVolume(name="copy", source=ref))


SCENARIOS = {
    "create": lambda e: e.volumes.create("p", CreateVolume(name="new", size_bytes=SIZE)),
    "clone": create_clone,
    "deploy": deploy,
    "snapshot": lambda e: e.snapshots.create("p", "src", "s2"),
    "group snapshot": lambda e: e.group_snapshots.create("p", "g2", ["src", "old"]),
    "publish": publish,
    "resize": lambda e: e.volumes.resize("p", "old", 2 * SIZE),
    "revert": lambda e: e.volumes.revert("p", "src", "s"),
    "delete snapshot": lambda e: e.snapshots.delete("p", "src", "s"),
    "delete group": lambda e: e.group_snapshots.delete("p", "g"),
    "delete volume": lambda e: e.volumes.delete("p", "src", force=True, purge=True),
    "trash volume": lambda e: e.volumes.delete("p", "src", force=True),
    "undelete": lambda e: e.trash.undelete("p", "lost"),
    "purge": lambda e: e.trash.look(time.time_ns() + 2 * DAY_S * 10**9),
    "delete image": lambda e: e.images.delete("p", "gold"),
}


def check_whole(engine: Engine) -> None:
    """No intent, nothing half-made, and the backend holds exactly what the catalog names."""
    finished(engine)
    pool = engine.pools.open("p")
    assert pool.list(Intent) == []
    volumes, snapshots, images = pool.list(Volume), pool.list(Snapshot), pool.list(Image)
    groups = pool.list(GroupSnapshot)
    assert all(r.state is State.READY for r in [*volumes, *snapshots, *images, *groups])
    members = {s.key: s.group_id for s in snapshots if s.group_id}
    assert members == {key: g.id for g in groups for key in g.member_keys}
    assert all(operation.finished for operation in pool.list(Operation))
    trash = pool.list(TrashedVolume)
    volumes += [one.volume for one in trash]
    expected = [v.backend_id for v in volumes] + [i.backend_volume_id for i in images]
    assert sorted(pool.backend.walk()) == sorted(expected)
    for snapshot in snapshots:
        assert snapshot.volume_id in {v.id for v in pool.list(Volume)}
    frozen = [*snapshots, *(s for one in trash for s in one.snapshots)]
    for volume in volumes:
        facts = pool.backend.describe(volume.backend_id)
        assert facts.size_bytes == volume.size_bytes
        named = {s.backend_id for s in frozen if s.volume_id == volume.id}
        assert set(facts.snapshot_ids) == named


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_crash_at_every_step(scenario):
    """Kill at step 1, 2, 3 until the scenario ends; recovery is killed at each of its steps too."""
    act = SCENARIOS[scenario]
    at = 0
    while True:
        at += 1
        backend, catalog = MemoryBackend(), SqliteCatalog(Database(None))
        backend.open()
        prepare(start(backend, catalog))
        switch = CrashSwitch(at)
        with contextlib.suppress(Crash):
            engine = start(CrashingBackend(backend, switch), CrashingCatalog(catalog, switch))
            act(engine)
            finished(engine, switch)
        if not switch.crashed:
            assert at > 2, "the scenario passed no step at all"
            return
        for again in range(1, 100):
            second = CrashSwitch(again)
            try:
                finished(
                    start(CrashingBackend(backend, second), CrashingCatalog(catalog, second)),
                    second,
                )
            except Crash:
                continue
            break
        engine = start(backend, catalog)
        check_whole(engine)
        act(engine)
        check_whole(engine)


def test_one_stuck_change_does_not_stop_a_pool():
    """A half-made volume that somebody has open stays invisible; the pool is served anyway."""
    backend, catalog = MemoryBackend(), SqliteCatalog(Database(None))
    backend.open()
    prepare(start(backend, catalog))
    switch = CrashSwitch(4)  # dies right after the backend has made the volume
    new = CreateVolume(name="new", size_bytes=SIZE)
    with contextlib.suppress(Crash):
        start(CrashingBackend(backend, switch), CrashingCatalog(catalog, switch)).volumes.create(
            "p", new
        )
    (half,) = [name for name in backend.walk() if name.startswith("new.")]
    with backend.open_device(half, read_only=True):
        engine = start(backend, catalog)
        assert engine.volumes.get("p", "old").name == "old"
        with pytest.raises(NotFoundError):
            engine.volumes.get("p", "new")
        assert len(engine.pools.open("p").list(Intent)) == 1
    check_whole(start(backend, catalog))
    assert engine.volumes.create("p", new).backend_id != half
