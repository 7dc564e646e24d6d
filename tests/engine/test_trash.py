"""Deleted volumes come back whole, or go when their time is over."""

import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from volcore.engine.pool import put
from volcore.engine.views import CreateVolume, SourceRef
from volcore.errors import (
    ConflictError,
    NotFoundError,
    OperationPendingError,
    PreconditionError,
    Reason,
    VolcoreError,
)
from volcore.limits import MIB
from volcore.model.records import (
    AccessMode,
    Intent,
    IntentAction,
    Snapshot,
    SourceKind,
    State,
    TrashedVolume,
    Volume,
)
from volcore.testing.intents import intents_of

SIZE = 8 * MIB
RETENTION_S = 3600
only_memory = pytest.mark.parametrize("bench", ["memory"], indirect=True)


@pytest.fixture
def trash(bench):
    """The trash of a pool that has one."""
    retain(bench, RETENTION_S)
    return bench.engine.trash


def retain(bench, retention_s):
    object.__setattr__(bench.pool, "trash_retention_s", retention_s)


def make(bench, name, data=b""):
    volume = bench.engine.volumes.create("p", CreateVolume(name=name, size_bytes=SIZE))
    if data:
        with bench.pool.backend.open_device(volume.backend_id, read_only=False) as device:
            device.write(0, data)
    return volume


def read(bench, volume, length):
    with bench.pool.backend.open_device(volume.backend_id, read_only=True) as device:
        return device.read(0, length)


def in_trash(bench):
    return [(one.volume.name, one.volume.id) for one in bench.pool.list(TrashedVolume)]


def stored(bench):
    assert bench.engine.deletions.wait(60)
    return set(bench.pool.backend.walk())


def test_there_and_back(bench, trash):
    """Goal: what comes back is what went. Method: data, snapshot, clone, labels, and a repeat."""
    volumes, snapshots = bench.engine.volumes, bench.engine.snapshots
    volume = make(bench, "v", b"first")
    volume = volumes.update_labels("p", "v", {"a": "b"})
    frozen = snapshots.create("p", "v", "s")
    with pytest.raises(PreconditionError) as caught:
        volumes.delete("p", "v")
    assert caught.value.reason is Reason.VOLUME_HAS_SNAPSHOTS
    assert volumes.delete("p", "v", force=True) is None
    volumes.delete("p", "v", force=True)
    with pytest.raises(NotFoundError):
        volumes.get("p", "v")
    with pytest.raises(NotFoundError):
        snapshots.get("p", "v", "s")
    assert volumes.list("p", limit=9) == []
    assert snapshots.list("p", limit=9) == []
    (gone,) = volumes.list_with_deleted("p", limit=9)
    assert gone.volume == volume
    assert gone.purge_time_ns - gone.delete_time_ns == RETENTION_S * 10**9
    assert intents_of(bench.pool) == []
    assert stored(bench) == {volume.backend_id}
    back = trash.undelete("p", "v")
    assert trash.undelete("p", "v") == back == volumes.get("p", "v")
    assert (back.id, back.labels, back.state) == (volume.id, {"a": "b"}, State.READY)
    assert read(bench, back, 5) == b"first"
    assert snapshots.get("p", "v", "s").id == frozen.id
    assert in_trash(bench) == []
    ref = SourceRef(kind=SourceKind.SNAPSHOT, key="v/s")
    clone = volumes.create("p", CreateVolume(name="c", source=ref))
    assert read(bench, clone, 5) == b"first"
    volumes.resize("p", "v", 2 * SIZE)
    volumes.delete("p", "v", force=True, purge=True)
    volumes.delete("p", "c", purge=True)
    assert stored(bench) == set()
    assert in_trash(bench) == intents_of(bench.pool) == bench.pool.list(Snapshot) == []


def test_under_a_new_name(bench, trash):
    """Goal: a taken name is no dead end. Method: a new volume of the name; the old as another."""
    old = make(bench, "v", b"old")
    bench.engine.snapshots.create("p", "v", "s")
    bench.engine.volumes.delete("p", "v", force=True)
    new = make(bench, "v", b"new")
    for _ in range(2):
        with pytest.raises(ConflictError, match="under a new name") as caught:
            trash.undelete("p", "v")
        assert caught.value.reason is Reason.NAME_TAKEN
    back = trash.undelete("p", "v", new_name="w")
    assert trash.undelete("p", "v", new_name="w") == back
    assert trash.undelete("p", "v", uid=old.id, new_name="w") == back
    assert (back.name, back.id) == ("w", old.id)
    assert (read(bench, back, 3), read(bench, new, 3)) == (b"old", b"new")
    assert [s.key for s in bench.engine.snapshots.list("p", limit=9)] == ["w/s"]
    ref = SourceRef(kind=SourceKind.SNAPSHOT, key="w/s")
    clone = bench.engine.volumes.create("p", CreateVolume(name="c", source=ref))
    assert read(bench, clone, 3) == b"old"
    for name in ("v", "w", "c"):
        bench.engine.volumes.delete("p", name, force=True, purge=True)
    assert stored(bench) == set()


@only_memory
def test_several_of_one_name(bench, trash):
    """Goal: each can be had. Method: three of a name; the latest, one by uid, none of a wrong."""
    made = []
    for _ in range(3):
        made.append(make(bench, "v"))
        bench.engine.volumes.delete("p", "v")
    assert sorted(in_trash(bench)) == sorted(("v", one.id) for one in made)
    assert trash.undelete("p", "v").id == made[2].id
    assert trash.undelete("p", "v", uid=made[0].id, new_name="first").id == made[0].id
    with pytest.raises(ConflictError):
        trash.undelete("p", "v", uid=made[1].id)
    with pytest.raises(NotFoundError) as caught:
        trash.undelete("p", "v", uid="0" * 32, new_name="x")
    assert caught.value.reason is Reason.VOLUME_NOT_FOUND
    make(bench, "v-1")
    shown = bench.engine.volumes.list_with_deleted("p", limit=9)
    assert [one.key for one in shown] == ["first", "v", "v-1", f"v/{made[1].id}"]
    pages, after = [], ""
    while page := bench.engine.volumes.list_with_deleted("p", after=after, limit=1):
        pages += page
        after = page[-1].key
    assert pages == shown


@only_memory
def test_what_is_gone_stays_gone(bench, trash):
    """Goal: a clear answer. Method: never there; purged by hand, twice; purged by uid."""
    with pytest.raises(NotFoundError, match="purged, or never deleted"):
        trash.undelete("p", "v")
    first = make(bench, "v")
    bench.engine.volumes.delete("p", "v", purge=True)
    second = make(bench, "v")
    bench.engine.volumes.delete("p", "v")
    third = make(bench, "v")
    for _ in range(2):  # a repeat reaches neither what is in the trash nor what has the name now
        bench.engine.volumes.delete("p", "v", uid=first.id, purge=True)
        bench.engine.volumes.delete("p", "v", uid=second.id)
    assert in_trash(bench) == [("v", second.id)]
    for _ in range(2):
        bench.engine.volumes.delete("p", "v", uid=second.id, purge=True)
    assert in_trash(bench) == []
    with pytest.raises(NotFoundError):
        trash.undelete("p", "v", uid=second.id)
    assert bench.engine.volumes.get("p", "v") == third
    bench.engine.volumes.delete("p", "v", uid=third.id)
    assert in_trash(bench) == [("v", third.id)]
    for _ in range(2):
        bench.engine.volumes.delete("p", "v", purge=True)
    assert in_trash(bench) == [("v", third.id)]
    assert stored(bench) == {third.backend_id}


def test_time_is_over(bench, trash):
    """Goal: purged when due, not before. Method: a clock of the test's; what is young stays."""
    volume = make(bench, "v")
    bench.engine.snapshots.create("p", "v", "s")
    bench.engine.volumes.delete("p", "v", force=True)
    retain(bench, 2 * RETENTION_S)
    young = make(bench, "young")
    bench.engine.volumes.delete("p", "young")
    (old,) = [one for one in bench.pool.list(TrashedVolume) if one.volume.id == volume.id]
    assert trash.look(old.purge_time_ns - 1) == 0
    retain(bench, 0)  # what is in the trash keeps the time that it was given
    assert trash.look(old.purge_time_ns) == 1
    assert trash.look(old.purge_time_ns) == 0
    assert stored(bench) == {young.backend_id}
    assert in_trash(bench) == [("young", young.id)]
    assert trash.undelete("p", "young").id == young.id
    bench.engine.volumes.delete("p", "young")
    assert in_trash(bench) == []
    assert stored(bench) == set()


@only_memory
def test_the_server_purges_by_itself(bench, monkeypatch):
    """Goal: nobody has to call. Method: a short retention and a short interval, then waiting."""
    monkeypatch.setattr("volcore.engine.trash.LOOK_INTERVAL_S", 0.02)
    retain(bench, 0.1)
    bench.engine.trash.start()
    make(bench, "v")
    bench.engine.volumes.delete("p", "v")
    end_s = time.monotonic() + 30
    while set(bench.pool.backend.walk()):
        assert time.monotonic() < end_s
        time.sleep(0.01)
    assert in_trash(bench) == []


@pytest.mark.parametrize("bench", ["memory", "local"], indirect=True)
def test_space_is_counted(bench, trash):
    """Goal: figures that tell who has the space. Method: the pool's before and after a delete."""
    make(bench, "v", b"x" * MIB)
    before = bench.engine.pools.get("p")
    bench.engine.volumes.delete("p", "v")
    after = bench.engine.pools.get("p")
    assert (after.volume_count, after.deleted_volume_count) == (0, 1)
    assert after.provisioned_bytes == before.provisioned_bytes == SIZE
    assert after.trash_retention_s == RETENTION_S
    (gone,) = bench.engine.volumes.list_with_deleted("p", limit=9)
    assert bench.engine.volumes.facts("p", gone.volume).allocated_bytes >= MIB
    bench.engine.volumes.delete("p", "v", uid=gone.volume.id, purge=True)
    assert stored(bench) == set()
    assert bench.engine.pools.get("p").provisioned_bytes == 0


def test_in_use(served):
    """Goal: nothing that is in use goes to the trash. Method: attached, then open in the server."""
    retain(served, RETENTION_S)
    volume = make(served, "v")
    served.engine.attachments.attach("p", "v", "h", AccessMode.READ_WRITE)
    with pytest.raises(PreconditionError) as caught:
        served.engine.volumes.delete("p", "v")
    assert caught.value.blockers[0].name == "pools/p/volumes/v/attachments/h"
    served.engine.attachments.detach("p", "v", "h")
    with (
        served.pool.backend.open_device(volume.backend_id, read_only=True),
        pytest.raises(PreconditionError) as caught,
    ):
        served.engine.volumes.delete("p", "v")
    assert caught.value.reason is Reason.VOLUME_IN_USE
    assert served.engine.volumes.get("p", "v")
    served.engine.volumes.delete("p", "v")
    assert served.engine.trash.undelete("p", "v").id == volume.id


@pytest.mark.parametrize("bench", ["memory", "local"], indirect=True)
def test_purge_against_undelete(bench, trash):
    """Goal: one of the two wins, wholly. Method: both at once, twenty times."""
    with ThreadPoolExecutor(2) as pool:
        for _ in range(20):
            volume = make(bench, "v")
            bench.engine.volumes.delete("p", "v")
            delete = partial(bench.engine.volumes.delete, "p", "v", purge=True)
            pool.submit(outcome, delete, uid=volume.id)
            back = pool.submit(outcome, trash.undelete, "p", "v").result()
            assert isinstance(back, Volume | NotFoundError | OperationPendingError)
            left = stored(bench)
            shown = {one.backend_id for one in bench.pool.list(Volume)}
            kept = {one.volume.backend_id for one in bench.pool.list(TrashedVolume)}
            assert left == shown | kept
            assert not shown & kept
            delete(uid=volume.id)
            assert stored(bench) == set()


def outcome(act, *words, **options):
    try:
        return act(*words, **options)
    except VolcoreError as err:
        return err


@only_memory
def test_what_was_cut_off_is_settled_first(bench, trash):
    """Goal: whole volumes in the trash. Method: the intents of a resize and of a snapshot."""
    volume = make(bench, "v")
    frozen = bench.engine.snapshots.create("p", "v", "s")
    rest = {"subject_id": volume.id, "backend_volume_id": volume.backend_id, "owner": "x"}
    resize = Intent(
        id=volume.id, action=IntentAction.RESIZE_VOLUME, subject_key="v", size_bytes=2 * SIZE,
        create_time_ns=1, **rest,
    )  # fmt: skip
    half = frozen.but(name="half", id="1" * 32, backend_id="half.1", state=State.CREATING)
    snapshot = Intent(
        id=half.id, action=IntentAction.CREATE_SNAPSHOT, subject_key=half.key, create_time_ns=1,
        backend_snapshot_id=half.backend_id, **(rest | {"subject_id": half.id}),
    )  # fmt: skip
    bench.pool.catalog.commit([put(resize), put(half), put(snapshot)])
    bench.engine.volumes.delete("p", "v", force=True)
    assert intents_of(bench.pool) == []
    back = trash.undelete("p", "v")
    assert back.size_bytes == bench.engine.volumes.facts("p", back).size_bytes == 2 * SIZE
    assert [one.name for one in bench.pool.list(Snapshot)] == ["s"]


@only_memory
def test_records_of_before(bench):
    """Goal: records keep their bytes. Method: a volume without what the trash has added."""
    volume = make(bench, "v")
    assert b"undeleted_from" not in volume.encode()
    trashed = TrashedVolume(volume=volume, delete_time_ns=1, purge_time_ns=2)
    assert TrashedVolume.decode(trashed.encode()) == trashed
    assert Volume.decode(volume.encode()) == volume
