"""What hosts and administrators ask of Cinder with volumes; see `operations`."""

import contextlib
import json
import os
from concurrent.futures import Future, ThreadPoolExecutor

from .contents import GIB, MIB, has
from .settling import answered, is_gone, unstick, until

CALLERS = ThreadPoolExecutor(16)
"""For requests that wait for their answer."""
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
    if (yield) and not answered(asked):
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
        answered(asked)
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
    answered(asked)
    cinder.detach(attachment)
    cinder.wait("volume", volume["id"])
    cinder.delete("volume", volume["id"])


def detach(site, backend):
    cinder = site.cinder
    volume = cinder.create("volume", size=1, volume_type=backend)
    attachment = cinder.attach(volume["id"], "compute-1")["id"]
    yield
    asked = CALLERS.submit(cinder.detach, attachment)
    if (yield) and not answered(asked):
        asked = CALLERS.submit(cinder.detach, attachment)
    asked.result()
    cinder.wait("volume", volume["id"])
    with site.servers[backend].client() as client:
        assert list(client.list_attachments(site.name(volume))) == []
    cinder.delete("volume", volume["id"])


def force_detach(site, backend):
    """An administrator's word: the driver is told of no host."""
    cinder = site.cinder
    volume = cinder.create("volume", size=1, volume_type=backend)
    attachment = cinder.attach(volume["id"], "compute-1")["id"]

    def ask():
        words = {"attachment_id": attachment}
        return CALLERS.submit(cinder.act, "volume", volume["id"], "os-force_detach", words)

    yield
    asked = ask()
    if (yield) and not answered(asked):
        asked = ask()
    asked.result()
    cinder.wait("volume", volume["id"])
    with site.servers[backend].client() as client:
        assert list(client.list_attachments(site.name(volume))) == []
    cinder.delete("volume", volume["id"])


def extend_attached(site, backend):
    cinder = site.cinder
    volume = cinder.create("volume", size=1, volume_type=backend)
    attachment = cinder.attach(volume["id"], "compute-1")["id"]
    yield
    cinder.act("volume", volume["id"], "os-extend", {"new_size": 3})
    if (yield) and unstick(cinder, "volume", volume["id"], "extending", "in-use"):
        cinder.act("volume", volume["id"], "os-extend", {"new_size": 3})
    assert cinder.wait("volume", volume["id"], "in-use")["size"] == 3
    with site.servers[backend].client() as client:
        assert client.get_volume(site.name(volume)).size_bytes == 3 * GIB
    cinder.detach(attachment)
    cinder.wait("volume", volume["id"])
    cinder.delete("volume", volume["id"])


def _reserved(cinder, backend):
    volume = cinder.create("volume", size=1, volume_type=backend)
    made = cinder.call("POST", "/attachments", {"attachment": {"volume_uuid": volume["id"]}})
    return volume, made["attachment"]["id"]


def _connect(cinder, attachment) -> Future:
    body = {"attachment": {"connector": CONNECTOR}}
    return CALLERS.submit(cinder.call, "PUT", f"/attachments/{attachment}", body)


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
    # Cinder shows `creating` for `managing`.
    if (yield) and unstick(cinder, "volume", volume, "creating"):
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
    if (yield) and unstick(cinder, "volume", volume, "unmanaging"):
        cinder.act("volume", volume, "os-unmanage")
    until(lambda: is_gone(cinder, "volume", volume))
    with _ioctx(site) as ioctx:
        with rbd.Image(ioctx, f"volume-{volume}") as image:
            assert image.read(0, MIB) == content
        rbd.RBD().remove(ioctx, f"volume-{volume}")


def manage_snapshot(site, backend):
    cinder, volume, name = _with_own_snapshot(site, backend)
    yield
    made = _manage_snapshot(cinder, volume, name)
    if (yield) and unstick(cinder, "snapshot", made, "creating"):
        _forget_snapshot(cinder, made)
        made = _manage_snapshot(cinder, volume, _only_snapshot(site, backend, volume))
    cinder.wait("snapshot", made)
    assert _only_snapshot(site, backend, volume) == f"snapshot-{made}"
    cinder.delete("snapshot", made)
    cinder.delete("volume", volume["id"])


def unmanage_snapshot(site, backend):
    """It asks nothing of volcore."""
    cinder, volume, name = _with_own_snapshot(site, backend)
    made = _manage_snapshot(cinder, volume, name)
    cinder.wait("snapshot", made)
    yield
    cinder.act("snapshot", made, "os-unmanage")
    if (yield) and unstick(cinder, "snapshot", made, "unmanaging"):
        cinder.act("snapshot", made, "os-unmanage")
    until(lambda: is_gone(cinder, "snapshot", made))
    with site.servers[backend].client() as client:
        client.delete_snapshot(f"{site.name(volume)}/snapshots/snapshot-{made}")
    cinder.delete("volume", volume["id"])


def _with_own_snapshot(site, backend):
    """A volume with a snapshot that Cinder does not know."""
    volume = site.cinder.create("volume", size=1, volume_type=backend)
    with site.servers[backend].client() as client:
        client.create_snapshot(f"{site.name(volume)}/snapshots/own")
    return site.cinder, volume, "own"


def _only_snapshot(site, backend, volume):
    with site.servers[backend].client() as client:
        (found,) = client.list_snapshots(site.name(volume))
    return found.name.rpartition("/")[2]


def _manage_snapshot(cinder, volume, name):
    body = {"snapshot": {"volume_id": volume["id"], "ref": {"source-name": name}}}
    return cinder.call("POST", "/manageable_snapshots", body)["snapshot"]["id"]


def _forget_snapshot(cinder, made):
    cinder.act("snapshot", made, "os-unmanage")
    until(lambda: is_gone(cinder, "snapshot", made))
