"""The server dies at every step of adopting an image of Glance: an image of ours, or nothing."""

import contextlib

import pytest
from rbd_backend.glance import glance_store
from rbd_backend.pools import leftovers, new_backend, options

from volcore.backends.adopting import ForeignSource
from volcore.backends.rbd import Cluster
from volcore.backends.rbd.directory import Directory
from volcore.backends.rbd.header import Headers
from volcore.backends.rbd.omap import OmapObject
from volcore.catalog.omap import OmapCatalog
from volcore.engine.engine import Engine, EngineSettings
from volcore.limits import MIB
from volcore.model.records import Image, State
from volcore.testing.crash import Crash, CrashingCatalog, CrashSwitch
from volcore.testing.device_contract import fetch
from volcore.testing.intents import intents_of

pytestmark = pytest.mark.ceph
SIZE = 8 * MIB + 512
DATA = b"glance" * 100
NAME = "glance-theirs"
STEPS = (
    (Headers, "mark"),
    (Directory, "reserve"),
    (Directory, "complete"),
    (Directory, "retire"),
    (Directory, "freed"),
    (Directory, "forget"),
)


class CrashingImages:
    """librbd, which may die before and after it makes or removes an image."""

    def __init__(self, librbd, switch) -> None:
        self._librbd, self._switch = librbd, switch

    def __getattr__(self, name):
        return getattr(self._librbd, name)

    def clone(self, *arguments, **options) -> None:
        self._switch.step()
        self._librbd.clone(*arguments, **options)
        self._switch.step()


def around(act, switch):
    """The same call, which may die before and after it."""

    def called(*arguments):
        switch.step()
        result = act(*arguments)
        switch.step()
        return result

    return called


class Ground:
    """Glance's pool with an image, and servers of ours one after another."""

    def __init__(self, access, pool, store, backend, catalog) -> None:
        self.access, self.pool, self.store = access, pool, store
        self.backend, self.catalog = backend, catalog
        self.source = ForeignSource(cluster_id="", pool=store.pool, image="theirs", snapshot="snap")
        store.add("theirs", SIZE, {0: DATA, 5 * MIB: DATA})
        self.theirs = leftovers(access, store.pool)

    def engine(self, catalog):
        engine = Engine(EngineSettings(server_id="test"))
        engine.add_pool("p", self.backend, catalog, None)
        engine.lookout.close(5)  # nobody closes this engine, and a look outlives a test
        return engine

    @contextlib.contextmanager
    def dying(self, switch, monkeypatch):
        """Let the process die around each write of the backend, and in the middle of librbd's."""
        with monkeypatch.context() as patch:
            for owner, name in STEPS:
                patch.setattr(owner, name, around(getattr(owner, name), switch))
            session = self.backend._session()
            patch.setattr(session, "rbd", CrashingImages(session.rbd, switch))
            make = type(self.backend).create_snapshot
            patch.setattr(type(self.backend), "create_snapshot", around(make, switch))
            with contextlib.suppress(Crash):
                yield CrashingCatalog(self.catalog, switch)

    def check(self) -> bool:
        """All or nothing, on both sides; return whether there is an image."""
        pool = self.engine(self.catalog).pools.open("p")
        assert intents_of(pool) == []
        images = pool.list(Image)
        assert {one.state for one in images} <= {State.READY}
        assert list(self.backend.walk()) == [one.backend_volume_id for one in images]
        assert self.store.children("theirs") == [one.backend_volume_id for one in images]
        for image in images:
            assert image.size_bytes == 8 * MIB + 4096
            found = fetch(self.backend, image.backend_volume_id, 5 * MIB, 600, "base")
            assert found == DATA
        if not images:
            assert leftovers(self.access, self.pool) == set()
            assert leftovers(self.access, self.store.pool) == self.theirs
        return bool(images)


@pytest.fixture
def ground(ceph_cluster, ceph_pool):
    images = f"{ceph_pool}-images"
    ceph_cluster.create_pool(images)
    backend = new_backend(ceph_cluster, ceph_pool)
    backend.open()
    omap = OmapObject.opened(Cluster(options(ceph_cluster)), ceph_pool, "volcore_catalog")
    try:
        with (
            contextlib.closing(omap),
            contextlib.closing(backend),
            glance_store(ceph_cluster, images) as store,
        ):
            yield Ground(ceph_cluster, ceph_pool, store, backend, OmapCatalog(omap))
    finally:
        ceph_cluster.delete_pool(images)


def test_crash_at_every_step(ground, monkeypatch):
    """Kill at step 1, 2, 3 until it ends; each recovery is killed at one of its steps, too."""
    at = 0
    while True:
        at += 1
        switch = CrashSwitch(at)
        with ground.dying(switch, monkeypatch) as catalog:
            ground.engine(catalog).images.adopt("p", NAME, ground.source)
        second = CrashSwitch(1 + at % 4)
        with ground.dying(second, monkeypatch) as catalog:
            ground.engine(catalog)
        ground.check()
        engine = ground.engine(ground.catalog)
        engine.images.adopt("p", NAME, ground.source)
        assert ground.check()
        engine.images.delete("p", NAME)
        assert engine.deletions.wait(60)
        assert not ground.check()
        if not switch.crashed:
            assert at > 10, "the scenario passed hardly a step"
            return


@pytest.mark.parametrize("glance_deletes", [False, True])
@pytest.mark.parametrize("knows", [True, False])
def test_killed_inside_librbd(ground, knows, glance_deletes, monkeypatch):
    """Goal: a half-made clone goes, whether or not its parent knows it, or is there still.

    Method: die after librbd's clone; take the parent's row away as if it had not been written.
    """
    switch = CrashSwitch()

    def die(*_):
        switch.crashed = True
        raise Crash

    monkeypatch.setattr(Headers, "mark", die)
    with ground.dying(switch, monkeypatch) as catalog:
        ground.engine(catalog).images.adopt("p", NAME, ground.source)
    monkeypatch.undo()
    (half,) = ground.store.children("theirs")
    if not knows:
        headers = ground.backend._session().headers
        image_id = headers.image_id(half)
        ground.store.forget_child(headers.parent(image_id), image_id, pool_id=headers.pool_id)
        assert ground.store.children("theirs") == []
    if glance_deletes:
        assert ground.store.delete("theirs") == ("trashed" if knows else "removed")
    ground.backend.close()
    ground.backend.open()
    pool = ground.engine(ground.catalog).pools.open("p")
    assert intents_of(pool) == []
    assert leftovers(ground.access, ground.pool) == set()
    if glance_deletes:
        assert ground.store.purge() == 0
        assert leftovers(ground.access, ground.store.pool) == set()
    else:
        assert ground.store.children("theirs") == []
        assert leftovers(ground.access, ground.store.pool) == ground.theirs
