"""Everything that belongs to one pool while it is open."""

import contextlib
import errno
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import closing, contextmanager
from typing import Any, Final

from volcore.backends.contract import Records
from volcore.backends.rbd.bindings import bindings
from volcore.backends.rbd.connection import Cluster
from volcore.backends.rbd.description import Descriptions
from volcore.backends.rbd.device import RbdDevice
from volcore.backends.rbd.direct import DirectPath
from volcore.backends.rbd.directory import OBJECT_NAME, Directory, Entry
from volcore.backends.rbd.errmap import ceph_errors, errno_of, error_of, translated
from volcore.backends.rbd.gate import Gate
from volcore.backends.rbd.handles import Handles
from volcore.backends.rbd.header import Headers, Parent
from volcore.backends.rbd.lease import LOCK_OBJECT, PoolLease
from volcore.backends.rbd.links import Links
from volcore.backends.rbd.omap import OmapObject
from volcore.backends.rbd.opening import open_image
from volcore.backends.rbd.parting import Parting
from volcore.backends.rbd.presence import Presence
from volcore.backends.rbd.reaper import Reaper
from volcore.backends.rbd.watchers import Watchers
from volcore.backends.refusals import id_taken
from volcore.errors import (
    ConflictError,
    NotFoundError,
    PermissionDeniedError,
    PreconditionError,
    Reason,
    UnavailableError,
    VolcoreError,
)

FEATURES: Final = 1 | 4 | 8 | 16 | 32
"""layering, exclusive-lock, object-map, fast-diff, deep-flatten: what stock clients know."""
ORDER: Final = 22
"""Objects of 4 MiB, one per chunk."""
_POOL_INFO_OBJECT: Final = "rbd_info"
_TRASH_OBJECT: Final = "rbd_trash"


class Session:
    """An open pool: connection, directory, lease, open images."""

    def __init__(
        self,
        cluster: Cluster,
        pool: str,
        *,
        lock: bool,
        direct: bool,
        on_lost: Callable[[], None],
        endpoint: str,
    ) -> None:
        """Connect, and take the pool's lock if `lock`; see `VolumeBackend.open` for errors.

        With `direct` and the lock, clones take the short path once that is proven. `on_lost` is
        called once when another server has taken the pool; those that wait are told `endpoint`.
        """
        self.cluster = cluster
        self.pool = pool
        self.lease: PoolLease | None = None
        self.gate = Gate()  # for what goes on behind answers
        self._undo = contextlib.ExitStack()
        self._devices: set[RbdDevice] = set()
        self._devices_lock = threading.Lock()
        self._in_flight: dict[str, Mapping[str, bytes]] = {}  # what is made, and its records
        with contextlib.ExitStack() as undo:
            cluster.acquire()
            undo.callback(cluster.release)
            self.ioctx = cluster.open_ioctx(pool)
            undo.callback(self.ioctx.close)
            _init_pool(self.ioctx, pool)
            self.rbd = bindings().rbd.RBD()
            self.headers = Headers(self.ioctx)
            self.directory = Directory(OmapObject(self.ioctx, OBJECT_NAME))
            self.links = Links(self.ioctx, self.headers, self.directory, cluster.open_ioctx_of)
            self.descriptions = Descriptions(
                self.ioctx, self.headers, self.directory, find=self.find, open_image=self.rbd_image
            )
            self.handles = Handles(self.ioctx)
            self.watchers = Watchers(cluster, self.ioctx)
            self.presence = Presence(self.ioctx, self.find)
            undo.callback(self.presence.close)
            self.direct = DirectPath(
                cluster,
                self.ioctx,
                self.directory,
                self.find,
                self._alone,
                self._records_of,
                order=ORDER,
                features=FEATURES,
            )
            self.reaper = Reaper(
                self.ioctx,
                self.headers,
                self.directory,
                self.handles,
                self.watchers,
                self.direct.recovery,
                Parting(
                    self.direct.waves,
                    self.headers,
                    self.directory,
                    self.handles,
                    self.links,
                    give_back=self.direct.give_back,
                    unlinked=self.direct.unlinked,
                ),
            )
            if lock:
                self.lease = PoolLease(
                    cluster, self.ioctx, self.directory, pool, on_lost=on_lost, endpoint=endpoint
                )
                self.lease.acquire()
                undo.callback(self.lease.release)
                self.links.end_all()
            undo.callback(self.direct.close)
            undo.callback(self.reaper.close)
            if not direct:
                self.direct.refuse("turned off in the configuration")
            elif not lock:
                self.direct.refuse("the pool has no lock")
            else:
                self.direct.start()
            self._undo = undo.pop_all()

    def close(self) -> None:
        """Close devices, give the lock back, disconnect if nobody else needs the connection."""
        self.gate.close()
        with self._devices_lock:
            devices = list(self._devices)
        for device in devices:
            device.close()
        self._undo.close()

    @property
    def is_ours(self) -> bool:
        """Whether no other server can have the pool."""
        return self.lease is None or self.lease.held

    def check(self) -> None:
        """Refuse a change when another server may have the pool.

        Raises:
            UnavailableError: CLUSTER_UNREACHABLE.
        """
        if not self.is_ours:
            raise UnavailableError(
                f"this server could not renew its lock on pool {self.pool}, so another one may"
                " have it; nothing was changed; retry",
                reason=Reason.CLUSTER_UNREACHABLE,
                retryable=True,
                pool=self.pool,
            )

    def look(self) -> None:
        """Return when the OSDs have answered this server about the pool's lock.

        Raises:
            UnavailableError: they did not, or the lock has yet to be taken again.
            PreconditionError: POOL_LOCKED, this server was fenced off or has lost its lock.
        """
        lost = PreconditionError(
            f"pool {self.pool} serves this server no more: it was fenced off or has lost its lock;"
            " restart it",
            reason=Reason.POOL_LOCKED,
            pool=self.pool,
        )
        try:
            self.ioctx.stat(LOCK_OBJECT)
        except ceph_errors() as err:
            if errno_of(err) == errno.ESHUTDOWN:
                raise lost from err
            raise error_of(err, f"reach pool {self.pool}") from err
        if self.lease is not None and not self.lease.held:
            if self.lease.lost:
                raise lost
            raise UnavailableError(
                f"the lock of pool {self.pool} has run out, and is being taken again",
                reason=Reason.CLUSTER_UNREACHABLE,
                retryable=True,
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

    def _records_of(self, volume_id: str) -> Mapping[str, bytes]:
        """Return what a volume that is being made is to carry."""
        with self._devices_lock:
            return self._in_flight.get(volume_id, {})

    def find(self, volume_id: str) -> Entry | None:
        """Return the row of a volume, also of a half-made one.

        What a direct clone cut short has left is settled first.
        """
        self.direct.settled(volume_id)
        entry = self.directory.find(volume_id)
        if entry is None or entry.link is None or self.in_flight(volume_id):
            return entry
        if self.lease is not None:
            self.direct.recovery.settle(entry)
        return self.directory.find(volume_id)

    @contextmanager
    def _alone(self, volume_id: str) -> Iterator[bool]:
        """Lend whether a volume is closed in this process; while it is, it stays so.

        Raises:
            UnavailableError: another server may have the pool.
        """
        self.check()
        with self.handles.closed(volume_id) as is_closed:
            yield is_closed

    @contextmanager
    def claiming(
        self, volume_ids: Collection[str], records: Records | None = None
    ) -> Iterator[None]:
        """Keep other threads of this process from making or deleting these volumes.

        `records`: what they are to carry from the beginning.

        Raises:
            ConflictError: NAME_TAKEN, one is being made.
        """
        with self._devices_lock:
            for volume_id in volume_ids:
                if volume_id in self._in_flight:
                    raise id_taken(volume_id)
            self._in_flight |= {one: (records or {}).get(one, {}) for one in volume_ids}
        try:
            yield
        finally:
            with self._devices_lock:
                for volume_id in volume_ids:
                    del self._in_flight[volume_id]

    @contextmanager
    def building(self, volume_id: str, *, source: str = "") -> Iterator[None]:
        """Wrap the making of rbd image `volume_id`: it exists when this ends well, else not at all.

        Raises:
            ConflictError: NAME_TAKEN, by a volume or by a foreign rbd image.
        """
        with self.claiming((volume_id,)):
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

    def _undo_half(self, volume_id: str) -> None:
        """Clean up after a failed creation; where the cluster does not answer, recovery will."""
        with contextlib.suppress(VolcoreError):
            entry = self.directory.find(volume_id)
            if entry is not None:
                self.reaper.undo(entry)

    def sweep(self, volume_id: str) -> None:
        """Delete the name that a direct clone cut short may have left of a volume without a row."""
        if self.lease is None:
            return
        with contextlib.suppress(ConflictError), self.claiming((volume_id,)):
            self.direct.recovery.sweep_name(volume_id)

    def forget(self, volume_id: str) -> None:
        """Forget what was known of a volume: its image may be another one from now on."""
        self.direct.forget(volume_id)
        self.presence.forget(volume_id)
        self.descriptions.forget()

    def collect(self) -> int:
        """Free deleted volumes that nobody needs, and what crashes left half made."""
        if self.lease is not None:  # else another server may be making them right now
            self.direct.flush()
            half = [entry for entry in self.directory.walk() if not entry.image_id]
            for entry in half:
                if self.in_flight(entry.volume_id):
                    continue
                if entry.link is None:
                    self.reaper.undo(entry)
                else:
                    self.direct.recovery.settle(entry)
            self.direct.recovery.sweep(self.in_flight)
            self.direct.settle_snapshots()
        return self.reaper.collect()

    @contextmanager
    def parent_image(self, parent: Parent) -> Iterator[Any]:
        """Lend a read-only handle on a parent, which may be in another pool."""
        if parent.pool_id == self.headers.pool_id:
            with self.rbd_image(parent.image_id) as image:
                yield image
            return
        with (
            closing(self.cluster.open_ioctx_of(parent.pool_id)) as ioctx,
            open_image(ioctx, parent.image_id, read_only=True) as image,
        ):
            yield image

    def rbd_image(self, image_id: str) -> Any:
        """Return a read-only handle of its own, a context manager."""
        return open_image(self.ioctx, image_id, read_only=True)


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
