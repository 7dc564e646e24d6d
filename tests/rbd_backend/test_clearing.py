"""Object maps after direct snapshots that were cut off: as librbd has them, whoever writes."""

import time
from contextlib import ExitStack

import pytest

from rbd_backend.pools import check_object_maps, raw_pool
from rbd_backend.test_direct_snapshots import (
    CHUNK,
    check_cleared,
    only,
    snapshots_of,
    used_numbers,
)
from rbd_backend.test_revert import chunks_in
from volcore.backends.rbd.direct import clearing, snapshotter, wire
from volcore.backends.rbd.direct.clearing import Clearing
from volcore.backends.rbd.direct.plan import map_object
from volcore.errors import UnavailableError
from volcore.limits import MIB
from volcore.testing.device_contract import put

CHUNKS = 1100
"""More than one batch."""
WRITTEN = (0, 1, 2, 3, 5, 600, 601, 1099)
SIZE = CHUNKS * CHUNK
BEFORE_CLEARING = range(3)
"""Row, map's copy, snapshot."""


@pytest.fixture
def volume(direct, monkeypatch):
    """The backend with a volume `v`, whose snapshot `s3` was cut off before its map was cleared."""
    monkeypatch.setattr(clearing, "RETRY_S", 0.05)
    direct.create("v", SIZE)
    for number in WRITTEN:
        put(direct, "v", number * CHUNK, b"old")
    assert direct._session().direct._stock.wait(8, 30)
    with only(monkeypatch, direct, BEFORE_CLEARING), pytest.raises(UnavailableError):
        direct.create_snapshot("v", "s3")
    return direct


def changed(access, pool, *, fast):
    import rbd

    with raw_pool(access, pool) as ioctx, rbd.Image(ioctx, "v", read_only=True) as image:
        return chunks_in(image, fast=fast)


def test_what_the_cut_leaves(volume, ceph_cluster, ceph_pool):
    """Goal: the fixture cuts where it should. Method: a fast diff tells of chunks as they were."""
    put(volume, "v", CHUNK, b"new")
    assert changed(ceph_cluster, ceph_pool, fast=False) == {1}
    assert changed(ceph_cluster, ceph_pool, fast=True) == set(WRITTEN)


@pytest.mark.parametrize("then", ["nothing", "shrink"])
def test_mended(volume, ceph_cluster, ceph_pool, then):
    """Goal: maps as librbd has them. Method: write, go on in one of several ways, recover."""
    for number in (1, 4, 600):
        put(volume, "v", number * CHUNK, b"new")
    if then == "shrink":
        with raw_pool(ceph_cluster, ceph_pool) as ioctx:
            import rbd

            with rbd.Image(ioctx, "v") as image:
                image.resize(700 * CHUNK)
    volume.collect()
    check_cleared(volume)
    check_object_maps(ceph_cluster, ceph_pool, "v")
    put(volume, "v", 3 * CHUNK, b"more")
    exact = changed(ceph_cluster, ceph_pool, fast=False)
    assert exact >= {1, 3, 4, 600}
    assert changed(ceph_cluster, ceph_pool, fast=True) == exact


@pytest.mark.parametrize("how", ["directly", "by librbd", "for a clone"])
def test_a_newer_snapshot(volume, ceph_cluster, ceph_pool, how):
    """Goal: what was written stays so in its map, whoever is deleted. Method: one more, recover."""
    put(volume, "v", CHUNK, b"new")
    with ExitStack() as undo:
        if how == "by librbd":
            undo.enter_context(volume.open_device("v", read_only=False))
        if how == "for a clone":
            volume.clone("v", None, "c", SIZE)
        else:
            volume.create_snapshot("v", "later")
    session = volume._session()
    image_id = session.headers.image_id("v")
    newer = map_object(image_id, max(session.headers.snaps(image_id)))
    volume.collect()
    check_cleared(volume)
    assert tuple(wire.written_objects(session.ioctx.read(newer, MIB))) == WRITTEN
    assert list(wire.written_objects(session.ioctx.read(map_object(image_id), MIB))) == []
    volume.delete_snapshot("v", "s3")
    assert tuple(wire.written_objects(session.ioctx.read(newer, MIB))) == WRITTEN
    check_object_maps(ceph_cluster, ceph_pool, "v")


@pytest.mark.parametrize("hidden", [False, True])
def test_a_map_that_changed(direct, ceph_cluster, ceph_pool, monkeypatch, hidden):
    """Goal: what step 4 finds changed is mended. Method: it asserts an old version of the map.

    The snapshot of a clone as it is is out of sight by then.
    """
    direct.create("v", SIZE)
    for number in WRITTEN:
        put(direct, "v", number * CHUNK, b"old")
    assert direct._session().direct._stock.wait(8, 30)
    cleaning = snapshotter._Steps._cleaning
    monkeypatch.setattr(
        snapshotter._Steps, "_cleaning", lambda self, version: cleaning(self, version - 1)
    )
    if hidden:
        direct.clone("v", None, "c", SIZE)
        assert snapshots_of(direct) == ()
    else:
        direct.create_snapshot("v", "s3")
        assert snapshots_of(direct) == ("s3",)
    check_cleared(direct)
    check_object_maps(ceph_cluster, ceph_pool, "v")
    session = direct._session()
    object_map = session.ioctx.read(f"rbd_object_map.{session.headers.image_id('v')}", MIB)
    assert list(wire.written_objects(object_map)) == []


def test_a_client_keeps_the_lock(volume, ceph_cluster, ceph_pool):
    """Goal: nobody's map is changed. Method: a client writes, its lock is kept, then let go."""
    import rbd

    with raw_pool(ceph_cluster, ceph_pool) as ioctx, rbd.Image(ioctx, "v") as image:
        image.write(b"new", CHUNK)
        volume.collect()
        time.sleep(1)
        assert used_numbers(volume)
        assert changed(ceph_cluster, ceph_pool, fast=True) == set(WRITTEN)
    check_cleared(volume)
    assert changed(ceph_cluster, ceph_pool, fast=True) == {1}
    check_object_maps(ceph_cluster, ceph_pool, "v")


@pytest.mark.parametrize("batch", [0, 1])
def test_a_writer_in_between(volume, ceph_cluster, ceph_pool, monkeypatch, batch):
    """Goal: no change is lost. Method: a client opens, writes and closes between look and mark."""
    import rbd

    look = Clearing._unwritten
    looks = []

    def looking(self, *args):
        clean = look(self, *args)
        looks.append(clean)
        if len(looks) == batch + 1:
            with raw_pool(ceph_cluster, ceph_pool) as ioctx, rbd.Image(ioctx, "v") as image:
                for number in (2, 600):
                    image.write(b"new", number * CHUNK)
        return clean

    monkeypatch.setattr(Clearing, "_unwritten", looking)
    monkeypatch.setattr(clearing, "_OBJECTS_AT_ONCE", 4)
    volume.collect()
    check_cleared(volume)
    assert len(looks) > 2
    assert changed(ceph_cluster, ceph_pool, fast=False) == {2, 600}
    assert changed(ceph_cluster, ceph_pool, fast=True) == {2, 600}
    check_object_maps(ceph_cluster, ceph_pool, "v")


def test_a_deletion_cut_off(volume, ceph_cluster, ceph_pool):
    """Goal: no change since the snapshot before is lost. Method: what a dying librbd leaves.

    It adds the map of a deleted snapshot to that of the next, deletes it, and then the snapshot.
    """
    import rbd

    session = volume._session()
    image_id = session.headers.image_id("v")
    (snap,) = session.headers.snaps(image_id)
    session.ioctx.remove_object(map_object(image_id, snap))
    volume.collect()
    check_cleared(volume)
    object_map = session.ioctx.read(map_object(image_id), MIB)
    assert tuple(wire.written_objects(object_map)) == WRITTEN
    with raw_pool(ceph_cluster, ceph_pool) as ioctx, rbd.Image(ioctx, "v") as image:
        image.remove_snap("s3")
    check_object_maps(ceph_cluster, ceph_pool, "v")
