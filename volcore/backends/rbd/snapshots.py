"""Making snapshots: by the short path if nobody has the volume open, else through librbd."""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from volcore.backends.rbd import clones
from volcore.backends.rbd.direct.family import siblings_of
from volcore.backends.rbd.direct.snapshotter import Outcome, too_many_snapshots
from volcore.backends.rbd.directory import Entry
from volcore.backends.rbd.errmap import translated
from volcore.backends.rbd.protection import delete_snapshot
from volcore.backends.rbd.session import Session
from volcore.backends.refusals import id_taken, volume_missing
from volcore.errors import NotFoundError
from volcore.limits import SNAPSHOTS_PER_VOLUME_MAX


def create(session: Session, volume_id: str, snapshot_id: str, *, attached: bool = False) -> None:
    """See `VolumeBackend.create_snapshot`.

    A direct snapshot that a client may have written past is deleted and made anew: its content is
    then of a later instant of this call.

    Raises:
        ExhaustedError: TOO_MANY_SNAPSHOTS; deleted ones that still have clones count.
    """
    entry = clones.existing(session, volume_id)
    outcome = Outcome.REFUSED
    with session.handles.closed(volume_id) as is_closed:
        if is_closed:
            outcome = session.direct.snapshot(
                volume_id, entry.image_id, snapshot_id, attached=attached
            )
    if outcome is Outcome.MADE:
        return
    with (
        session.handles.image(volume_id, entry.image_id) as image,
        translated(
            f"snapshot volume {volume_id}",
            missing=volume_missing(volume_id),
            exists=id_taken(snapshot_id),
        ),
    ):
        if outcome is Outcome.DOUBTFUL:
            image.remove_snap(snapshot_id)
        _create_by_librbd(session, entry, image, snapshot_id)


def delete(session: Session, entry: Entry, image: Any, snapshot_id: str) -> None:
    """Delete a snapshot of an open image, its siblings before it.

    While the image is open in this process no new sibling is made. A crash leaves the snapshot with
    fewer siblings; to repeat the call deletes what it left out of sight.
    """
    found = session.headers.snapshots(entry.image_id)
    own = next((one for one in found if one.user and one.name == snapshot_id), None)
    siblings = siblings_of(found, own) if own is not None else []
    if siblings:
        session.reaper.delete_live(image, [one.name for one in siblings])
    try:
        delete_snapshot(image, snapshot_id)
    finally:
        gone = [one.snap for one in found if one is own or one in siblings or not one.user]
        _drop_needless(session, entry, image, gone)


def _drop_needless(session: Session, entry: Entry, image: Any, snaps: Sequence[int]) -> None:
    """Delete those of the snapshots that are out of sight and have no clone.

    librbd puts a snapshot with clones out of sight, and deletes it with the last of them; a last
    clone that goes in between sees it where it was, and leaves it.
    """
    for snap in snaps:
        with suppress(NotFoundError):
            is_hidden = not session.headers.snapshot(entry.image_id, snap).user
            if is_hidden and not session.headers.has_children(entry.image_id, snap):
                with translated(f"delete snapshot {snap} of volume {entry.volume_id}"):
                    image.remove_snap_by_id(snap)


def _create_by_librbd(session: Session, entry: Entry, image: Any, snapshot_id: str) -> None:
    """Make a snapshot of an open image."""
    if len(session.headers.snaps(entry.image_id)) >= SNAPSHOTS_PER_VOLUME_MAX:
        raise too_many_snapshots(entry.volume_id)
    image.create_snap(snapshot_id)
    session.direct.snapshot_by_librbd(entry.image_id)
