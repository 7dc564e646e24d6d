"""Connection info in the forms that other programs take."""

import json
import shlex
from pathlib import Path
from xml.etree import ElementTree

import pytest

from volcore.cli import connection
from volcore.v1.attachment_pb2 import (
    ACCESS_MODE_READ_ONLY,
    ACCESS_MODE_READ_WRITE,
    ACCESS_MODE_READ_WRITE_SHARED,
    Attachment,
    NbdConnection,
    RbdConnection,
)

NAME = "pools/p/volumes/vm-0001-with-a-long-name/attachments/node-1"
UNIX = NbdConnection(
    uri="nbd+unix:///x%20y?socket=/run/a b/nbd.sock",
    export_name="x y",
    socket_path="/run/a b/nbd.sock",
)
TCP = NbdConnection(uri="nbd://127.0.0.1:10809/x", export_name="x", host="127.0.0.1", port=10809)
TLS = NbdConnection(
    uri="nbds://store-1:10809/x",
    export_name="x",
    host="store-1",
    port=10809,
    tls_hostname="store-1",
)
TLS_UNIX = NbdConnection(
    uri="nbds+unix:///x?socket=/s", export_name="x", socket_path="/s", tls_hostname="store-1"
)
RBD = RbdConnection(
    cluster_fsid="f-s-i-d",
    monitors=["10.0.0.1:6789", "[fd00::1]:3300"],
    pool="volumes",
    image="vm.0123",
    user="volcore",
    conf_path="/etc/ceph/ceph.conf",
    secret_uuid="11111111-2222-3333-4444-555555555555",
)


def attachment(mode=ACCESS_MODE_READ_WRITE, **connection):
    return Attachment(name=NAME, host="node-1", access_mode=mode, **connection)


def options_of(text):
    words = shlex.split(text)
    assert words[0::2] == ["-blockdev", "-device"]
    return json.loads(words[1]), dict(part.split("=", 1) for part in words[3].split(",")[1:])


@pytest.mark.parametrize("kind", [{"nbd": UNIX}, {"nbd": TCP}, {"rbd": RBD}], ids=str)
def test_qemu_words(kind):
    """Goal: words that survive a shell and fit QEMU's limits. Method: split them again."""
    block, device = options_of(connection.as_qemu(attachment(**kind)))
    assert block.pop("node-name") == device["drive"]
    assert len(device["drive"]) <= 31
    assert device["serial"] == "vm-0001-with-a-long-"
    assert block == connection.blockdev(attachment(**kind))


def test_blockdev_of_each_kind():
    """Goal: each kind of connection names its server as QEMU wants it. Method: look."""
    assert connection.blockdev(attachment(nbd=UNIX))["server"] == {
        "type": "unix",
        "path": "/run/a b/nbd.sock",
    }
    assert connection.blockdev(attachment(nbd=TCP))["server"] == {
        "type": "inet",
        "host": "127.0.0.1",
        "port": "10809",
    }
    rbd = connection.blockdev(attachment(rbd=RBD))
    assert (rbd["pool"], rbd["image"], rbd["user"]) == ("volumes", "vm.0123", "volcore")
    assert rbd["conf"] == "/etc/ceph/ceph.conf"
    without_conf = RbdConnection(monitors=RBD.monitors, pool="p", image="i", user="u")
    assert connection.blockdev(attachment(rbd=without_conf))["server"] == [
        {"host": "10.0.0.1", "port": "6789"},
        {"host": "fd00::1", "port": "3300"},
    ]


def test_tls():
    """Goal: QEMU and libvirt ask for TLS where the server does. Method: look at each form."""
    words = shlex.split(connection.as_qemu(attachment(nbd=TLS), Path("/keys of mine")))
    assert words[0::2] == ["-object", "-blockdev", "-device"]
    creds, block = json.loads(words[1]), json.loads(words[3])
    assert (creds["qom-type"], creds["dir"]) == ("tls-creds-x509", "/keys of mine")
    assert (block["tls-creds"], block["server"]["host"]) == (creds["id"], "store-1")
    assert "tls-hostname" not in block
    assert connection.blockdev(attachment(nbd=TLS_UNIX))["tls-hostname"] == "store-1"
    facts = connection.as_json(attachment(nbd=TLS))
    assert facts["qemu_object"]["id"] == facts["qemu_blockdev"]["tls-creds"]
    assert "qemu_object" not in connection.as_json(attachment(nbd=TCP))
    source = ElementTree.fromstring(connection.as_libvirt(attachment(nbd=TLS))).find("source")
    assert source.attrib == {"protocol": "nbd", "name": "x", "tls": "yes"}
    source = ElementTree.fromstring(connection.as_libvirt(attachment(nbd=TLS_UNIX))).find("source")
    assert source.attrib["tlsHostname"] == "store-1"


def test_read_only_reaches_every_form():
    """Goal: a host that may only read cannot write by mistake. Method: look at all three."""
    reader = attachment(ACCESS_MODE_READ_ONLY, nbd=UNIX)
    assert connection.as_json(reader)["read_only"] is True
    assert connection.blockdev(reader)["read-only"] is True
    assert ElementTree.fromstring(connection.as_libvirt(reader)).find("readonly") is not None
    writer = ElementTree.fromstring(connection.as_libvirt(attachment(nbd=UNIX)))
    assert writer.find("readonly") is None


def test_no_cache_where_hosts_share():
    """Goal: no guest reads what another one has overwritten. Method: look at all forms."""
    shared = attachment(ACCESS_MODE_READ_WRITE_SHARED, rbd=RBD)
    assert connection.blockdev(shared)["cache"] == {"direct": True}
    disk = ElementTree.fromstring(connection.as_libvirt(shared))
    assert disk.find("driver").get("cache") == "none"
    assert disk.find("shareable") is not None
    alone = ElementTree.fromstring(connection.as_libvirt(attachment(rbd=RBD)))
    assert (alone.find("driver").get("cache"), alone.find("shareable")) == (None, None)


def test_libvirt():
    """Goal: a disk that libvirt takes. Method: read the XML again."""
    disk = ElementTree.fromstring(connection.as_libvirt(attachment(nbd=UNIX)))
    assert disk.find("source").attrib == {"protocol": "nbd", "name": "x y"}
    assert disk.find("source/host").attrib == {"transport": "unix", "socket": "/run/a b/nbd.sock"}
    disk = ElementTree.fromstring(connection.as_libvirt(attachment(rbd=RBD)))
    assert disk.find("source").attrib["name"] == "volumes/vm.0123"
    assert [host.attrib["name"] for host in disk.findall("source/host")] == ["10.0.0.1", "fd00::1"]
    assert disk.find("source/auth").attrib["username"] == "volcore"
    assert disk.find("source/auth/secret").attrib["uuid"] == RBD.secret_uuid
