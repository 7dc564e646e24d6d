"""A flatten after a client died in the middle of a copy loses nothing."""

import os
import subprocess
import sys
import time

import pytest

from rbd_backend.pools import opened, options, raw_pool
from volcore.backends.rbd.opening import settled
from volcore.limits import CHUNK_SIZE_BYTES, MIB

SIZE = 40 * MIB
KILLED_FLATTEN = """
import rados, rbd, sys
conf, pool, image = sys.argv[1:]
cluster = rados.Rados(conffile=conf, rados_id="admin")
cluster.connect()
with cluster.open_ioctx(pool) as ioctx, rbd.Image(ioctx, image) as handle:
    print("go", flush=True)
    handle.flatten()
"""


def content() -> bytes:
    return b"".join(bytes([index + 1]) * MIB for index in range(SIZE // MIB))


@pytest.fixture
def cloned(ceph_cluster, ceph_pool):
    """A backend with volume `child` cloned from a full parent."""
    with opened(ceph_cluster, ceph_pool) as backend:
        backend.create("parent", SIZE)
        with backend.open_device("parent", read_only=False) as device:
            device.write(0, content())
        backend.create_snapshot("parent", "s")
        backend.clone("parent", "s", "child", SIZE)
        yield backend


def test_object_in_the_map_only(ceph_cluster, ceph_pool, cloned):
    """The state that a killed copy leaves, planted: objects in the map that are not there."""
    with cloned.open_device("child", read_only=False) as device:
        for index in (0, 3, 9):
            device.write(index * CHUNK_SIZE_BYTES, bytes([index * 4 + 1]) * 4096)
        device.flush()
    with raw_pool(ceph_cluster, ceph_pool) as ioctx:
        import rbd

        with settled(rbd.Image(ioctx, "child", read_only=True)) as image:
            prefix = image.block_name_prefix()
        for index in (0, 3, 9):
            ioctx.remove_object(f"{prefix}.{index:016x}")
    cloned.create_snapshot("child", "kept")
    cloned.flatten("child", lambda *_: None)
    assert cloned.describe("child").depth == 0
    for point in (None, "kept"):
        with cloned.open_device("child", point, read_only=True) as device:
            assert device.read(0, SIZE) == content()


def test_killed_flatten(ceph_cluster, ceph_pool, cloned):
    """kill -9 in the middle of librbd's own flatten, then ours: every byte is there."""
    conf = options(ceph_cluster).conf_path
    words = [sys.executable, "-c", KILLED_FLATTEN, conf, ceph_pool, "child"]
    child = subprocess.Popen(words, stdout=subprocess.PIPE, env=os.environ)
    assert child.stdout is not None
    child.stdout.readline()
    time.sleep(0.02)
    child.kill()
    child.wait()
    child.stdout.close()
    deadline = time.monotonic() + 90
    while True:
        try:
            cloned.flatten("child", lambda *_: None)
            break
        except Exception:
            assert time.monotonic() < deadline
            time.sleep(1)
    with cloned.open_device("child", read_only=True) as device:
        assert device.read(0, SIZE) == content()
