"""Volumes: create, deploy, look, grow, revert, flatten, delete."""

from collections.abc import Callable, Sequence
from functools import partial

from volcore.backends.contract import SupportsFlatten, SupportsRevert, VolumeFacts
from volcore.engine import provision
from volcore.engine.attachments import attachments_of, in_use
from volcore.engine.changes import change, settle_leftover, snapshots_of
from volcore.engine.deletions import Deletions
from volcore.engine.operations import Operations, Work
from volcore.engine.pool import Pool, now_ns, put, unchanged, undisturbed, volume_lock
from volcore.engine.pools import Pools
from volcore.engine.snapshots import refuse_grouped
from volcore.engine.trash import Trash
from volcore.engine.views import CreateVolume
from volcore.errors import (
    Blocker,
    NotSupportedError,
    OperationPendingError,
    OutOfRangeError,
    PreconditionError,
    Reason,
    VolcoreError,
)
from volcore.model import names
from volcore.model.records import (
    Intent,
    IntentAction,
    Operation,
    Snapshot,
    State,
    TrashedVolume,
    Volume,
)

FLATTEN = "flatten"


class Volumes:
    """Use cases of volumes; every call may be repeated blindly."""

    def __init__(
        self, pools: Pools, operations: Operations, deletions: Deletions, trash: Trash
    ) -> None:
        self._pools = pools
        self._operations = operations
        self._deletions = deletions
        self._trash = trash
        operations.resume_with(FLATTEN, self._flatten)

    def create(self, pool: str, request: CreateVolume) -> Volume:
        """Create a volume, blank or as a clone; the same request again returns the same volume.

        Complexity: independent of the size. Concurrency: any; sources are not blocked.

        Raises:
            ConflictError: the name exists with other parameters.
            NotFoundError, InvalidArgumentError, OutOfRangeError: as the fields deserve.
            PreconditionError: DEPTH_LIMIT.
            ExhaustedError: POOL_FULL.
        """
        result = provision.make(self._pools.open(pool), [request])[0]
        if isinstance(result, VolcoreError):
            raise result
        return result

    def deploy(
        self,
        pool: str,
        image: str,
        volume_names: Sequence[str],
        *,
        size_bytes: int = 0,
        labels: dict[str, str] | None = None,
    ) -> list[Volume | VolcoreError]:
        """Create one volume of `image` for each name; results are in the order of the names.

        Raises:
            InvalidArgumentError: no names, a name twice, or too many.
            NotFoundError: no such pool or image.
        """
        return provision.deploy(
            self._pools.open(pool), image, volume_names, size_bytes=size_bytes, labels=labels or {}
        )

    def get(self, pool: str, name: str) -> Volume:
        """Return a volume.

        Raises:
            NotFoundError: VOLUME_NOT_FOUND.
        """
        return self._pools.open(pool).volume(names.check_name(name, field="volume"))

    def facts(self, pool: str, volume: Volume) -> VolumeFacts:
        """Return what the backend knows about a volume, also one in the trash; asks the storage.

        Raises:
            NotFoundError: OBJECT_NOT_FOUND, it has been deleted meanwhile.
        """
        return self._pools.open(pool).backend.describe(volume.backend_id)

    def facts_of(self, pool: str, volumes: Sequence[Volume]) -> dict[str, VolumeFacts]:
        """Return the same of many, by their names in the backend; what is gone is left out."""
        backend = self._pools.open(pool).backend
        return backend.describe_many([volume.backend_id for volume in volumes])

    def list(
        self,
        pool: str,
        *,
        after: str = "",
        limit: int,
        wanted: Callable[[Volume], bool] | None = None,
    ) -> list[Volume]:
        """Return up to `limit` volumes with names after `after`, in the order of their names."""
        return self._pools.open(pool).list(
            Volume,
            after=after,
            limit=limit,
            wanted=lambda v: v.state is State.READY and (wanted is None or wanted(v)),
            leave_newer=True,
        )

    def list_with_deleted(
        self,
        pool: str,
        *,
        after: str = "",
        limit: int,
        wanted: Callable[[Volume], bool] | None = None,
    ) -> Sequence[Volume | TrashedVolume]:
        """Return like `list`, but also what is in the trash, behind the volume of the same name.

        In the order of keys: names, and `name/id` in the trash.
        """
        shown = self.list(pool, after=after, limit=limit, wanted=wanted)
        deleted = self._trash.list(pool, after=after, limit=limit, wanted=wanted)
        both: Sequence[Volume | TrashedVolume] = [*shown, *deleted]
        return sorted(both, key=lambda one: one.key)[:limit]

    def update_labels(
        self, pool: str, name: str, labels: dict[str, str], *, etag: str = ""
    ) -> Volume:
        """Replace the labels of a volume.

        Raises:
            OperationPendingError: `etag` is given and not the current one.
        """
        at = self._pools.open(pool)
        labels = names.check_labels(labels)
        with at.locks.hold([volume_lock(name)]):
            volume = at.volume(name)
            _check_etag(volume, etag)
            if labels == volume.labels:
                return volume
            changed = volume.but(labels=labels)
            at.catalog.commit([put(changed, volume)])
            return changed

    def resize(self, pool: str, name: str, size_bytes: int) -> Volume:
        """Grow a volume, also while it is attached or has clones.

        Raises:
            OutOfRangeError: SIZE_NOT_ALLOWED, SHRINK_REFUSED.
        """
        at = self._pools.open(pool)
        names.check_size(size_bytes)
        with at.locks.hold([volume_lock(name)]):
            volume = self._settled(at, name)
            if size_bytes == volume.size_bytes:
                return volume
            if size_bytes < volume.size_bytes:
                raise OutOfRangeError(
                    f"volume {name!r} has {volume.size_bytes} bytes and cannot shrink to "
                    f"{size_bytes}; ask for its size or more",
                    reason=Reason.SHRINK_REFUSED,
                    size_bytes=volume.size_bytes,
                )
            intent = _intent(at, volume, IntentAction.RESIZE_VOLUME, size_bytes=size_bytes)
            changed = volume.but(size_bytes=size_bytes)
            end = [put(changed, volume)]
            with (
                undisturbed(at, volume.backend_id),
                change(at, intent, begin=[unchanged(volume)], end=end),
            ):
                at.backend.resize(volume.backend_id, size_bytes)
            return changed

    def revert(self, pool: str, name: str, snapshot: str) -> Volume:
        """Make a volume equal to one of its snapshots, size included.

        Raises:
            PreconditionError: VOLUME_IN_USE, naming the hosts.
            NotSupportedError: the pool cannot.
        """
        at = self._pools.open(pool)
        backend = at.backend
        if not isinstance(backend, SupportsRevert):
            raise _cannot(at, "revert volumes")
        with at.locks.hold([volume_lock(name)]):
            volume = self._settled(at, name)
            target = at.snapshot(name, snapshot)
            _refuse_in_use(at, volume)
            intent = _intent(
                at,
                volume,
                IntentAction.REVERT_VOLUME,
                size_bytes=target.size_bytes,
                backend_snapshot_id=target.backend_id,
            )
            changed = volume.but(size_bytes=target.size_bytes)
            end = [put(changed, volume)]
            begin = [unchanged(volume), unchanged(target)]
            with undisturbed(at, volume.backend_id), change(at, intent, begin=begin, end=end):
                backend.revert(volume.backend_id, target.backend_id)
            return changed

    def flatten(self, pool: str, name: str) -> Operation:
        """Start to copy what a volume shares; while that runs, return the running operation."""
        at = self._pools.open(pool)
        if not isinstance(at.backend, SupportsFlatten):
            raise _cannot(at, "flatten volumes")
        with at.locks.hold([volume_lock(name)]):
            volume = at.volume(name)
            target = f"pools/{pool}/volumes/{name}"
            return self._operations.start(at, FLATTEN, target, volume.id, self._flatten)

    def _flatten(self, at: Pool, work: Work) -> None:
        """Flatten the volume that `work` names; runs in the background, resumable."""
        volume = at.find(Volume, work.target.rpartition("/")[2])
        if volume is None or volume.id != work.subject_id or volume.state is not State.READY:
            return
        assert isinstance(at.backend, SupportsFlatten)
        at.backend.flatten(volume.backend_id, work.progress)

    def delete(
        self,
        pool: str,
        name: str,
        *,
        force: bool = False,
        etag: str = "",
        uid: str = "",
        purge: bool = False,
    ) -> Operation | None:
        """Delete a volume; what was made from it keeps working; one that is gone is no error.

        Where the pool has a trash, it goes there, unless `purge`. With `uid`, only the volume with
        that id is deleted; with both, also one that is in the trash.

        The name is free at return. Returns the operation that frees the space behind that; None
        when there is nothing left to do. Complexity: two round trips, if it has no snapshots.

        Raises:
            PreconditionError: VOLUME_IN_USE, VOLUME_HAS_SNAPSHOTS (unless `force`),
                SNAPSHOT_IN_GROUP, naming them.
            OperationPendingError: `etag` is given and not the current one.
            ExhaustedError: TOO_MANY_REQUESTS.
        """
        at = self._pools.open(pool)
        names.check_name(name, field="volume")
        with at.locks.hold([volume_lock(name)]):
            attempt = partial(self._delete, at, name, force=force, etag=etag, uid=uid, purge=purge)
            try:
                return attempt()
            except OperationPendingError:
                left = at.find(Volume, name)
                if left is None or not settle_leftover(at, left.id):
                    raise
            return attempt()

    def _delete(
        self, at: Pool, name: str, *, force: bool, etag: str, uid: str, purge: bool
    ) -> Operation | None:
        """Delete a volume that no cut-off change holds."""
        found = self._deletable(at, name, force=force, etag=etag, uid=uid)
        if found is None:
            return self._trash.purge(at, name, uid) if uid and purge else None
        volume, snapshots = found
        self._operations.stop(at, volume.id)
        if at.trash_retention_s and not purge:
            self._trash.put(at, volume, snapshots)
            return None
        intent = _intent(at, volume, IntentAction.DELETE_VOLUME)
        target = f"pools/{at.name}/volumes/{name}"
        return self._deletions.delete(at, intent, target, [volume, *snapshots])

    def _deletable(
        self, at: Pool, name: str, *, force: bool, etag: str, uid: str
    ) -> tuple[Volume, Sequence[Snapshot]] | None:
        """Return a volume that may be deleted, with its snapshots; None if it is gone."""
        volume, attached, snapshots = at.whole_volume(name)
        if volume is not None and volume.state is not State.READY:
            settle_leftover(at, volume.id)
            volume, attached, snapshots = at.whole_volume(name)
        if volume is None or volume.state is not State.READY or uid not in {"", volume.id}:
            return None
        _check_etag(volume, etag)
        if attached:
            raise in_use(at, volume, attached)
        unsure = {s.group_id or s.id for s in snapshots if s.group_id or s.state is not State.READY}
        settled = [settle_leftover(at, one) for one in sorted(unsure)]
        if any(settled):
            snapshots = snapshots_of(at, name, volume.id)
        target = f"pools/{at.name}/volumes/{name}"
        if snapshots and not force:
            raise PreconditionError(
                f"volume {name!r} has {len(snapshots)} snapshots; delete them first, or use force",
                reason=Reason.VOLUME_HAS_SNAPSHOTS,
                blockers=[Blocker("snapshot", f"{target}/snapshots/{s.name}") for s in snapshots],
            )
        refuse_grouped(at, snapshots)
        return volume, snapshots

    def _settled(self, at: Pool, name: str) -> Volume:
        """Return a ready volume after settling what an earlier call left."""
        volume = at.volume(name)
        return at.volume(name) if settle_leftover(at, volume.id) else volume


def _refuse_in_use(at: Pool, volume: Volume) -> None:
    """Raise when a host has the volume attached."""
    attached = attachments_of(at, volume)
    if attached:
        raise in_use(at, volume, attached)


def _intent(at: Pool, volume: Volume, action: IntentAction, **fields: object) -> Intent:
    return Intent(
        id=volume.id,
        action=action,
        subject_key=volume.key,
        subject_id=volume.id,
        backend_volume_id=volume.backend_id,
        owner=at.server_id,
        create_time_ns=now_ns(),
        **fields,  # type: ignore[arg-type]
    )


def _check_etag(volume: Volume, etag: str) -> None:
    current = names.etag(volume.id, volume.revision)
    if etag and etag != current:
        raise OperationPendingError(
            f"volume {volume.name!r} has changed: its etag is {current}; read it again",
            reason=Reason.CATALOG_CONFLICT,
            etag=current,
        )


def _cannot(at: Pool, what: str) -> NotSupportedError:
    return NotSupportedError(
        f"pool {at.name!r} ({at.backend.caps.kind}) cannot {what}; use another pool",
        reason=Reason.CAPABILITY_ABSENT,
    )
