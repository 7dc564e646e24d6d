"""After a revert the object map is right, and no diff leaves anything out."""

import pytest

from rbd_backend.pools import check_object_maps, opened, raw_pool
from volcore.backends.rbd.errmap import translated
from volcore.backends.rbd.opening import open_image
from volcore.errors import UnavailableError
from volcore.limits import BLOCK_SIZE_BYTES, CHUNK_SIZE_BYTES, MIB
from volcore.testing.device_contract import fetch, put

CHUNKS = 4


def test_object_map(ceph_cluster, ceph_pool):
    """Goal: `object-map check` is clean, fast diffs see all. Method: revert over two snapshots."""
    import rbd

    def changed(tag, *chunks):
        for chunk in chunks:
            put(backend, "v", chunk * CHUNK_SIZE_BYTES, bytes([tag]) * BLOCK_SIZE_BYTES)

    with opened(ceph_cluster, ceph_pool) as backend:
        backend.create("v", CHUNKS * CHUNK_SIZE_BYTES)
        for tag, chunks in ((1, range(CHUNKS)), (2, (0,)), (3, (1,))):
            changed(tag, *chunks)
            backend.create_snapshot("v", f"s{tag}")
        changed(4, 2)
        for snapshot in ("s3", "s2", "s1"):
            backend.revert("v", snapshot)
            check_object_maps(ceph_cluster, ceph_pool, "v")
            with raw_pool(ceph_cluster, ceph_pool) as ioctx, rbd.Image(ioctx, "v") as image:
                assert chunks_in(image, fast=True) >= chunks_in(image, fast=False)


def test_lock_not_to_be_had(ceph_cluster, ceph_pool):
    """Goal: the caller repeats what only the lock prevented. Method: a client that keeps it."""
    import rbd

    with opened(ceph_cluster, ceph_pool) as backend:
        backend.create("v", CHUNK_SIZE_BYTES)
        backend.create_snapshot("v", "s")
        session = backend._session()
        image_id = session.find("v").image_id
        with raw_pool(ceph_cluster, ceph_pool) as ioctx, rbd.Image(ioctx, "v") as other:
            other.lock_acquire(rbd.RBD_LOCK_MODE_EXCLUSIVE)
            with (
                pytest.raises(UnavailableError) as caught,
                translated("revert volume v"),
                open_image(session.ioctx, image_id, read_only=False) as image,
            ):
                image.rollback_to_snap("s")
        assert caught.value.retryable
        backend.revert("v", "s")


def chunks_in(image, *, fast):
    """Chunks that differ from the newest snapshot."""
    found = set()

    def keep(offset, length, _exists):
        end = offset + length
        found.update(range(offset // CHUNK_SIZE_BYTES, -(-end // CHUNK_SIZE_BYTES)))

    image.diff_iterate(0, image.size(), "s3", keep, True, fast)
    return found


def test_cut_off(ceph_cluster, ceph_pool):
    """Goal: a revert that is repeated shows the snapshot. Method: what librbd leaves when it dies.

    It writes the snapshot's object map over the image's before it rolls objects back, and leaves
    out objects that neither map has.
    """
    with opened(ceph_cluster, ceph_pool) as backend:
        backend.create("v", CHUNKS * CHUNK_SIZE_BYTES)
        put(backend, "v", 0, b"old")
        backend.create_snapshot("v", "s")
        for chunk in (0, 2):
            put(backend, "v", chunk * CHUNK_SIZE_BYTES, b"new")
        session = backend._session()
        image_id = session.find("v").image_id
        (snap,) = session.headers.snaps(image_id)
        session.headers.begin_rollback(image_id)
        kept = session.ioctx.read(f"rbd_object_map.{image_id}.{snap:016x}", MIB)
        session.ioctx.write_full(f"rbd_object_map.{image_id}", kept)
        backend.revert("v", "s")
        assert fetch(backend, "v", 0, 3) == b"old"
        assert fetch(backend, "v", 2 * CHUNK_SIZE_BYTES, 3) == bytes(3)
        check_object_maps(ceph_cluster, ceph_pool, "v")
        assert not session.headers.has_begun_rollback(image_id)
