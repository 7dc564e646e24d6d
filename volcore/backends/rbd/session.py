"""Everything that belongs to one pool while it is open."""

import contextlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from volcore.backends.rbd.bindings import bindings
from volcore.backends.rbd.connection import Cluster
from volcore.backends.rbd.device import RbdDevice
from volcore.backends.rbd.directory import OBJECT_NAME, Directory
from volcore.backends.rbd.errmap import translated
from volcore.backends.rbd.handles import Handles
from volcore.backends.rbd.header import Headers
from volcore.backends.rbd.lease import PoolLease
from volcore.backends.rbd.omap import OmapObject
from volcore.backends.rbd.reaper import Reaper
from volcore.backends.rbd.watchers import Watchers
from volcore.backends.refusals import id_taken
from volcore.errors import (
    ConflictError,
    NotFoundError,
    PermissionDeniedError,
    Reason,
    UnavailableError,
    VolcoreError,
)

_POOL_INFO_OBJECT: Final = "rbd_info"
_TRASH_OBJECT: Final = "rbd_trash"


class Session:
    """An open pool: connection, directory, lease, open images."""

    def __init__(self, cluster: Cluster, pool: str, *, lock: bool) -> None:
        """Connect, and take the pool's lock if `lock`; see `VolumeBackend.open` for errors."""
        self.cluster = cluster
        self.pool = pool
        self.lease: PoolLease | None = None
        self._undo = contextlib.ExitStack()
        self._devices: set[RbdDevice] = set()
        self._devices_lock = threading.Lock()
        self._in_flight: set[str] = set()
        with contextlib.ExitStack() as undo:
            cluster.acquire()
            undo.callback(cluster.release)
            self.ioctx = cluster.open_ioctx(pool)
            undo.callback(self.ioctx.close)
            _init_pool(self.ioctx, pool)
            self.rbd = bindings().rbd.RBD()
            self.headers = Headers(self.ioctx)
            self.directory = Directory(OmapObject(self.ioctx, OBJECT_NAME))
            self.handles = Handles(self.ioctx)
            self.watchers = Watchers(cluster, self.ioctx)
            self.reaper = Reaper(
                self.ioctx, self.headers, self.directory, self.handles, self.watchers
            )
            if lock:
                self.lease = PoolLease(cluster, self.ioctx, self.directory, pool)
                self.lease.acquire()
                undo.callback(self.lease.release)
            self._undo = undo.pop_all()

    def close(self) -> None:
        """Close devices, give the lock back, disconnect if nobody else needs the connection."""
        with self._devices_lock:
            devices = list(self._devices)
        for device in devices:
            device.close()
        self._undo.close()

    def check(self) -> None:
        """Refuse a change when another server may have the pool.

        Raises:
            UnavailableError: CLUSTER_UNREACHABLE.
        """
        if self.lease is not None and not self.lease.held:
            raise UnavailableError(
                f"this server could not renew its lock on pool {self.pool}, so another one may"
                " have it; nothing was changed; retry",
                reason=Reason.CLUSTER_UNREACHABLE,
                retryable=True,
                pool=self.pool,
            )

    def add_device(self, device: RbdDevice) -> None:
        """Remember an open device for `close`."""
        with self._devices_lock:
            self._devices.add(device)

    def drop_device(self, device: RbdDevice) -> None:
        """Forget a closed device."""
        with self._devices_lock:
            self._devices.discard(device)

    def in_flight(self, volume_id: str) -> bool:
        """Return whether a thread of this process is making that volume now."""
        with self._devices_lock:
            return volume_id in self._in_flight

    @contextmanager
    def building(self, volume_id: str, *, source: str = "") -> Iterator[None]:
        """Wrap the making of rbd image `volume_id`: it exists when this ends well, else not at all.

        Raises:
            ConflictError: NAME_TAKEN, by a volume or by a foreign rbd image.
        """
        with self._devices_lock:
            if volume_id in self._in_flight:
                raise id_taken(volume_id)
            self._in_flight.add(volume_id)
        try:
            taken = self.headers.image_id(volume_id) is not None
            if taken or not self.directory.reserve(volume_id, source):
                raise id_taken(volume_id)
            try:
                yield
                image_id = self.headers.image_id(volume_id)
                assert image_id is not None, "librbd made it"
                self.headers.mark(image_id, volume_id)
                self.directory.complete(volume_id, image_id)
            except ConflictError:
                self.directory.forget(volume_id)
                raise
            except VolcoreError:
                self._undo_half(volume_id)
                raise
        finally:
            with self._devices_lock:
                self._in_flight.discard(volume_id)

    def _undo_half(self, volume_id: str) -> None:
        """Clean up after a failed creation; where the cluster does not answer, recovery will."""
        with contextlib.suppress(VolcoreError):
            entry = self.directory.find(volume_id)
            if entry is not None:
                self.reaper.undo(entry)

    def collect(self) -> int:
        """Free deleted volumes that nobody needs, and what crashes left half made."""
        if self.lease is not None:  # else another server may be making them right now
            half = [entry for entry in self.directory.walk() if not entry.image_id]
            for entry in half:
                if not self.in_flight(entry.volume_id):
                    self.reaper.undo(entry)
        return self.reaper.collect()

    def rbd_image(self, image_id: str) -> Any:
        """Return a read-only handle of its own, a context manager."""
        return bindings().rbd.Image(self.ioctx, image_id=image_id, read_only=True)


def _init_pool(ioctx: Any, pool: str) -> None:
    """Do what `rbd pool init` does, if nobody has: else the first image costs a second.

    A user without the right to do it can still use the pool.
    """
    # A full pool takes no new object, but more rows in one that exists: deleting must go on.
    OmapObject(ioctx, _TRASH_OBJECT)
    with contextlib.suppress(NotFoundError), translated(f"look at pool {pool}"):
        ioctx.stat(_POOL_INFO_OBJECT)
        return
    with contextlib.suppress(PermissionDeniedError), translated(f"initialise pool {pool}"):
        bindings().rbd.RBD().pool_init(ioctx, False)
