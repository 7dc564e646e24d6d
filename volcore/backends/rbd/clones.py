"""Making clones of snapshots and of live volumes: by the short path if it may be used, else librbd.

The short path (`direct`) makes clones of snapshots without opening an image. librbd makes all
others, at most CLONES_AT_ONCE at a time.
"""

from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from volcore.backends.contract import Records, ShortPathState, no_reserve
from volcore.backends.rbd.direct.cloner import BATCH_MAX, Once
from volcore.backends.rbd.directory import HIDDEN_PREFIX, Entry
from volcore.backends.rbd.errmap import translated
from volcore.backends.rbd.header import HeaderSnapshot
from volcore.backends.rbd.opening import open_image
from volcore.backends.rbd.session import FEATURES, ORDER, Session
from volcore.backends.refusals import (
    check_size,
    depth_limit,
    id_taken,
    shrink_refused,
    snapshot_missing,
    volume_missing,
)
from volcore.errors import NotFoundError, OperationPendingError, Reason, VolcoreError
from volcore.limits import RBD_DEPTH_MAX

CLONES_AT_ONCE: Final = 8
"""librbd's clone rate stops growing between 4 and 16 threads."""


def clone(
    session: Session, volume_id: str, snapshot_id: str | None, target_id: str, size_bytes: int
) -> None:
    """See `VolumeBackend.clone`."""
    check_size(size_bytes)
    failed = clone_many(session, volume_id, snapshot_id, {target_id: size_bytes})
    if failed:
        raise failed[target_id]


def clone_many(
    session: Session,
    volume_id: str,
    snapshot_id: str | None,
    targets: Mapping[str, int],
    reserve: Callable[[], None] = no_reserve,
    records: Records | None = None,
    *,
    attached: bool = False,
) -> dict[str, VolcoreError]:
    """See `SupportsMakeMany.clone_many`."""
    once = Once(reserve)
    with session.claiming(targets, records or {}):
        if snapshot_id is None:
            failed = _clone_live_directly(session, volume_id, targets, once, attached=attached)
        else:
            failed = session.direct.clone(volume_id, snapshot_id, targets, once)
    if failed is not None:
        return failed
    once()
    return side_by_side(
        targets,
        lambda one: clone_by_librbd(session, volume_id, snapshot_id, one, targets[one]),
    )


def side_by_side(
    volume_ids: Collection[str], make: Callable[[str], None]
) -> dict[str, VolcoreError]:
    """Make volumes, CLONES_AT_ONCE at a time; return the errors of those that failed."""
    failed: dict[str, VolcoreError] = {}

    def work(volume_id: str) -> None:
        try:
            make(volume_id)
        except VolcoreError as err:
            failed[volume_id] = err

    if len(volume_ids) == 1:
        work(*volume_ids)
        return failed
    with ThreadPoolExecutor(CLONES_AT_ONCE) as executor:
        list(executor.map(work, volume_ids))
    return failed


def source_size_bytes(session: Session, entry: Entry, snapshot_id: str | None) -> int:
    """Return the size of a volume or of its snapshot.

    Raises:
        NotFoundError: OBJECT_NOT_FOUND.
    """
    if snapshot_id is not None:
        return source_snapshot(session, entry, snapshot_id).size_bytes
    try:
        return session.headers.size_bytes(entry.image_id)
    except NotFoundError as err:
        raise volume_missing(entry.volume_id) from err


def source_snapshot(session: Session, entry: Entry, snapshot_id: str) -> HeaderSnapshot:
    """Return what the header says of a snapshot.

    Raises:
        NotFoundError: OBJECT_NOT_FOUND.
    """
    try:
        found = session.headers.find_snapshot(entry.image_id, snapshot_id)
    except NotFoundError as err:
        raise volume_missing(entry.volume_id) from err
    if found is None:
        raise snapshot_missing(entry.volume_id, snapshot_id)
    return found


def existing(session: Session, volume_id: str) -> Entry:
    """Return the row of a volume that exists.

    Raises:
        NotFoundError: OBJECT_NOT_FOUND.
    """
    entry = session.find(volume_id)
    if entry is None or not entry.image_id:
        raise volume_missing(volume_id)
    return entry


def clone_by_librbd(
    session: Session, volume_id: str, snapshot_id: str | None, target_id: str, size_bytes: int
) -> None:
    """Clone as librbd does; a live volume through a hidden snapshot, deleted at once."""
    entry = existing(session, volume_id)
    from_size_bytes = _check_target(session, entry, snapshot_id, target_id, size_bytes)
    with session.building(target_id, source=volume_id if snapshot_id is None else ""):
        if snapshot_id is None:
            _clone_live(session, entry, target_id)
        else:
            _clone_snapshot(session, volume_id, snapshot_id, target_id)
        if size_bytes > from_size_bytes:
            made_id = session.headers.image_id(target_id)
            assert made_id is not None, "librbd made it"
            with (
                translated(f"resize volume {target_id}"),
                open_image(session.ioctx, made_id, read_only=False) as image,
            ):
                image.resize(size_bytes)


def _check_target(
    session: Session, entry: Entry, snapshot_id: str | None, target_id: str, size_bytes: int
) -> int:
    """Refuse a clone that is too small or too deep; return the source's size."""
    from_size_bytes = source_size_bytes(session, entry, snapshot_id)
    if size_bytes < from_size_bytes:
        raise shrink_refused(target_id, size_bytes=size_bytes, size_bytes_min=from_size_bytes)
    if session.headers.depth(entry.image_id, depth_max=RBD_DEPTH_MAX) >= RBD_DEPTH_MAX:
        raise depth_limit(entry.volume_id, RBD_DEPTH_MAX)
    return from_size_bytes


def _clone_live_directly(
    session: Session,
    volume_id: str,
    targets: Mapping[str, int],
    reserve: Callable[[], None],
    *,
    attached: bool,
) -> dict[str, VolcoreError] | None:
    """Clone a volume as it is by the short path; None: librbd has to do it."""
    if session.direct.state.state is not ShortPathState.ON or len(targets) > BATCH_MAX:
        return None
    entry = existing(session, volume_id)
    missing = volume_missing(volume_id)
    with session.handles.closed(volume_id) as is_closed:
        if not is_closed:
            return None
        try:
            return session.direct.clone_live(
                volume_id, entry.image_id, targets, reserve, attached=attached
            )
        except NotFoundError as err:
            raise missing from err


def _clone_live(session: Session, entry: Entry, target_id: str) -> None:
    """Clone the volume's content of this instant."""
    name = HIDDEN_PREFIX + target_id
    with (
        session.handles.image(entry.volume_id, entry.image_id) as image,
        translated(f"clone volume {entry.volume_id}"),
    ):
        image.create_snap(name)
        session.direct.snapshot_by_librbd(entry.image_id)
        try:
            _clone_snapshot(session, entry.volume_id, name, target_id)
        finally:
            image.remove_snap(name)


def _clone_snapshot(session: Session, volume_id: str, snapshot_id: str, target_id: str) -> None:
    """Make the rbd image of a clone."""
    try:
        with translated(
            f"clone volume {volume_id}",
            missing=snapshot_missing(volume_id, snapshot_id),
            exists=id_taken(target_id),
        ):
            session.rbd.clone(
                session.ioctx, volume_id, snapshot_id, session.ioctx, target_id, FEATURES, ORDER
            )
    except NotFoundError as err:
        if session.headers.find_snapshot(existing(session, volume_id).image_id, snapshot_id):
            # librbd met an ancestor that was just being freed, see `opening`.
            raise OperationPendingError(
                f"an ancestor of volume {volume_id} is being freed; repeat the call",
                reason=Reason.OPERATION_PENDING,
                retryable=True,
                volume=volume_id,
            ) from err
        raise
