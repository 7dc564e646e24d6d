"""A crash at any step: wrappers of a backend and a catalog that stop the world at call n.

Fault model: the process dies just before or just after the n-th mutating call took effect; what was
durable stays. After the crash every further call raises, as nothing runs in a dead process; a new
engine over the wrapped objects is the restarted server.
"""

import threading
from collections.abc import Iterator, Sequence
from typing import Any

from volcore.backends.contract import (
    BackendCaps,
    BlockDevice,
    PoolStats,
    Progress,
    VolumeBackend,
    VolumeFacts,
)
from volcore.catalog.contract import Catalog, Change
from volcore.model.records import Kind


class Crash(BaseException):
    """The process is dead."""


class CrashSwitch:
    """Counts mutating steps; the world ends at step `at` (each call has two: before and after)."""

    def __init__(self, at: int | None = None) -> None:
        self._at = at
        self._lock = threading.Lock()
        self.steps = 0
        self.crashed = False

    def step(self) -> None:
        """Pass a point where the process may die.

        Raises:
            Crash: it does, or is dead already.
        """
        with self._lock:
            self.steps += 1
            if self.steps == self._at:
                self.crashed = True
            if self.crashed:
                raise Crash

    def alive(self) -> None:
        """Refuse to read in a dead process."""
        if self.crashed:
            raise Crash


class CrashingCatalog(Catalog):
    """A catalog whose commits may be the last thing that happens."""

    def __init__(self, inner: Catalog, switch: CrashSwitch) -> None:
        self._inner = inner
        self._switch = switch

    def find(self, kind: Kind, key: str) -> bytes | None:
        """See `Catalog.find`."""
        self._switch.alive()
        return self._inner.find(kind, key)

    def list(
        self, kind: Kind, *, prefix: str = "", after: str = "", limit: int = 1000
    ) -> list[tuple[str, bytes]]:
        """See `Catalog.list`."""
        self._switch.alive()
        return self._inner.list(kind, prefix=prefix, after=after, limit=limit)

    def unknown(self, limit: int) -> Sequence[tuple[str, str, bytes]]:
        """See `Catalog.unknown`."""
        self._switch.alive()
        return self._inner.unknown(limit)

    def commit(self, changes: Sequence[Change]) -> None:
        """See `Catalog.commit`."""
        self._switch.step()
        self._inner.commit(changes)
        self._switch.step()

    def close(self) -> None:
        """See `Catalog.close`."""


class CrashingBackend(VolumeBackend):
    """A backend whose changes may be the last thing that happens, optional powers included."""

    def __init__(self, inner: VolumeBackend, switch: CrashSwitch) -> None:
        self._inner = inner
        self._switch = switch

    def _change(self, name: str, *arguments: Any, **options: Any) -> None:
        self._switch.step()
        getattr(self._inner, name)(*arguments, **options)
        self._switch.step()

    @property
    def caps(self) -> BackendCaps:
        """See `VolumeBackend.caps`."""
        return self._inner.caps

    def open(self) -> None:
        """See `VolumeBackend.open`."""

    def close(self) -> None:
        """See `VolumeBackend.close`."""

    def create(self, volume_id: str, size_bytes: int) -> None:
        """See `VolumeBackend.create`."""
        self._change("create", volume_id, size_bytes)

    def delete(self, volume_id: str) -> None:
        """See `VolumeBackend.delete`."""
        self._change("delete", volume_id)

    def refuse_if_open(self, volume_id: str, snapshot_id: str | None = None) -> None:
        """See `VolumeBackend.refuse_if_open`."""
        self._inner.refuse_if_open(volume_id, snapshot_id)

    def resize(self, volume_id: str, size_bytes: int) -> None:
        """See `VolumeBackend.resize`."""
        self._change("resize", volume_id, size_bytes)

    def describe(self, volume_id: str) -> VolumeFacts:
        """See `VolumeBackend.describe`."""
        return self._inner.describe(volume_id)

    def walk(self) -> Iterator[str]:
        """See `VolumeBackend.walk`."""
        return self._inner.walk()

    def create_snapshot(self, volume_id: str, snapshot_id: str, *, attached: bool = False) -> None:
        """See `VolumeBackend.create_snapshot`."""
        self._change("create_snapshot", volume_id, snapshot_id, attached=attached)

    def create_group_snapshot(self, members: Sequence[tuple[str, str]]) -> None:
        """See `SupportsGroupSnapshot.create_group_snapshot`."""
        self._change("create_group_snapshot", members)

    def delete_snapshot(self, volume_id: str, snapshot_id: str) -> None:
        """See `VolumeBackend.delete_snapshot`."""
        self._change("delete_snapshot", volume_id, snapshot_id)

    def clone(
        self, volume_id: str, snapshot_id: str | None, target_id: str, size_bytes: int
    ) -> None:
        """See `VolumeBackend.clone`."""
        self._change("clone", volume_id, snapshot_id, target_id, size_bytes)

    def flatten(self, volume_id: str, progress: Progress) -> None:
        """See `SupportsFlatten.flatten`."""
        self._change("flatten", volume_id, progress)

    def revert(self, volume_id: str, snapshot_id: str) -> None:
        """See `SupportsRevert.revert`."""
        self._change("revert", volume_id, snapshot_id)

    def open_device(
        self, volume_id: str, snapshot_id: str | None = None, *, read_only: bool
    ) -> BlockDevice:
        """See `VolumeBackend.open_device`."""
        self._switch.alive()
        return self._inner.open_device(volume_id, snapshot_id, read_only=read_only)

    def stats(self) -> PoolStats:
        """See `VolumeBackend.stats`."""
        return self._inner.stats()
