"""Adopting rbd images that others made, and giving them back: real Ceph, clones of both formats."""

from contextlib import closing, contextmanager
from dataclasses import dataclass, replace

import pytest
from rbd_backend.pools import leftovers, new_backend, options

from volcore.backends.local import LocalBackend, LocalStore
from volcore.backends.rbd import Cluster
from volcore.backends.rbd.omap import OmapObject
from volcore.backends.rbd.opening import settled
from volcore.backends.rbd.session import FEATURES
from volcore.catalog.omap import OmapCatalog
from volcore.catalog.sqlite import SqliteCatalog
from volcore.engine.audit import Audit
from volcore.engine.engine import Engine, EngineSettings
from volcore.engine.pool import drop
from volcore.engine.pool import put as record
from volcore.engine.views import CreateVolume, SourceRef
from volcore.errors import (
    ConflictError,
    InvalidArgumentError,
    NotFoundError,
    NotSupportedError,
    OperationPendingError,
    PreconditionError,
    Reason,
)
from volcore.limits import MIB
from volcore.model.faults import FaultKind
from volcore.model.records import (
    AccessMode,
    Intent,
    IntentAction,
    Phase,
    Snapshot,
    SourceKind,
    Volume,
)
from volcore.testing.device_contract import fetch, put
from volcore.testing.intents import intents_of

pytestmark = pytest.mark.ceph
SIZE = 16 * MIB
OLD, NEW = b"old" * 1000, b"new" * 1000


@dataclass
class Stock:
    """A pool as OpenStack's RBD driver fills it, and a server that takes it over."""

    access: object
    pool: str
    ioctx: object
    ioctx_of: object

    def image(self, name, snapshots=("snapshot-1",), **changes):
        """An image with OLD, then protected snapshots, then NEW."""
        import rbd

        settings = {"features": FEATURES, "old_format": False} | changes
        rbd.RBD().create(self.ioctx, name, settings.pop("size", SIZE), **settings)
        with rbd.Image(self.ioctx, name) as image:
            image.write(OLD, 0)
            for snapshot in snapshots:
                image.create_snap(snapshot)
                image.protect_snap(snapshot)
            image.write(NEW, 0)

    def clone(self, source, target, snapshot=None, features=FEATURES):
        """A clone of format 1, as that driver makes it: of a volume through `.clone_snap`."""
        import rbd

        through = snapshot or f"{target}.clone_snap"
        if snapshot is None:
            with rbd.Image(self.ioctx, source) as image:
                image.create_snap(through)
                image.protect_snap(through)
        rbd.RBD().clone(self.ioctx, source, through, self.ioctx, target, features=features)

    def read(self, name, snapshot=None):
        import rbd

        with settled(rbd.Image(self.ioctx, name, snapshot=snapshot, read_only=True)) as image:
            return image.read(0, len(OLD))

    def snapshots(self, name):
        import rbd

        with settled(rbd.Image(self.ioctx, name, read_only=True)) as image:
            return [one["name"] for one in image.list_snaps() if one["namespace"] == 0]

    def names(self):
        import rbd

        return rbd.RBD().list(self.ioctx)

    def marks(self, name):
        import rbd

        with settled(rbd.Image(self.ioctx, name, read_only=True)) as image:
            return [key for key, _ in image.metadata_list()]

    @contextmanager
    def engine(self):
        """A server; what it leaves is found by the next one."""
        omap = OmapObject.opened(Cluster(options(self.access)), self.pool, "volcore_catalog")
        backend = new_backend(self.access, self.pool)
        backend.open()
        with closing(backend):
            engine = Engine(EngineSettings(server_id="test"))
            engine.add_pool("p", backend, OmapCatalog(omap), None)
            yield engine
            assert engine.deletions.wait(60)
            *faults, _ = Audit(engine.pools, (0.1, 0.2)).run("p", objects=True)
            assert {one.kind for one in faults} <= {FaultKind.INTENT_WITHOUT_OWNER}  # planted
            engine.close(5)


@pytest.fixture
def stock(ceph_cluster, ceph_pool):
    import rados

    with (
        rados.Rados(
            conffile=str(ceph_cluster.conf_path),
            rados_id="admin",
            conf={"rbd_default_clone_format": "1"},
        ) as cluster,
        cluster.open_ioctx(ceph_pool) as ioctx,
    ):
        yield Stock(ceph_cluster, ceph_pool, ioctx, cluster.open_ioctx)


def at(engine):
    return engine.pools.open("p")


def content(engine, name, snapshot=None):
    pool = at(engine)
    volume = pool.volume(name)
    point = None if snapshot is None else pool.snapshot(name, snapshot).backend_id
    return fetch(pool.backend, volume.backend_id, 0, len(OLD), point)


def done(engine):
    assert engine.deletions.wait(60)


def test_adopt_serve_release(stock):
    """Goal: in place, both ways. Method: names, contents, snapshots, marks around the code."""
    stock.image("volume-a", ("snapshot-1", "snapshot-2"))
    with stock.engine() as engine:
        (seen,) = engine.adoption.list("p", limit=10)
        assert (seen.name, seen.size_bytes, seen.obstacle) == ("volume-a", SIZE, "")
        assert [one.name for one in seen.snapshots] == ["snapshot-1", "snapshot-2"]
        volume = engine.adoption.adopt("p", "a", "volume-a", labels={"k": "v"})
        assert (volume.backend_id, volume.size_bytes) == ("volume-a", SIZE)
        assert engine.adoption.adopt("p", "a", "volume-a") == volume
        assert engine.adoption.list("p", limit=10) == []
        assert content(engine, "a") == NEW
        assert content(engine, "a", "snapshot-1") == OLD
        engine.volumes.resize("p", "a", 2 * SIZE)
        engine.snapshots.create("p", "a", "mine")
        engine.snapshots.delete("p", "a", "snapshot-2")
        for source in (
            SourceRef(kind=SourceKind.VOLUME, key="a"),
            SourceRef(kind=SourceKind.SNAPSHOT, key="a/snapshot-1"),
        ):
            name = f"of-{source.kind.lower()}"
            engine.volumes.create("p", CreateVolume(name=name, source=source))
        assert content(engine, "of-volume") == NEW
        assert content(engine, "of-snapshot") == OLD
        done(engine)
        assert stock.snapshots("volume-a") == ["snapshot-1", volume_snapshot(engine, "mine")]
        assert engine.adoption.release("p", "a") == "volume-a"
        assert engine.adoption.release("p", "a") == ""
        with pytest.raises(NotFoundError):
            engine.volumes.get("p", "a")
        assert at(engine).list(Snapshot) == []
        made = engine.volumes.get("p", "of-volume").backend_id
        assert engine.adoption.release("p", "of-volume", "volume-b") == "volume-b"
        assert made not in stock.names()
    assert stock.snapshots("volume-a") == ["snapshot-1", "mine"]
    stock.clone("volume-a", "volume-c", "mine")
    assert stock.marks("volume-a") == []
    assert stock.read("volume-a") == NEW
    assert stock.read("volume-b") == NEW
    with stock.engine() as engine:
        seen = [one.name for one in engine.adoption.list("p", limit=10)]
        assert seen == ["volume-a", "volume-b", "volume-c"]
        assert [one.name for one in engine.adoption.list("p", limit=1)] == ["volume-a"]
        after = engine.adoption.list("p", after="volume-a", limit=9)
        assert [one.name for one in after] == ["volume-b", "volume-c"]
        engine.adoption.adopt("p", "again", "volume-a")
        assert content(engine, "again", "mine") == NEW


def volume_snapshot(engine, name):
    return at(engine).snapshot("a", name).backend_id


def test_refusals(stock, ceph_cluster, ceph_pool):
    """Goal: a clear word and nothing changed. Method: each obstacle; the pool's objects after."""
    import rbd

    stock.image("good")
    stock.image("journal", features=FEATURES | 64)
    stock.image("odd", size=SIZE + 512)
    stock.image("small", order=20)
    stock.image("locked", ())
    stock.image("named", ("a b",))
    with rbd.Image(stock.ioctx, "locked") as image:
        image.write(b"LUKS\xba\xbe", 0)
    rbd.RBD().group_create(stock.ioctx, "g")
    stock.image("grouped", ())
    rbd.Group(stock.ioctx, "g").add_image(stock.ioctx, "grouped")
    with stock.engine() as engine:
        before = leftovers(ceph_cluster, ceph_pool)
        found = {one.name: one.obstacle for one in engine.adoption.list("p", limit=99)}
        assert found == {
            "good": "", "journal": "FEATURES", "odd": "SIZE", "small": "OBJECT_SIZE",
            "locked": "ENCRYPTED", "named": "SNAPSHOT_NAME", "grouped": "GROUP",
        }  # fmt: skip
        for name, obstacle in found.items():
            if obstacle:
                with pytest.raises(PreconditionError) as err:
                    engine.adoption.adopt("p", "v", name)
                assert err.value.reason is Reason.NOT_ADOPTABLE
                assert err.value.context["obstacle"] == obstacle
        with pytest.raises(NotFoundError):
            engine.adoption.adopt("p", "v", "absent")
        for bad in ("", "a@b", "a/b", ".hidden", "x" * 129, "\N{SNOWMAN}"):
            with pytest.raises(InvalidArgumentError):
                engine.adoption.adopt("p", "v", bad)
        assert at(engine).list(Volume) == intents_of(at(engine)) == []
        assert leftovers(ceph_cluster, ceph_pool) == before
        engine.adoption.adopt("p", "v", "good")
        with pytest.raises(ConflictError, match="pools/p/volumes/v"):
            engine.adoption.adopt("p", "other", "good")
        with pytest.raises(ConflictError):
            engine.adoption.adopt("p", "v", "odd")
        with pytest.raises(ConflictError):
            engine.adoption.release("p", "v", "odd")
        engine.attachments.attach("p", "v", "host", AccessMode.READ_WRITE)
        with pytest.raises(PreconditionError, match="attached to host"):
            engine.adoption.release("p", "v")
        engine.attachments.detach("p", "v", "host")
        with rbd.Image(stock.ioctx, "good") as guest:
            guest.write(NEW, 0)
            with pytest.raises(PreconditionError, match="in use"):
                engine.adoption.release("p", "v", "elsewhere")
        assert content(engine, "v") == NEW
        assert intents_of(at(engine)) == []
    rbd.RBD().group_remove(stock.ioctx, "g")


def test_while_others_have_it_open(stock):
    """Goal: a running guest goes on. Method: write from outside through both changes."""
    import rbd

    stock.image("volume-a")
    with stock.engine() as engine, rbd.Image(stock.ioctx, "volume-a") as guest:
        guest.write(b"1", 0)
        engine.adoption.adopt("p", "a", "volume-a")
        engine.snapshots.create("p", "a", "s")
        guest.write(b"2", 0)
        assert content(engine, "a", "s")[:1] == b"1"
        engine.adoption.release("p", "a")
        guest.write(b"3", 0)
        guest.flush()
    assert stock.read("volume-a")[:1] == b"3"
    assert stock.read("volume-a", "s")[:1] == b"1"


def test_old_clones(stock, ceph_cluster, ceph_pool):
    """Goal: clones of format 1 never lose their parent. Method: delete parents first, restart."""
    stock.image("volume-a")
    stock.clone("volume-a", "volume-b")
    stock.clone("volume-a", "volume-c", "snapshot-1")
    with stock.engine() as engine:
        for name in ("volume-a", "volume-b", "volume-c"):
            engine.adoption.adopt("p", name, name)
        assert [one.name for one in engine.snapshots.list("p", "volume-a", limit=9)] == [
            "snapshot-1"
        ]
        engine.snapshots.delete("p", "volume-a", "snapshot-1")
        done(engine)
        first, second = sorted(stock.snapshots("volume-a"))
        assert first.startswith("snapshot-1.")
        assert first.endswith(".clone_snap")
        assert second == "volume-b.clone_snap"
        engine.snapshots.create("p", "volume-a", "snapshot-1")
        engine.snapshots.delete("p", "volume-a", "snapshot-1")
        engine.volumes.create(
            "p",
            CreateVolume(name="d", source=SourceRef(kind=SourceKind.VOLUME, key="volume-c")),
        )
        engine.volumes.delete("p", "volume-a")
        engine.volumes.delete("p", "volume-c")
        done(engine)
        assert stock.names() == [engine.volumes.get("p", "d").backend_id, "volume-b"]
    for _ in range(2):
        with stock.engine() as engine:
            assert content(engine, "volume-b") == NEW
            assert content(engine, "d") == OLD
    with stock.engine() as engine:
        for name in ("d", "volume-b"):
            engine.volumes.delete("p", name)
        done(engine)
        at(engine).backend.collect()
    left = leftovers(ceph_cluster, ceph_pool)
    assert left == {"rbd_children"} & left


def test_last_old_clone_frees_its_snapshot(stock):
    """Goal: no snapshot is left for nobody. Method: delete one clone, flatten the other."""
    stock.image("volume-a", ())
    stock.clone("volume-a", "volume-b")
    stock.clone("volume-a", "volume-c")
    with stock.engine() as engine:
        for name in ("volume-a", "volume-b", "volume-c"):
            engine.adoption.adopt("p", name, name)
        engine.volumes.delete("p", "volume-b")
        done(engine)
        assert stock.snapshots("volume-a") == ["volume-c.clone_snap"]
        operation = engine.volumes.flatten("p", "volume-c")
        engine.operations.wait("p", operation.id, 60)
        assert stock.snapshots("volume-a") == []
        assert content(engine, "volume-c") == NEW


def test_foreign_parents_are_left_alone(stock):
    """Goal: volcore deletes nothing that it did not adopt. Method: adopt and delete the clone."""
    stock.image("volume-a.deleted", ())
    stock.clone("volume-a.deleted", "volume-b")
    with stock.engine() as engine:
        engine.adoption.adopt("p", "b", "volume-b")
        facts = at(engine).backend.describe("volume-b")
        assert (facts.depth, facts.parent_volume_id) == (1, None)
        put(at(engine).backend, "volume-b", 0, b"mine")
        engine.snapshots.create("p", "b", "s")
        engine.volumes.revert("p", "b", "s")
        assert content(engine, "b") == b"mine" + NEW[4:]
        engine.volumes.delete("p", "b", force=True)
        done(engine)
        at(engine).backend.collect()
    assert stock.names() == ["volume-a.deleted"]
    assert stock.snapshots("volume-a.deleted") == ["volume-b.clone_snap"]
    assert stock.read("volume-a.deleted") == NEW


def test_a_name_that_comes_back(stock):
    """Goal: an unfinished delete never hits a new image of its name. Method: plant its intent."""
    stock.image("volume-a", ())
    with stock.engine() as engine:
        stale = Intent(
            id="1" * 32, action=IntentAction.DELETE_VOLUME, subject_key="gone", subject_id="1" * 32,
            backend_volume_id="volume-a", owner="test", create_time_ns=1,
        )  # fmt: skip
        at(engine).catalog.commit([record(stale)])
        with pytest.raises(OperationPendingError):
            engine.adoption.adopt("p", "a", "volume-a")
        at(engine).catalog.commit([drop(stale)])
        made = replace(stale, action=IntentAction.MAKE_VOLUME, subject_key="a")
        at(engine).catalog.commit([record(made)])  # of a volume that was released just after
        engine.adoption.adopt("p", "a", "volume-a")
    with stock.engine() as engine:
        assert intents_of(at(engine)) == []
        assert content(engine, "a") == NEW
        engine.volumes.create("p", CreateVolume(name="b", size_bytes=SIZE))
        assert engine.adoption.release("p", "b", "volume-b") == "volume-b"
    assert stock.names() == ["volume-a", "volume-b"]


def test_local_pools_cannot(tmp_path):
    """Goal: a clear refusal. Method: each call on a local pool."""
    store = LocalStore.open(tmp_path / "pool")
    backend = LocalBackend(store)
    backend.open()
    with closing(backend):
        engine = Engine(EngineSettings(server_id="test"))
        engine.add_pool("p", backend, SqliteCatalog(store.database), None)
        for call in (
            lambda: engine.adoption.list("p", limit=1),
            lambda: engine.adoption.adopt("p", "v", "x"),
            lambda: engine.adoption.release("p", "v"),
        ):
            with pytest.raises(NotSupportedError, match="use an rbd pool"):
                call()
        engine.close(5)


def test_parent_in_another_pool(stock, ceph_cluster, ceph_module_pool):
    """Goal: a clone of a Glance image stands alone after a flatten, also with a lost first write.

    Method: plant an object that the map has and the cluster has not.
    """
    import rbd

    with stock.ioctx_of(ceph_module_pool) as glance:
        rbd.RBD().create(glance, "image", SIZE, features=FEATURES, old_format=False)
        with rbd.Image(glance, "image") as image:
            for offset in (0, SIZE // 2):
                image.write(OLD, offset)
            image.create_snap("snap")
            image.protect_snap("snap")
        rbd.RBD().clone(glance, "image", "snap", stock.ioctx, "volume-a", features=FEATURES)
        with rbd.Image(stock.ioctx, "volume-a") as image:
            image.write(NEW, SIZE // 2)
            lost = f"{image.block_name_prefix()}.{2:016x}"
        stock.ioctx.remove_object(lost)
        with stock.engine() as engine:
            engine.adoption.adopt("p", "a", "volume-a")
            operation = engine.volumes.flatten("p", "a")
            engine.operations.wait("p", operation.id, 60)
            assert content(engine, "a") == OLD
            assert fetch(at(engine).backend, "volume-a", SIZE // 2, len(OLD)) == OLD
        with rbd.Image(glance, "image") as image:
            image.unprotect_snap("snap")
            image.remove_snap("snap")


@pytest.mark.parametrize("features", [1, 1 | 4, 1 | 4 | 8])
def test_few_features(stock, features):
    """Goal: an image of an older tool is served all the same. Method: everything, without maps."""
    stock.image("base", ("snap",), features=features)
    stock.clone("base", "volume-a", "snap", features=features)
    with stock.engine() as engine:
        engine.adoption.adopt("p", "base", "base")
        engine.adoption.adopt("p", "a", "volume-a")
        backend = at(engine).backend
        put(backend, "volume-a", 0, NEW)
        engine.snapshots.create("p", "a", "s")
        facts = backend.describe("volume-a")
        assert (facts.depth, facts.allocated_bytes) == (1, 4 * MIB)
        source = SourceRef(kind=SourceKind.SNAPSHOT, key="a/s")
        engine.volumes.create("p", CreateVolume(name="c", source=source))
        live = SourceRef(kind=SourceKind.VOLUME, key="a")
        engine.volumes.create("p", CreateVolume(name="l", source=live))
        put(backend, "volume-a", 0, OLD)
        snapshot = at(engine).snapshot("a", "s").backend_id
        assert [one.offset_bytes for one in backend.diff("volume-a", snapshot, None)] == [0]
        engine.volumes.revert("p", "a", "s")
        assert content(engine, "a") == content(engine, "c") == content(engine, "l") == NEW
        engine.volumes.resize("p", "a", 2 * SIZE)
        operation = engine.volumes.flatten("p", "a")
        ended = engine.operations.wait("p", operation.id, 60)
        assert ended.phase is Phase.SUCCEEDED, ended
        assert content(engine, "a") == NEW
        for name in ("base", "a", "c", "l"):
            engine.volumes.delete("p", name, force=True)
        done(engine)
        backend.collect()
    assert stock.names() == []
