"""What a user asks of Cinder, each as a generator that can be cut off in the middle.

The first `next` prepares, the second one asks and does not wait. Then `send` tells whether
cinder-volume has died: if so the request is repeated as docs/openstack.md says, else it must end by
itself. The bytes are compared, and all is deleted.
"""

import os
import subprocess
import time

from volcore.testing.nbd_disk import NbdDisk

from .contents import GIB, MIB, has, rewrite, written
from .settling import is_gone, survived, unstick, until


def blank(site, backend):
    yield
    made = yield from _created(site, size=1, volume_type=backend)
    has(site, backend, made, bytes(MIB))
    site.cinder.delete("volume", made["id"])


def from_snapshot(site, backend):
    cinder, old = site.cinder, os.urandom(MIB)
    source = written(site, backend, old)
    snapshot = cinder.create("snapshot", volume_id=source["id"])
    rewrite(site, backend, source, os.urandom(MIB))
    yield
    made = yield from _created(site, size=2, snapshot_id=snapshot["id"])
    has(site, backend, made, old, size=2)
    cinder.delete("snapshot", snapshot["id"])
    for volume in (source, made):
        cinder.delete("volume", volume["id"])


def from_volume(site, backend):
    content = os.urandom(MIB)
    source = written(site, backend, content)
    yield
    made = yield from _created(site, size=2, source_volid=source["id"])
    has(site, backend, made, content, size=2)
    for volume in (source, made):
        site.cinder.delete("volume", volume["id"])


def _created(site, **fields):
    cinder = site.cinder
    made = cinder.create("volume", wait=False, **fields)
    if (yield) and not survived(cinder, "volume", made["id"]):
        made = cinder.create("volume", wait=False, **fields)
    return cinder.wait("volume", made["id"])


def from_raw(site, backend):
    yield from _from_image(site, backend, "raw")


def from_qcow2(site, backend):
    yield from _from_image(site, backend, "qcow2")


def from_ceph(site, backend):
    """Glance has it in the same cluster, so it is adopted."""
    yield from _from_image(site, backend, "raw", store="ceph")


def _from_image(site, backend, disk_format, store="fs"):
    cinder, content = site.cinder, os.urandom(MIB)
    path = site.rig.home / f"disk-{os.urandom(4).hex()}"
    with path.open("wb") as file:
        file.write(content)
        file.truncate(48 * MIB)
        file.seek(32 * MIB)
        file.write(os.urandom(8 * MIB))
    if disk_format == "qcow2":
        plain, path = path, path.with_suffix(".qcow2")
        subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", plain, path], check=True)
        plain.unlink()
    image = site.glance.upload(path, disk_format, store=store)
    path.unlink()
    yield
    made = yield from _created(site, size=1, volume_type=backend, imageRef=image)
    has(site, backend, made, content)
    assert sum(image in name for name in site.images(backend)) == 1
    cinder.delete("volume", made["id"])
    site.glance.delete(image)


def snapshot(site, backend):
    cinder, content = site.cinder, os.urandom(MIB)
    source = written(site, backend, content)
    yield
    made = cinder.create("snapshot", wait=False, volume_id=source["id"])
    if (yield) and not survived(cinder, "snapshot", made["id"]):
        made = cinder.create("snapshot", wait=False, volume_id=source["id"])
    cinder.wait("snapshot", made["id"])
    rewrite(site, backend, source, os.urandom(MIB))
    clone = cinder.create("volume", size=1, snapshot_id=made["id"])
    has(site, backend, clone, content)
    cinder.delete("snapshot", made["id"])
    for volume in (source, clone):
        cinder.delete("volume", volume["id"])


def delete_volume(site, backend):
    cinder = site.cinder
    volume = written(site, backend, os.urandom(MIB))
    yield
    cinder.call("DELETE", f"/volumes/{volume['id']}")
    yield  # a new cinder-volume goes on with it by itself
    until(lambda: is_gone(cinder, "volume", volume["id"]))
    with site.servers[backend].client() as client:
        assert site.name(volume) not in {one.name for one in client.list_volumes("pools/p")}


def delete_snapshot(site, backend):
    cinder = site.cinder
    volume = written(site, backend, os.urandom(MIB))
    made = cinder.create("snapshot", volume_id=volume["id"])
    yield
    cinder.call("DELETE", f"/snapshots/{made['id']}")
    if (yield) and unstick(cinder, "snapshot", made["id"], "deleting"):
        cinder.call("DELETE", f"/snapshots/{made['id']}")
    until(lambda: is_gone(cinder, "snapshot", made["id"]))
    cinder.delete("volume", volume["id"])


def extend(site, backend):
    cinder, content = site.cinder, os.urandom(MIB)
    volume = written(site, backend, content)
    yield
    cinder.act("volume", volume["id"], "os-extend", {"new_size": 3})
    if (yield) and unstick(cinder, "volume", volume["id"], "extending"):
        cinder.act("volume", volume["id"], "os-extend", {"new_size": 3})
    assert cinder.wait("volume", volume["id"])["size"] == 3
    has(site, backend, volume, content, size=3)
    cinder.delete("volume", volume["id"])


def revert(site, backend):
    cinder, old = site.cinder, os.urandom(MIB)
    volume = written(site, backend, old)
    made = cinder.create("snapshot", volume_id=volume["id"])
    rewrite(site, backend, volume, os.urandom(MIB))
    yield
    cinder.act("volume", volume["id"], "revert", {"snapshot_id": made["id"]})
    if (yield):
        stuck = unstick(cinder, "volume", volume["id"], "reverting")
        if unstick(cinder, "snapshot", made["id"], "restoring") or stuck:
            cinder.act("volume", volume["id"], "revert", {"snapshot_id": made["id"]})
    cinder.wait("volume", volume["id"])
    cinder.wait("snapshot", made["id"])
    has(site, backend, volume, old)
    cinder.delete("snapshot", made["id"])
    cinder.delete("volume", volume["id"])


def upload(site, backend):
    cinder, glance, content = site.cinder, site.glance, os.urandom(MIB)
    volume = written(site, backend, content)

    def ask():
        asked = {"image_name": "upload", "disk_format": "qcow2", "container_format": "bare"}
        told = cinder.act("volume", volume["id"], "os-volume_upload_image", asked)
        return told["os-volume_upload_image"]["image_id"]

    yield
    image = ask()
    if (yield):
        unstick(cinder, "volume", volume["id"], "uploading")
        if glance.get(image)["status"] != "active":
            glance.delete(image)
            image = ask()
    cinder.wait("volume", volume["id"])
    until(lambda: glance.get(image)["status"] == "active")
    path, plain = (site.rig.home / f"upload-{image}.{form}" for form in ("qcow2", "raw"))
    glance.download(image, path)
    subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", path, plain], check=True)
    with plain.open("rb") as file:
        assert file.read(MIB) == content
        assert file.seek(0, os.SEEK_END) == GIB
    path.unlink()
    plain.unlink()
    assert not any(f"upload-volume-{volume['id']}" in name for name in site.images(backend))
    cinder.delete("volume", volume["id"])
    glance.delete(image)


def retype(site, backend):
    cinder, other = site.cinder, f"{backend}-{os.urandom(4).hex()}"
    cinder.make_type(other, backend, **{"volcore:labels": "type=other"})
    volume = cinder.create("volume", size=1, volume_type=backend)
    asked = {"new_type": other, "migration_policy": "never"}
    yield
    cinder.act("volume", volume["id"], "os-retype", asked)
    if (yield) and unstick(cinder, "volume", volume["id"], "retyping"):
        cinder.act("volume", volume["id"], "os-retype", asked)
    until(lambda: cinder.wait("volume", volume["id"])["volume_type"] == other)
    with site.servers[backend].client() as client:
        assert dict(client.get_volume(site.name(volume)).labels) == {"type": "other"}
    cinder.delete("volume", volume["id"])


def migrate(site, backend):
    """To `ours-beside`, another pool of the server; the first `yield` tells which volume."""
    cinder, content = site.cinder, os.urandom(MIB)
    either, host = f"either-{os.urandom(4).hex()}", "rig@ours-beside#ours-beside"
    cinder.make_type(either, f"<or> {backend} <or> ours-beside")
    volume = written(site, backend, content)
    cinder.act("volume", volume["id"], "os-retype", {"new_type": either})
    until(lambda: cinder.wait("volume", volume["id"])["volume_type"] == either)

    def ask():
        cinder.act("volume", volume["id"], "os-migrate_volume", {"host": host})

    yield volume["id"]
    ask()
    if (yield) and not _moved(cinder, volume, host):
        again = {"migration_status": "none"}
        cinder.act("volume", volume["id"], "os-reset_status", again)
        ask()
    until(lambda: cinder.wait("volume", volume["id"])["os-vol-host-attr:host"] == host)
    name = f"pools/q/volumes/volume-{volume['id']}"
    with site.servers[backend].client() as client:
        assert site.name(volume) not in {one.name for one in client.list_volumes("pools/p")}
        nbd = client.attach_volume(name, "tests").nbd
        with NbdDisk(nbd.socket_path, nbd.export_name) as disk:
            assert disk.read(0, MIB) == content
            assert disk.read(GIB - MIB, MIB) == bytes(MIB)
        client.detach_volume(name, "tests")
    cinder.delete("volume", volume["id"])


def _moved(cinder, volume, host):
    """Tell whether a migration has ended well; it is cut off if it does not go on."""
    for _ in range(30):
        now = cinder.get("volume", volume["id"])
        if now["os-vol-host-attr:host"] == host or now["migration_status"] == "error":
            break
        time.sleep(0.1)
    return now["os-vol-host-attr:host"] == host
