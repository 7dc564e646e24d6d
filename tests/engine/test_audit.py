"""Contradictions between records and storage are found, and mended where that is safe."""

import time
from dataclasses import replace
from pathlib import Path

import pytest
from rbd_backend.pools import leftovers, raw_pool

from volcore.backends.rbd.direct import wire
from volcore.backends.rbd.direct.plan import new_image_id
from volcore.backends.rbd.header import OWNER_KEY
from volcore.engine.audit import Audit, Looked
from volcore.engine.pool import drop, put, volume_lock
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
PLANTED = ("child", "trashed", "renamed", "nameless", "rowless", "known", "unfreed", "orphan")
BOOKKEEPING = {
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
"""What `plant` plants."""


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


def intent_of(volume, action, owner="dead", **fields):
    return Intent(
        id=volume.id,
        action=action,
        subject_key=volume.key,
        subject_id=volume.id,
        backend_volume_id=volume.backend_id,
        owner=owner,
        create_time_ns=1,
        **fields,
    )


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
    intent = intent_of(volume, IntentAction.RESIZE_VOLUME, size_bytes=2 * SIZE)
    lost = replace(volume, name="lost", id="1" * 32, backend_id="lost.111111111111")
    stuck = replace(lost, name="stuck", id="2" * 32, backend_id="s.2", state=State.CREATING)
    orphan = replace(snapshot, volume="gone", volume_id="0" * 32, backend_volume_id="gone.0")
    warm = WarmClone(
        image="none", id="3" * 32, image_id="4" * 32, backend_id="warm-none.3", size_bytes=SIZE,
        state=State.READY, create_time_ns=1,
    )  # fmt: skip
    doomed = replace(warm, id="5" * 32, backend_id="warm-none.5")
    bench.pool.stock.doom([doomed])  # it goes by itself
    commit(bench, *map(put, [attachment, intent, lost, stuck, orphan, warm, doomed]))
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
    assert bench.pool.list(Attachment) == bench.pool.list(Intent) == []
    assert bench.pool.list(WarmClone) == [doomed]
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
    session = bench.pool.backend._session()
    make(bench, "parent", data=DATA)
    bench.engine.snapshots.create("p", "parent", "s")
    made = {name: make(bench, name, "parent/s", data=DATA) for name in PLANTED}
    ids = {name: session.headers.image_id(one.backend_id) for name, one in made.items()}
    assert bench.pool.carrier.flush(10), "what has no row carries nothing, which is a fault more"
    with raw_pool(ceph_cluster, ceph_pool) as ioctx:
        plant(ioctx, bench, made, ids)
    found, _ = check(bench, objects=True)
    assert found.keys() == BOOKKEEPING
    before = leftovers(ceph_cluster, ceph_pool)
    assert found.items() <= check(bench, objects=True)[0].items()
    assert leftovers(ceph_cluster, ceph_pool) == before, "a check changes nothing"
    mended, _ = check(bench, objects=True, repair=True)
    assert all(fault.mended == fault.mendable for fault in mended.values())
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


def plant(ioctx, bench, made, ids):
    """Do to clones of one snapshot, and beside them, what a crash or a hand may do to a pool."""
    import rbd

    session = bench.pool.backend._session()
    directory, names = session.directory, {name: one.backend_id for name, one in made.items()}
    parent = session.headers.parent(ids["child"])

    def call(name, method, body):
        ioctx.execute(name, "rbd", method, body)

    def unlist(name):
        entry = wire.directory_entry(names[name], ids[name])
        call("rbd_directory", "dir_remove_image", entry)

    def forget(name, *, record):
        directory.let_go(directory.find(names[name]))
        if record:
            commit(bench, drop(made[name]))

    for child, method in ((ids["child"], "child_detach"), ("abcdef", "child_attach")):
        link = wire.child_link(ioctx.get_pool_id(), child, parent.snap)
        call(f"rbd_header.{parent.image_id}", method, link)
    rbd.RBD().trash_move(ioctx, names["trashed"], 0)
    rbd.RBD().rename(ioctx, names["renamed"], "other")
    unlist("nameless")
    forget("rowless", record=True)
    forget("known", record=False)
    session.reaper.move_to_trash(names["unfreed"], ids["unfreed"])
    directory.retire(directory.find(names["unfreed"]), ids["unfreed"])
    commit(bench, drop(made["unfreed"]))
    unlist("orphan")
    forget("orphan", record=True)
    directory.reserve("half.7", "")
    directory.complete("ghost.8", "fedcba")
    vanished = wire.directory_entry("vanished.5", new_image_id("vanished.5"))
    call("rbd_directory", "dir_add_image", vanished)
    for name in ("theirs", "binned"):
        rbd.RBD().create(ioctx, name, SIZE)
    with rbd.Image(ioctx, "binned") as image:
        image.metadata_set(OWNER_KEY, "binned")
    rbd.RBD().trash_move(ioctx, "binned", 0)
    for name in ("data.0badcafe.0000000000000000", "object_map.0badcafe"):
        ioctx.write_full(f"rbd_{name}", DATA)
    ioctx.write_full("rbd_object_map.0badcafe.0000000000000007", DATA)


@only_rbd
def test_a_change_under_way_is_no_fault(bench):
    """Goal: no false alarm. Method: freeze a delete, a clone and an import in the middle."""
    volume = make(bench, "v", data=DATA)
    bench.engine.snapshots.create("p", "v", "s")
    make(bench, "held")
    held = bench.pool.volume("held")
    backend = bench.pool.backend
    with backend.open_device(held.backend_id, read_only=True):
        commit(bench, drop(held), put(intent_of(held, IntentAction.DELETE_VOLUME, owner="test")))
        with bench.pool.locks.hold([volume_lock("held")]):
            assert check(bench, objects=True)[0] == {}
        backend._session().reaper.move_to_trash(
            held.backend_id, backend._session().headers.image_id(held.backend_id)
        )
        found, _ = check(bench)
        assert found.keys() == {FaultKind.INTENT_WITHOUT_OWNER}
    with backend._session().claiming(["made.1"]):
        backend._session().directory.reserve("made.1", volume.backend_id)
        assert FaultKind.HALF_MADE not in check(bench)[0]
    assert FaultKind.HALF_MADE in check(bench)[0]


def test_every_kind_is_planted_and_described():
    """Goal: no kind without a test and a line in the docs. Method: compare the lists."""
    names = ("test_audit.py", "test_newer.py", "test_rebuild.py")
    here = "".join(Path(__file__).with_name(name).read_text() for name in names)
    page = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
    for kind in FaultKind:
        assert f"FaultKind.{kind}," in here or f"FaultKind.{kind}:" in here
        assert f"| `{kind}` |" in page
