"""Random histories against the memory backend; VOLCORE_TEST_PROFILE=nightly runs many more."""

import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from volcore.backends.contract import VolumeBackend
from volcore.backends.local import LocalBackend, LocalStore
from volcore.backends.memory import MemoryBackend
from volcore.testing.stateful import VolumeMachine

NIGHTLY = os.environ.get("VOLCORE_TEST_PROFILE") == "nightly"
QUICK = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
"""Memory where there is some: syncs cost nothing there, so more histories fit in the time."""


def profile(examples: int) -> settings:
    return settings(
        max_examples=examples * 10 if NIGHTLY else examples,
        stateful_step_count=100 if NIGHTLY else 40,
        deadline=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )


class LocalMachine(VolumeMachine):
    def start(self) -> VolumeBackend:
        self.directory = Path(tempfile.mkdtemp(prefix="volcore-", dir=QUICK))
        return self._opened()

    def _opened(self) -> VolumeBackend:
        self.store = LocalStore.open(self.directory)
        backend = LocalBackend(self.store)
        backend.open()
        return backend

    def restart(self, *, kill: bool) -> VolumeBackend:
        if kill:
            self.store.close()
        else:
            self.backend.close()
        return self._opened()

    def background_step(self) -> bool:
        self.backend.upkeep._freezes.clear()  # waits for nothing
        return self.backend.upkeep.step()

    def check_idle(self) -> None:
        """No layer is left that only one other needs, and no file that no layer has."""
        rows = self.store.database.query(
            "SELECT lower.id FROM layer AS lower WHERE lower.owner = '' OR ("
            " NOT EXISTS (SELECT 1 FROM snapshot WHERE layer = lower.id)"
            " AND 1 = (SELECT count(*) FROM layer WHERE parent_id = lower.id)"
            " AND NOT EXISTS (SELECT 1 FROM volume WHERE top_layer = lower.id))"
        )
        assert rows == []
        known = {layer[0] for layer in self.store.database.query("SELECT id FROM layer")}
        files = {int(path.stem) for path in (self.directory / "layers").iterdir()}
        assert files <= known

    def check_empty(self) -> None:
        assert list((self.directory / "layers").iterdir()) == []
        for table in ("layer", "volume", "snapshot", "page", "dirty"):
            assert self.store.database.query(f"SELECT * FROM {table}") == []

    def teardown(self) -> None:
        try:
            super().teardown()
        finally:
            self.store.close()
            shutil.rmtree(self.directory)


class MemoryMachine(VolumeMachine):
    def start(self) -> VolumeBackend:
        return MemoryBackend()


TestLocalHistories = LocalMachine.TestCase
TestLocalHistories.pytestmark = [pytest.mark.timeout(3600 if NIGHTLY else 300)]
TestLocalHistories.settings = profile(100)
TestMemoryHistories = MemoryMachine.TestCase
TestMemoryHistories.settings = profile(3)
