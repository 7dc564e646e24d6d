"""What others see in the pool, and what a pool must be."""

import json
import shutil
import subprocess
import sys
import time

import pytest

from rbd_backend.pools import leftovers, new_backend, opened, options, raw_pool
from volcore.backends.rbd import Cluster, RbdBackend, connection
from volcore.errors import (
    ExhaustedError,
    NotFoundError,
    PreconditionError,
    Reason,
    UnavailableError,
    VolcoreError,
)
from volcore.limits import MIB
from volcore.testing.device_contract import fetch, put
from volcore.testing.rbd_judge import looked

SIZE = 8 * MIB


@pytest.mark.skipif(shutil.which("rbd") is None, reason="no rbd command")
def test_the_rbd_command_understands_everything(backend, ceph_cluster, ceph_pool):
    def rbd(*words):
        command = ["rbd", "--conf", str(ceph_cluster.conf_path), "--pool", ceph_pool]
        found = looked(command, *words, "--format", "json")
        assert found.returncode == 0, (words, found.returncode, found.stderr[-2000:])
        return json.loads(found.stdout or "null")

    backend.create("vm-1.9f3c2a71b0d4", SIZE)
    backend.create_snapshot("vm-1.9f3c2a71b0d4", "daily.0123456789ab")
    backend.clone("vm-1.9f3c2a71b0d4", "daily.0123456789ab", "vm-2.aaaabbbbcccc", SIZE + 4 * MIB)
    assert sorted(rbd("ls")) == ["vm-1.9f3c2a71b0d4", "vm-2.aaaabbbbcccc"]
    found = rbd("info", "vm-2.aaaabbbbcccc")
    assert found["size"] == SIZE + 4 * MIB
    assert sorted(found["features"]) == sorted(
        ["layering", "exclusive-lock", "object-map", "fast-diff", "deep-flatten", "operations"]
    )
    assert found["parent"]["image"] == "vm-1.9f3c2a71b0d4"
    assert found["parent"]["snapshot"] == "daily.0123456789ab"
    children = rbd("children", "vm-1.9f3c2a71b0d4@daily.0123456789ab")
    assert [child["image"] for child in children] == ["vm-2.aaaabbbbcccc"]
    for name in ("vm-1.9f3c2a71b0d4", "vm-2.aaaabbbbcccc"):
        assert rbd("image-meta", "list", name) == {"volcore.volume_id": name}
    backend.delete("vm-1.9f3c2a71b0d4")
    assert rbd("ls") == ["vm-2.aaaabbbbcccc"]
    assert [entry["name"] for entry in rbd("trash", "ls")] == ["vm-1.9f3c2a71b0d4"]


def test_foreign_images_are_left_alone(backend, ceph_cluster, ceph_pool):
    """Goal: a shared pool is safe. Method: foreign images, clones and trash beside ours."""
    import rbd

    with raw_pool(ceph_cluster, ceph_pool) as ioctx:
        librbd = rbd.RBD()
        for name in ("foreign", "trashed"):
            librbd.create(ioctx, name, SIZE, old_format=False, features=61)
        librbd.trash_move(ioctx, "trashed", 0)
        backend.create("ours", SIZE)
        backend.create_snapshot("ours", "s")
        librbd.clone(ioctx, "ours", "s", ioctx, "foreign-clone", features=61)
        assert list(backend.walk()) == ["ours"]
        for call in (
            lambda: backend.delete("foreign"),
            lambda: backend.describe("foreign"),
            lambda: backend.open_device("foreign", read_only=False),
        ):
            with pytest.raises(NotFoundError):
                call()
        with pytest.raises(VolcoreError) as caught:
            backend.create("foreign", SIZE)
        assert caught.value.reason == Reason.NAME_TAKEN
        backend.delete("ours")
        assert backend.collect() == 0
        assert sorted(librbd.list(ioctx)) == ["foreign", "foreign-clone"]
        assert sorted(e["name"] for e in librbd.trash_list(ioctx)) == ["ours", "trashed"]
        librbd.remove(ioctx, "foreign-clone")
        assert backend.collect() == 1
        assert [e["name"] for e in librbd.trash_list(ioctx)] == ["trashed"]


def test_connection(ceph_cluster, ceph_pool):
    with (
        raw_pool(ceph_cluster, ceph_pool) as ioctx,
        opened(ceph_cluster, ceph_pool, secret_uuid="f00d") as backend,
    ):
        del ioctx
        found = backend.connection("vm", read_only=True)
    assert (found.pool, found.image, found.read_only) == (ceph_pool, "vm", True)
    assert len(found.cluster_fsid) == 36
    assert found.secret_uuid == "f00d"
    assert found.user == options(ceph_cluster).user
    assert found.conf_path == str(ceph_cluster.conf_path)
    assert found.monitors
    assert all(monitor.rpartition(":")[2].isdecimal() for monitor in found.monitors)


def test_pools_share_a_connection(ceph_cluster, ceph_pool):
    cluster = Cluster.shared(options(ceph_cluster))
    assert Cluster.shared(options(ceph_cluster)) is cluster
    assert Cluster.shared(options(ceph_cluster, user="other")) is not cluster
    cluster.acquire()
    first = cluster.instance_id
    backend = RbdBackend(cluster, ceph_pool)
    try:
        backend.open()
        assert cluster.instance_id == first
        backend.close()
    finally:
        cluster.release()
    backend.close()
    with pytest.raises(UnavailableError):
        list(backend.walk())


def test_missing_pool(ceph_cluster):
    with pytest.raises(PreconditionError, match="ceph osd pool create nopool") as caught:
        new_backend(ceph_cluster, "nopool").open()
    assert caught.value.reason == Reason.POOL_UNUSABLE


def test_figures_of_a_new_pool(ceph_cluster, ceph_pool, monkeypatch):
    """Goal: no error while the OSDs have not reported yet. Method: pools that were just made."""
    cluster = Cluster(options(ceph_cluster))
    cluster.acquire()
    fresh = [f"{ceph_pool}-{number}" for number in range(3)]
    answers = set()
    try:
        for pool in fresh:
            ceph_cluster.create_pool(pool, pg_count=1)
            with monkeypatch.context() as patch:
                patch.setattr(connection, "FIGURES_WAIT_S", 0)
                try:
                    answers.add(cluster.pool_figures(pool)["stored"])
                except UnavailableError as err:
                    answers.add(err.reason)
        assert answers <= {0, Reason.CLUSTER_UNREACHABLE}
        for pool in fresh:
            assert cluster.pool_figures(pool)["max_avail"] > 0
        with pytest.raises(NotFoundError, match="is gone") as raised:
            cluster.pool_figures(f"{ceph_pool}-none")
        assert raised.value.reason == Reason.POOL_NOT_FOUND
    finally:
        cluster.release()
        for pool in fresh:
            ceph_cluster.delete_pool(pool)


def test_missing_files(ceph_cluster, tmp_path):
    for changes in ({"conf_path": str(tmp_path / "gone.conf")}, {"user": "nobody-there"}):
        backend = RbdBackend(Cluster(options(ceph_cluster, **changes)), "p")
        for _ in range(2):
            with pytest.raises(VolcoreError) as caught:
                backend.open()
            assert caught.value.reason in {Reason.POOL_UNUSABLE, Reason.PERMISSION_DENIED}


def test_unreachable_cluster(ceph_cluster, tmp_path):
    """Goal: a wrong monitor address is an error soon. Method: a port nobody listens on."""
    conf = tmp_path / "ceph.conf"
    keyring = tmp_path / "keyring"
    keyring.write_text("[client.x]\n\tkey = AQBbWG5mAAAAABAAXw3xJf0XK0s0mUO3l3k5Jw==\n")
    conf.write_text(f"[global]\nmon host = 127.0.0.1:1\nkeyring = {keyring}\n")
    changes = {"conf_path": str(conf), "user": "x", "connect_timeout_s": 2.0}
    started_s = time.monotonic()
    with pytest.raises(UnavailableError) as caught:
        RbdBackend(Cluster(options(ceph_cluster, **changes)), "p").open()
    assert caught.value.reason == Reason.CLUSTER_UNREACHABLE
    assert caught.value.retryable
    assert time.monotonic() - started_s < 10


@pytest.mark.parametrize("module", ["rados", "rbd"])
def test_missing_packages(module):
    """Goal: one clear sentence. Method: another interpreter in which the import fails."""
    script = f"""
import sys
sys.modules[{module!r}] = None
from volcore.backends.rbd import Cluster, RbdBackend, connection
from volcore.backends.rbd.connection import ClusterOptions
from volcore.errors import PreconditionError
try:
    RbdBackend(Cluster(ClusterOptions()), "p").open()
except PreconditionError as err:
    print(err.reason, err)
"""
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert found.stdout.startswith("TOOL_MISSING"), found.stderr
    assert "python3-rados and python3-rbd" in found.stdout


def test_full_pool(ceph_cluster, ceph_pool, backend):
    """Goal: a full pool is POOL_FULL, not a hang; deleting still works. Method: a quota."""
    backend.create("v", 64 * MIB)
    put(backend, "v", 0, bytes(range(256)) * 4096 * 12)
    ceph_cluster_command(ceph_cluster, "osd pool set-quota", ceph_pool, "max_bytes", str(4 * MIB))
    with backend.open_device("v", read_only=False) as device:

        def write_until_full():
            for offset in range(16 * MIB, 64 * MIB, 128 << 10):
                device.write(offset, b"x" * 4096)  # what does not grow the pool is let through
                time.sleep(0.1)

        with pytest.raises(ExhaustedError) as caught:
            write_until_full()
        assert caught.value.reason == Reason.POOL_FULL
        assert device.read(0, 256) == bytes(range(256))
    with pytest.raises(ExhaustedError):
        backend.create("more", SIZE)
    assert list(backend.walk()) == ["v"]
    backend.delete("v")
    assert list(backend.walk()) == []
    backend.collect()
    assert leftovers(ceph_cluster, ceph_pool) == set()


def ceph_cluster_command(access, prefix, pool, field, value):
    import rados

    with rados.Rados(conffile=str(access.conf_path), rados_id="admin") as cluster:
        command = {"prefix": prefix, "pool": pool, "field": field, "val": value}
        code, _, text = cluster.mon_command(json.dumps(command), b"")
        assert code == 0, text


def test_uninitialised_pool(ceph_cluster, ceph_pool):
    """Goal: opening prepares a pool that nobody ran `rbd pool init` on. Method: undo that."""
    with raw_pool(ceph_cluster, ceph_pool) as ioctx:
        ioctx.remove_object("rbd_info")
    with opened(ceph_cluster, ceph_pool) as backend:
        backend.create("v", SIZE)
        assert fetch(backend, "v", 0, 4) == bytes(4)


def test_describe_agrees_with_librbd(backend, ceph_cluster, ceph_pool):
    """Goal: headers are decoded right. Method: the same facts from an open image."""
    import rbd

    backend.create("root", SIZE)
    backend.create_snapshot("root", "s")
    backend.clone("root", "s", "a", SIZE)
    headers = backend._session().headers
    with (
        raw_pool(ceph_cluster, ceph_pool) as ioctx,
        rbd.Image(ioctx, "root") as root,
        rbd.Image(ioctx, "a") as clone,
    ):
        assert headers.image_id("root") == root.id()
        assert headers.image_id("gone") is None
        assert headers.parent(clone.id()).image_id == root.id()
        (snap,) = root.list_snaps()
        assert headers.snaps(root.id()) == [snap["id"]]
        found = headers.snapshot(root.id(), snap["id"])
        assert (found.name, found.size_bytes, found.user) == ("s", SIZE, True)
        assert headers.has_children(root.id(), snap["id"])
        assert headers.owner(clone.id()) == "a"
        root.remove_snap("s")
        found = headers.snapshot(root.id(), snap["id"])
        assert (found.name, found.user) == ("s", False)
