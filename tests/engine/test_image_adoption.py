"""Images of Glance's rbd store adopted without a copy: real Ceph, with rights of its own."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field

import pytest
from rbd_backend.glance import glance_store
from rbd_backend.pools import leftovers, options, raw_pool

from volcore.backends.adopting import ForeignSource
from volcore.backends.local import LocalBackend, LocalStore
from volcore.backends.rbd import Cluster, RbdBackend
from volcore.backends.rbd.omap import OmapObject
from volcore.backends.rbd.opening import settled
from volcore.catalog.omap import OmapCatalog
from volcore.catalog.sqlite import SqliteCatalog
from volcore.engine.audit import Audit
from volcore.engine.engine import Engine, EngineSettings
from volcore.engine.views import CreateVolume, ImportRequest, SourceRef
from volcore.errors import (
    ConflictError,
    InvalidArgumentError,
    NotFoundError,
    NotSupportedError,
    PreconditionError,
    Reason,
)
from volcore.limits import MIB
from volcore.model.extent import ExtentKind
from volcore.model.records import Image, SourceKind
from volcore.testing.device_contract import fetch, put
from volcore.testing.intents import intents_of

pytestmark = pytest.mark.ceph
SIZE = 20 * MIB + 512
ROUNDED = 20 * MIB + 4096
FIRST, LAST = b"first" * 1000, b"last" * 100
CONTENT = {0: FIRST, 9 * MIB: FIRST, SIZE - len(LAST): LAST}
WHOLE = bytearray(ROUNDED)
for at_bytes, piece in CONTENT.items():
    WHOLE[at_bytes : at_bytes + len(piece)] = piece
ID = "7d2f1f0a-64b1-4e6e-9a51-2f1f5c0f6a11"
NAME = f"glance-{ID}"


@dataclass
class Ground:
    """Glance's pool, ours, and servers one after another."""

    access: object
    pool: str
    store: object
    settings: dict = field(default_factory=dict)

    def source(self, image=ID, **changes):
        given = {"cluster_id": "", "pool": self.store.pool, "image": image, "snapshot": "snap"}
        return ForeignSource(**(given | changes))

    @contextmanager
    def engine(self, *, direct=False):
        """A server; what it leaves is found by the next one."""
        cluster = options(self.access, **self.settings)
        omap = OmapObject.opened(Cluster(cluster), self.pool, "volcore_catalog")
        backend = RbdBackend(Cluster(cluster), self.pool, direct=direct)
        backend.open()
        if direct:
            backend.wait_for_short_path()
        with closing(omap), closing(backend):
            engine = Engine(EngineSettings(server_id="test"))
            engine.add_pool("p", backend, OmapCatalog(omap), None)
            yield engine
            assert engine.deletions.wait(60)
            *faults, _ = Audit(engine.pools, (0.1, 0.2)).run("p", objects=True)
            assert faults == []
            engine.close(5)

    def data_objects(self):
        """The data that lies in our pool."""
        found = leftovers(self.access, self.pool)
        return [one for one in found if one.startswith("rbd_data.")]


@pytest.fixture
def ground(ceph_cluster, ceph_pool):
    images = f"{ceph_pool}-images"
    ceph_cluster.create_pool(images)
    try:
        with glance_store(ceph_cluster, images) as store:
            yield Ground(ceph_cluster, ceph_pool, store)
    finally:
        ceph_cluster.delete_pool(images)


@pytest.fixture
def restricted(ground, tmp_path):
    """Sets the rights on OSDs of the server's Ceph user; `{ours}` and `{images}` are the pools."""
    user = f"{ground.pool}-server"
    keyring = tmp_path / "keyring"

    def set_rights(osd):
        rights = osd.format(ours=ground.pool, images=ground.store.pool)
        key = ground.store.set_rights(user, rights)
        keyring.write_text(f"[client.{user}]\nkey = {key}\n")
        ground.settings = {"user": user, "keyring_path": str(keyring)}

    yield set_rights
    ground.store.command("auth del", entity=f"client.{user}")


def content(engine, name, size_bytes=ROUNDED):
    volume = engine.pools.open("p").volume(name)
    return fetch(engine.pools.open("p").backend, volume.backend_id, 0, size_bytes)


def deploy(engine, name, **changes):
    source = SourceRef(kind=SourceKind.IMAGE, key=NAME)
    engine.volumes.create("p", CreateVolume(name=name, source=source, **changes))


@pytest.mark.parametrize("direct", [True, False])
def test_nothing_is_copied(ground, direct):
    """Goal: clones without data of ours, that outlive Glance's image. Method: objects, bytes."""
    ground.store.add(ID, SIZE, CONTENT)
    with ground.engine(direct=direct) as engine:
        image = engine.images.adopt("p", NAME, ground.source(), labels={"k": "v"})
        assert (image.size_bytes, image.digest, image.labels) == (ROUNDED, "", {"k": "v"})
        path = f"rbd://{ground.store.fsid}/{ground.store.pool}/{ID}/snap"
        assert (image.source_format, image.published_from) == ("rbd", path)
        known = ground.source(cluster_id=ground.store.fsid)
        assert engine.images.adopt("p", NAME, known) == engine.images.get("p", NAME) == image
        assert ground.store.children(ID) == [image.backend_volume_id]
        deploy(engine, "a")
        deploy(engine, "b", size_bytes=2 * ROUNDED)
        assert ground.data_objects() == []
        assert content(engine, "a") == WHOLE
        assert content(engine, "b", 2 * ROUNDED) == WHOLE + bytes(ROUNDED)
        backend = engine.pools.open("p").backend
        a = engine.pools.open("p").volume("a").backend_id
        assert backend.describe(image.backend_volume_id).depth == 1
        assert backend.describe(image.backend_volume_id).parent_volume_id is None
        assert (backend.describe(a).depth, backend.describe(a).allocated_bytes) == (2, 0)
        engine.snapshots.create("p", "a", "s")
        put(backend, a, 5 * MIB, b"changed")
        (changed,) = backend.diff(a, engine.pools.open("p").snapshot("a", "s").backend_id, None)
        assert (changed.offset_bytes // (4 * MIB), changed.kind) == (1, ExtentKind.DATA)
        assert content(engine, "a")[: 4 * MIB] == WHOLE[: 4 * MIB]

        assert ground.store.delete(ID) == "trashed"
        assert engine.images.adopt("p", NAME, ground.source()) == image
        deploy(engine, "c")
        assert content(engine, "c") == WHOLE
        assert ground.store.purge() == 1
        engine.images.delete("p", NAME)
        backend.flatten(engine.pools.open("p").volume("b").backend_id, lambda done, total: None)
        assert engine.deletions.wait(60)
        assert content(engine, "b", 2 * ROUNDED) == WHOLE + bytes(ROUNDED)
        assert content(engine, "c") == WHOLE
        assert ground.store.purge() == 1
    with ground.engine(direct=direct) as engine:
        for name in ("a", "b", "c"):
            engine.volumes.delete("p", name, force=True)
        assert engine.deletions.wait(60)
        assert ground.store.purge() == 0
    assert leftovers(ground.access, ground.pool) == set()
    assert leftovers(ground.access, ground.store.pool) == set()


def test_image_of_glance_stays(ground):
    """Goal: after the delete of ours nothing of us is left with Glance, whose image is whole."""
    import rbd

    ground.store.add(ID, SIZE, CONTENT)
    before = leftovers(ground.access, ground.store.pool)
    with ground.engine() as engine:
        with ThreadPoolExecutor(4) as threads:
            calls = [
                threads.submit(engine.images.adopt, "p", NAME, ground.source()) for _ in range(4)
            ]
        assert len({call.result().id for call in calls}) == 1
        deploy(engine, "a")
        exported = bytearray(ROUNDED)
        for at_bytes, piece in engine.images.export("p", NAME, "raw").pieces:
            exported[at_bytes : at_bytes + len(piece)] = piece
        assert exported == WHOLE
        with pytest.raises(NotSupportedError):
            engine.checks.verify_image("p", NAME)
        deploy(engine, "b")
        assert engine.adoption.release("p", "b", "given") == "given"
        engine.images.delete("p", NAME)
        assert engine.deletions.wait(60)
        assert len(ground.store.children(ID)) == 1
        assert content(engine, "a") == WHOLE
        engine.volumes.delete("p", "a")
    with raw_pool(ground.access, ground.pool) as ioctx:
        with settled(rbd.Image(ioctx, "given", read_only=True)) as given:
            assert given.read(0, ROUNDED) == WHOLE
        rbd.RBD().remove(ioctx, "given")
    with ground.engine():  # its start frees what waited for that
        pass
    assert ground.store.children(ID) == []
    assert leftovers(ground.access, ground.store.pool) == before
    assert leftovers(ground.access, ground.pool) == set()
    assert ground.store.delete(ID) == "removed"


def test_rights(ground, restricted):
    """Goal: `rbd-read-only` is enough, less is refused with the right that is missing."""
    ground.store.add(ID, SIZE, CONTENT)
    may_look = ", allow r class-read pool={images}"
    for rights in ("", ", allow r pool={images}", may_look):
        restricted("profile rbd pool={ours}" + rights)
        with ground.engine() as engine:
            with pytest.raises(PreconditionError, match="profile rbd-read-only pool=") as caught:
                engine.images.adopt("p", NAME, ground.source())
            assert caught.value.reason is Reason.NOT_ADOPTABLE
            assert caught.value.context["obstacle"] == "NO_PERMISSION"
            assert engine.images.list("p", limit=9) == []
            assert intents_of(engine.pools.open("p")) == []
        assert leftovers(ground.access, ground.pool) == set()
    restricted("profile rbd pool={ours}, profile rbd-read-only pool={images}")
    with ground.engine() as engine:
        engine.images.adopt("p", NAME, ground.source())
        deploy(engine, "a")
        assert content(engine, "a") == WHOLE
        backend = engine.pools.open("p").backend
        backend.flatten(engine.pools.open("p").volume("a").backend_id, lambda done, total: None)
        assert content(engine, "a") == WHOLE
        assert ground.store.delete(ID) == "trashed"
        engine.images.delete("p", NAME)
        engine.volumes.delete("p", "a")
    assert leftovers(ground.access, ground.pool) == set()
    assert ground.store.purge() == 0
    assert leftovers(ground.access, ground.store.pool) == set()


def test_refused(ground):
    """Goal: what is unusual is refused with its reason, and nothing of it stays on either side."""
    store = ground.store
    store.add(ID, SIZE, CONTENT)
    store.add("journaled", SIZE, CONTENT, features=1 | 4 | 64)
    store.add("qcow2", SIZE, {0: b"QFI\xfb\x00\x00\x00\x03" + bytes(96)})
    store.add("luks", SIZE, {0: b"LUKS\xba\xbe\x00\x01" + bytes(600)})
    store.add("empty", 0, {})
    with raw_pool(ground.access, store.pool) as ioctx:
        import rbd

        rbd.RBD().clone(ioctx, ID, "snap", ioctx, "clone", features=1)
        with rbd.Image(ioctx, "clone") as image:
            image.create_snap("snap")
    before = leftovers(ground.access, store.pool)
    with ground.engine() as engine:
        own = engine.volumes.create("p", CreateVolume(name="own", size_bytes=MIB))
        engine.snapshots.create("p", "own", "snap")
        snap = engine.pools.open("p").snapshot("own", "snap").backend_id
        for source, obstacle in (
            (ground.source("journaled"), "FEATURES"),
            (ground.source("clone"), "CLONE"),
            (ground.source("empty"), "SIZE"),
            (ground.source(pool=ground.pool, image=own.backend_id, snapshot=snap), "OURS"),
            (ground.source(cluster_id="7d2f1f0a-64b1-4e6e-9a51-000000000000"), "OTHER_CLUSTER"),
        ):
            with pytest.raises(PreconditionError) as caught:
                engine.images.adopt("p", NAME, source)
            assert caught.value.reason is Reason.NOT_ADOPTABLE
            assert caught.value.context["obstacle"] == obstacle
        for source in (
            ground.source("absent"),
            ground.source(snapshot="absent"),
            ground.source(pool="absent"),
        ):
            with pytest.raises(NotFoundError, match="check the names"):
                engine.images.adopt("p", NAME, source)
        for name, reason in (
            ("qcow2", Reason.IMAGE_FORMAT_MISMATCH),
            ("luks", Reason.IMAGE_UNSAFE),
            ("a@b", Reason.BAD_NAME),
            ("", Reason.BAD_NAME),
        ):
            with pytest.raises(InvalidArgumentError) as bad:
                engine.images.adopt("p", NAME, ground.source(name))
            assert bad.value.reason is reason
        assert engine.images.list("p", limit=9) == []
        assert intents_of(engine.pools.open("p")) == []
        engine.volumes.delete("p", "own", force=True)
    assert leftovers(ground.access, store.pool) == before
    assert leftovers(ground.access, ground.pool) == set()


def test_names_are_taken_once(ground):
    """Goal: one name, one content. Method: another source, an import over it, one before it."""
    ground.store.add(ID, MIB, {0: FIRST})
    ground.store.add("other", MIB, {0: FIRST})
    with ground.engine() as engine:
        raw = ImportRequest(name=NAME, format_name="raw", chunks=iter([bytes(MIB)]))
        engine.images.adopt("p", NAME, ground.source())
        with pytest.raises(ConflictError):
            engine.images.adopt("p", NAME, ground.source("other"))
        with pytest.raises(ConflictError):
            engine.images.import_image("p", raw)
        engine.images.delete("p", NAME)
        assert engine.deletions.wait(60)
        engine.images.import_image(
            "p", ImportRequest(name=NAME, format_name="raw", chunks=iter([bytes(MIB)]))
        )
        with pytest.raises(ConflictError):
            engine.images.adopt("p", NAME, ground.source())
        assert [one.name for one in engine.pools.open("p").list(Image)] == [NAME]


def test_other_backends_cannot(tmp_path):
    """Goal: a local pool says what else can be done."""
    store = LocalStore.open(tmp_path / "pool")
    backend = LocalBackend(store)
    backend.open()
    with closing(backend):
        engine = Engine(EngineSettings(server_id="test"))
        engine.add_pool("p", backend, SqliteCatalog(store.database), None)
        source = ForeignSource(cluster_id="", pool="images", image=ID, snapshot="snap")
        with pytest.raises(NotSupportedError, match="import the image") as caught:
            engine.images.adopt("p", NAME, source)
        assert caught.value.reason is Reason.CAPABILITY_ABSENT
        engine.close(5)
