"""Images of the pool that others made: what they are, taking them over, giving them back.

A volume's rbd image keeps the name that it has, so that who has it open, or will open it by that
name, goes on. Taking over writes the mark into the image's metadata, then the row of the directory:
with the row it is a volume. Giving back is the reverse, after the names have been set right.

OpenStack's own RBD driver makes each clone of a volume through a protected snapshot of it, called
`<clone>.clone_snap`, and keeps that as long as the clone. Those are not shown as snapshots of the
volume; they go with their last clone, see `protection.py`.

Source: Ceph, src/include/rbd/features.h; Cinder, cinder/volume/drivers/rbd.py.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from volcore.backends.adopting import ForeignImage, ForeignSnapshot
from volcore.backends.rbd.direct.family import original
from volcore.backends.rbd.direct.proof import SCRATCH
from volcore.backends.rbd.directory import HIDDEN_PREFIX
from volcore.backends.rbd.errmap import translated
from volcore.backends.rbd.opening import open_image
from volcore.backends.rbd.protection import CLONES_ONLY_SUFFIX
from volcore.backends.rbd.session import FEATURES, ORDER, Session
from volcore.backends.refusals import volume_missing
from volcore.errors import (
    ConflictError,
    NotFoundError,
    OperationPendingError,
    Reason,
    VolcoreError,
)
from volcore.limits import (
    BLOCK_SIZE_BYTES,
    SNAPSHOTS_PER_VOLUME_MAX,
    VOLUME_SIZE_BYTES_MAX,
    VOLUME_SIZE_BYTES_MIN,
)

_LAYERING: Final = 1
_DATA_POOL: Final = 128
_OPERATIONS: Final = 256
"""Bookkeeping of clones of format 2; librbd sets it by itself."""
_SERVED: Final = FEATURES | _DATA_POOL | _OPERATIONS
_UNSERVED: Final = {
    2: "striping",
    64: "journaling",
    512: "migrating",
    1024: "non-primary",
}
_USER: Final = 0
_TRASH: Final = 2
_NAMESPACES: Final = {1: "GROUP", 3: "MIRRORED"}
_MAGICS: Final = (b"LUKS\xba\xbe", b"RBDL\xba\xbe")
"""The first bytes of an encrypted image, and of an encrypted clone."""


@dataclass(frozen=True, slots=True)
class _Obstacle:
    """Why an image cannot be adopted, as `ForeignImage` has it."""

    word: str = ""
    detail: str = ""


def names(session: Session) -> Sequence[str]:
    """See `SupportsAdopt.foreign_names`."""
    ours = {entry.volume_id for entry in session.directory.walk()}
    with translated(f"list the rbd images of pool {session.pool}"):
        found = session.rbd.list(session.ioctx)
    return sorted(name for name in found if name not in ours and not name.startswith(SCRATCH))


def look(session: Session, name: str) -> ForeignImage:
    """See `SupportsAdopt.foreign`. Complexity: one open of the image."""
    missing = _missing(session, name)
    if session.directory.find(name) is not None:
        raise missing
    image_id = session.headers.image_id(name)
    if image_id is None:
        with translated(f"look for rbd image {name}"):
            old_format = name in session.rbd.list(session.ioctx)
        if not old_format:
            raise missing
        detail = "it is of rbd's image format 1: copy it to a new image with `rbd cp`"
        return ForeignImage(name=name, size_bytes=0, obstacle="FORMAT", detail=detail)
    with (
        translated(f"look at rbd image {name}", missing=missing),
        open_image(session.ioctx, image_id, read_only=True) as image,
    ):
        found = list(image.list_snaps())
        obstacle = _obstacle(session, image, image_id, found)
        return ForeignImage(
            name=name,
            size_bytes=int(image.size()),
            snapshots=tuple(
                ForeignSnapshot(name=one["name"], size_bytes=int(one["size"]))
                for one in sorted(found, key=lambda one: int(one["id"]))
                if one["namespace"] == _USER and not is_hidden(one["name"])
            ),
            obstacle=obstacle.word,
            detail=obstacle.detail,
        )


def is_hidden(name: str) -> bool:
    """Tell whether a snapshot only holds clones: nobody made it to look at it."""
    return (
        name.startswith(HIDDEN_PREFIX)
        or name.endswith(CLONES_ONLY_SUFFIX)
        or original(name) != name
    )


def adopt(session: Session, volume_id: str) -> None:
    """See `SupportsAdopt.adopt`."""
    entry = session.find(volume_id)
    if entry is not None and entry.image_id:
        return
    image_id = session.headers.image_id(volume_id)
    if image_id is None:
        raise _missing(session, volume_id)
    with translated(f"adopt rbd image {volume_id}"):
        session.headers.mark(image_id, volume_id)
        if not session.directory.take_over(volume_id, image_id):
            raise ConflictError(
                f"rbd image {volume_id} is a volume already; look it up by its backend name",
                reason=Reason.NAME_TAKEN,
            )
    session.forget(volume_id)


def check_release(
    session: Session, volume_id: str, target_name: str, snapshots: Mapping[str, str]
) -> None:
    """See `SupportsAdopt.check_release`."""
    entry = session.find(volume_id)
    if entry is None or not entry.image_id:
        raise volume_missing(volume_id)
    with session.handles.exclusive(volume_id, snapshots=True):
        _check(session, volume_id, entry.image_id, target_name)
    live = {one.name for one in session.headers.snapshots(entry.image_id) if one.user}
    for snapshot_id, new in snapshots.items():
        if new != snapshot_id and new in live and snapshot_id in live:
            raise ConflictError(
                f"rbd image {volume_id} has a snapshot {new} beside volcore's {snapshot_id}, which"
                " would get that name; rename or delete one of them",
                reason=Reason.NAME_TAKEN,
            )


def release(
    session: Session, volume_id: str, target_name: str, snapshots: Mapping[str, str]
) -> None:
    """See `SupportsAdopt.release`; the row goes last, and with it the volume."""
    entry = session.find(volume_id)
    if entry is None or not entry.image_id:
        _unmark(session, volume_id)
        return
    image_id = entry.image_id
    with session.handles.exclusive(volume_id, snapshots=True):
        _check(session, volume_id, image_id, target_name)
        _rename(session, volume_id, image_id, target_name)
        with (
            translated(f"give rbd image {target_name} back"),
            open_image(session.ioctx, image_id, read_only=False) as image,
        ):
            _tidy_snapshots(session, image, snapshots)
        if volume_id in set(session.directory.walk_flattening()):
            session.links.end(image_id)
        session.headers.unmark(image_id)
        session.directory.let_go(entry)
    session.forget(volume_id)


def _rename(session: Session, volume_id: str, image_id: str, target_name: str) -> None:
    """Give an image another name. Idempotent, also where librbd was killed in the middle of it.

    librbd makes the new name's object, changes the list, and deletes the old name's object.
    """
    headers = session.headers
    if headers.listed_id(target_name) != image_id:
        if headers.named_id(target_name) == image_id:
            headers.delete_name(target_name)  # else it is taken
        with translated(f"rename rbd image {volume_id} to {target_name}"):
            session.rbd.rename(session.ioctx, volume_id, target_name)
    elif target_name != volume_id and headers.named_id(volume_id) == image_id:
        headers.delete_name(volume_id)


def _check(session: Session, volume_id: str, image_id: str, target_name: str) -> None:
    """Refuse to give an image a name that another has, or to rename one that somebody has open."""
    holder = session.headers.image_id(target_name)
    if holder == image_id:
        return
    if holder is not None or session.directory.find(target_name) is not None:
        raise ConflictError(
            f"the pool has another rbd image called {target_name}; choose another backend_name",
            reason=Reason.NAME_TAKEN,
            backend_name=target_name,
        )
    session.watchers.refuse_if_in_use(volume_id, image_id)


def _tidy_snapshots(session: Session, image: Any, snapshots: Mapping[str, str]) -> None:
    """Rename snapshots as asked and protect them; put out of sight what volcore made for clones."""
    live = {one["name"] for one in image.list_snaps() if one["namespace"] == _USER}
    for snapshot_id, new in snapshots.items():
        if snapshot_id != new and snapshot_id in live:
            taken = OperationPendingError(
                f"a snapshot {new} was made meanwhile; rename it, then repeat the call",
                reason=Reason.OPERATION_PENDING,
                retryable=True,
            )
            with translated(f"rename snapshot {snapshot_id}", exists=taken):
                image.rename_snap(snapshot_id, new)
    for name in snapshots.values():
        with suppress(NotFoundError), translated(f"protect snapshot {name}"):
            if not image.is_protected_snap(name):  # else nobody can make clones of format 1
                image.protect_snap(name)
    needless = [name for name in live if name.startswith(HIDDEN_PREFIX) or original(name) != name]
    if needless:
        session.reaper.delete_live(image, needless)


def _unmark(session: Session, name: str) -> None:
    """Take the mark back that an adoption cut short has left."""
    image_id = session.headers.image_id(name)
    if image_id is not None and session.headers.owner(image_id) == name:
        session.headers.unmark(image_id)


def _missing(session: Session, name: str) -> NotFoundError:
    return NotFoundError(
        f"Ceph pool {session.pool} has no rbd image {name!a} that could be adopted; check the name",
        reason=Reason.OBJECT_NOT_FOUND,
        backend_name=name,
    )


def _obstacle(
    session: Session, image: Any, image_id: str, snapshots: Sequence[dict[str, Any]]
) -> _Obstacle:
    """Return what keeps an open image from being adopted."""
    features, size_bytes = int(image.features()), int(image.size())
    foreign = [word for bit, word in _UNSERVED.items() if features & bit]
    if not features & _LAYERING:
        foreign.append("no layering")
    if features & ~_SERVED and not foreign:
        foreign.append(f"{features & ~_SERVED:#x}")
    if foreign:
        return _Obstacle(
            "FEATURES",
            f"its rbd features ({', '.join(foreign)}) are not served: end the migration, disable"
            " what can be disabled with `rbd feature disable`, else copy it with `rbd cp`",
        )
    for namespace, word in _NAMESPACES.items():
        if any(one["namespace"] == namespace for one in snapshots):
            return _Obstacle(
                word, "it has snapshots of rbd groups or of mirroring: delete those, or end that"
            )
    if _in_group(image):
        return _Obstacle("GROUP", "it is in an rbd group: `rbd group image remove` takes it out")
    if int(image.stat()["order"]) != ORDER:
        return _Obstacle("OBJECT_SIZE", "its objects are not of 4 MiB: copy it with `rbd cp`")
    if (
        not VOLUME_SIZE_BYTES_MIN <= size_bytes <= VOLUME_SIZE_BYTES_MAX
        or size_bytes % BLOCK_SIZE_BYTES
    ):
        return _Obstacle(
            "SIZE",
            f"its size of {size_bytes} bytes is no multiple of {BLOCK_SIZE_BYTES} between"
            f" {VOLUME_SIZE_BYTES_MIN} and {VOLUME_SIZE_BYTES_MAX}: `rbd resize` it",
        )
    if len(session.headers.snaps(image_id)) > SNAPSHOTS_PER_VOLUME_MAX:
        return _Obstacle(
            "TOO_MANY_SNAPSHOTS",
            f"it has more than {SNAPSHOTS_PER_VOLUME_MAX} snapshots: delete some",
        )
    if bytes(image.read(0, len(_MAGICS[0]))) in _MAGICS:
        return _Obstacle(
            "ENCRYPTED", "it begins with a LUKS header: leave it to who has the key of it"
        )
    return _Obstacle()


def _in_group(image: Any) -> bool:
    with suppress(VolcoreError), translated("look for the group of an rbd image"):
        return bool(image.group()["name"])
    return False
