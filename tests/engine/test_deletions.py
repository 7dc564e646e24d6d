"""Deletes are answered at once and done behind that, whatever happens in between."""

import time
from contextlib import suppress

import pytest
from rbd_backend.pools import client_counters, options, raw_pool

from volcore.backends.contract import SupportsDiff
from volcore.backends.memory import MemoryBackend
from volcore.backends.rbd import Cluster, RbdBackend
from volcore.backends.rbd.direct import openers
from volcore.backends.rbd.lease import PoolLease
from volcore.backends.rbd.omap import OmapObject
from volcore.catalog.omap import OmapCatalog
from volcore.catalog.sqlite import SqliteCatalog
from volcore.database import Database
from volcore.engine import deletions
from volcore.engine.engine import Engine, EngineSettings
from volcore.engine.views import CreateVolume, SourceRef
from volcore.errors import (
    ExhaustedError,
    NotFoundError,
    OperationPendingError,
    PreconditionError,
    Reason,
    UnavailableError,
)
from volcore.limits import MIB
from volcore.model.records import Intent, Operation, Phase, Snapshot, SourceKind, Volume
from volcore.testing.device_contract import fetch, put
from volcore.testing.intents import intents_of

SIZE = 8 * MIB
only_memory = pytest.mark.parametrize("bench", ["memory"], indirect=True)
only_rbd = pytest.mark.parametrize(
    "bench", [pytest.param("rbd", marks=pytest.mark.ceph)], indirect=True
)
not_joined = pytest.mark.parametrize(
    "bench", ["memory", pytest.param("rbd", marks=pytest.mark.ceph)], indirect=True
)


def blank(name):
    return CreateVolume(name=name, size_bytes=SIZE)


def until(condition, seconds=30):
    end_s = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end_s
        time.sleep(0.02)


def unready(bench):
    return [o for o in bench.pool.list(Operation) if not o.finished]


@not_joined
def test_the_work_is_an_operation(bench):
    """Goal: a delete can be followed to its end. Method: volume and image, all that is recorded."""
    volume = bench.engine.volumes.create("p", blank("v"))
    bench.engine.snapshots.create("p", "v", "s")
    bench.engine.images.publish("p", "gold", "v", "s")
    begun = bench.engine.volumes.delete("p", "v", force=True)
    assert (begun.action, begun.target) == ("delete", "pools/p/volumes/v")
    assert begun.subject_id == volume.id
    image = bench.engine.images.delete("p", "gold")
    assert image.target == "pools/p/images/gold"
    for one in (begun, image):
        ended = bench.engine.operations.wait("p", one.id, 30)
        assert ended.phase is Phase.SUCCEEDED
        assert ended.end_time_ns >= ended.create_time_ns
        assert bench.pool.find(Operation, one.id) == ended
    assert {o.id for o in bench.engine.operations.list("p", limit=9)} >= {begun.id, image.id}
    assert not list(bench.pool.backend.walk())
    assert intents_of(bench.pool) == bench.pool.list(Snapshot) == []
    assert bench.engine.volumes.delete("p", "v") is None


@pytest.mark.parametrize("bench", ["local"], indirect=True)
def test_local_deletes_leave_nothing_to_do(bench):
    """Goal: one commit where that is enough. Method: no operation, no intent, no volume."""
    bench.engine.volumes.create("p", blank("v"))
    assert bench.engine.volumes.delete("p", "v") is None
    assert bench.pool.list(Operation) == intents_of(bench.pool) == []
    assert not list(bench.pool.backend.walk())


@only_rbd
def test_a_client_that_has_it_open_is_waited_for(bench, ceph_cluster, ceph_pool, monkeypatch):
    """Goal: never free what a client elsewhere uses, and say so; the name is free meanwhile.

    Method: librbd has the image open; a new volume of the name; the server starts anew; it closes.
    """
    import rbd

    monkeypatch.setattr(deletions, "DELETE_RETRY_S_MAX", 0.2)
    engine = bench.engine
    volume = engine.volumes.create("p", blank("v"))
    with raw_pool(ceph_cluster, ceph_pool) as ioctx:
        with rbd.Image(ioctx, volume.backend_id) as image:
            image.write(b"mine", 0)
            begun = engine.volumes.delete("p", "v")
            until(lambda: engine.operations.get("p", begun.id).obstacle)
            waiting = engine.operations.get("p", begun.id)
            assert waiting.phase is Phase.QUEUED
            assert "in use by " in waiting.obstacle
            assert bench.pool.find(Operation, begun.id).obstacle == waiting.obstacle
            assert not engine.operations.cancel("p", begun.id).cancel_requested
            second = engine.volumes.create("p", blank("v"))
            other = engine.volumes.create("p", blank("other"))
            engine.volumes.delete("p", "other")  # not held up
            until(lambda: other.backend_id not in set(bench.pool.backend.walk()))
            engine.close(5)
            again = Engine(EngineSettings(server_id="again"))
            pool = bench.pool
            again.add_pool("p", pool.backend, pool.catalog, None)
            until(lambda: again.operations.get("p", begun.id).phase is Phase.QUEUED)
            image.write(b"still", SIZE - 4096)
            assert image.read(0, 4) == b"mine"
            assert {volume.backend_id, second.backend_id} == set(pool.backend.walk())
        assert again.operations.wait("p", begun.id, 60).phase is Phase.SUCCEEDED
        assert again.operations.get("p", begun.id).obstacle == ""
        assert rbd.RBD().list(ioctx) == [second.backend_id]
    again.close(5)


@only_rbd
def test_a_server_that_lost_its_lock_deletes_nothing(bench, monkeypatch):
    """Goal: no intent that the pool's server does not see. Method: take the lock's word away."""
    bench.engine.volumes.create("p", blank("v"))
    for retention_s in (0, 60):
        object.__setattr__(bench.pool, "trash_retention_s", retention_s)
        with monkeypatch.context() as patch:
            patch.setattr(PoolLease, "held", property(lambda _: False))
            with pytest.raises(UnavailableError):
                bench.engine.volumes.delete("p", "v")
    assert bench.engine.volumes.get("p", "v")
    assert intents_of(bench.pool) == bench.pool.list(Operation) == []


@only_memory
def test_a_name_is_free_while_its_volume_is_freed(bench):
    """Goal: intents never touch a new volume of the name. Method: settle an intent behind it."""
    old = bench.engine.volumes.create("p", blank("v"))
    bench.engine.snapshots.create("p", "v", "s")
    bench.engine.deletions.close(5)  # as if the server died right behind the answer
    bench.engine.volumes.delete("p", "v", force=True)
    new = bench.engine.volumes.create("p", blank("v"))
    fresh = bench.engine.snapshots.create("p", "v", "s")
    assert set(bench.pool.backend.walk()) == {old.backend_id, new.backend_id}
    again = Engine(EngineSettings(server_id="again"))
    again.add_pool("p", bench.pool.backend, bench.pool.catalog, None)
    assert again.deletions.wait(30)
    assert list(bench.pool.backend.walk()) == [new.backend_id]
    assert bench.pool.list(Volume) == [new]
    assert bench.pool.list(Snapshot) == [fresh]
    assert intents_of(bench.pool) == unready(bench) == []


@not_joined
def test_a_snapshot_is_freed_after_a_while(bench):
    """Goal: who rotates snapshots does not wait for librbd. Method: the next one at once."""
    engine = bench.engine
    engine.volumes.create("p", blank("v"))
    for name in ("a", "b"):
        engine.snapshots.create("p", "v", name)
    begun = engine.snapshots.delete("p", "v", "a")
    engine.snapshots.create("p", "v", "a")
    assert engine.operations.get("p", begun.id).phase is Phase.QUEUED
    assert engine.operations.wait("p", begun.id, 30).phase is Phase.SUCCEEDED
    assert [one.name for one in bench.pool.list(Snapshot)] == ["a", "b"]


@not_joined
def test_snapshots_are_freed_behind_the_answer(bench, monkeypatch):
    """Goal: a name is free at once, and calls find the storage in order. Method: rotate snapshots.

    Each is deleted as soon as the next is there; what follows at once is a new one of the name, a
    diff, a revert and a resize.
    """
    monkeypatch.setattr(deletions, "DELETE_SNAPSHOT_DELAY_S", 0)
    engine, backend = bench.engine, bench.pool.backend
    volume = engine.volumes.create("p", blank("v"))
    previous = engine.snapshots.create("p", "v", "previous")
    for number in range(1, 4):
        put(backend, volume.backend_id, number * MIB, bytes([number]) * 4096)
        present = engine.snapshots.create("p", "v", "present")
        begun = engine.snapshots.delete("p", "v", "previous")
        assert (begun.target, begun.subject_id) == (
            "pools/p/volumes/v/snapshots/previous", previous.id,
        )  # fmt: skip
        previous = engine.snapshots.create("p", "v", "previous")
        put(backend, volume.backend_id, number * MIB, b"lost")
        if isinstance(backend, SupportsDiff):
            backend.diff(volume.backend_id, present.backend_id, previous.backend_id)
        engine.volumes.revert("p", "v", "previous")
        engine.volumes.resize("p", "v", SIZE + number * 4 * MIB)
        engine.snapshots.delete("p", "v", "present")
        assert fetch(backend, volume.backend_id, number * MIB, 4096) == bytes([number]) * 4096
        assert engine.operations.wait("p", begun.id, 30).phase is Phase.SUCCEEDED
        assert present.backend_id != previous.backend_id
    assert engine.deletions.wait(30)
    assert bench.pool.list(Snapshot) == [previous]
    assert intents_of(bench.pool) == unready(bench) == []
    for left in (present, previous):
        with (
            suppress(NotFoundError),
            backend.open_device(volume.backend_id, left.backend_id, read_only=True),
        ):
            assert left is previous
    engine.volumes.delete("p", "v", force=True)
    assert engine.deletions.wait(30)
    assert not list(backend.walk())


@not_joined
def test_a_snapshot_is_freed_by_the_next_start(bench):
    """Goal: an answer is a promise. Method: nothing follows it; a new server, a clone stays."""
    engine, backend = bench.engine, bench.pool.backend
    volume = engine.volumes.create("p", blank("v"))
    put(backend, volume.backend_id, 0, b"kept")
    old = engine.snapshots.create("p", "v", "s")
    ref = SourceRef(kind=SourceKind.SNAPSHOT, key="v/s")
    clone = engine.volumes.create("p", CreateVolume(name="c", source=ref))
    engine.deletions.close(5)
    engine.snapshots.delete("p", "v", "s")
    assert engine.snapshots.delete("p", "v", "s") is None
    backend.open_device(volume.backend_id, old.backend_id, read_only=True).close()
    fresh = engine.snapshots.create("p", "v", "s")
    again = Engine(EngineSettings(server_id="again"))
    again.add_pool("p", backend, bench.pool.catalog, None)
    assert again.deletions.wait(30)
    with pytest.raises(NotFoundError):
        backend.open_device(volume.backend_id, old.backend_id, read_only=True)
    backend.open_device(volume.backend_id, fresh.backend_id, read_only=True).close()
    assert fetch(backend, clone.backend_id, 0, 4) == b"kept"
    assert intents_of(bench.pool) == unready(bench) == []
    again.close(5)


@only_memory
def test_a_snapshot_that_is_read_stays(bench):
    """Goal: no reader loses what it reads. Method: delete it with a device open, then closed."""
    volume = bench.engine.volumes.create("p", blank("v"))
    snapshot = bench.engine.snapshots.create("p", "v", "s")
    with bench.pool.backend.open_device(volume.backend_id, snapshot.backend_id, read_only=True):
        with pytest.raises(PreconditionError) as raised:
            bench.engine.snapshots.delete("p", "v", "s")
        assert raised.value.reason is Reason.VOLUME_IN_USE
        assert bench.pool.list(Snapshot) == [snapshot]
    with bench.pool.backend.open_device(volume.backend_id, read_only=False):
        bench.engine.snapshots.delete("p", "v", "s")
        assert bench.engine.deletions.wait(30)


@only_memory
def test_an_intent_without_its_operation_is_settled(bench):
    """Goal: what older servers left is finished. Method: take the operation away, start again."""
    bench.engine.volumes.create("p", blank("v"))
    bench.engine.deletions.close(5)
    begun = bench.engine.volumes.delete("p", "v")
    bench.pool.catalog.commit([deletions.drop(bench.pool.find(Operation, begun.id))])
    again = Engine(EngineSettings(server_id="again"))
    again.add_pool("p", bench.pool.backend, bench.pool.catalog, None)
    assert not list(bench.pool.backend.walk())
    assert intents_of(bench.pool) == []


@not_joined
def test_parents_first(bench):
    """Goal: any order. Method: a chain, made again under the same names while it is freed."""
    engine = bench.engine
    for _ in range(2):
        engine.volumes.create("p", blank("v0"))
        engine.snapshots.create("p", "v0", "s")
        ref = SourceRef(kind=SourceKind.SNAPSHOT, key="v0/s")
        engine.volumes.create("p", CreateVolume(name="v1", source=ref))
        ref = SourceRef(kind=SourceKind.VOLUME, key="v1")
        engine.volumes.create("p", CreateVolume(name="v2", source=ref))
        for level in range(3):
            engine.volumes.delete("p", f"v{level}", force=True)
    assert engine.deletions.wait(120)
    assert not list(bench.pool.backend.walk())
    assert intents_of(bench.pool) == unready(bench) == []


@only_memory
def test_too_many_waiting(bench, monkeypatch):
    """Goal: a bound on what waits. Method: allow none; the refused volume stays."""
    bench.engine.volumes.create("p", blank("v"))
    monkeypatch.setattr(deletions, "DELETES_WAITING_MAX", 0)
    with pytest.raises(ExhaustedError) as caught:
        bench.engine.volumes.delete("p", "v")
    assert caught.value.reason is Reason.TOO_MANY_REQUESTS
    assert caught.value.retryable
    assert bench.engine.volumes.get("p", "v")


@only_memory
def test_ended_ones_are_forgotten(bench, monkeypatch):
    """Goal: the catalog does not grow with deletes. Method: more than are kept, and a restart."""
    monkeypatch.setattr(deletions, "DELETES_KEPT_MAX", 3)
    begun = []

    def work(engine, count):
        for _ in range(count):
            engine.volumes.create("p", blank("v"))
            begun.append(engine.volumes.delete("p", "v").id)
            assert engine.deletions.wait(30)

    work(bench.engine, 5)
    assert {o.id for o in bench.pool.list(Operation)} == set(begun[-3:])
    again = Engine(EngineSettings(server_id="again"))
    again.add_pool("p", bench.pool.backend, bench.pool.catalog, None)
    work(again, 2)
    assert {o.id for o in bench.pool.list(Operation)} == set(begun[-3:])
    again.close(5)


class LosingCatalog(SqliteCatalog):
    """A catalog whose answer to the next commit gets lost, after or before it took effect."""

    lose = ""

    def commit(self, changes):
        lose, self.lose = self.lose, ""
        if lose != "request":
            super().commit(changes)
        if lose:
            raise UnavailableError("lost", reason=Reason.CLUSTER_UNREACHABLE, retryable=True)


@pytest.mark.parametrize("lost", ["request", "answer"])
def test_a_lost_answer(lost):
    """Goal: UNAVAILABLE may be repeated, and nothing is left. Method: lose one, then repeat."""
    backend, catalog = MemoryBackend(), LosingCatalog(Database(None))
    backend.open()
    engine = Engine(EngineSettings(server_id="test"))
    engine.add_pool("p", backend, catalog, None)
    engine.volumes.create("p", blank("v"))
    engine.pools.open("p").making.close()
    catalog.lose = lost
    with pytest.raises(UnavailableError):
        engine.volumes.delete("p", "v")
    engine.volumes.delete("p", "v")
    assert engine.deletions.wait(30)
    assert not list(backend.walk())
    assert intents_of(engine.pools.open("p")) == []
    assert all(o.finished for o in engine.pools.open("p").list(Operation))


@only_memory
def test_a_cut_off_change_is_settled_first(bench):
    """Goal: one intent per volume. Method: leave the intent of a resize, then delete."""
    volume = bench.engine.volumes.create("p", blank("v"))
    left = Intent(
        id=volume.id, action="RESIZE_VOLUME", subject_key="v", subject_id=volume.id,
        backend_volume_id=volume.backend_id, size_bytes=2 * SIZE, owner="x", create_time_ns=1,
    )  # fmt: skip
    bench.pool.catalog.commit([deletions.put(left)])
    with pytest.raises(OperationPendingError):
        bench.engine.volumes.delete("p", "v", etag="old")
    assert bench.engine.volumes.delete("p", "v") is not None
    assert bench.engine.deletions.wait(30)
    assert not list(bench.pool.backend.walk())
    assert intents_of(bench.pool) == []


@pytest.mark.ceph
def test_two_rounds_as_the_client_counts_them(ceph_cluster, ceph_pool, tmp_path, monkeypatch):
    """Goal: an answer after one read and one write. Method: librados' own counters.

    The lease is renewed now and then beside it, hence the least of some.
    """
    monkeypatch.setattr(openers, "REMINDERS_S", ())
    at, conf = tmp_path / "client.asok", tmp_path / "ceph.conf"
    conf.write_text(ceph_cluster.conf_path.read_text() + f"\n[client]\nadmin socket = {at}\n")
    cluster = Cluster(options(ceph_cluster, conf_path=str(conf)))
    backend = RbdBackend(cluster, ceph_pool)
    backend.open()
    catalog = OmapCatalog(OmapObject.opened(cluster, ceph_pool, "volcore_catalog"))
    engine = Engine(EngineSettings(server_id="test"))
    engine.add_pool("p", backend, catalog, None)
    names = [f"v{number}" for number in range(4)]
    for name in [*names, "v9"]:
        engine.volumes.create("p", blank(name))
    engine.deletions.close(5)  # what follows the answer is left to the next start
    engine.pools.open("p").making.close()
    counts = []
    for name in names:
        if name == "v2":  # from here on to the trash
            object.__setattr__(engine.pools.open("p"), "trash_retention_s", 60)
        before = client_counters(at)
        engine.volumes.delete("p", name)
        after = client_counters(at)
        counts.append([after[key] - before[key] for key in ("op_r", "op_w")])
    for number in range(2):
        engine.snapshots.create("p", "v9", f"s{number}")
        before = client_counters(at)
        engine.snapshots.delete("p", "v9", f"s{number}")
        after = client_counters(at)
        counts.append([after[key] - before[key] for key in ("op_r", "op_w")])
    again = Engine(EngineSettings(server_id="again"))
    again.add_pool("p", backend, catalog, None)
    assert again.deletions.wait(60)
    assert [name[:2] for name in sorted(backend.walk())] == ["v2", "v3", "v9"]
    again.close(5)
    catalog.close()
    backend.close()
    for some in (counts[:2], counts[2:4], counts[4:]):
        assert [min(column) for column in zip(*some, strict=True)] == [1, 1], counts
