"""Volumes that move to another pool: the same ones afterwards, and nothing left behind."""

import os
import subprocess
import time
from pathlib import Path

import pytest

from volcore.testing.nbd_disk import NbdDisk

MIB = 1 << 20
GIB = 1 << 30


@pytest.fixture
def keyring(site):
    """What os-brick reads when Cinder itself copies an rbd volume, in the one place where it does.

    volcore needs none on that host.
    """
    path = Path("/etc/ceph/ceph.client.admin.keyring")
    if path.exists():
        pytest.skip(f"{path} belongs to somebody")
    path.parent.mkdir(exist_ok=True)
    words = ["ceph", "--conf", site.conf_path, "auth", "get", "client.admin", "-o", path]
    subprocess.run(words, check=True, capture_output=True)
    yield
    path.unlink()


def use_and_delete(cinder, volume):
    """Show that it is a volume like any other."""
    snapshot = cinder.create("snapshot", volume_id=volume["id"])
    clone = cinder.create("volume", size=2, snapshot_id=snapshot["id"])
    cinder.delete("snapshot", snapshot["id"])
    cinder.delete("volume", volume["id"])
    cinder.delete("volume", clone["id"])


@pytest.mark.parametrize(
    ("here", "there"), [("ours-rbd", "ours-local"), ("ours-local", "ours-rbd")]
)
def test_retype_to_another_pool(site, keyring, here, there):
    """Goal: Cinder's own copy works both ways. Method: move by a type, compare, use, delete."""
    cinder = site.cinder
    data = os.urandom(MIB)
    volume = cinder.create("volume", size=1, volume_type=here)
    with site.disk(here, volume) as disk:
        disk.write(3 * MIB, data)
        disk.write(GIB - MIB, data)
    asked = {"new_type": there, "migration_policy": "on-demand"}
    cinder.act("volume", volume["id"], "os-retype", asked)
    now = cinder.wait("volume", volume["id"])
    assert now["volume_type"] == there, now
    with site.disk(there, now) as disk:
        assert disk.read(3 * MIB, MIB) == data
        assert disk.read(GIB - MIB, MIB) == data
        assert disk.read(0, MIB) == bytes(MIB)
    with site.servers[here].client() as client:
        await_gone(client, "pools/p")  # Cinder deletes it after it has said that all is done
    use_and_delete(cinder, volume)


def test_migrate_within_the_service(site):
    """Goal: volcore moves it, thin, under its name. Method: there and back, and compare."""
    cinder, data = site.cinder, os.urandom(MIB)
    volume = cinder.create("volume", size=1, volume_type="ours-rbd")
    with site.disk("ours-rbd", volume) as disk:
        disk.write(3 * MIB, data)
        disk.write(GIB - MIB, data)
    cinder.make_type("either", "<or> ours-rbd <or> ours-beside")
    cinder.act("volume", volume["id"], "os-retype", {"new_type": "either"})
    assert cinder.wait("volume", volume["id"])["volume_type"] == "either"
    migrate(cinder, volume, "ours-beside")
    name = f"pools/q/volumes/volume-{volume['id']}"
    with site.servers["ours-rbd"].client() as client:
        assert not list(client.list_volumes("pools/p"))
        assert not list(client.list_images("pools/q"))
        assert client.get_pool("pools/q").allocated_bytes < 8 * MIB
        nbd = client.attach_volume(name, "tests").nbd
        with NbdDisk(nbd.socket_path, nbd.export_name) as disk:
            assert disk.read(3 * MIB, MIB) == data
            disk.write(0, data)
            disk.flush()
        client.detach_volume(name, "tests")
        migrate(cinder, volume, "ours-rbd")
        assert not list(client.list_volumes("pools/q"))
    with site.disk("ours-rbd", volume) as disk:
        assert disk.read(0, MIB) == data
        assert disk.read(MIB, MIB) == bytes(MIB)
        assert disk.read(GIB - MIB, MIB) == data
    use_and_delete(cinder, volume)


def await_gone(client, pool):
    """Wait until a pool has no volume."""
    deadline = time.monotonic() + 60
    while left := list(client.list_volumes(pool)):
        assert time.monotonic() < deadline, left
        time.sleep(0.2)


def migrate(cinder, volume, there):
    """Move a volume as an administrator does."""
    host = f"rig@{there}#{there}"
    cinder.act("volume", volume["id"], "os-migrate_volume", {"host": host})
    while (now := cinder.wait("volume", volume["id"]))["os-vol-host-attr:host"] != host:
        assert now["migration_status"] in ("starting", "migrating"), now
    assert now["os-vol-mig-status-attr:name_id"] is None
