"""A catalog that was lost, made again from what the rbd images carry."""

import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from rbd_backend.pools import raw_pool
from rbd_backend.test_warm import SIZE, Site, start

from volcore.backends.rbd import carrying
from volcore.backends.rbd.direct.wire import child_link
from volcore.backends.rbd.directory import Directory
from volcore.backends.rbd.header import RECORD_PREFIX, drop_rows, header_object
from volcore.catalog.contract import ABSENT, Change
from volcore.catalog.omap import OmapCatalog
from volcore.engine import carrier, rebuild
from volcore.engine.audit import Audit
from volcore.engine.locks import KeyedLocks
from volcore.engine.pool import volume_lock
from volcore.engine.rebuild import Rebuilt
from volcore.engine.views import CreateVolume, SourceRef
from volcore.errors import PreconditionError, Reason
from volcore.model.faults import FaultKind
from volcore.model.records import AccessMode, Kind, SourceKind, Volume
from volcore.testing.device_contract import put

pytestmark = pytest.mark.ceph
OBJECTS = ("volcore_catalog", "volcore_directory")


def carry(site: Site) -> None:
    """Wait until all that was made is whole, and carries its records."""
    site.pool.making.flush()
    assert site.pool.carrier.flush(30)


def fill(site: Site) -> None:
    """Records of every kind, each kind changed."""
    engine, pool = site.engine, site.pool
    object.__setattr__(pool, "trash_retention_s", 1000)
    labels = {"os": "d\u00e9bian"}
    engine.volumes.create("p", CreateVolume(name="v", size_bytes=SIZE, labels=labels))
    put(site.backend, pool.volume("v").backend_id, 0, b"gold")
    engine.snapshots.create("p", "v", "s", labels={"a": "b"})
    engine.snapshots.create("p", "v", "old")
    engine.snapshots.rename("p", "v", "old", "new")
    engine.snapshots.create("p", "v", "gone")
    engine.images.publish("p", "gold", "v", "s")
    site.deploy(*(f"vm-{n}" for n in range(6)))
    of = SourceRef(kind=SourceKind.VOLUME, key="vm-0")
    engine.volumes.create("p", CreateVolume(name="live", source=of))
    engine.volumes.resize("p", "vm-1", 2 * SIZE)
    engine.volumes.update_labels("p", "vm-1", {"tier": "fast"})
    engine.attachments.attach("p", "vm-2", "host-1", AccessMode.READ_WRITE)
    engine.attachments.attach("p", "vm-3", "host-1", AccessMode.READ_WRITE)
    engine.attachments.detach("p", "vm-3", "host-1")
    engine.snapshots.create("p", "vm-4", "kept")
    engine.volumes.delete("p", "vm-4", force=True)
    engine.volumes.delete("p", "vm-5")
    engine.trash.undelete("p", "vm-5", new_name="back")
    engine.snapshots.delete("p", "v", "gone")
    engine.volumes.create("p", CreateVolume(name="brief", size_bytes=SIZE))
    object.__setattr__(pool, "trash_retention_s", 0)
    engine.volumes.delete("p", "brief")
    assert engine.deletions.wait(60)
    pool.making.flush()


def exported(site: Site) -> list[bytes]:
    """The records, without the head, which has a time, and the digest of that."""
    return b"".join(site.engine.exports.lines("p")).splitlines()[1:-1]


def lose(access, pool: str, *names: str) -> None:
    with raw_pool(access, pool) as ioctx:
        for name in names:
            ioctx.remove_object(name)


def rebuilt(site: Site) -> tuple[list[FaultKind], int]:
    *faults, end = site.engine.rebuild.run("p")
    assert isinstance(end, Rebuilt)
    return [fault.kind for fault in faults], end.record_count


def faults_of(site: Site) -> list[FaultKind]:
    *faults, _ = Audit(site.engine.pools, (0.05, 0.3, 1.0)).run("p", objects=True)
    return [fault.kind for fault in faults]


@pytest.mark.parametrize("lost", [OBJECTS, OBJECTS[:1]], ids=["both", "catalog"])
def test_equal_to_the_export(ceph_cluster, ceph_pool, lost):
    """Goal: nothing is missing or different. Method: all kinds, objects deleted, rebuilt twice."""
    site = start(ceph_cluster, ceph_pool, count_max=0)
    with site.undo:
        fill(site)
        before = exported(site)
    lose(ceph_cluster, ceph_pool, *lost)
    site = start(ceph_cluster, ceph_pool, count_max=0)
    with site.undo:
        assert exported(site) == []
        assert rebuilt(site) == ([], len(before))
        assert exported(site) == before
        assert rebuilt(site) == ([], len(before))
        assert faults_of(site) == []
        assert site.read(site.pool.volume("vm-0")) == b"gold"
        site.deploy("more")
        assert rebuilt(site) == ([], len(before) + 1)


def rows_of(access, pool: str, image_id: str) -> dict[str, bytes]:
    """What an image carries, read around the code under test."""
    import rados

    with raw_pool(access, pool) as ioctx, rados.ReadOpCtx() as op:
        found, _ = ioctx.get_omap_vals(op, "", RECORD_PREFIX, 100)
        ioctx.operate_read_op(op, header_object(image_id))
        return {key.removeprefix(RECORD_PREFIX): value for key, value in found}


def image_of(site: Site, name: str) -> str:
    entry = site.backend._session().directory.find(site.pool.volume(name).backend_id)
    assert entry is not None
    return entry.image_id or (entry.link.image_id if entry.link else "")


def base(site: Site) -> None:
    """The image `gold`, and the snapshot `v/s` that it was made of."""
    site.engine.volumes.create("p", CreateVolume(name="v", size_bytes=SIZE))
    put(site.backend, site.pool.volume("v").backend_id, 0, b"gold")
    site.engine.snapshots.create("p", "v", "s")
    site.engine.images.publish("p", "gold", "v", "s")


@pytest.fixture
def site(ceph_cluster, ceph_pool) -> Iterator[Site]:
    found = start(ceph_cluster, ceph_pool, count_max=0)
    with found.undo:
        base(found)
        yield found


def test_a_clone_has_its_record_at_once(site, ceph_cluster, ceph_pool, monkeypatch):
    """Goal: no moment without it, no write for it. Method: stop what writes behind answers."""
    site.deploy("before")
    carry(site)
    waves = site.backend._session().direct.waves
    time.sleep(0.3)  # the last row of a clone goes by itself after a while
    written = waves.write_count
    site.pool.carrier.compare_all()
    carry(site)
    assert waves.write_count == written
    monkeypatch.setattr(site.pool.backend, "carry", None)
    (one,) = site.deploy("one")
    want = {"volume/one": one.encode()}
    assert rows_of(ceph_cluster, ceph_pool, image_of(site, "one")) == want


class Killed(BaseException):
    """The server dies here."""


def test_killed_at_each_write(ceph_cluster, ceph_pool, monkeypatch):
    """Goal: a rebuild that was cut off ends right. Method: kill it before each write, repeat it."""
    monkeypatch.setattr(rebuild, "COMMIT_RECORDS_MAX", 3)
    monkeypatch.setattr(carrying, "TOGETHER", 3)
    site = start(ceph_cluster, ceph_pool, count_max=0)
    with site.undo:
        base(site)
        site.deploy(*(f"vm-{n}" for n in range(5)))
        before = exported(site)
    for kill_at in itertools.count():
        lose(ceph_cluster, ceph_pool, *OBJECTS)
        site = start(ceph_cluster, ceph_pool, count_max=0)
        with site.undo, pytest.MonkeyPatch.context() as patch:
            left = itertools.count(kill_at, -1)
            for owner, name in (
                (Directory, "take_over_all"),
                (OmapCatalog, "commit"),
            ):
                patch.setattr(owner, name, killing(getattr(owner, name), left))
            with suppress(Killed):
                rebuilt(site)
                break
            patch.undo()
            assert rebuilt(site) == ([], len(before)), kill_at
            assert exported(site) == before
            assert faults_of(site) == []
    assert kill_at == 3 + 3, "three waves of images, three commits"


def killing(call, left: Iterator[int]):
    def wrapped(*args, **kwargs):
        if next(left) == 0:
            raise Killed
        return call(*args, **kwargs)

    return wrapped


def test_images_of_an_older_server(site, ceph_cluster, ceph_pool):
    """Goal: a start fills in what they lack; nothing else does. Method: take rows away."""
    site.deploy("one", "two")
    site.pool.making.flush()  # a check leaves out what has an intent
    carry(site)
    headers = site.backend._session().headers
    drop_rows(headers._ioctx, header_object(image_of(site, "one")), RECORD_PREFIX)
    assert faults_of(site) == [FaultKind.RECORD_NOT_CARRIED]
    site.pool.carrier.compare_all()
    carry(site)
    assert faults_of(site) == []
    assert set(rows_of(ceph_cluster, ceph_pool, image_of(site, "one"))) == {"volume/one"}
    drop_rows(headers._ioctx, header_object(image_of(site, "two")), RECORD_PREFIX)
    *_, fault, _ = Audit(site.engine.pools, (0.05,)).run("p", repair=True)
    assert (fault.kind, fault.mended) == (FaultKind.RECORD_NOT_CARRIED, True)
    assert faults_of(site) == []


def test_what_is_doubtful_is_left_out(ceph_cluster, ceph_pool):
    """Goal: nothing is guessed. Method: each kind of doubt, made around the code under test."""
    site = start(ceph_cluster, ceph_pool, count_max=0)
    with site.undo:
        base(site)
        names = "bare unlinked twin broken newer grown fine deleted renamed"
        site.deploy(*names.split())
        for name in ("grown", "fine"):
            site.engine.snapshots.create("p", name, "s")
        backend_ids = {one.name: one.backend_id for one in site.pool.list(Volume)}
        carry(site)
        session = site.backend._session()
        images = {name: image_of(site, name) for name in backend_ids}
        for name in ("bare", "twin", "broken", "newer"):
            drop_rows(session.ioctx, header_object(images[name]), RECORD_PREFIX)
        fine = site.pool.volume("fine")
        write_rows(
            session.ioctx,
            images["twin"],
            {"volume/fine": fine.but(backend_id=backend_ids["twin"]).encode()},
        )
        write_rows(session.ioctx, images["broken"], {"volume/broken": b"no record"})
        write_rows(session.ioctx, images["newer"], {"volume/newer": b'{"v":99}'})
        parent = session.headers.parent(images["unlinked"])
        link = child_link(session.headers.pool_id, images["unlinked"], parent.snap)
        session.headers.forget_child(parent.image_id, link)
        with raw_image(ceph_cluster, ceph_pool, backend_ids["grown"]) as image:
            image.resize(2 * SIZE)
            image.remove_snap(site.pool.snapshot("grown", "s").backend_id)
            image.create_snap("theirs")
        session.rbd.rename(session.ioctx, backend_ids["renamed"], "else")
        session.rbd.trash_move(session.ioctx, backend_ids["deleted"], 0)
    lose(ceph_cluster, ceph_pool, *OBJECTS)
    site = start(ceph_cluster, ceph_pool, count_max=0)
    with site.undo:
        *faults, _ = site.engine.rebuild.run("p")
        found = {(fault.kind, fault.subject) for fault in faults}
        assert found == {
            (FaultKind.HALF_MADE, backend_ids["unlinked"]),
            (FaultKind.IMAGE_RENAMED, backend_ids["renamed"]),
            (FaultKind.IMAGE_WITHOUT_RECORD, backend_ids["bare"]),
            (FaultKind.IMAGE_WITHOUT_RECORD, backend_ids["broken"]),
            (FaultKind.IMAGE_WITHOUT_RECORD, backend_ids["newer"]),
            (FaultKind.RECORD_AMBIGUOUS, max(backend_ids["fine"], backend_ids["twin"])),
            (FaultKind.RECORD_UNREADABLE, backend_ids["broken"]),
            (FaultKind.RECORD_UNREADABLE, backend_ids["newer"]),
            (FaultKind.SIZE_MISMATCH, backend_ids["grown"]),
            (FaultKind.SNAPSHOT_WITHOUT_IMAGE, backend_ids["grown"]),
            (FaultKind.SNAPSHOT_WITHOUT_RECORD, backend_ids["grown"]),
            (FaultKind.TRASH_WITHOUT_ROW, backend_ids["deleted"]),
        }
        assert {one.name for one in site.pool.list(Volume)} == {"v", "grown"}
        *faults, _ = Audit(site.engine.pools, (0.0,)).run("p", repair=True)
        left = {one.subject: one.remedy for one in faults if not one.mended}
        assert "volume 'newer' is of a newer server" in left[backend_ids["newer"]]
        newer = backend_ids["newer"]
        assert site.backend.carried([newer]) == {newer: {"volume/newer": b'{"v":99}'}}


def test_beside_a_delete(site, monkeypatch):
    """Goal: what is being freed is no finding. Method: a delete between two looks of a rebuild."""
    site.engine.volumes.create("p", CreateVolume(name="parent", size_bytes=SIZE))
    parent = site.pool.volume("parent").backend_id
    site.backend.clone(parent, None, "child", SIZE)  # keeps the image of its parent in the trash
    walk = Directory.walk_retired

    def delete_after(self):
        found = list(walk(self))
        monkeypatch.setattr(Directory, "walk_retired", walk)
        site.backend.delete(parent)
        return iter(found)

    monkeypatch.setattr(Directory, "walk_retired", delete_after)
    assert list(site.backend.enter_all()) == []
    session = site.backend._session()
    assert parent in {one["name"] for one in session.rbd.trash_list(session.ioctx)}


def write_rows(ioctx, image_id: str, rows: dict[str, bytes]) -> None:
    import rados

    with rados.WriteOpCtx() as op:
        ioctx.set_omap(op, tuple(RECORD_PREFIX + key for key in rows), tuple(rows.values()))
        ioctx.operate_write_op(op, header_object(image_id))


def test_a_catalog_that_is_not_lost(site, ceph_cluster, ceph_pool, monkeypatch):
    """Goal: it is never overwritten; what it carries not is refused. Method: hold copies back."""
    site.deploy("one")
    before = exported(site)
    assert rebuilt(site) == ([], len(before))
    monkeypatch.setattr(carrier, "loads_of", lambda *_: ({}, []))
    site.engine.volumes.update_labels("p", "one", {"a": "b"})
    changed = exported(site)
    with pytest.raises(PreconditionError) as caught:
        rebuilt(site)
    assert caught.value.reason is Reason.CATALOG_NOT_EMPTY
    assert exported(site) == changed != before


def test_deleted_just_before(ceph_cluster, ceph_pool):
    """Goal: what was deleted does not come back. Method: a client holds its image up."""
    site = start(ceph_cluster, ceph_pool, count_max=0)
    with site.undo:
        base(site)
        site.deploy("gone")
        gone = site.pool.volume("gone")
        carry(site)
        with raw_image(ceph_cluster, ceph_pool, gone.backend_id):
            site.engine.volumes.delete("p", "gone")
            carry(site)
            site.engine.close(1)
            site.backend.close()
            lose(ceph_cluster, ceph_pool, *OBJECTS)
        site = start(ceph_cluster, ceph_pool, count_max=0)
        with site.undo:
            *faults, _ = site.engine.rebuild.run("p")
            assert [(fault.kind, fault.subject) for fault in faults] == [
                (FaultKind.IMAGE_WITHOUT_RECORD, gone.backend_id)
            ]
            assert [one.name for one in site.pool.list(Volume)] == ["v"]


@contextmanager
def raw_image(access, pool: str, name: str) -> Iterator[Any]:
    """An image that a client has open for writing."""
    import rbd

    with raw_pool(access, pool) as ioctx, rbd.Image(ioctx, name) as image:
        image.write(b"mine", 0)
        yield image


def test_deleted_meanwhile(site, monkeypatch):
    """Goal: nothing that was deleted comes back. Method: delete between reading and commit."""
    site.deploy("one", "two")
    carry(site)
    hold, deleted = KeyedLocks.hold, []

    def delete_first(locks, exclusive=(), *more, **options):
        exclusive = set(exclusive)
        if {volume_lock("one"), volume_lock("two")} <= exclusive and not deleted:
            deleted.append("one")
            site.engine.volumes.delete("p", "one")
        return hold(locks, exclusive, *more, **options)

    before = len(exported(site))
    monkeypatch.setattr(KeyedLocks, "hold", delete_first)
    assert rebuilt(site) == ([], before - 1)
    assert deleted == ["one"]
    assert site.pool.find(Volume, "one") is None
    assert faults_of(site) == []


def test_a_record_of_a_newer_server(site):
    """Goal: one record that cannot be read keeps no other from being carried. Method: plant it."""
    site.deploy("one")
    newer = Change(kind=Kind.SNAPSHOT, key="one/newer", value=b'{"v":99}', expect=ABSENT)
    site.pool.catalog.commit([newer])
    site.deploy("two")
    carry(site)
    backend_id = site.pool.volume("two").backend_id
    assert "volume/two" in site.backend.carried([backend_id])[backend_id]
    site.engine.volumes.update_labels("p", "two", {"a": "b"})
    carry(site)
    stored = site.pool.volume("two").encode()
    assert site.backend.carried([backend_id])[backend_id]["volume/two"] == stored


def test_what_may_be_stale(ceph_cluster, ceph_pool):
    """Goal: a loss of server and catalog in one moment costs this moment. Method: no copies."""
    site = start(ceph_cluster, ceph_pool, count_max=0)
    with site.undo, pytest.MonkeyPatch.context() as patch:
        base(site)
        site.deploy("one")
        site.engine.snapshots.create("p", "one", "brief")
        carry(site)
        before = [line for line in exported(site) if b'"brief"' not in line]
        patch.setattr(carrier, "loads_of", lambda *_: ({}, []))
        site.engine.volumes.update_labels("p", "one", {"a": "b"})
        site.engine.snapshots.create("p", "one", "new")
        site.engine.snapshots.delete("p", "one", "brief")
        assert site.engine.deletions.wait(60)
        now = exported(site)
    lose(ceph_cluster, ceph_pool, *OBJECTS)
    site = start(ceph_cluster, ceph_pool, count_max=0)
    with site.undo:
        kinds, _ = rebuilt(site)
        assert kinds == [FaultKind.SNAPSHOT_WITHOUT_IMAGE, FaultKind.SNAPSHOT_WITHOUT_RECORD]
        assert exported(site) == before != now


def test_killed_before_the_copies(ceph_cluster, ceph_pool):
    """Goal: the next server writes what a killed one has not. Method: no copies, then a start."""
    site = start(ceph_cluster, ceph_pool, count_max=0)
    with site.undo, pytest.MonkeyPatch.context() as patch:
        base(site)
        site.deploy("one", "two")
        patch.setattr(carrier, "loads_of", lambda *_: ({}, []))
        site.engine.volumes.update_labels("p", "one", {"a": "b"})
        site.engine.snapshots.create("p", "one", "new")
        site.engine.attachments.attach("p", "two", "host-1", AccessMode.READ_WRITE)
        before = exported(site)
    site = start(ceph_cluster, ceph_pool, count_max=0)
    with site.undo:
        carry(site)
    lose(ceph_cluster, ceph_pool, *OBJECTS)
    site = start(ceph_cluster, ceph_pool, count_max=0)
    with site.undo:
        assert rebuilt(site) == ([], len(before))
        assert exported(site) == before


def test_released_images_carry_nothing(site, ceph_cluster, ceph_pool):
    """Goal: what is given back is nobody's. Method: release, adopt under another name."""
    site.deploy("one")
    site.engine.snapshots.create("p", "one", "s")
    carry(site)
    image_id = image_of(site, "one")
    assert set(rows_of(ceph_cluster, ceph_pool, image_id)) == {"volume/one", "snapshot/one/s"}
    where = site.engine.adoption.release("p", "one")
    carry(site)
    assert rows_of(ceph_cluster, ceph_pool, image_id) == {}
    site.engine.adoption.adopt("p", "other", where)
    carry(site)
    assert set(rows_of(ceph_cluster, ceph_pool, image_id)) == {"volume/other", "snapshot/other/s"}
