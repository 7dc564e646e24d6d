"""Attachments through Cinder: what a host is told, and who may have the volume."""

import contextlib
import subprocess
import sys
import time
from pathlib import Path

import pytest

from volcore.cinder import connection
from volcore.v1 import attachment_pb2

from .cinder_api import ApiError
from .conftest import wait_up


def test_same_words_as_the_stock_driver(site):
    """Goal: Nova sees no difference. Method: attach a volume of both, compare the answers."""
    cinder = site.cinder
    told = {}
    for backend in ("ours-rbd", "stock"):
        volume = cinder.create("volume", size=1, volume_type=backend)
        attachment = cinder.attach(volume["id"], "compute-1")
        told[backend] = attachment["connection_info"]
        if backend == "ours-rbd":
            with site.servers[backend].client() as client:
                (there,) = client.list_attachments(site.name(volume))
                assert there.host == "compute-1"
                image = client.get_volume(site.name(volume)).backend_name
            assert told[backend]["name"] == f"{site.pool}/{image}"
            cinder.act("volume", volume["id"], "os-extend", {"new_size": 2})
            assert cinder.wait("volume", volume["id"], "in-use")["size"] == 2
            with site.disk(backend, volume) as disk:
                assert disk.read((2 << 30) - 1, 1) == b"\0"
        cinder.detach(attachment["id"])
        cinder.wait("volume", volume["id"])
        cinder.delete("volume", volume["id"])
    ours, stock = told["ours-rbd"], told["stock"]
    assert ours.keys() == stock.keys()
    own = {"name", "volume_id", "attachment_id"}
    assert {k: v for k, v in ours.items() if k not in own} == {
        k: v for k, v in stock.items() if k not in own
    }


def test_limits_reach_nova(site):
    """Goal: QoS specs of the front-end come with the connection, as with the stock driver."""
    cinder, limits = site.cinder, {"total_iops_sec": "500", "read_bytes_sec_per_gb": "1048576"}
    specs = {"name": "limits", "consumer": "front-end", **limits}
    made = cinder.call("POST", "/qos-specs", {"qos_specs": specs})["qos_specs"]["id"]
    kind = cinder.make_type("limited", "ours-rbd")
    cinder.call("GET", f"/qos-specs/{made}/associate?vol_type_id={kind}")
    volume = cinder.create("volume", size=2, volume_type="limited")
    attachment = cinder.attach(volume["id"], "compute-1")
    told = attachment["connection_info"]["qos_specs"]
    assert told == {"total_iops_sec": "500", "read_bytes_sec": 2 * 1048576}
    cinder.detach(attachment["id"])
    cinder.wait("volume", volume["id"])
    cinder.delete("volume", volume["id"])


def test_a_local_pool_is_refused_to_other_hosts(site):
    """Goal: one clear sentence, and nothing is left attached."""
    cinder = site.cinder
    volume = cinder.create("volume", size=1, volume_type="ours-local")
    with pytest.raises(ApiError, match="only guests of this host can use") as caught:
        cinder.attach(volume["id"], "compute-1")
    assert caught.value.code == 400
    cinder.wait("volume", volume["id"])
    cinder.delete("volume", volume["id"])


def test_a_local_pool_has_files_for_guests_of_its_host(site):
    """Goal: Nova gets a file that outlives restarts. Method: write it, kill both services, look."""
    cinder, rig, server = site.cinder, site.rig, site.servers["ours-local"]
    volume = cinder.create("volume", size=1, volume_type="ours-local")
    attachment = cinder.attach(volume["id"], "rig")
    told = attachment["connection_info"]
    path = Path(told["device_path"])
    assert (told["driver_volume_type"], path.stat().st_size) == ("gpfs", 1 << 30)
    write(path, 5, b"first")
    server.kill()
    writing = subprocess.Popen([sys.executable, "-c", WRITER, path, "6", b"second"])
    time.sleep(0.5)
    assert writing.poll() is None
    server.start()
    assert writing.wait(30) == 0
    since = len(rig.log("volume"))
    rig.stop("volume", hard=True)
    write(path, 7, b"third")
    rig.start("volume")
    wait_up(cinder, rig, since=since)
    assert cinder.attach_again(attachment["id"], "rig")["device_path"] == str(path)
    assert len(daemon_of(path)) == 1
    cinder.detach(attachment["id"])
    cinder.wait("volume", volume["id"])
    assert not path.parent.exists()
    assert not daemon_of(path)
    with site.disk("ours-local", volume) as disk:
        for at, text in ((5, b"first"), (6, b"second"), (7, b"third")):
            assert disk.read(at << 20, len(text)) == text
    cinder.delete("volume", volume["id"])


# Not in this process: its other children would inherit the file, and wait at its end for volcore.
WRITER = """
import os, sys
path, at, text = sys.argv[1:]
fd = os.open(path, os.O_RDWR)
os.pwrite(fd, text.encode(), int(at) << 20)
os.fsync(fd)
"""


def write(path, at_mib, text):
    subprocess.run([sys.executable, "-c", WRITER, path, str(at_mib), text], check=True, timeout=30)


def daemon_of(disk):
    """The command lines of the storage daemons that offer a file."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = path.read_bytes().decode().split("\0")
            if str(disk.with_name("pid")) in words:
                found.append(words)
    return found


@pytest.mark.parametrize("backend", ["ours-rbd", "ours-local"])
def test_live_migration(site, backend):
    """Goal: the second host takes over when the first one lets go, and may go on to a third.

    Method: the calls of the driver, each twice, on a real server.
    """
    name = "pools/p/volumes/migrating"
    active = attachment_pb2.ATTACHMENT_STATE_ACTIVE
    with site.servers[backend].client() as client:
        client.create_volume(name, size_bytes=1 << 30)
        for before, after in (("a", "b"), ("b", "c")):
            for _ in range(2):
                connection.attach(client, name, before)
            for _ in range(2):
                standby = connection.attach(client, name, after)
                assert standby.state == attachment_pb2.ATTACHMENT_STATE_STANDBY
            for _ in range(2):
                connection.detach(client, name, before)
            (left,) = client.list_attachments(name)
            assert (left.host, left.state) == (after, active)
        connection.attach(client, name, "d")
        connection.detach(client, name, "d")  # a migration that was given up
        (left,) = client.list_attachments(name)
        assert (left.host, left.state) == ("c", active)
        for _ in range(2):
            connection.detach_all(client, name)
        assert not list(client.list_attachments(name))
        client.delete_volume(name)
        connection.detach(client, name, "c")
        connection.detach_all(client, name)


def test_hosts_of_any_name():
    """Goal: each host name gives a name that volcore takes, and others another one."""
    hosts = ["compute-1.example", "Compute_2", "rack 1/host:3", "x" * 200, "ä"]
    names = [connection.host_of({"host": host}) for host in hosts]
    assert names[:2] == hosts[:2]
    assert len(set(names)) == len(hosts)
    assert all(name.isascii() and len(name) <= 100 for name in names)
