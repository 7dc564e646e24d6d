"""What a user asks of Cinder with groups; see `operations`."""

import os

from .contents import MIB, has, rewrite
from .settling import is_gone, reset, settled, survived, unstick, until


def group_snapshot(site, backend):
    cinder = site.cinder
    group, contents = _group(site, backend)
    yield
    made = cinder.create("group_snapshot", wait=False, group_id=group["id"])
    if (yield) and not survived(cinder, "group_snapshot", made["id"]):
        made = cinder.create("group_snapshot", wait=False, group_id=group["id"])
    cinder.wait("group_snapshot", made["id"])
    for volume in contents:
        rewrite(site, backend, {"id": volume}, os.urandom(MIB))
    copy = _copy(cinder, group_snapshot_id=made["id"])
    cinder.wait("group", copy)
    for clone in cinder.volumes_of(copy):
        of = cinder.get("snapshot", clone["snapshot_id"])["volume_id"]
        has(site, backend, clone, contents[of])
    cinder.delete("group", copy)
    _delete_group_snapshot(cinder, made)
    cinder.delete("group", group["id"])


def delete_group_snapshot(site, backend):
    cinder = site.cinder
    group, _ = _group(site, backend)
    made = cinder.create("group_snapshot", group_id=group["id"])
    yield
    cinder.call("DELETE", f"/group_snapshots/{made['id']}")
    if (yield) and unstick(cinder, "group_snapshot", made["id"], "deleting"):
        cinder.call("DELETE", f"/group_snapshots/{made['id']}")
    until(lambda: is_gone(cinder, "group_snapshot", made["id"]))
    cinder.delete("group", group["id"])


def create_group(site, backend):
    """It asks nothing of volcore, but may be cut off like others."""
    cinder = site.cinder
    group_type = cinder.make_group_type(f"kill-{os.urandom(4).hex()}")
    asked = {"group_type": group_type, "volume_types": [backend]}
    yield
    made = cinder.create("group", wait=False, **asked)
    if (yield) and settled(cinder, "group", made["id"]) != "available":
        cinder.delete("group", made["id"])
        made = cinder.create("group", wait=False, **asked)
    cinder.wait("group", made["id"])
    cinder.delete("group", made["id"])


def delete_group(site, backend):
    cinder = site.cinder
    group, _ = _group(site, backend)

    def ask():
        cinder.act("group", group["id"], "delete", {"delete-volumes": True})

    yield
    ask()
    if (yield) and settled(cinder, "group", group["id"]) != "gone":
        ask()
    until(lambda: is_gone(cinder, "group", group["id"]))


def group_from_snapshot(site, backend):
    cinder = site.cinder
    group, contents = _group(site, backend)
    made = cinder.create("group_snapshot", group_id=group["id"])
    for volume in contents:
        rewrite(site, backend, {"id": volume}, os.urandom(MIB))
    yield
    copy = yield from _copied(cinder, group_snapshot_id=made["id"])
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
    copy = yield from _copied(cinder, source_group_id=group["id"])
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
    copy = _copy(cinder, **source)
    if (yield) and settled(cinder, "group", copy) != "available":
        reset(cinder, "group", copy, "error")
        cinder.delete("group", copy)
        copy = _copy(cinder, **source)
    cinder.wait("group", copy)
    return copy


def _copy(cinder, **source):
    return cinder.call("POST", "/groups/action", {"create-from-src": source})["group"]["id"]


def _delete_group_snapshot(cinder, made):
    cinder.call("DELETE", f"/group_snapshots/{made['id']}")
    until(lambda: is_gone(cinder, "group_snapshot", made["id"]))
