"""The server dies at every step of every change; the next one leaves all or nothing."""

import contextlib
import time

import pytest

from volcore.backends.memory import MemoryBackend
from volcore.catalog.sqlite import SqliteCatalog
from volcore.database import Database
from volcore.engine import making
from volcore.engine.engine import Engine, EngineSettings
from volcore.engine.views import CreateVolume, SourceRef
from volcore.errors import NotFoundError, Reason, UnavailableError, VolcoreError
from volcore.limits import MIB
from volcore.model.records import (
    GroupSnapshot,
    Image,
    Intent,
    IntentAction,
    Operation,
    Snapshot,
    SourceKind,
    State,
    TrashedVolume,
    Volume,
)
from volcore.testing.crash import Crash, CrashingBackend, CrashingCatalog, CrashSwitch
from volcore.testing.intents import intents_of

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
    engine.pools.open("p").making.flush()


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
    assert intents_of(pool) == []
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


@pytest.fixture
def site():
    backend, catalog = MemoryBackend(), SqliteCatalog(Database(None))
    backend.open()
    prepare(start(backend, catalog))
    return backend, catalog


def test_one_stuck_change_does_not_stop_a_pool(site):
    """A half-made image that somebody has open stays invisible; the pool is served anyway."""
    backend, catalog = site
    there = set(backend.walk())
    switch = CrashSwitch(7)  # dies when the image's volume is made, and not frozen yet
    engine = start(CrashingBackend(backend, switch), CrashingCatalog(catalog, switch))
    with contextlib.suppress(Crash):
        engine.images.publish("p", "gold2", "src", "s")
    (half,) = set(backend.walk()) - there
    with backend.open_device(half, read_only=True):
        engine = start(backend, catalog)
        assert engine.volumes.get("p", "old").name == "old"
        with pytest.raises(NotFoundError):
            engine.images.get("p", "gold2")
        assert len(intents_of(engine.pools.open("p"))) == 1
    check_whole(start(backend, catalog))
    assert engine.images.publish("p", "gold2", "src", "s").backend_volume_id != half


class FailingBackend(CrashingBackend):
    """A backend whose next acts fail as told; None: that one works."""

    def __init__(self, inner):
        super().__init__(inner, CrashSwitch())
        self.clones, self.deletes = [], []

    def clone(self, *args):
        if self.clones and (err := self.clones.pop(0)):
            raise err
        return super().clone(*args)

    def delete(self, volume_id):
        if self.deletes and (err := self.deletes.pop(0)):
            raise err
        return super().delete(volume_id)


def unreachable() -> UnavailableError:
    return UnavailableError("away", reason=Reason.CLUSTER_UNREACHABLE)


def test_what_failed_is_never_shown(site):
    """Goal: nothing half-made is shown. Method: the clone fails, and so does taking it back.

    The next server finds that it is not there; the same one takes it back before it tries again.
    """
    backend, catalog = site
    for restart in (False, True):
        failing = FailingBackend(backend)
        engine = start(failing, catalog)
        pool = engine.pools.open("p")
        failing.clones, failing.deletes = [unreachable()], [unreachable()]
        (result,) = engine.volumes.deploy("p", "gold", ["new"])
        assert isinstance(result, UnavailableError)
        (written,) = [v for v in map(Volume.decode, values(catalog)) if v.name == "new"]
        assert written.state is State.READY
        assert pool.find(Volume, "new").state is State.CREATING
        assert "new" not in {v.name for v in engine.volumes.list("p", limit=100)}
        with pytest.raises(NotFoundError):
            engine.volumes.get("p", "new")
        with pytest.raises(NotFoundError):
            engine.volumes.resize("p", "new", 2 * SIZE)
        if restart:
            engine = start(backend, catalog)
            check_whole(engine)
            assert not {v.name for v in engine.volumes.list("p", limit=100)} & {"new"}
        (made,) = engine.volumes.deploy("p", "gold", ["new"])
        assert made.id != written.id
        assert engine.volumes.get("p", "new") == made
        check_whole(engine)
        engine.volumes.delete("p", "new", purge=True)
        finished(engine)


def test_what_was_taken_back_is_not_shown_to_a_read_from_before(site, monkeypatch):
    """Goal: nobody sees what never was. Method: take a volume back between a read and its answer.

    The read has its record, which says READY; the repeated call has made another one by then.
    """
    backend, catalog = site
    failing = FailingBackend(backend)
    engine = start(failing, catalog)
    pool = engine.pools.open("p")
    failing.clones, failing.deletes = [unreachable()], [unreachable()]
    (result,) = engine.volumes.deploy("p", "gold", ["new"])
    assert isinstance(result, UnavailableError)
    (written,) = [v for v in map(Volume.decode, values(catalog)) if v.name == "new"]
    read, made = pool.catalog.list, []

    def slow(kind, **options):
        rows = read(kind, **options)
        if kind is Volume.KIND and not made:
            made.extend(engine.volumes.deploy("p", "gold", ["new"]))
        return rows

    monkeypatch.setattr(pool.catalog, "list", slow)
    shown = {v.id for v in engine.volumes.list("p", limit=100)}
    assert made[0].id != written.id
    assert written.id not in shown


def values(catalog) -> list[bytes]:
    return [value for _, value in catalog.list(Volume.KIND)]


@pytest.mark.parametrize("after", ["nothing", "trash", "undelete", "delete", "resize", "again"])
def test_dead_before_the_intent_is_erased(site, monkeypatch, after):
    """Goal: an answer holds, whatever came after it. Method: keep the intent; another server."""
    backend, catalog = site
    monkeypatch.setattr(making, "DELAY_S", 3600.0)
    engine = start(backend, catalog)
    (made,) = engine.volumes.deploy("p", "gold", ["new"])
    match after:
        case "trash":
            engine.volumes.delete("p", "new")
        case "undelete":
            engine.volumes.delete("p", "new")
            engine.trash.undelete("p", "new", new_name="back")
        case "delete":
            engine.volumes.delete("p", "new", purge=True)
        case "resize":
            made = engine.volumes.resize("p", "new", 2 * SIZE)
        case "again":
            engine.volumes.delete("p", "new", purge=True)
            made = engine.volumes.create("p", CreateVolume(name="new", size_bytes=SIZE))
    assert engine.deletions.wait(10)
    (left,) = [Intent.decode(raw) for _, raw in catalog.list(Intent.KIND)]
    assert left.action is IntentAction.MAKE_VOLUME
    again = start(backend, catalog)
    check_whole(again)
    found = {v.name: v for v in again.volumes.list("p", limit=100)}
    if after in ("nothing", "resize", "again"):
        assert found["new"] == made
    elif after == "undelete":
        assert found["back"].id == made.id
    else:
        assert "new" not in found
    if after == "trash":
        assert again.trash.undelete("p", "new").id == made.id
