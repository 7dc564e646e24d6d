"""The server dies at every step of an adoption or a release: a volume or a foreign image, whole."""

import contextlib

import pytest
from rbd_backend.pools import new_backend, options, raw_pool

from volcore.backends.rbd import Cluster
from volcore.backends.rbd.directory import Directory
from volcore.backends.rbd.header import Headers
from volcore.backends.rbd.omap import OmapObject
from volcore.backends.rbd.opening import settled
from volcore.backends.rbd.session import FEATURES
from volcore.catalog.omap import OmapCatalog
from volcore.engine.engine import Engine, EngineSettings
from volcore.engine.views import CreateVolume
from volcore.limits import MIB
from volcore.model.records import Snapshot, State, Volume
from volcore.testing.crash import Crash, CrashingCatalog, CrashSwitch
from volcore.testing.device_contract import fetch
from volcore.testing.intents import intents_of

pytestmark = pytest.mark.ceph
SIZE = 4 * MIB
STEPS = ((Headers, "mark"), (Headers, "unmark"), (Directory, "take_over"), (Directory, "let_go"))


class CrashingImages:
    """librbd, which may die around a rename."""

    def __init__(self, librbd, switch) -> None:
        self._librbd, self._switch = librbd, switch

    def __getattr__(self, name):
        return getattr(self._librbd, name)

    def rename(self, *arguments) -> None:
        self._switch.step()
        self._librbd.rename(*arguments)
        self._switch.step()


def around(act, switch):
    """The same call, which may die before and after it."""

    def called(*arguments, **more):
        switch.step()
        result = act(*arguments, **more)
        switch.step()
        return result

    return called


@contextlib.contextmanager
def dying(backend, switch, monkeypatch):
    """Let the process die before and after each write of the backend's own."""
    with monkeypatch.context() as patch:
        for owner, name in STEPS:
            patch.setattr(owner, name, around(getattr(owner, name), switch))
        session = backend._session()
        patch.setattr(session, "rbd", CrashingImages(session.rbd, switch))
        yield


def started(backend, catalog) -> Engine:
    engine = Engine(EngineSettings(server_id="test"))
    engine.add_pool("p", backend, catalog, None)
    engine.lookout.close(5)  # nobody closes this engine, and a look outlives a test
    return engine


class Ground:
    """A pool with a foreign image and a volume of ours, each with a snapshot."""

    def __init__(self, backend, catalog, ioctx) -> None:
        self.backend, self.catalog, self.ioctx = backend, catalog, ioctx

    def prepare(self) -> None:
        import rbd

        rbd.RBD().create(self.ioctx, "theirs", SIZE, features=FEATURES, old_format=False)
        with rbd.Image(self.ioctx, "theirs") as image:
            image.write(b"theirs", 0)
            image.create_snap("s")
        engine = started(self.backend, self.catalog)
        engine.volumes.create("p", CreateVolume(name="ours", size_bytes=SIZE))
        engine.snapshots.create("p", "ours", "s")

    def clear(self) -> None:
        import rbd

        engine = started(self.backend, self.catalog)
        for name in ("ours", "theirs"):
            engine.adoption.release("p", name)
        for name in rbd.RBD().list(self.ioctx):
            with rbd.Image(self.ioctx, name) as image:
                for snapshot in list(image.list_snaps()):
                    if image.is_protected_snap(snapshot["name"]):
                        image.unprotect_snap(snapshot["name"])
                    image.remove_snap(snapshot["name"])
            rbd.RBD().remove(self.ioctx, name)

    def check(self) -> set[str]:
        """Each image is a whole volume or wholly foreign; return the names of the volumes."""
        import rbd

        pool = started(self.backend, self.catalog).pools.open("p")
        assert intents_of(pool) == []
        volumes, snapshots = pool.list(Volume), pool.list(Snapshot)
        assert {one.state for one in (*volumes, *snapshots)} <= {State.READY}
        assert {one.volume_id for one in snapshots} == {one.id for one in volumes}
        ids = {one.backend_id for one in volumes}
        assert set(self.backend.walk()) == ids
        images = rbd.RBD().list(self.ioctx)
        assert len(images) == 2
        for name in images:
            with settled(rbd.Image(self.ioctx, name, read_only=True)) as image:
                marks = [value for key, value in image.metadata_list() if "volcore" in key]
                found = [one["name"] for one in image.list_snaps()]
            assert marks == ([name] if name in ids else [])
            known = [one.backend_id for one in snapshots if one.backend_volume_id == name]
            assert found == (known if name in ids else ["s"])
        for volume in volumes:
            if volume.name == "theirs":
                assert fetch(self.backend, volume.backend_id, 0, 6) == b"theirs"
        return {one.name for one in volumes}


@pytest.fixture
def ground(ceph_cluster, ceph_pool):
    backend = new_backend(ceph_cluster, ceph_pool)
    backend.open()
    omap = OmapObject.opened(Cluster(options(ceph_cluster)), ceph_pool, "volcore_catalog")
    with contextlib.closing(backend), raw_pool(ceph_cluster, ceph_pool) as ioctx:
        yield Ground(backend, OmapCatalog(omap), ioctx)


SCENARIOS = {
    "adopt": (lambda e: e.adoption.adopt("p", "theirs", "theirs"), {"ours", "theirs"}, {"ours"}),
    "release": (lambda e: e.adoption.release("p", "ours", "renamed"), set(), {"ours"}),
}


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_crash_at_every_step(ground, scenario, monkeypatch):
    """Kill at step 1, 2, 3 until it ends; recovery is killed at each of its steps, too."""
    act, after, before = SCENARIOS[scenario]
    at = 0
    while True:
        at += 1
        ground.prepare()
        switch = CrashSwitch(at)
        with dying(ground.backend, switch, monkeypatch), contextlib.suppress(Crash):
            act(started(ground.backend, CrashingCatalog(ground.catalog, switch)))
        for again in range(1, 100):
            second = CrashSwitch(again)
            with dying(ground.backend, second, monkeypatch), contextlib.suppress(Crash):
                started(ground.backend, CrashingCatalog(ground.catalog, second))
            if not second.crashed:
                break
        assert ground.check() in (before, after)
        act(started(ground.backend, ground.catalog))
        assert ground.check() == after
        ground.clear()
        if not switch.crashed:
            assert at > 8, "the scenario passed hardly a step"
            return


class CutRename(CrashingImages):
    """librbd, which dies after the first or the second of the three writes of a rename."""

    def rename(self, ioctx, source, target) -> None:
        raw = ioctx.read(f"rbd_id.{source}")
        ioctx.write_full(f"rbd_id.{target}", raw)
        self._switch.step()
        names = b"".join(
            len(one).to_bytes(4, "little") + one for one in (source.encode(), target.encode())
        )
        ioctx.execute("rbd_directory", "rbd", "dir_rename_image", names + raw)
        self._switch.step()
        raise AssertionError("nobody died")


@pytest.mark.parametrize("at", [1, 2])
def test_crash_within_a_rename(ground, at, monkeypatch):
    """Goal: one name, the right one. Method: librbd dies between its writes, another goes on."""
    import rbd

    ground.prepare()
    session = ground.backend._session()
    with monkeypatch.context() as patch, contextlib.suppress(Crash):
        patch.setattr(session, "rbd", CutRename(session.rbd, CrashSwitch(at)))
        started(ground.backend, ground.catalog).adoption.release("p", "ours", "renamed")
    assert ground.check() == set()
    assert set(rbd.RBD().list(ground.ioctx)) == {"renamed", "theirs"}
    objects = {item.key for item in ground.ioctx.list_objects()}
    assert {key for key in objects if key.startswith("rbd_id.")} == {
        "rbd_id.renamed",
        "rbd_id.theirs",
    }
    ground.clear()
