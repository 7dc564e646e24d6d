"""What a user asks of Cinder, each as a generator that can be cut off in the middle.

The first `next` prepares, the second one asks and does not wait. Then `send` tells whether
cinder-volume has died: if so the request is repeated as docs/openstack.md says, else it must end by
itself. The bytes are compared, and all is deleted.
"""

import contextlib
import json
import os
import subprocess
import time
from concurrent.futures import Future, ThreadPoolExecutor

from .cinder_api import DONE_S, ApiError

MIB = 1 << 20
GIB = 1 << 30
_CALLERS = ThreadPoolExecutor(8)


def until(found, *, timeout_s=DONE_S):
    """Return what `found` returns once that is true."""
    deadline = time.monotonic() + timeout_s
    while not (value := found()):
        assert time.monotonic() < deadline, found
        time.sleep(0.1)
    return value


def is_gone(cinder, kind, one):
    try:
        cinder.get(kind, one)
    except ApiError as err:
        if err.code != 404:
            raise
        return True
    return False


def discard(cinder, kind, one):
    """Delete what Cinder has put in error, since its making was cut off."""
    until(lambda: cinder.get(kind, one)["status"] == "error")
    cinder.call("DELETE", f"/{kind}s/{one}")
    until(lambda: is_gone(cinder, kind, one))


def reset(cinder, kind, one, found, status="available"):
    """Do what an administrator does with a status that nobody will change any more."""
    assert cinder.get(kind, one)["status"] == found
    cinder.act(kind, one, "os-reset_status", {"status": status})


def written(site, backend, *contents, size=1):
    """A volume with these contents, 1 MiB each, one after another in time."""
    volume = site.cinder.create("volume", size=size, volume_type=backend)
    rewrite(site, backend, volume, *contents)
    return volume


def rewrite(site, backend, volume, *contents):
    with site.disk(backend, volume) as disk:
        for content in contents:
            disk.write(0, content)


def has(site, backend, volume, content, size=1):
    with site.disk(backend, volume) as disk:
        assert disk.read(0, MIB) == content
        assert disk.read(size * GIB - MIB, MIB) == bytes(MIB)


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
    if (yield):
        discard(cinder, "volume", made["id"])
        made = cinder.create("volume", wait=False, **fields)
    return cinder.wait("volume", made["id"])


def from_raw(site, backend):
    yield from _from_image(site, backend, "raw")


def from_qcow2(site, backend):
    yield from _from_image(site, backend, "qcow2")


def _from_image(site, backend, disk_format):
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
    image = site.glance.upload(path, disk_format)
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
    if (yield):
        discard(cinder, "snapshot", made["id"])
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
    if (yield):
        reset(cinder, "snapshot", made["id"], "deleting")
        cinder.call("DELETE", f"/snapshots/{made['id']}")
    until(lambda: is_gone(cinder, "snapshot", made["id"]))
    cinder.delete("volume", volume["id"])


def extend(site, backend):
    cinder, content = site.cinder, os.urandom(MIB)
    volume = written(site, backend, content)
    yield
    cinder.act("volume", volume["id"], "os-extend", {"new_size": 3})
    if (yield):
        reset(cinder, "volume", volume["id"], "extending")
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
        reset(cinder, "volume", volume["id"], "reverting")
        reset(cinder, "snapshot", made["id"], "restoring")
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
        reset(cinder, "volume", volume["id"], "uploading")
        glance.delete(image)
        image = ask()
    cinder.wait("volume", volume["id"])
    assert glance.get(image)["status"] == "active"
    path, plain = (site.rig.home / f"upload-{image}.{form}" for form in ("qcow2", "raw"))
    glance.download(image, path)
    subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", path, plain], check=True)
    with plain.open("rb") as file:
        assert file.read(MIB) == content
        assert file.seek(0, os.SEEK_END) == GIB
    path.unlink()
    plain.unlink()
    assert not any("upload-" in name for name in site.images(backend))
    cinder.delete("volume", volume["id"])
    glance.delete(image)


def retype(site, backend):
    cinder, other = site.cinder, f"{backend}-{os.urandom(4).hex()}"
    cinder.make_type(other, backend)
    volume = cinder.create("volume", size=1, volume_type=backend)
    asked = {"new_type": other, "migration_policy": "never"}
    yield
    cinder.act("volume", volume["id"], "os-retype", asked)
    if (yield) and cinder.get("volume", volume["id"])["status"] == "retyping":
        cinder.act("volume", volume["id"], "os-reset_status", {"status": "available"})
        cinder.act("volume", volume["id"], "os-retype", asked)
    until(lambda: cinder.wait("volume", volume["id"])["volume_type"] == other)
    cinder.delete("volume", volume["id"])


def group_snapshot(site, backend):
    cinder = site.cinder
    group, contents = _group(site, backend)
    yield
    made = cinder.create("group_snapshot", wait=False, group_id=group["id"])
    if (yield):
        cinder.act("group_snapshot", made["id"], "reset_status", {"status": "error"})
        _delete_group_snapshot(cinder, made)
        made = cinder.create("group_snapshot", wait=False, group_id=group["id"])
    cinder.wait("group_snapshot", made["id"])
    for volume in contents:
        rewrite(site, backend, {"id": volume}, os.urandom(MIB))
    copy = _copied(cinder, group_snapshot_id=made["id"])
    cinder.wait("group", copy)
    for clone in cinder.volumes_of(copy):
        of = cinder.get("snapshot", clone["snapshot_id"])["volume_id"]
        has(site, backend, clone, contents[of])
    cinder.delete("group", copy)
    _delete_group_snapshot(cinder, made)
    cinder.delete("group", group["id"])


def group_from_group(site, backend):
    cinder = site.cinder
    group, contents = _group(site, backend)
    yield
    copy = _copied(cinder, source_group_id=group["id"])
    if (yield):
        cinder.act("group", copy, "reset_status", {"status": "error"})
        cinder.delete("group", copy)
        copy = _copied(cinder, source_group_id=group["id"])
    cinder.wait("group", copy)
    for clone in cinder.volumes_of(copy):
        has(site, backend, clone, contents[clone["source_volid"]])
    for one in (copy, group["id"]):
        cinder.delete("group", one)


def _group(site, backend):
    """A group of two volumes, and their contents; of one instant where the backend can do that."""
    cinder = site.cinder
    specs = {"consistent_group_snapshot_enabled": "<is> True"} if backend == "ours-local" else {}
    group_type = cinder.make_group_type(f"kill-{os.urandom(4).hex()}", **specs)
    group = cinder.create("group", group_type=group_type, volume_types=[backend])
    contents = {}
    for _ in range(2):
        volume = cinder.create("volume", size=1, volume_type=backend, group_id=group["id"])
        contents[volume["id"]] = os.urandom(MIB)
        rewrite(site, backend, volume, contents[volume["id"]])
    return group, contents


def _copied(cinder, **source):
    return cinder.call("POST", "/groups/action", {"create-from-src": source})["group"]["id"]


def _delete_group_snapshot(cinder, made):
    cinder.call("DELETE", f"/group_snapshots/{made['id']}")
    until(lambda: is_gone(cinder, "group_snapshot", made["id"]))


CONNECTOR = {
    "host": "compute-1",
    "ip": "127.0.0.1",
    "multipath": False,
    "platform": "x86_64",
    "os_type": "linux",
    "initiator": "iqn.1994-05.com.example:compute-1",
}


def attach(site, backend):
    """The attachment is completed by a repeated request."""
    cinder = site.cinder
    volume, attachment = _reserved(cinder, backend)
    yield
    asked = _connect(cinder, attachment)
    if (yield):
        with contextlib.suppress(ApiError):
            asked.result()
        asked = _connect(cinder, attachment)
    data = asked.result()["attachment"]["connection_info"]
    with site.servers[backend].client() as client:
        (found,) = client.list_attachments(site.name(volume))
    assert (found.host, data["name"]) == ("compute-1", f"{found.rbd.pool}/{found.rbd.image}")
    cinder.detach(attachment)
    cinder.wait("volume", volume["id"])
    cinder.delete("volume", volume["id"])


def attach_given_up(site, backend):
    """Cinder knows no connector yet, so it does not tell the driver; another host comes next."""
    cinder = site.cinder
    volume, attachment = _reserved(cinder, backend)
    yield
    asked = _connect(cinder, attachment)
    if (yield):
        with contextlib.suppress(ApiError):
            asked.result()
        cinder.detach(attachment)
        cinder.wait("volume", volume["id"])
        attachment = cinder.attach(volume["id"], "compute-2")["id"]
        with site.servers[backend].client() as client:
            hosts = [one.host for one in client.list_attachments(site.name(volume))]
        assert hosts == ["compute-2"]
    else:
        asked.result()
    cinder.detach(attachment)
    cinder.wait("volume", volume["id"])
    cinder.delete("volume", volume["id"])


def attach_deleted(site, backend):
    """As above, but the volume is deleted next."""
    cinder = site.cinder
    volume, attachment = _reserved(cinder, backend)
    yield
    asked = _connect(cinder, attachment)
    yield
    with contextlib.suppress(ApiError):
        asked.result()
    cinder.detach(attachment)
    cinder.wait("volume", volume["id"])
    cinder.delete("volume", volume["id"])


def detach(site, backend):
    cinder = site.cinder
    volume = cinder.create("volume", size=1, volume_type=backend)
    attachment = cinder.attach(volume["id"], "compute-1")["id"]
    yield
    asked = _CALLERS.submit(cinder.detach, attachment)
    if (yield):
        with contextlib.suppress(ApiError):
            asked.result()
        asked = _CALLERS.submit(cinder.detach, attachment)
    asked.result()
    cinder.wait("volume", volume["id"])
    with site.servers[backend].client() as client:
        assert list(client.list_attachments(site.name(volume))) == []
    cinder.delete("volume", volume["id"])


def _reserved(cinder, backend):
    volume = cinder.create("volume", size=1, volume_type=backend)
    made = cinder.call("POST", "/attachments", {"attachment": {"volume_uuid": volume["id"]}})
    return volume, made["attachment"]["id"]


def _connect(cinder, attachment) -> Future:
    body = {"attachment": {"connector": CONNECTOR}}
    return _CALLERS.submit(cinder.call, "PUT", f"/attachments/{attachment}", body)


@contextlib.contextmanager
def _ioctx(site):
    import rados

    with (
        rados.Rados(conffile=str(site.conf_path), name="client.admin") as cluster,
        cluster.open_ioctx(site.pool) as ioctx,
    ):
        yield ioctx


def _legacy(site, content) -> str:
    """Make an rbd image as somebody else does."""
    import rbd

    name = f"legacy-{os.urandom(4).hex()}"
    with _ioctx(site) as ioctx:
        rbd.RBD().create(ioctx, name, GIB, old_format=False, features=61)
        with rbd.Image(ioctx, name) as image:
            image.write(content, 0)
    return name


def _manage(cinder, backend, name) -> str:
    body = {"volume": {"host": f"rig@{backend}#{backend}", "ref": {"source-name": name}}}
    return cinder.call("POST", "/manageable_volumes", body)["volume"]["id"]


def manage(site, backend):
    cinder, content = site.cinder, os.urandom(MIB)
    name = _legacy(site, content)
    yield
    volume = _manage(cinder, backend, name)
    if (yield):
        reset(cinder, "volume", volume, "creating")  # what Cinder shows for `managing`
        cinder.act("volume", volume, "os-unmanage")
        until(lambda: is_gone(cinder, "volume", volume))
        listed = cinder.call("GET", f"/manageable_volumes?host=rig@{backend}%23{backend}")
        names = [
            one["reference"]["source-name"]
            for one in listed["manageable-volumes"]
            if one["safe_to_manage"]
        ]
        assert f"volume-{volume}" in names or name in names, json.dumps(listed)
        volume = _manage(cinder, backend, name if name in names else f"volume-{volume}")
    made = cinder.wait("volume", volume)
    has(site, backend, made, content)
    cinder.delete("volume", volume)


def unmanage(site, backend):
    import rbd

    cinder, content = site.cinder, os.urandom(MIB)
    volume = cinder.wait("volume", _manage(cinder, backend, _legacy(site, content)))["id"]
    yield
    cinder.act("volume", volume, "os-unmanage")
    if (yield):
        reset(cinder, "volume", volume, "unmanaging")
        cinder.act("volume", volume, "os-unmanage")
    until(lambda: is_gone(cinder, "volume", volume))
    with _ioctx(site) as ioctx:
        with rbd.Image(ioctx, f"volume-{volume}") as image:
            assert image.read(0, MIB) == content
        rbd.RBD().remove(ioctx, f"volume-{volume}")


OPERATIONS = {
    blank: "CreateVolume",
    from_snapshot: "CreateVolume",
    from_volume: "CreateVolume",
    from_raw: "ImportImage",
    from_qcow2: "ImportImage",
    snapshot: "CreateSnapshot",
    delete_volume: "DeleteVolume",
    delete_snapshot: "DeleteSnapshot",
    extend: "ResizeVolume",
    revert: "RevertVolume",
    upload: "ExportImage",
    group_snapshot: "CreateGroupSnapshot",
    group_from_group: "CreateVolume",
    attach: "AttachVolume",
    attach_given_up: "AttachVolume",
    attach_deleted: "AttachVolume",
    detach: "DetachVolume",
    manage: "AdoptVolume",
    unmanage: "ReleaseVolume",
}
"""With the call to volcore in which each is cut off; a retype makes none."""
RBD_ONLY = {attach, attach_given_up, attach_deleted, detach, manage, unmanage}
STREAMS = {from_raw, from_qcow2, upload}


def method_of(operation, backend):
    if operation is group_snapshot and backend == "ours-rbd":
        return "CreateSnapshot"  # Cinder goes through the volumes one after another
    if operation is group_from_group and backend == "ours-local":
        return "CreateGroupSnapshot"  # of one instant, from which the volumes are made
    return OPERATIONS[operation]
