"""Volumes that move to another pool: the same ones afterwards, and nothing left behind."""

import os
import subprocess
import time
from pathlib import Path

import pytest

from volcore.testing.nbd_disk import NbdDisk

from .contents import has, written
from .operations import migrate as cut_off_migration
from .settling import until
from .test_kill import finish, killed_and_started, side_by_side

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


@pytest.mark.long
def test_cinder_volume_dies_amid_moves(site):
    """Goal: the repeated migration moves the volume, whole. Method: four of them, each stopped in
    another step, then kill -9: while it is written into a file, imported, made there, deleted here.
    """
    hold = site.holds["ours-rbd"]
    moves = [cut_off_migration(site, "ours-rbd") for _ in range(4)]
    volumes = side_by_side(next, moves)
    steps = (
        ("end", "DeleteVolume", f"pools/p/volumes/volume-{volumes[0]}"),
        ("end", "CreateVolume", volumes[1]),
        ("middle", "ExportImage", volumes[2]),
        ("middle", "ImportImage", ""),
    )
    with killed_and_started(site):
        for at, (point, method, of) in enumerate(steps):
            hold.add(point, [method], of=of)
            next(moves[at])
            hold.wait([stopped for _, stopped, _ in steps[: at + 1]])
    side_by_side(lambda running: finish(running, repeat=True), moves)


@pytest.mark.long
@pytest.mark.parametrize(
    ("here", "there"), [("ours-rbd", "ours-local"), ("ours-local", "ours-rbd")]
)
def test_cinder_volume_dies_amid_its_own_copy(site, keyring, here, there):
    """Goal: nothing stays of a copy by Cinder that was cut off. Method: kill -9 while it runs, then
    do what docs/openstack.md says: reset, delete the target, repeat.
    """
    cinder, content = site.cinder, os.urandom(MIB)
    volume = written(site, here, content)
    asked = {"new_type": there, "migration_policy": "on-demand"}
    with killed_and_started(site):
        cinder.act("volume", volume["id"], "os-retype", asked)
        with site.servers[there].client() as client:
            until(lambda: list(client.list_attachments("pools/p/volumes/-")))
    now = cinder.get("volume", volume["id"])
    assert (now["status"], now["migration_status"]) == ("retyping", "migrating")
    cleared = {"status": "available", "migration_status": "none"}
    listed = cinder.call("GET", "/volumes/detail?all_tenants=1")["volumes"]
    (target,) = [one for one in listed if one["migration_status"] == f"target:{volume['id']}"]
    for one in (volume, target):
        cinder.act("volume", one["id"], "os-reset_status", cleared)
    cinder.delete("volume", target["id"])
    assert not list(site.rig.home.glob("state/volcore_disks/*/*")) or here == "ours-local"
    cinder.act("volume", volume["id"], "os-retype", asked)
    until(lambda: cinder.wait("volume", volume["id"])["volume_type"] == there)
    has(site, there, cinder.get("volume", volume["id"]), content)
    with site.servers[here].client() as client:
        await_gone(client, "pools/p")
    cinder.delete("volume", volume["id"])
    assert not list(site.rig.home.glob("state/volcore_disks/*"))
