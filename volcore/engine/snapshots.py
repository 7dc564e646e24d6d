"""Snapshots: create, look, delete."""

from functools import partial

from volcore.engine.changes import creation, settle_leftover
from volcore.engine.deletions import Deletions
from volcore.engine.pool import (
    Known,
    Pool,
    drop,
    is_attached,
    now_ns,
    put,
    sync_ahead,
    unchanged,
    undisturbed,
    volume_lock,
)
from volcore.engine.pools import Pools
from volcore.errors import Blocker, ConflictError, ExhaustedError, PreconditionError, Reason
from volcore.model import names
from volcore.model.records import Intent, IntentAction, Operation, Snapshot, State, Volume


class Snapshots:
    """Use cases of snapshots; every call may be repeated blindly."""

    def __init__(self, pools: Pools, deletions: Deletions) -> None:
        self._pools = pools
        self._deletions = deletions

    def create(
        self, pool: str, volume: str, name: str, *, labels: dict[str, str] | None = None
    ) -> Snapshot:
        """Freeze a volume at one instant of this call, also while it is attached.

        Raises:
            NotFoundError: VOLUME_NOT_FOUND.
            ConflictError: the name exists with other labels.
            ExhaustedError: TOO_MANY_SNAPSHOTS.
        """
        at = self._pools.open(pool)
        names.check_name(name, field="snapshot_id")
        labels = names.check_labels(labels or {})
        with at.locks.hold([volume_lock(volume)]):
            names.check_name(volume, field="volume")
            known = at.find_many([(Volume, volume), (Snapshot, f"{volume}/{name}")])
            source = at.volume(volume, known)
            existing = self._existing(at, volume, name, known)
            if existing is not None:
                return _same(existing, source, labels)
            check_room(at, volume)
            record_id = names.new_id()
            snapshot = Snapshot(
                volume=volume,
                name=name,
                id=record_id,
                volume_id=source.id,
                backend_volume_id=source.backend_id,
                backend_id=names.backend_id(name, record_id),
                size_bytes=source.size_bytes,
                state=State.READY,
                labels=labels,
                create_time_ns=now_ns(),
            )
            sync_ahead(at, [source])
            intent = partial(_intent, at, snapshot, IntentAction.CREATE_SNAPSHOT)
            with (
                undisturbed(at, source.backend_id),
                creation(at, snapshot, intent, check=[unchanged(source)]),
            ):
                at.backend.create_snapshot(
                    source.backend_id, snapshot.backend_id, attached=is_attached(at, volume)
                )
            return snapshot

    def get(self, pool: str, volume: str, name: str) -> Snapshot:
        """Return a snapshot.

        Raises:
            NotFoundError: SNAPSHOT_NOT_FOUND.
        """
        return self._pools.open(pool).snapshot(volume, name)

    def list(
        self, pool: str, volume: str | None = None, *, after: str = "", limit: int
    ) -> list[Snapshot]:
        """Return up to `limit` snapshots with keys (`volume/snapshot`) after `after`, in order."""
        at = self._pools.open(pool)
        if volume is not None:
            at.volume(volume)
        prefix = "" if volume is None else f"{volume}/"
        return at.list(
            Snapshot,
            prefix=prefix,
            after=after,
            limit=limit,
            wanted=lambda s: s.state is State.READY,
            leave_newer=True,
        )

    def rename(self, pool: str, volume: str, name: str, new_name: str) -> Snapshot:
        """Give a snapshot another name; the storage keeps its own. One commit.

        Raises:
            NotFoundError: SNAPSHOT_NOT_FOUND, of either name.
            ConflictError: NAME_TAKEN, by another snapshot.
            PreconditionError: SNAPSHOT_IN_GROUP.
        """
        at = self._pools.open(pool)
        names.check_name(new_name, field="snapshot_id")
        with at.locks.hold([volume_lock(names.check_name(volume, field="volume"))]):
            found, other = (self._existing(at, volume, one) for one in (name, new_name))
            if found is None and other is not None and other.renamed_from == name:
                return other
            found = at.snapshot(volume, name)
            if new_name == name:
                return found
            if other is not None:
                raise ConflictError(
                    f"volume {volume!r} has a snapshot {new_name!r} already; use another name",
                    reason=Reason.NAME_TAKEN,
                    name=new_name,
                )
            refuse_grouped(at, [found])
            renamed = found.but(name=new_name, renamed_from=name)
            at.catalog.commit([drop(found), put(renamed)])
            return renamed

    def delete(self, pool: str, volume: str, name: str) -> Operation | None:
        """Delete a snapshot; what was made from it keeps working; one that is gone is no error.

        The name is free at return. Returns the operation that frees the space behind that; None
        when there is nothing left to do.

        Raises:
            PreconditionError: SNAPSHOT_IN_GROUP, naming the group snapshot; VOLUME_IN_USE, this
                server reads it.
            ExhaustedError: TOO_MANY_REQUESTS.
        """
        at = self._pools.open(pool)
        names.check_name(volume, field="volume")
        names.check_name(name, field="snapshot")
        with at.locks.hold([volume_lock(volume)]):
            snapshot = self._existing(at, volume, name)
            if snapshot is None:
                return None
            refuse_grouped(at, [snapshot])
            intent = _intent(at, snapshot, IntentAction.DELETE_SNAPSHOT)
            target = f"pools/{pool}/volumes/{volume}/snapshots/{name}"
            return self._deletions.delete(at, intent, target, [snapshot])

    def _existing(
        self, at: Pool, volume: str, name: str, known: Known | None = None
    ) -> Snapshot | None:
        """Return the ready snapshot, or None; settles what an earlier call left half-done."""
        found = at.find(Snapshot, f"{volume}/{name}", known)
        if found is None or found.state is State.READY:
            return found
        settle_leftover(at, found.group_id or found.id)
        return at.find(Snapshot, f"{volume}/{name}")


def refuse_grouped(at: Pool, snapshots: list[Snapshot]) -> None:
    """Refuse to delete members of a group snapshot without the others.

    Raises:
        PreconditionError: SNAPSHOT_IN_GROUP.
    """
    groups = sorted({snapshot.name for snapshot in snapshots if snapshot.group_id})
    if groups:
        raise PreconditionError(
            f"group snapshot {groups[0]!r} holds a snapshot of volume {snapshots[0].volume!r}; "
            "delete the group snapshot first",
            reason=Reason.SNAPSHOT_IN_GROUP,
            blockers=[
                Blocker("group snapshot", f"pools/{at.name}/groupSnapshots/{name}")
                for name in groups
            ],
        )


def _same(existing: Snapshot, source: Volume, labels: dict[str, str]) -> Snapshot:
    """Return `existing` if the request would have made it."""
    if existing.labels != labels or existing.volume_id != source.id or existing.group_id:
        raise ConflictError(
            f"snapshot {existing.name!r} of volume {existing.volume!r} exists with other labels or "
            "in a group; use another name, or repeat the call with the same parameters",
            reason=Reason.NAME_TAKEN,
            name=existing.name,
        )
    return existing


def check_room(at: Pool, volume: str) -> None:
    """Refuse a snapshot beyond the backend's limit, unless it counts in the same transaction."""
    if at.backend.caps.joins_catalog:
        return
    most = at.backend.caps.snapshots_max
    if at.catalog.count(Snapshot.KIND, prefix=f"{volume}/", limit=most) >= most:
        raise ExhaustedError(
            f"volume {volume!r} has {most} snapshots, the most that its pool allows; "
            "delete some first",
            reason=Reason.TOO_MANY_SNAPSHOTS,
        )


def _intent(at: Pool, snapshot: Snapshot, action: IntentAction) -> Intent:
    return Intent(
        id=snapshot.id,
        action=action,
        subject_key=snapshot.key,
        subject_id=snapshot.id,
        backend_volume_id=snapshot.backend_volume_id,
        backend_snapshot_id=snapshot.backend_id,
        owner=at.server_id,
        create_time_ns=now_ns(),
    )
