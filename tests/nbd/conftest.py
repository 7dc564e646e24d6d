"""A server on a unix socket with one export, on every backend; nothing may leak."""

import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from volcore.backends.contract import VolumeBackend
from volcore.backends.local import LocalBackend, LocalStore
from volcore.backends.memory import MemoryBackend
from volcore.limits import MIB
from volcore.nbd import ExportTable, NbdServer, UnixAddress

from .client import RawClient
from .devices import DecliningDevice, WatchedDevice

VOLUME_SIZE_BYTES = 64 * MIB


@dataclass
class Place:
    """A served volume `v1` as export `disk`."""

    backend: VolumeBackend
    exports: ExportTable
    server: NbdServer
    path: Path
    device_type: type[WatchedDevice] = WatchedDevice
    opened: list[WatchedDevice] = field(default_factory=list)

    def opener(self, read_only: bool) -> WatchedDevice:
        device = self.device_type(self.backend.open_device("v1", read_only=read_only))
        self.opened.append(device)
        return device

    @property
    def device(self) -> WatchedDevice:
        return self.opened[-1]

    def connect(self, name: str = "disk", *, structured: bool = True) -> RawClient:
        return RawClient(self.path).go(name, structured=structured)

    def uri(self, name: str = "disk") -> str:
        return self.server.uris(name)[0]

    def wait_closed(self) -> None:
        wait_for(lambda: self.server.connection_count == 0)
        wait_for(lambda: all(device.closed for device in self.opened))


def wait_for(condition, timeout_s: float = 10) -> None:
    end_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end_s, "it did not happen in time"
        time.sleep(0.002)


def nbd_threads() -> list[str]:
    return [one.name for one in threading.enumerate() if one.name.startswith("volcore-nbd")]


@pytest.fixture(autouse=True)
def nothing_leaks(request: pytest.FixtureRequest) -> Iterator[None]:
    """No thread and no descriptor outlives a test."""
    before = len(os.listdir("/proc/self/fd"))
    yield
    wait_for(lambda: not nbd_threads())
    wait_for(lambda: len(os.listdir("/proc/self/fd")) <= before)


@pytest.fixture(params=["memory", "local"])
def backend(
    nothing_leaks: None, request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[VolumeBackend]:
    backend: VolumeBackend
    if request.param == "memory":
        backend = MemoryBackend()
    else:
        backend = LocalBackend(LocalStore.open(tmp_path / "pool"))
    backend.open()
    backend.create("v1", VOLUME_SIZE_BYTES)
    yield backend
    backend.close()


@pytest.fixture(params=[WatchedDevice, DecliningDevice], ids=["python", "loop"])
def device_type(request: pytest.FixtureRequest) -> type[WatchedDevice]:
    """Which of the two transmissions serves: the second gets a data path that declines all."""
    return request.param


@pytest.fixture
def place(
    backend: VolumeBackend, device_type: type[WatchedDevice], tmp_path: Path
) -> Iterator[Place]:
    exports = ExportTable()
    path = tmp_path / "nbd.sock"
    server = NbdServer(UnixAddress(path), exports=exports)
    place = Place(backend, exports, server, path, device_type)
    exports.publish("disk", place.opener, read_only=False)
    with server:
        yield place
    assert all(device.closed for device in place.opened)
