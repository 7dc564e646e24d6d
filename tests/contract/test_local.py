from collections.abc import Iterator
from pathlib import Path

import pytest

from volcore.backends.contract import VolumeBackend
from volcore.backends.local import LocalBackend, LocalStore
from volcore.testing.backend_contract import BackendContract


def opened(directory: Path) -> LocalBackend:
    backend = LocalBackend(LocalStore.open(directory))
    backend.open()
    return backend


def top_file(backend: VolumeBackend, volume_id: str) -> Path:
    assert isinstance(backend, LocalBackend)
    store = backend._store
    point = store.layers.find_volume(volume_id)
    assert point is not None
    return store.files.path(point.layer_id)


class TestLocal(BackendContract):
    @pytest.fixture
    def backend(self, tmp_path: Path) -> Iterator[VolumeBackend]:
        self.directory = tmp_path / "pool"
        backend = opened(self.directory)
        yield backend
        backend.close()

    def reopen(self, backend: VolumeBackend) -> VolumeBackend:
        backend.close()
        return opened(self.directory)

    def peek(self, backend: VolumeBackend, volume_id: str, length_bytes: int) -> bytes:
        with top_file(backend, volume_id).open("rb") as file:
            return file.read(length_bytes)

    def flip(self, backend: VolumeBackend, volume_id: str, offset_bytes: int) -> None:
        with top_file(backend, volume_id).open("r+b") as file:
            file.seek(offset_bytes)
            old = file.read(1)[0]
            file.seek(offset_bytes)
            file.write(bytes([old ^ 0x10]))
