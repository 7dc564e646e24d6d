"""Adopting what others made in a pool's storage, and releasing volumes to them; nothing is copied.

The records of an adopted volume name the storage by the name that it has. Such a name may come
back, unlike those that volcore makes up; so nothing is adopted or released while a change or a
delete of the same name waits to be settled, for that would hit what came after it.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Final

from volcore.backends.adopting import ForeignImage, ForeignSnapshot, SupportsAdopt
from volcore.engine.attachments import in_use
from volcore.engine.changes import change, settle_leftover, snapshots_of
from volcore.engine.operations import Operations
from volcore.engine.pool import Pool, drop, now_ns, put, storage_lock, unchanged, volume_lock
from volcore.engine.pools import Pools
from volcore.engine.snapshots import refuse_grouped
from volcore.errors import (
    ConflictError,
    InvalidArgumentError,
    NotFoundError,
    NotSupportedError,
    OperationPendingError,
    PreconditionError,
    Reason,
)
from volcore.limits import BACKEND_NAME_BYTES_MAX
from volcore.model import names
from volcore.model.records import (
    Intent,
    IntentAction,
    Snapshot,
    State,
    TrashedVolume,
    Volume,
)

_SETTLED_HERE: Final = {IntentAction.ADOPT_VOLUME, IntentAction.RELEASE_VOLUME}


class Adoption:
    """Use cases of adoption; every call may be repeated blindly."""

    def __init__(self, pools: Pools, operations: Operations) -> None:
        self._pools = pools
        self._operations = operations

    def list(
        self, pool: str, *, after: str = "", limit: int, name: str = ""
    ) -> Sequence[ForeignImage]:
        """Return up to `limit` images with names after `after` that are no volumes, by name.

        With `name` only the one that is called so.

        Complexity: the names of the pool, and one open of each image that is returned.

        Raises:
            NotSupportedError: the pool has nothing that others could make.
        """
        at = self._pools.open(pool)
        backend = _able(at)
        found: list[ForeignImage] = []
        if name:
            check_backend_name(name)
        for one in [name] if name else backend.foreign_names():
            if one > after and len(found) < limit:
                with suppress(NotFoundError):  # gone, or adopted meanwhile
                    found.append(_judged(backend.foreign(one)))
        return found

    def adopt(
        self, pool: str, name: str, backend_name: str, *, labels: dict[str, str] | None = None
    ) -> Volume:
        """Make the image `backend_name` a volume in place, with its snapshots; others may use it.

        The same call again returns the volume.

        Raises:
            NotFoundError: OBJECT_NOT_FOUND, no such image.
            ConflictError: NAME_TAKEN, the name is another volume's, or the image is.
            PreconditionError: NOT_ADOPTABLE, saying why and what to do.
            OperationPendingError: something of that name is still being deleted.
        """
        at = self._pools.open(pool)
        backend = _able(at)
        names.check_name(name, field="volume_id")
        check_backend_name(backend_name)
        labels = names.check_labels(labels or {})
        with at.locks.hold([volume_lock(name)]), _alone(at, backend_name):
            existing = _existing(at, name)
            if existing is not None:
                return _same(existing, backend_name)
            found = self._adoptable(at, backend, backend_name)
            volume, snapshots = _records(name, found, labels)
            creating = [one.but(state=State.CREATING, revision=0) for one in (volume, *snapshots)]
            end = [put(*both) for both in zip((volume, *snapshots), creating, strict=True)]
            intent = _intent(at, volume, IntentAction.ADOPT_VOLUME)
            with change(at, intent, begin=list(map(put, creating)), end=end):
                backend.adopt(backend_name)
            return volume

    def _adoptable(self, at: Pool, backend: SupportsAdopt, backend_name: str) -> ForeignImage:
        """Return an image that may be adopted."""
        try:
            found = _judged(backend.foreign(backend_name))
        except NotFoundError as err:
            owner = _owner(at, backend_name)
            if owner is None:
                raise
            raise ConflictError(
                f"{backend_name!r} is the storage of {owner} already",
                reason=Reason.NAME_TAKEN,
                owner=owner,
            ) from err
        if found.obstacle:
            raise PreconditionError(
                f"{backend_name!r} cannot be adopted: {found.detail}",
                reason=Reason.NOT_ADOPTABLE,
                obstacle=found.obstacle,
            )
        return found

    def release(self, pool: str, name: str, backend_name: str = "") -> str:
        """Forget a volume; its storage stays with its snapshots, under `backend_name` or its own.

        Snapshots get the names that they have here. Returns the name of the storage; empty if
        there is no such volume, which is no error.

        Raises:
            PreconditionError: VOLUME_IN_USE, SNAPSHOT_IN_GROUP.
            ConflictError: NAME_TAKEN, the name is another image's.
            OperationPendingError: a snapshot of it is still being deleted.
        """
        at = self._pools.open(pool)
        backend = _able(at)
        names.check_name(name, field="volume")
        if backend_name:
            check_backend_name(backend_name)
        with at.locks.hold([volume_lock(name)]):
            volume, attached, snapshots = at.whole_volume(name)
            if volume is not None and settle_leftover(at, volume.id):
                volume, attached, snapshots = at.whole_volume(name)
            if volume is None or volume.state is not State.READY:
                return ""
            if attached:
                raise in_use(at, volume, attached)
            refuse_grouped(at, snapshots)
            for snapshot in snapshots:
                settle_leftover(at, snapshot.id)
            snapshots = snapshots_of(at, name, volume.id)
            target = backend_name or volume.backend_id
            self._operations.stop(at, volume.id)
            with _alone(at, volume.backend_id):
                renames = {one.backend_id: one.name for one in snapshots}
                backend.check_release(volume.backend_id, target, renames)
                intent = _intent(at, volume, IntentAction.RELEASE_VOLUME, target_name=target)
                begin = [put(volume.but(state=State.DELETING), volume), *map(unchanged, snapshots)]
                end = [drop(volume.but(state=State.DELETING)), *map(drop, snapshots)]
                with change(at, intent, begin=begin, end=end):
                    backend.release(volume.backend_id, target, renames)
            return target


def check_backend_name(backend_name: str, *, field: str = "backend_name") -> None:
    """Refuse what cannot be the name of an image.

    Raises:
        InvalidArgumentError: BAD_NAME.
    """
    if (
        not backend_name
        or len(backend_name.encode(errors="replace")) > BACKEND_NAME_BYTES_MAX
        or not backend_name.isascii()
        or not backend_name.isprintable()
        or set(backend_name) & set("@/")
        or backend_name.startswith(".")
    ):
        raise InvalidArgumentError(
            f"{field} {backend_name[:40]!a} must be 1 to {BACKEND_NAME_BYTES_MAX} printable "
            "ASCII characters without '@' and '/', and not start with a dot",
            reason=Reason.BAD_NAME,
            field=field,
        )


def _able(at: Pool) -> SupportsAdopt:
    if not isinstance(at.backend, SupportsAdopt):
        raise NotSupportedError(
            f"pool {at.name!r} ({at.backend.caps.kind}) cannot adopt or release volumes; "
            "use an rbd pool",
            reason=Reason.CAPABILITY_ABSENT,
        )
    return at.backend


@contextmanager
def _alone(at: Pool, backend_name: str) -> Iterator[None]:
    """Hold what is stored under a name, and refuse while a change of it is unfinished.

    The intent of a volume that was made stays a moment, and does nothing once its record is gone.
    """
    with at.locks.hold([storage_lock(backend_name)]):
        for intent in at.list(Intent, wanted=lambda i: i.backend_volume_id == backend_name):
            if intent.action is IntentAction.MAKE_VOLUME:
                continue
            if intent.action in _SETTLED_HERE:
                settle_leftover(at, intent.id)
            else:
                raise OperationPendingError(
                    f"{backend_name!r}, or a snapshot of it, is still being changed or deleted "
                    f"({intent.action}); repeat the call in a moment",
                    reason=Reason.OPERATION_PENDING,
                    retryable=True,
                )
        yield


def _judged(found: ForeignImage) -> ForeignImage:
    """Return an image with the obstacles that names are."""
    if found.obstacle:
        return found
    bad = next((one for one in found.snapshots if not names.is_name(one.name)), None)
    if bad is None:
        return found
    return ForeignImage(
        name=found.name,
        size_bytes=found.size_bytes,
        snapshots=found.snapshots,
        obstacle="SNAPSHOT_NAME",
        detail=f"its snapshot {bad.name!a} has no name that a snapshot may have: rename it with "
        "`rbd snap rename` to letters, digits, '.', '_' and '-'",
    )


def _existing(at: Pool, name: str) -> Volume | None:
    """Return the volume of that name, after settling what an earlier call left of it."""
    found = at.find(Volume, name)
    if found is not None and found.state is not State.READY and settle_leftover(at, found.id):
        found = at.find(Volume, name)
    return found


def _same(existing: Volume, backend_name: str) -> Volume:
    if existing.backend_id != backend_name:
        raise ConflictError(
            f"volume {existing.name!r} exists with another storage, {existing.backend_id!r}; use "
            "another name",
            reason=Reason.NAME_TAKEN,
            name=existing.name,
        )
    return existing


def _owner(at: Pool, backend_name: str) -> str | None:
    """Return the resource name of the volume that is made of an image; looks at all volumes."""
    for volume in at.list(Volume, wanted=lambda v: v.backend_id == backend_name):
        return f"pools/{at.name}/volumes/{volume.name}"
    for trashed in at.list(TrashedVolume, wanted=lambda t: t.volume.backend_id == backend_name):
        return f"pools/{at.name}/volumes/{trashed.volume.name}, which is in the trash"
    return None


def _records(
    name: str, found: ForeignImage, labels: dict[str, str]
) -> tuple[Volume, list[Snapshot]]:
    """Return the records of an image and its snapshots, as they will be."""
    time_ns = now_ns()
    volume = Volume(
        name=name,
        id=names.new_id(),
        backend_id=found.name,
        size_bytes=found.size_bytes,
        request_size_bytes=found.size_bytes,
        state=State.READY,
        labels=labels,
        create_time_ns=time_ns,
    )
    return volume, [_snapshot(volume, one, time_ns) for one in found.snapshots]


def _snapshot(volume: Volume, found: ForeignSnapshot, time_ns: int) -> Snapshot:
    return Snapshot(
        volume=volume.name,
        name=found.name,
        id=names.new_id(),
        volume_id=volume.id,
        backend_volume_id=volume.backend_id,
        backend_id=found.name,
        size_bytes=found.size_bytes,
        state=State.READY,
        create_time_ns=time_ns,
    )


def _intent(at: Pool, volume: Volume, action: IntentAction, *, target_name: str = "") -> Intent:
    return Intent(
        id=volume.id,
        action=action,
        subject_key=volume.key,
        subject_id=volume.id,
        backend_volume_id=volume.backend_id,
        target_name=target_name,
        owner=at.server_id,
        create_time_ns=now_ns(),
    )
