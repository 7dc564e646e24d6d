"""An older and a newer server side by side on one real Ceph: each may take the pool over."""

import time
from contextlib import ExitStack

import pytest
from rbd_backend.pools import raw_pool

from volcore.errors import PreconditionError, Reason
from volcore.limits import MIB
from volcore.testing.failover import POOL, Pair
from volcore.testing.newer_server import FORMAT_LABEL, ZONE_LABEL
from volcore.testing.server import SERVER_MODULE

pytestmark = pytest.mark.ceph
SIZE = 8 * MIB
NAMES = ("later", "zoned", "plain")
NEWER = "volcore.testing.newer_server"


def volume(name):
    return f"{POOL}/volumes/{name}"


def records(ceph_cluster, ceph_pool):
    """The rows of the volumes that a newer server has made, and what their images carry."""
    import rados

    with raw_pool(ceph_cluster, ceph_pool) as ioctx:
        objects = [one.key for one in ioctx.list_objects() if one.key.startswith("rbd_header.")]
        found = {}
        for name in ("volcore_catalog", *objects):
            with rados.ReadOpCtx() as op:
                rows, _ = ioctx.get_omap_vals(op, "", "", 1000)
                ioctx.operate_read_op(op, name)
                for key, raw in rows:
                    if key.endswith(("volume/later", "volume/zoned")):
                        found[name, key] = raw
        return found


def refused(call, *arguments, **options):
    with pytest.raises(PreconditionError) as caught:
        call(*arguments, **options)
    assert caught.value.reason is Reason.RECORD_NEWER
    assert "is of a newer server" in caught.value.message


def test_back_and_forth(ceph_cluster, ceph_pool, tmp_path):
    """Goal: an older server loses nothing newer. Method: newer, older, newer; compare bytes."""
    more = 'user = "admin"\ndirect_clone = false\n'
    pair = Pair(ceph_cluster, ceph_pool, tmp_path, more=more, modules=(NEWER, SERVER_MODULE))
    with ExitStack() as stack:
        for server in (pair.leader, pair.other):
            stack.callback(server.kill)
            server.start(standby=server is pair.other)
        client = stack.enter_context(pair.client())
        for name, labels in zip(NAMES, ({FORMAT_LABEL: "2"}, {ZONE_LABEL: "b"}, {}), strict=True):
            client.create_volume(volume(name), size_bytes=SIZE, labels=labels)
        client.create_snapshot(f"{volume('later')}/snapshots/s")
        wait_carried(ceph_cluster, ceph_pool)
        before = records(ceph_cluster, ceph_pool)

        pair.kill()  # the older one goes on
        assert [one.name for one in client.list_volumes(POOL)] == [volume("plain"), volume("zoned")]
        refused(client.get_volume, volume("later"))
        refused(client.delete_volume, volume("later"), force=True)
        refused(client.create_volume, volume("later"), size_bytes=SIZE)
        refused(client.resize_volume, volume("zoned"), 2 * SIZE)
        client.create_volume(volume("clone"), volume=volume("zoned"))
        client.resize_volume(volume("plain"), 2 * SIZE)
        found = client.check_pool(POOL, repair=True, objects=True).faults
        assert {(one.kind, one.concerns) for one in found} == {
            ("RECORD_NEWER", "volume later"),
            ("RECORD_NEWER", "volume zoned"),
        }
        assert records(ceph_cluster, ceph_pool) == before
        pair.restart()

        pair.kill()  # the newer one goes on
        shown = {one.name: one.size_bytes for one in client.list_volumes(POOL)}
        sizes = {"clone": SIZE, "later": SIZE, "plain": 2 * SIZE, "zoned": SIZE}
        assert shown == {volume(name): size for name, size in sizes.items()}
        assert client.get_volume(volume("zoned")).labels == {ZONE_LABEL: "b"}
        assert client.resize_volume(volume("later"), 2 * SIZE).size_bytes == 2 * SIZE
        client.delete_volume(volume("later"), force=True)
        assert client.check_pool(POOL, objects=True).faults == []


def wait_carried(ceph_cluster, ceph_pool):
    """The images carry their records, which is done behind the answers."""
    end_s = time.monotonic() + 20
    while len(records(ceph_cluster, ceph_pool)) < 4:
        assert time.monotonic() < end_s, records(ceph_cluster, ceph_pool)
        time.sleep(0.1)
