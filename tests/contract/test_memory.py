from collections.abc import Iterator

import pytest

from volcore.backends.contract import VolumeBackend
from volcore.backends.memory import MemoryBackend
from volcore.testing.backend_contract import BackendContract


class TestMemory(BackendContract):
    @pytest.fixture
    def backend(self) -> Iterator[VolumeBackend]:
        backend = MemoryBackend()
        backend.open()
        yield backend
        backend.close()
