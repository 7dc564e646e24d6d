"""Making a clone independent of its parent, with librbd, and the parent free of the clone."""

from contextlib import suppress
from functools import partial
from typing import Final

from volcore.backends.contract import Progress
from volcore.backends.rbd import clones
from volcore.backends.rbd.copyup import complete_copies
from volcore.backends.rbd.errmap import translated
from volcore.backends.rbd.session import Session
from volcore.backends.refusals import volume_missing
from volcore.errors import NotFoundError, VolcoreError

_CANCEL: Final = -125
"""-ECANCELED, which librbd passes on from a progress callback."""


def flatten(session: Session, volume_id: str, progress: Progress) -> None:
    """See `SupportsFlatten.flatten`."""
    entry = clones.existing(session, volume_id)
    try:
        parent = session.headers.parent(entry.image_id)
        size_bytes = session.headers.size_bytes(entry.image_id)
    except NotFoundError as err:
        raise volume_missing(volume_id) from err
    if parent is None:
        session.directory.set_flattening(volume_id, False)
        return
    session.watchers.refuse_if_in_use(volume_id, entry.image_id)
    raised: list[BaseException] = []

    def on_progress(done: int, total: int) -> int:
        try:
            progress(size_bytes * done // total if total else 0, size_bytes)
            session.check()
        except BaseException as err:  # cannot cross librbd; raised below
            raised.append(err)
            return _CANCEL
        return 0

    with session.handles.image(volume_id, entry.image_id) as image:
        complete_copies(
            session.ioctx,
            image,
            parent,
            partial(session.parent_image, parent),
            session.check,
        )
        session.directory.set_flattening(volume_id, True)
        try:
            with translated(f"flatten volume {volume_id}", missing=volume_missing(volume_id)):
                image.flatten(on_progress)
        except VolcoreError as err:
            with suppress(VolcoreError):  # else the next start of a server does it
                session.links.end(entry.image_id)
            if raised:
                raise raised[0] from err
            raise
        finally:
            session.descriptions.forget()
    session.directory.set_flattening(volume_id, False)
    session.reaper.drop_stand_in(parent)
    session.reaper.reap_quietly(parent.image_id)
