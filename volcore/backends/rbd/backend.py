"""`RbdBackend`: a pool whose volumes are rbd images.

The rbd image's name is the volume id, a snapshot's name is the snapshot id, so `rbd ls`, `rbd info`
and `rbd children` show what a reader expects. What exists is decided by the directory
(`directory.py`), which foreign images of the pool do not appear in.

Life of a volume: reserved row -> rbd image -> mark in its metadata -> complete row (it exists) ->
name moved to the rbd trash -> row of the trash (it is deleted) -> image freed when its last clone
has gone. A crash between any two leaves something that `delete` or `collect` finishes.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final

from volcore.backends.adopting import ForeignImage, ForeignSource
from volcore.backends.carrying import Load
from volcore.backends.contract import (
    BackendCaps,
    BlockDevice,
    Look,
    PoolStats,
    Progress,
    RbdConnection,
    Records,
    ShortPath,
    VolumeBackend,
    VolumeFacts,
    no_reserve,
)
from volcore.backends.rbd import (
    audit,
    audit_mending,
    blank,
    carrying,
    clones,
    flatten,
    foreign,
    parents,
    snapshots,
)
from volcore.backends.rbd.connection import Cluster
from volcore.backends.rbd.device import RbdDevice
from volcore.backends.rbd.errmap import translated
from volcore.backends.rbd.extents import changed_extents
from volcore.backends.rbd.fencing import Fencing
from volcore.backends.rbd.rollback import roll_back
from volcore.backends.rbd.session import ORDER, Session
from volcore.backends.refusals import (
    check_size,
    shrink_refused,
    snapshot_missing,
    volume_in_use,
    volume_missing,
)
from volcore.backends.refusals import read_only as refuse_writing
from volcore.errors import (
    NotFoundError,
    OperationPendingError,
    Reason,
    UnavailableError,
    VolcoreError,
)
from volcore.limits import (
    BLOCK_SIZE_BYTES,
    CHUNK_SIZE_BYTES,
    HEALTH_MONITORS_SILENCE_S_MAX,
    HEALTH_SILENCE_S_MAX,
    RBD_DEPTH_MAX,
    SNAPSHOTS_PER_VOLUME_MAX,
)
from volcore.model.extent import Extent
from volcore.model.faults import Fault

assert 1 << ORDER == CHUNK_SIZE_BYTES

_CAPS: Final = BackendCaps(
    kind="rbd",
    block_size_bytes=BLOCK_SIZE_BYTES,
    chunk_size_bytes=CHUNK_SIZE_BYTES,
    depth_max=RBD_DEPTH_MAX,
    snapshots_max=SNAPSHOTS_PER_VOLUME_MAX,
    checksums=False,
    joins_catalog=False,
)


class RbdBackend(VolumeBackend):
    """A Ceph pool; also flattens, reverts, diffs, collects and tells clients where volumes are."""

    def __init__(
        self,
        cluster: Cluster,
        pool: str,
        *,
        secret_uuid: str = "",
        lock: bool = True,
        direct: bool = False,
        on_lost: Callable[[], None] = lambda: None,
        endpoint: str = "",
    ) -> None:
        """Connect nothing yet.

        Args:
            cluster: the connection, shared with other pools of the cluster.
            pool: Ceph's pool name.
            secret_uuid: libvirt secret with the Ceph user's key, told to clients.
            lock: let one server at a time serve the pool.
            direct: make clones by the short path once it has proven itself; needs the lock.
            on_lost: called once, by a thread, when another server has taken the pool for good.
            endpoint: where other servers reach this one; empty: nowhere.
        """
        self._pool = pool
        self._secret_uuid = secret_uuid
        self._session_of = partial(
            Session, cluster, pool, lock=lock, direct=direct, on_lost=on_lost, endpoint=endpoint
        )
        self._open: Session | None = None

    @property
    def caps(self) -> BackendCaps:
        """See `VolumeBackend.caps`."""
        return _CAPS

    def open(self) -> None:
        """See `VolumeBackend.open`; takes the pool's lock."""
        assert self._open is None, "open once"
        self._open = self._session_of()

    def close(self) -> None:
        """See `VolumeBackend.close`; gives the pool's lock back."""
        session, self._open = self._open, None
        if session is not None:
            session.close()

    def create(self, volume_id: str, size_bytes: int) -> None:
        """See `VolumeBackend.create`."""
        failed = self.create_many({volume_id: size_bytes})
        if failed:
            raise failed[volume_id]

    def delete(self, volume_id: str) -> None:
        """See `VolumeBackend.delete`; finishes what a crash left half made or half deleted.

        Concurrency: any deletes may run at once; of two of the same volume one finds nothing.
        """
        session = self._changing()
        entry = session.find(volume_id)
        if entry is None:
            session.sweep(volume_id)
            raise volume_missing(volume_id)
        if session.in_flight(volume_id):
            raise OperationPendingError(
                f"volume {volume_id} is being made; repeat the call",
                reason=Reason.OPERATION_PENDING,
                retryable=True,
            )
        if not entry.image_id:
            session.reaper.undo(entry)
            return
        with session.handles.exclusive(volume_id, snapshots=True):
            with suppress(NotFoundError):  # only half of it is left
                session.watchers.refuse_if_in_use(volume_id, entry.image_id)
            session.reaper.move_to_trash(volume_id, entry.image_id)
            if not session.directory.retire(entry, entry.image_id):
                raise volume_missing(volume_id)
            session.direct.forget(volume_id)
        session.reaper.reap_quietly(entry.image_id)

    def refuse_if_open(self, volume_id: str, snapshot_id: str | None = None) -> None:
        """See `VolumeBackend.refuse_if_open`."""
        handles = self._changing().handles
        if snapshot_id is None:
            is_open = handles.has_any_device(volume_id)
        else:
            is_open = handles.has_device(volume_id, snapshot_id)
        if is_open:
            raise volume_in_use(volume_id)

    def resize(self, volume_id: str, size_bytes: int) -> None:
        """See `VolumeBackend.resize`."""
        check_size(size_bytes)
        session = self._changing()
        entry = clones.existing(session, volume_id)
        with (
            session.handles.image(volume_id, entry.image_id) as image,
            translated(f"resize volume {volume_id}", missing=volume_missing(volume_id)),
        ):
            present = int(image.size())
            if size_bytes < present:
                raise shrink_refused(volume_id, size_bytes=size_bytes, size_bytes_min=present)
            if size_bytes > present:
                image.resize(size_bytes)

    def describe(self, volume_id: str) -> VolumeFacts:
        """See `VolumeBackend.describe`."""
        found = self.describe_many((volume_id,))
        if volume_id not in found:
            raise volume_missing(volume_id)
        return found[volume_id]

    def describe_many(self, volume_ids: Sequence[str]) -> dict[str, VolumeFacts]:
        """See `VolumeBackend.describe_many`. Complexity: one to three rounds for each 64."""
        return self._session().descriptions.describe_many(volume_ids)

    def walk(self) -> Iterator[str]:
        """See `VolumeBackend.walk`; reads the directory only, a page at a time."""
        session = self._session()
        session.direct.flush()
        for entry in session.directory.walk():
            if entry.image_id:
                yield entry.volume_id

    def create_snapshot(self, volume_id: str, snapshot_id: str, *, attached: bool = False) -> None:
        """See `VolumeBackend.create_snapshot`; deleted ones that still have clones count, too."""
        snapshots.create(self._changing(), volume_id, snapshot_id, attached=attached)

    def delete_snapshot(self, volume_id: str, snapshot_id: str) -> None:
        """See `VolumeBackend.delete_snapshot`."""
        session = self._changing()
        entry = clones.existing(session, volume_id)
        self.refuse_if_open(volume_id, snapshot_id)
        with (
            session.handles.image(volume_id, entry.image_id) as image,
            translated(
                f"delete snapshot {snapshot_id} of volume {volume_id}",
                missing=snapshot_missing(volume_id, snapshot_id),
            ),
        ):
            snapshots.delete(session, entry, image, snapshot_id)
        session.direct.forget(volume_id)

    def clone(
        self, volume_id: str, snapshot_id: str | None, target_id: str, size_bytes: int
    ) -> None:
        """See `VolumeBackend.clone`.

        From a live volume: through a hidden snapshot, which librbd drops when the clone goes.
        """
        clones.clone(self._changing(), volume_id, snapshot_id, target_id, size_bytes)

    def create_many(
        self,
        sizes_bytes: Mapping[str, int],
        *,
        reserve: Callable[[], None] = no_reserve,
        records: Records | None = None,
    ) -> dict[str, VolcoreError]:
        """See `SupportsMakeMany.create_many`. Complexity: two round trips for each 128 volumes."""
        return blank.create_many(self._changing(), sizes_bytes, reserve, records)

    def clone_many(
        self,
        volume_id: str,
        snapshot_id: str | None,
        targets: Mapping[str, int],
        *,
        reserve: Callable[[], None] = no_reserve,
        records: Records | None = None,
        attached: bool = False,
    ) -> dict[str, VolcoreError]:
        """See `SupportsMakeMany.clone_many`. Complexity: two round trips for each 128 clones."""
        session = self._changing()
        return clones.clone_many(
            session, volume_id, snapshot_id, targets, reserve, records, attached=attached
        )

    def look_for(self, volume_ids: Sequence[str]) -> Callable[[], set[str]]:
        """See `SupportsLookFor.look_for`."""
        return self._session().presence.look_for(volume_ids)

    @property
    def short_path(self) -> ShortPath:
        """See `SupportsShortPath.short_path`."""
        return self._session().direct.state

    def wait_for_short_path(self) -> ShortPath:
        """Return the state of the short path once it is decided, and ready; some seconds."""
        return self._session().direct.wait()

    def open_device(
        self, volume_id: str, snapshot_id: str | None = None, *, read_only: bool
    ) -> BlockDevice:
        """See `VolumeBackend.open_device`."""
        session = self._session()
        entry = clones.existing(session, volume_id)
        image: Any
        if snapshot_id is None:
            image = session.handles.acquire(volume_id, entry.image_id, device=True)
        elif read_only:
            image = session.handles.acquire_snapshot(volume_id, entry.image_id, snapshot_id)
        else:
            raise refuse_writing(volume_id)

        def on_close(device: RbdDevice) -> None:
            session.drop_device(device)
            if snapshot_id is None:
                session.handles.release(volume_id, device=True)
            else:
                session.handles.release_snapshot(volume_id, snapshot_id, image)

        device = RbdDevice(
            image, volume_id=volume_id, read_only=read_only, check=session.check, on_close=on_close
        )
        session.add_device(device)
        return device

    def stats(self) -> PoolStats:
        """See `VolumeBackend.stats`; sizes before replication."""
        found = self._session().cluster.pool_figures(self._pool)
        stored, available = int(found["stored"]), int(found["max_avail"])
        return PoolStats(
            capacity_bytes=stored + available,
            available_bytes=available,
            allocated_bytes=stored,
        )

    def flatten(self, volume_id: str, progress: Progress) -> None:
        """See `SupportsFlatten.flatten`; frees deleted ancestors that nobody else needs."""
        flatten.flatten(self._changing(), volume_id, progress)

    def revert(self, volume_id: str, snapshot_id: str) -> None:
        """See `SupportsRevert.revert`. Complexity: the chunks of both points."""
        session = self._changing()
        entry = clones.existing(session, volume_id)
        with session.handles.exclusive(volume_id, snapshots=False):
            session.watchers.refuse_if_in_use(volume_id, entry.image_id)
            clones.source_size_bytes(session, entry, snapshot_id)
            with translated(
                f"revert volume {volume_id}",
                missing=snapshot_missing(volume_id, snapshot_id),
                busy=volume_in_use(volume_id),
            ):
                roll_back(session.ioctx, session.headers, entry.image_id, snapshot_id)

    def diff(
        self, volume_id: str, from_snapshot_id: str | None, to_snapshot_id: str | None
    ) -> list[Extent]:
        """See `SupportsDiff.diff`. Complexity: one request per chunk that may have changed."""
        session = self._session()
        entry = clones.existing(session, volume_id)
        overlap_bytes = 0
        if from_snapshot_id is not None:
            source = clones.source_snapshot(session, entry, from_snapshot_id)
            overlap_bytes = session.headers.overlap_bytes(entry.image_id, source.snap)
        if to_snapshot_id is None:
            with (
                session.handles.image(volume_id, entry.image_id) as image,
                translated(f"diff volume {volume_id}"),
            ):
                return changed_extents(image, from_snapshot_id, overlap_bytes=overlap_bytes)
        image = session.handles.open_snapshot(volume_id, entry.image_id, to_snapshot_id)
        with image, translated(f"diff volume {volume_id}"):
            return changed_extents(image, from_snapshot_id, overlap_bytes=overlap_bytes)

    def collect(self) -> int:
        """See `SupportsCollect.collect`; sees only what volcore itself deleted or half made."""
        return self._changing().collect()

    def looks(self) -> Sequence[Look]:
        """See `SupportsLook.looks`."""
        session = self._session()
        monitors = session.cluster.ask_monitors
        return (
            Look(part="OSDs", ask=session.look, silence_s_max=HEALTH_SILENCE_S_MAX),
            Look(part="monitors", ask=monitors, silence_s_max=HEALTH_MONITORS_SILENCE_S_MAX),
        )

    def is_ours(self) -> bool:
        """See `SupportsLook.is_ours`."""
        return self._open is None or self._open.is_ours

    def foreign_names(self) -> Sequence[str]:
        """See `SupportsAdopt.foreign_names`."""
        return foreign.names(self._session())

    def foreign(self, name: str) -> ForeignImage:
        """See `SupportsAdopt.foreign`."""
        return foreign.look(self._session(), name)

    def adopt(self, volume_id: str) -> None:
        """See `SupportsAdopt.adopt`."""
        foreign.adopt(self._changing(), volume_id)

    def check_release(self, volume_id: str, target_name: str, snapshots: Mapping[str, str]) -> None:
        """See `SupportsAdopt.check_release`."""
        foreign.check_release(self._changing(), volume_id, target_name, snapshots)

    def release(self, volume_id: str, target_name: str, snapshots: Mapping[str, str]) -> None:
        """See `SupportsAdopt.release`."""
        foreign.release(self._changing(), volume_id, target_name, snapshots)

    def audit(self, suspects: Sequence[Fault] | None, *, objects: bool) -> Iterator[Fault]:
        """See `SupportsAudit.audit`. Complexity: a few rounds for each 64 images."""
        return audit.look(self._changing(), suspects, objects=objects)

    def is_shown(self, snapshot_id: str) -> bool:
        """See `SupportsAudit.is_shown`."""
        return not foreign.is_hidden(snapshot_id)

    def mend(self, fault: Fault) -> bool:
        """See `SupportsAudit.mend`."""
        return audit_mending.mend(self._changing(), fault)

    def carry(self, loads: Mapping[str, Load]) -> None:
        """See `SupportsCarry.carry`."""
        carrying.carry(self._changing(), loads)

    def carried(self, volume_ids: Sequence[str]) -> dict[str, dict[str, bytes]]:
        """See `SupportsCarry.carried`."""
        return carrying.carried(self._session(), volume_ids)

    def enter_all(self) -> Iterator[Fault]:
        """See `SupportsCarry.enter_all`. Complexity: one round for each 64 images."""
        return carrying.enter_all(self._changing())

    @property
    def cluster_id(self) -> str:
        """See `SupportsForeignParent.cluster_id`."""
        return self._session().cluster.fsid

    def fencing(self) -> Fencing:
        """See `SupportsFencing.fencing`."""
        return Fencing(self._changing())

    def foreign_parent(self, source: ForeignSource) -> ForeignImage:
        """See `SupportsForeignParent.foreign_parent`."""
        return parents.look(self._session(), source)

    def clone_foreign(self, source: ForeignSource, target_id: str, size_bytes: int) -> None:
        """See `SupportsForeignParent.clone_foreign`."""
        parents.clone(self._changing(), source, target_id, size_bytes)

    def connection(self, volume_id: str, *, read_only: bool) -> RbdConnection:
        """See `SupportsDirectAttach.connection`; the monitors are those of the live map."""
        cluster = self._session().cluster
        return RbdConnection(
            cluster_fsid=cluster.fsid,
            monitors=cluster.monitors(),
            pool=self._pool,
            image=volume_id,
            user=cluster.options.user,
            conf_path=cluster.options.conf_path,
            secret_uuid=self._secret_uuid,
            read_only=read_only,
        )

    def _session(self) -> Session:
        """Return the open pool."""
        if self._open is None:
            raise UnavailableError(
                f"pool {self._pool} is not open", reason=Reason.SHUTTING_DOWN, retryable=True
            )
        return self._open

    def _changing(self) -> Session:
        """Return the open pool if it may be changed."""
        session = self._session()
        session.check()
        return session
