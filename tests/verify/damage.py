"""A local pool that can be damaged behind its back, and a watcher that remembers."""

import os
from pathlib import Path

from volcore.backends.local import LocalBackend, LocalStore
from volcore.backends.verifying import Damage, VerifyRequest
from volcore.errors import CancelledError, Reason
from volcore.limits import BLOCK_SIZE_BYTES, CHUNK_SIZE_BYTES

B, C = BLOCK_SIZE_BYTES, CHUNK_SIZE_BYTES
SIZE = 4 * C


def opened(directory: Path) -> LocalBackend:
    backend = LocalBackend(LocalStore.open(directory))
    backend.open()
    return backend


def put(backend, volume_id, offset_bytes, data):
    with backend.open_device(volume_id, read_only=False) as device:
        device.write(offset_bytes, data)


def fetch(backend, volume_id, offset_bytes, length_bytes, snapshot_id=None):
    with backend.open_device(volume_id, snapshot_id, read_only=True) as device:
        return device.read(offset_bytes, length_bytes)


def layer_of(backend, volume_id, snapshot_id=None):
    rows = backend._store.layers
    point = rows.find_volume(volume_id)
    if snapshot_id is not None:
        point = rows.find_snapshot(volume_id, snapshot_id)
    return point.layer_id


def file_of(backend, layer_id) -> Path:
    return backend._store.files.path(layer_id)


def flip(backend, layer_id, offset_bytes):
    with file_of(backend, layer_id).open("r+b") as file:
        old = os.pread(file.fileno(), 1, offset_bytes)[0]
        os.pwrite(file.fileno(), bytes([old ^ 0x10]), offset_bytes)


class Watcher:
    """Collects findings; cancels after `stop_after` calls of progress."""

    def __init__(self, stop_after=None):
        self.damage: list[Damage] = []
        self.calls: list[tuple[int, int, int, str]] = []
        self._stop_after = stop_after

    def progress(self, done_bytes, total_bytes, *, checked_bytes, cursor):
        self.calls.append((done_bytes, total_bytes, checked_bytes, cursor))
        if self._stop_after is not None and len(self.calls) >= self._stop_after:
            raise CancelledError("stop", reason=Reason.CANCELLED)

    def found(self, damage):
        self.damage.append(damage)

    @property
    def blocks(self):
        """Every bad block as (layer, block)."""
        return {
            (d.layer, block)
            for d in self.damage
            for block in range(d.offset_bytes // B, (d.offset_bytes + d.length_bytes) // B)
        }


def verify(backend, volume_id=None, snapshot_id=None, *, watcher=None, **options):
    watcher = watcher or Watcher()
    request = VerifyRequest(volume_id=volume_id, snapshot_id=snapshot_id, **options)
    backend.verify(request, watcher)
    return watcher


def snapshot_of_all(backend):
    """The bytes of every layer file, to prove that nothing was written."""
    directory = backend._store.directory / "layers"
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}
