"""Contradictions between records and storage are found, and mended where that is safe."""

import time
from dataclasses import replace

import pytest
from rbd_backend.pools import leftovers, raw_pool

from volcore.backends.rbd.direct import wire
from volcore.backends.rbd.direct.plan import new_image_id
from volcore.backends.rbd.header import OWNER_KEY
from volcore.engine.audit import Audit, Looked
from volcore.engine.pool import drop, put
from volcore.engine.views import CreateVolume, ImportRequest, SourceRef
from volcore.limits import MIB
from volcore.model.faults import FaultKind
from volcore.model.records import (
    Attachment,
    Intent,
    IntentAction,
    Snapshot,
    SourceKind,
    State,
    Volume,
    WarmClone,
)
from volcore.testing.device_contract import fetch
from volcore.testing.device_contract import put as write

SIZE = 8 * MIB
DATA = b"precious" * 512
only_rbd = pytest.mark.parametrize(
    "bench", [pytest.param("rbd", marks=pytest.mark.ceph)], indirect=True
)
LEFT = {
    FaultKind.IMAGE_RENAMED,
    FaultKind.IMAGE_WITHOUT_NAME,
    FaultKind.ORPHAN_DATA,
    FaultKind.ORPHAN_HEADER,
    FaultKind.RECORD_WITHOUT_IMAGE,
    FaultKind.RECORD_WITHOUT_INTENT,
    FaultKind.SNAPSHOT_WITHOUT_IMAGE,
    FaultKind.TRASH_WITHOUT_ROW,
}
"""What a repair never touches."""


def check(bench, **options):
    """Return the faults of the pool, by kind, and how much was compared."""
    end_s = time.monotonic() + 10
    while any(one.action is IntentAction.MAKE_VOLUME for one in bench.pool.list(Intent)):
        assert time.monotonic() < end_s
        time.sleep(0.02)
    *faults, end = Audit(bench.engine.pools, (0.05, 0.1)).run("p", **options)
    assert isinstance(end, Looked)
    assert not end.is_cut
    return {fault.kind: fault for fault in faults}, end


def make(bench, name, source=None, kind=SourceKind.SNAPSHOT, data=b""):
    chosen = None if source is None else SourceRef(kind=kind, key=source)
    size = 0 if source else SIZE
    bench.engine.volumes.create("p", CreateVolume(name=name, source=chosen, size_bytes=size))
    volume = bench.pool.volume(name)
    if data:
        write(bench.pool.backend, volume.backend_id, 0, data)
    return volume


def commit(bench, *changes):
    bench.pool.catalog.commit(changes)


def content(bench, backend_id):
    return fetch(bench.pool.backend, backend_id, 0, len(DATA))


def test_sound(bench, tmp_path):
    """Goal: nothing to report of a pool that is used. Method: one of each record."""
    gold = tmp_path / "gold.raw"
    gold.write_bytes(DATA * 16)
    bench.engine.images.import_image("p", ImportRequest(name="gold", server_path=str(gold)))
    make(bench, "v", data=DATA)
    bench.engine.snapshots.create("p", "v", "s")
    make(bench, "clone", "v/s")
    make(bench, "vm", "gold", SourceKind.IMAGE)
    make(bench, "live", "v", SourceKind.VOLUME)
    bench.engine.volumes.delete("p", "v", force=True)
    assert bench.engine.deletions.wait(30)
    found, end = check(bench, objects=True)
    assert found == {}
    assert end.record_count >= 4
    assert end.volume_count == 4


def test_records(bench):
    """Goal: contradictions of records are found and mended. Method: plant them in the catalog."""
    volume = make(bench, "v", data=DATA)
    bench.engine.snapshots.create("p", "v", "s")
    snapshot = bench.pool.snapshot("v", "s")
    attachment = Attachment(
        volume="gone", host="h", volume_id="0" * 32, access_mode="READ_WRITE", create_time_ns=1
    )
    intent = Intent(
        id=volume.id,
        action=IntentAction.RESIZE_VOLUME,
        subject_key="v",
        subject_id=volume.id,
        backend_volume_id=volume.backend_id,
        size_bytes=2 * SIZE,
        owner="dead",
        create_time_ns=1,
    )
    lost = replace(volume, name="lost", id="1" * 32, backend_id="lost.111111111111")
    stuck = replace(lost, name="stuck", id="2" * 32, backend_id="s.2", state=State.CREATING)
    orphan = replace(snapshot, volume="gone", volume_id="0" * 32, backend_volume_id="gone.0")
    warm = WarmClone(
        image="none", id="3" * 32, image_id="4" * 32, backend_id="warm-none.3", size_bytes=SIZE,
        state=State.READY, create_time_ns=1,
    )  # fmt: skip
    planted = [attachment, intent, lost, stuck, orphan, warm]
    commit(bench, *map(put, planted))
    expected = {
        FaultKind.ATTACHMENT_WITHOUT_VOLUME: "pools/p/volumes/gone/attachments/h",
        FaultKind.INTENT_WITHOUT_OWNER: f"intent {volume.id}",
        FaultKind.RECORD_WITHOUT_IMAGE: "pools/p/volumes/lost",
        FaultKind.RECORD_WITHOUT_INTENT: "pools/p/volumes/stuck",
        FaultKind.SNAPSHOT_WITHOUT_VOLUME: "pools/p/volumes/gone/snapshots/s",
        FaultKind.WARM_CLONE_WITHOUT_IMAGE: f"warm clone none/{warm.id}",
    }
    found, _ = check(bench)
    assert {kind: fault.concerns for kind, fault in found.items()} == expected
    mended, _ = check(bench, repair=True)
    assert {kind for kind, fault in mended.items() if not fault.mended} == LEFT & expected.keys()
    left, _ = check(bench, repair=True)
    assert left.keys() == LEFT & expected.keys()
    assert bench.pool.volume("v").size_bytes == 2 * SIZE
    assert content(bench, volume.backend_id) == DATA
    assert bench.pool.find(Volume, "lost") == lost
    assert (
        bench.pool.list(Attachment) == bench.pool.list(WarmClone) == bench.pool.list(Intent) == []
    )
    assert [one.key for one in bench.pool.list(Snapshot)] == ["v/s"]


def test_storage_without_records(bench):
    """Goal: unknown storage is kept. Method: drop records, change sizes and snapshots below."""
    unknown, grown = make(bench, "unknown", data=DATA), make(bench, "grown", data=DATA)
    for name in ("kept", "gone"):
        bench.engine.snapshots.create("p", "grown", name)
    backend = bench.pool.backend
    backend.resize(grown.backend_id, 2 * SIZE)
    backend.delete_snapshot(grown.backend_id, bench.pool.snapshot("grown", "gone").backend_id)
    backend.create_snapshot(grown.backend_id, "theirs")
    commit(bench, drop(unknown))
    found, _ = check(bench, repair=True)
    assert found.keys() == {
        FaultKind.IMAGE_WITHOUT_RECORD,
        FaultKind.SIZE_MISMATCH,
        FaultKind.SNAPSHOT_WITHOUT_IMAGE,
        FaultKind.SNAPSHOT_WITHOUT_RECORD,
    }
    assert found[FaultKind.SIZE_MISMATCH].mended
    assert found[FaultKind.SNAPSHOT_WITHOUT_RECORD].mended
    assert bench.pool.volume("grown").size_bytes == 2 * SIZE
    assert bench.pool.snapshot("grown", "theirs").backend_id == "theirs"
    left, _ = check(bench)
    if backend.caps.kind == "rbd":
        assert left.keys() == {FaultKind.SNAPSHOT_WITHOUT_IMAGE}
        bench.engine.adoption.adopt("p", "again", unknown.backend_id)
        assert content(bench, bench.pool.volume("again").backend_id) == DATA
    else:
        assert left.keys() == {FaultKind.SNAPSHOT_WITHOUT_IMAGE, FaultKind.IMAGE_WITHOUT_RECORD}
        assert content(bench, unknown.backend_id) == DATA
    if backend.caps.joins_catalog:
        return
    bench.engine.snapshots.delete("p", "grown", "gone")
    bench.engine.deletions.wait(30)
    left, _ = check(bench)
    assert FaultKind.SNAPSHOT_WITHOUT_IMAGE not in left


@only_rbd
def test_bookkeeping(bench, ceph_cluster, ceph_pool):
    """Goal: what the pool says about itself is compared. Method: plant each by librados and rbd."""
    import rbd

    session = bench.pool.backend._session()
    make(bench, "parent", data=DATA)
    bench.engine.snapshots.create("p", "parent", "s")
    names = ("child", "trashed", "renamed", "nameless", "rowless", "known", "unfreed", "orphan")
    made = {name: make(bench, name, "parent/s", data=DATA) for name in names}
    ids = {name: session.headers.image_id(one.backend_id) for name, one in made.items()}
    parent_id = session.headers.image_id(bench.pool.volume("parent").backend_id)
    snap = session.headers.snaps(parent_id)[0]
    derived = new_image_id("vanished.5")
    with raw_pool(ceph_cluster, ceph_pool) as ioctx:
        directory = session.directory

        def call(name, method, body):
            ioctx.execute(name, "rbd", method, body)

        link = wire.child_link(ioctx.get_pool_id(), ids["child"], snap)
        call(f"rbd_header.{parent_id}", "child_detach", link)
        ghost = wire.child_link(ioctx.get_pool_id(), "abcdef", snap)
        call(f"rbd_header.{parent_id}", "child_attach", ghost)
        rbd.RBD().trash_move(ioctx, made["trashed"].backend_id, 0)
        rbd.RBD().rename(ioctx, made["renamed"].backend_id, "other")
        entry = wire.directory_entry(made["nameless"].backend_id, ids["nameless"])
        call("rbd_directory", "dir_remove_image", entry)
        for name in ("rowless", "known"):
            directory.let_go(directory.find(made[name].backend_id))
        commit(bench, drop(bench.pool.volume("rowless")))
        session.reaper.move_to_trash(made["unfreed"].backend_id, ids["unfreed"])
        directory.retire(directory.find(made["unfreed"].backend_id), ids["unfreed"])
        commit(bench, drop(bench.pool.volume("unfreed")))
        directory.reserve("half.7", "")
        directory.complete("ghost.8", "fedcba")
        call("rbd_directory", "dir_add_image", wire.directory_entry("vanished.5", derived))
        rbd.RBD().create(ioctx, "theirs", SIZE)
        rbd.RBD().create(ioctx, "binned", SIZE)
        with rbd.Image(ioctx, "binned") as image:
            image.metadata_set(OWNER_KEY, "binned")
        rbd.RBD().trash_move(ioctx, "binned", 0)
        ioctx.write_full("rbd_data.0badcafe.0000000000000000", DATA)
        ioctx.write_full("rbd_object_map.0badcafe", b"map")
        ioctx.write_full("rbd_object_map.0badcafe.0000000000000007", b"map")
        entry = wire.directory_entry(made["orphan"].backend_id, ids["orphan"])
        call("rbd_directory", "dir_remove_image", entry)
        directory.let_go(directory.find(made["orphan"].backend_id))
        commit(bench, drop(bench.pool.volume("orphan")))
        found, _ = check(bench, objects=True)
        assert found.keys() == {
            FaultKind.CHILD_WITHOUT_LINK,
            FaultKind.HALF_MADE,
            FaultKind.IMAGE_IN_TRASH,
            FaultKind.IMAGE_RENAMED,
            FaultKind.IMAGE_WITHOUT_NAME,
            FaultKind.IMAGE_WITHOUT_ROW,
            FaultKind.LINK_WITHOUT_CHILD,
            FaultKind.NAME_WITHOUT_IMAGE,
            FaultKind.ORPHAN_DATA,
            FaultKind.ORPHAN_HEADER,
            FaultKind.ORPHAN_OBJECT_MAP,
            FaultKind.ROW_WITHOUT_IMAGE,
            FaultKind.TRASH_WITHOUT_ROW,
            FaultKind.UNFREED_IMAGE,
        }
        before = leftovers(ceph_cluster, ceph_pool)
        assert found.items() <= check(bench, objects=True)[0].items()
        assert leftovers(ceph_cluster, ceph_pool) == before, "a check changes nothing"
        mended, _ = check(bench, objects=True, repair=True)
        assert {k for k, f in mended.items() if f.mendable} == {
            k for k, f in mended.items() if f.mended
        }
        left, _ = check(bench, objects=True)
        assert left.keys() == LEFT & found.keys() | {FaultKind.IMAGE_WITHOUT_ROW}
        assert session.links.knows(session.headers.parent(ids["child"]), ids["child"])
        for name in ("child", "trashed", "known"):
            assert content(bench, made[name].backend_id) == DATA
        bench.engine.adoption.adopt("p", "rowless", made["rowless"].backend_id)
        assert content(bench, made["rowless"].backend_id) == DATA
        gone = before - leftovers(ceph_cluster, ceph_pool)
        maps = {"rbd_object_map.0badcafe", "rbd_object_map.0badcafe.0000000000000007"}
        assert {name for name in gone if ids["unfreed"] not in name} == maps
