"""Open rbd images, one writable handle per volume and process.

Two handles of one process would pass the exclusive lock of librbd back and forth, and see each
other's resizes late; so devices and operations on one volume share a handle, which closes with its
last user.
"""

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from volcore.backends.rbd.errmap import translated
from volcore.backends.rbd.opening import open_image
from volcore.backends.refusals import snapshot_missing, volume_in_use, volume_missing
from volcore.errors import OperationPendingError, Reason


@dataclass(slots=True)
class _Slot:
    """What is open of one volume."""

    gate: threading.Lock = field(default_factory=threading.Lock)
    users: int = 0
    image: Any = None
    references: int = 0
    devices: Counter[str | None] = field(default_factory=Counter)
    """Open devices by snapshot id; None: of the volume itself."""


class Handles:
    """The open images of one pool."""

    def __init__(self, ioctx: Any) -> None:
        self._ioctx = ioctx
        self._lock = threading.Lock()
        self._slots: dict[str, _Slot] = {}

    @contextmanager
    def image(self, volume_id: str, image_id: str) -> Iterator[Any]:
        """Lend the volume's writable handle to an operation."""
        image = self.acquire(volume_id, image_id)
        try:
            yield image
        finally:
            self.release(volume_id)

    @contextmanager
    def briefly(self, volume_id: str, image_id: str) -> Iterator[Any]:
        """Lend the handle for far less than a second.

        Where nobody else of this process has the volume open, who wants it open or closed meanwhile
        waits, and does not find it in use.
        """
        with self._pinned(volume_id, keep=False) as slot:
            with slot.gate:
                if slot.image is None:
                    missing = volume_missing(volume_id)
                    with translated(f"open volume {volume_id}", missing=missing):
                        image = open_image(self._ioctx, image_id, read_only=False)
                    try:
                        yield image
                    finally:
                        with translated(f"close volume {volume_id}"):
                            image.close()
                    return
            with self.image(volume_id, image_id) as image:
                yield image

    def acquire(self, volume_id: str, image_id: str, *, device: bool = False) -> Any:
        """Return the volume's writable handle; pair with `release`."""
        with self._pinned(volume_id, keep=True) as slot, slot.gate:
            if slot.image is None:
                with translated(f"open volume {volume_id}", missing=volume_missing(volume_id)):
                    slot.image = open_image(self._ioctx, image_id, read_only=False)
            slot.references += 1
            slot.devices[None] += device
            return slot.image

    def release(self, volume_id: str, *, device: bool = False) -> None:
        """Give back what `acquire` returned; the last one closes."""
        slot = self._slots[volume_id]
        try:
            with slot.gate:
                slot.references -= 1
                slot.devices[None] -= device
                if slot.references == 0:
                    image, slot.image = slot.image, None
                    with translated(f"close volume {volume_id}"):
                        image.close()
        finally:
            self._unpin(volume_id, slot)

    def acquire_snapshot(self, volume_id: str, image_id: str, snapshot_id: str) -> Any:
        """Return a read-only handle of its own on a snapshot; pair with `release_snapshot`."""
        with self._pinned(volume_id, keep=True) as slot, slot.gate:
            image = self.open_snapshot(volume_id, image_id, snapshot_id)
            slot.devices[snapshot_id] += 1
            return image

    def release_snapshot(self, volume_id: str, snapshot_id: str, image: Any) -> None:
        """Close what `acquire_snapshot` returned."""
        slot = self._slots[volume_id]
        try:
            with slot.gate:
                slot.devices[snapshot_id] -= 1
                with translated(f"close snapshot {snapshot_id} of volume {volume_id}"):
                    image.close()
        finally:
            self._unpin(volume_id, slot)

    def open_snapshot(self, volume_id: str, image_id: str, snapshot_id: str) -> Any:
        """Return a read-only handle on a snapshot, which the caller closes."""
        missing = snapshot_missing(volume_id, snapshot_id)
        with translated(f"open snapshot {snapshot_id} of volume {volume_id}", missing=missing):
            return open_image(self._ioctx, image_id, snapshot=snapshot_id, read_only=True)

    @contextmanager
    def exclusive(self, volume_id: str, *, snapshots: bool) -> Iterator[None]:
        """Keep a volume closed in this process; with `snapshots` its snapshots too.

        Raises:
            PreconditionError: VOLUME_IN_USE, a device is open.
            OperationPendingError: another operation works on it.
        """
        with self._pinned(volume_id, keep=False) as slot, slot.gate:
            if slot.devices[None] or (snapshots and slot.devices.total()):
                raise volume_in_use(volume_id)
            if slot.references:
                raise OperationPendingError(
                    f"another call works on volume {volume_id}; repeat the call",
                    reason=Reason.OPERATION_PENDING,
                    retryable=True,
                    volume=volume_id,
                )
            yield

    @contextmanager
    def closed(self, volume_id: str) -> Iterator[bool]:
        """Lend whether the volume is closed in this process; while it is, it stays so."""
        with self._pinned(volume_id, keep=False) as slot, slot.gate:
            yield slot.references == 0

    def has_device(self, volume_id: str, snapshot_id: str) -> bool:
        """Return whether a device is open on a snapshot."""
        slot = self._slots.get(volume_id)
        return slot is not None and slot.devices[snapshot_id] > 0

    def has_any_device(self, volume_id: str) -> bool:
        """Return whether a device is open on the volume or one of its snapshots."""
        slot = self._slots.get(volume_id)
        return slot is not None and slot.devices.total() > 0

    @contextmanager
    def _pinned(self, volume_id: str, *, keep: bool) -> Iterator[_Slot]:
        """Lend the volume's slot; `keep` leaves it pinned when the block ends well."""
        with self._lock:
            slot = self._slots.setdefault(volume_id, _Slot())
            slot.users += 1
        done = False
        try:
            yield slot
            done = keep
        finally:
            if not done:
                self._unpin(volume_id, slot)

    def _unpin(self, volume_id: str, slot: _Slot) -> None:
        """Forget the slot when nobody uses it any more."""
        with self._lock:
            slot.users -= 1
            if slot.users == 0:
                del self._slots[volume_id]
