"""Group snapshots: several volumes of one pool, frozen at one instant.

Each volume gets a snapshot under the group's name, like any other to look at and to clone; it is
deleted with its group only. A change of a group holds the locks of all its volumes.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from volcore import limits
from volcore.backends.contract import SupportsGroupSnapshot
from volcore.engine.changes import change, members_of, settle_leftover
from volcore.engine.pool import (
    LeavingNewer,
    Pool,
    drop,
    group_lock,
    now_ns,
    put,
    sync_ahead,
    unchanged,
    volume_lock,
)
from volcore.engine.pools import Pools
from volcore.engine.snapshots import check_room
from volcore.engine.views import GroupSnapshotView
from volcore.errors import (
    Blocker,
    ConflictError,
    InvalidArgumentError,
    NotSupportedError,
    Reason,
)
from volcore.model import names
from volcore.model.records import GroupSnapshot, Intent, IntentAction, Snapshot, State, Volume


class GroupSnapshots:
    """Use cases of group snapshots; every call may be repeated blindly."""

    def __init__(self, pools: Pools) -> None:
        self._pools = pools

    def create(
        self,
        pool: str,
        name: str,
        volumes: Sequence[str],
        *,
        labels: dict[str, str] | None = None,
    ) -> GroupSnapshotView:
        """Freeze all of `volumes` at one instant of this call, also while they are attached.

        Raises:
            NotFoundError: VOLUME_NOT_FOUND.
            ConflictError: the name exists with other volumes or labels, or one of the volumes has
                a snapshot of that name.
            ExhaustedError: TOO_MANY_SNAPSHOTS.
            NotSupportedError: the pool cannot.
        """
        at = self._pools.open(pool)
        backend = at.backend
        if not isinstance(backend, SupportsGroupSnapshot):
            raise NotSupportedError(
                f"pool {at.name!r} ({backend.caps.kind}) cannot freeze several volumes at one "
                "instant; snapshot them one by one, or use another pool",
                reason=Reason.CAPABILITY_ABSENT,
            )
        names.check_name(name, field="group_snapshot_id")
        wanted = _check_volumes(volumes)
        labels = names.check_labels(labels or {})
        with at.locks.hold([group_lock(name), *map(volume_lock, wanted)]):
            existing = _existing(at, name)
            if existing is not None:
                return _same(at, existing, wanted, labels)
            sources = [at.volume(volume) for volume in wanted]
            for volume in wanted:
                _check_free(at, volume, name)
                check_room(at, volume)
            group = GroupSnapshot(
                name=name,
                id=names.new_id(),
                volumes=tuple(wanted),
                state=State.READY,
                labels=labels,
                create_time_ns=now_ns(),
            )
            members = [_member(group, source) for source in sources]
            records = [group, *members]
            creating = [one.but(state=State.CREATING, revision=0) for one in records]
            begin = [*map(unchanged, sources), *map(put, creating)]
            end = [put(new, old) for new, old in zip(records, creating, strict=True)]
            intent = _intent(at, group, IntentAction.CREATE_GROUP_SNAPSHOT)
            sync_ahead(at, sources)
            with change(at, intent, begin=begin, end=end):
                backend.create_group_snapshot(
                    [(member.backend_volume_id, member.backend_id) for member in members]
                )
            return GroupSnapshotView(record=group, members=tuple(members))

    def get(self, pool: str, name: str) -> GroupSnapshotView:
        """Return a group snapshot with its members.

        Raises:
            NotFoundError: GROUP_SNAPSHOT_NOT_FOUND.
        """
        at = self._pools.open(pool)
        names.check_name(name, field="group_snapshot")
        while True:
            view = _view(at, at.group_snapshot(name))
            if _whole(view):
                return view

    def list(self, pool: str, *, after: str = "", limit: int) -> list[GroupSnapshotView]:
        """Return up to `limit` group snapshots with names after `after`, in order."""
        at = self._pools.open(pool)
        views: list[GroupSnapshotView] = []

        def wanted(group: GroupSnapshot) -> bool:
            if group.state is not State.READY:
                return False
            with LeavingNewer():
                if _whole(view := _view(at, group)):
                    views.append(view)
                    return True
            return False

        at.list(GroupSnapshot, after=after, limit=limit, wanted=wanted, leave_newer=True)
        return views

    def delete(self, pool: str, name: str) -> None:
        """Delete a group snapshot and its members; one that is gone is no error.

        What was made from the members keeps working. When a member is being read by a publication,
        the group is invisible from now on; repeat the call to delete the rest.

        Raises:
            PreconditionError: VOLUME_IN_USE.
        """
        at = self._pools.open(pool)
        names.check_name(name, field="group_snapshot")
        with _held(at, name):
            group = _existing(at, name)
            if group is None:
                return
            members = members_of(at, group)
            records = [group, *members]
            gone = [one.but(state=State.DELETING) for one in records]
            begin = [put(new, old) for new, old in zip(gone, records, strict=True)]
            intent = _intent(at, group, IntentAction.DELETE_GROUP_SNAPSHOT)
            with change(at, intent, begin=begin, end=list(map(drop, gone))):
                for member in members:
                    at.backend.delete_snapshot(member.backend_volume_id, member.backend_id)


@contextmanager
def _held(at: Pool, name: str) -> Iterator[None]:
    """Hold the locks of a group and of the volumes that it has."""
    while True:
        seen = at.find(GroupSnapshot, name)
        volumes = () if seen is None else seen.volumes
        with at.locks.hold([group_lock(name), *map(volume_lock, volumes)]):
            now = at.find(GroupSnapshot, name)
            if now is None or now.volumes == volumes:
                yield
                return


def _existing(at: Pool, name: str) -> GroupSnapshot | None:
    """Return the ready group, or None; settles what an earlier call left half-done."""
    found = at.find(GroupSnapshot, name)
    if found is None or found.state is State.READY:
        return found
    settle_leftover(at, found.id)
    return at.find(GroupSnapshot, name)


def _same(
    at: Pool, existing: GroupSnapshot, volumes: Sequence[str], labels: dict[str, str]
) -> GroupSnapshotView:
    """Return `existing` if the request would have made it."""
    if existing.labels != labels or list(existing.volumes) != list(volumes):
        raise ConflictError(
            f"group snapshot {existing.name!r} exists with other volumes or labels; use another "
            "name, or repeat the call with the same parameters",
            reason=Reason.NAME_TAKEN,
            name=existing.name,
        )
    return _view(at, existing)


def _check_volumes(volumes: Sequence[str]) -> list[str]:
    """Return the names in order if they may form a group."""
    if not 1 <= len(volumes) <= limits.GROUP_VOLUMES_MAX:
        raise InvalidArgumentError(
            f"{len(volumes)} volumes were named; name 1 to {limits.GROUP_VOLUMES_MAX}",
            reason=Reason.BAD_FIELD,
            field="volumes",
        )
    wanted = sorted({names.check_name(volume, field="volumes") for volume in volumes})
    if len(wanted) != len(volumes):
        raise InvalidArgumentError(
            "a volume stands twice in the request; name each once",
            reason=Reason.BAD_FIELD,
            field="volumes",
        )
    return wanted


def _check_free(at: Pool, volume: str, name: str) -> None:
    """Refuse a name that a snapshot of the volume has already."""
    found = at.find(Snapshot, f"{volume}/{name}")
    if found is not None and found.state is not State.READY:
        settle_leftover(at, found.group_id or found.id)
        found = at.find(Snapshot, f"{volume}/{name}")
    if found is not None:
        raise ConflictError(
            f"volume {volume!r} has a snapshot {name!r} already; use another name",
            reason=Reason.NAME_TAKEN,
            blockers=[Blocker("snapshot", f"pools/{at.name}/volumes/{volume}/snapshots/{name}")],
            name=name,
        )


def _member(group: GroupSnapshot, source: Volume) -> Snapshot:
    """Return the record of the group's snapshot of `source`."""
    record_id = names.new_id()
    return Snapshot(
        volume=source.name,
        name=group.name,
        id=record_id,
        volume_id=source.id,
        backend_volume_id=source.backend_id,
        backend_id=names.backend_id(group.name, record_id),
        size_bytes=source.size_bytes,
        state=State.READY,
        labels=group.labels,
        create_time_ns=group.create_time_ns,
        group_id=group.id,
    )


def _view(at: Pool, group: GroupSnapshot) -> GroupSnapshotView:
    return GroupSnapshotView(record=group, members=tuple(members_of(at, group)))


def _whole(view: GroupSnapshotView) -> bool:
    """Tell whether no member went, with its group, while they were being read."""
    return len(view.members) == len(view.record.volumes)


def _intent(at: Pool, group: GroupSnapshot, action: IntentAction) -> Intent:
    return Intent(
        id=group.id,
        action=action,
        subject_key=group.key,
        subject_id=group.id,
        owner=at.server_id,
        create_time_ns=now_ns(),
    )
