"""A volume grows under its clients: who sees it when, and how a running VM does."""

import json
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from volcore.limits import MIB

from . import client as c
from .conftest import VOLUME_SIZE_BYTES, Place, wait_for
from .devices import WatchedDevice
from .test_tools import run

GROWN_BYTES = 2 * VOLUME_SIZE_BYTES


@pytest.fixture
def kind() -> type[WatchedDevice]:
    """Not used here: see `export`."""
    return WatchedDevice


@pytest.fixture
def export(place: Place) -> str:
    """The volume without a wrapper, so that compiled code serves it where there is any."""

    def opener(read_only: bool):
        return place.backend.open_device("v1", read_only=read_only)

    place.exports.publish("bare", opener, read_only=False)
    return "bare"


@pytest.mark.parametrize("structured", [False, True])
def test_open_connections_may_use_the_new_end(place: Place, export: str, structured: bool) -> None:
    """Goal: no reconnect needed. Method: go past the old end before and after, on all commands."""
    with place.connect(export, structured=structured) as client:
        assert client.size_bytes == VOLUME_SIZE_BYTES
        at = VOLUME_SIZE_BYTES - 2048
        assert client.call(c.WRITE, at, data=bytes(4096)).errno == c.ENOSPC
        place.backend.resize("v1", GROWN_BYTES)
        client.write(at, b"\x42" * 4096)
        assert client.read(at, 4096) == b"\x42" * 4096
        assert client.read(GROWN_BYTES - 10, 10) == bytes(10)
        assert client.call(c.TRIM, VOLUME_SIZE_BYTES, VOLUME_SIZE_BYTES).errno == 0
        assert client.call(c.ZEROES, GROWN_BYTES - 4096, 4096).errno == 0
        if structured:
            status = client.call(c.STATUS, VOLUME_SIZE_BYTES, VOLUME_SIZE_BYTES).status
            assert sum(length for length, _ in status) == VOLUME_SIZE_BYTES
        assert client.call(c.WRITE, GROWN_BYTES - 2048, data=bytes(4096)).errno == c.ENOSPC
        with place.connect(export) as later:
            assert later.size_bytes == GROWN_BYTES
            assert later.read(at, 2048) == b"\x42" * 2048


@pytest.mark.skipif(not shutil.which("nbdinfo"), reason="apt-get install libnbd-bin")
def test_new_connections_of_libnbd_see_the_new_size(place: Place, export: str) -> None:
    with place.connect(export):
        assert int(run("nbdinfo", "--size", place.uri(export))) == VOLUME_SIZE_BYTES
        place.backend.resize("v1", GROWN_BYTES)
        assert int(run("nbdinfo", "--size", place.uri(export))) == GROWN_BYTES


class Qemu:
    """A QEMU without a guest, and its QMP socket."""

    def __init__(self, directory: Path, *words: str) -> None:
        path = directory / "qmp"
        self.process = subprocess.Popen(
            [
                *("qemu-system-x86_64", "-machine", "q35", "-S", "-nodefaults", "-display", "none"),
                *("-m", "64", "-qmp", f"unix:{path},server=on,wait=off", *words),
            ]
        )
        self.socket = socket.socket(socket.AF_UNIX)
        wait_for(lambda: self.socket.connect_ex(str(path)) == 0, timeout_s=30)
        self.stream = self.socket.makefile("rw")
        self.stream.readline()
        self.call("qmp_capabilities")

    def call(self, command: str, **arguments: Any) -> Any:
        self.stream.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        self.stream.flush()
        while "event" in (answer := json.loads(self.stream.readline())):
            pass
        return answer

    def do(self, command: str, **arguments: Any) -> Any:
        answer = self.call(command, **arguments)
        assert "return" in answer, answer
        return answer["return"]

    def size_bytes(self, node: str) -> int:
        nodes = self.do("query-named-block-nodes", flat=True)
        return next(one["image"]["virtual-size"] for one in nodes if one["node-name"] == node)

    def end(self) -> None:
        self.stream.close()
        self.socket.close()
        self.process.kill()
        self.process.wait()


def node(place: Place, export: str, name: str) -> dict[str, Any]:
    server = {"type": "unix", "path": str(place.path)}
    return {"driver": "nbd", "node-name": name, "server": server, "export": export}


@pytest.fixture
def qemu(place: Place, export: str, tmp_path: Path) -> Iterator[Qemu]:
    """QEMU with a virtio disk `vda` on the node `old`."""
    options = json.dumps({**node(place, export, "old"), "reconnect-delay": 60})
    process = Qemu(tmp_path, "-blockdev", options, "-device", "virtio-blk-pci,drive=old,id=vda")
    yield process
    process.end()


needs_qemu = pytest.mark.skipif(
    not shutil.which("qemu-system-x86_64"), reason="apt-get install qemu-system-x86"
)


@needs_qemu
@pytest.mark.qemu
def test_a_running_vm_grows_by_a_new_node(place: Place, export: str, qemu: Qemu) -> None:
    """Goal: the recipe of docs/nbd.md. Method: follow it, then write to the new end."""
    place.backend.resize("v1", GROWN_BYTES)
    refused = qemu.call("block_resize", **{"node-name": "old", "size": GROWN_BYTES})
    assert "Cannot grow NBD nodes" in refused["error"]["desc"]
    qemu.do("blockdev-add", **node(place, export, "new"))
    qemu.do("qom-set", path="/machine/peripheral/vda", property="drive", value="new")
    qemu.do("block_resize", **{"node-name": "new", "size": GROWN_BYTES})
    qemu.do("blockdev-del", **{"node-name": "old"})
    write_to_end(place, export, qemu)


@needs_qemu
@pytest.mark.qemu
def test_a_running_vm_grows_by_a_reconnect(place: Place, export: str, qemu: Qemu) -> None:
    """Goal: as after a restart of the server. Method: cut the connection, resize what came back."""
    place.backend.resize("v1", GROWN_BYTES)
    for connection in place.server._snapshot():
        connection.disconnect()
    monitor(qemu, "read 0 4096")  # the first request after that connects again
    qemu.do("block_resize", **{"node-name": "old", "size": GROWN_BYTES})
    write_to_end(place, export, qemu)


def write_to_end(place: Place, export: str, qemu: Qemu) -> None:
    monitor(qemu, f"write -P 0x42 {GROWN_BYTES - MIB} {MIB}", "flush")
    with place.connect(export) as client:
        assert client.read(GROWN_BYTES - MIB, MIB) == b"\x42" * MIB


def monitor(qemu: Qemu, *commands: str) -> None:
    """Have the virtio device's own backend do something."""
    for command in commands:
        line = f'qemu-io -d /machine/peripheral/vda/virtio-backend "{command}"'
        qemu.do("human-monitor-command", **{"command-line": line})
