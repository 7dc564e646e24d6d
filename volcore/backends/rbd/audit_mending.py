"""What an audit mends in a pool; each looks again before it changes something.

Precondition of all: no intent names the volume, and the engine holds the lock of its storage.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Final

from volcore.backends.rbd import foreign
from volcore.backends.rbd.audit_objects import has_head, owner_of
from volcore.backends.rbd.direct import wire
from volcore.backends.rbd.errmap import translated
from volcore.backends.rbd.header import Parent, header_object
from volcore.backends.rbd.links import drop_needless
from volcore.backends.rbd.session import Session
from volcore.errors import NotFoundError, OperationPendingError, Reason
from volcore.model.faults import Fault, FaultKind


def mend(session: Session, fault: Fault) -> bool:
    """See `SupportsAudit.mend`."""
    return _MENDERS[fault.kind](session, fault)


def _restore(session: Session, fault: Fault) -> bool:
    """Take an image out of rbd's trash."""
    entry = session.directory.find(fault.subject)
    if entry is None or entry.image_id != fault.part:
        return False
    with (
        session.handles.exclusive(fault.subject, snapshots=True),
        suppress(NotFoundError),
        translated(f"restore rbd image {fault.subject}"),
    ):
        session.rbd.trash_restore(session.ioctx, fault.part, fault.subject)
        return True
    return False


def _finish(session: Session, fault: Fault) -> bool:
    """Delete or finish what a creation cut off has left."""
    with session.claiming((fault.subject,)):
        entry = session.directory.find(fault.subject)
        if entry is None or entry.image_id:
            return False
        if entry.link is None:
            session.reaper.undo(entry)
        else:
            session.direct.recovery.settle(entry)
    return True


def _enter(session: Session, fault: Fault) -> bool:
    """Write the row of an image that a record names."""
    foreign.adopt(session, fault.subject)
    return True


def _drop_row(session: Session, fault: Fault) -> bool:
    """Delete the row of an image of which nothing is left."""
    entry = session.directory.find(fault.subject)
    if entry is None or entry.image_id != fault.part or session.headers.exists(fault.part):
        return False
    left = session.headers.image_id(fault.subject) is not None
    with translated("list the objects of the pool"):
        for item in session.ioctx.list_objects():
            owner = owner_of(item.key)
            if owner is not None and owner[1] == fault.part:
                left = left or has_head(session.ioctx, item.key)
    if left:
        raise OperationPendingError(
            f"something of rbd image {fault.subject} ({fault.part}) is left; restore it, or delete "
            "that first",
            reason=Reason.OPERATION_PENDING,
        )
    session.directory.let_go(entry)
    session.forget(fault.subject)
    return True


def _attach(session: Session, fault: Fault) -> bool:
    """Tell a parent of its clone."""
    image_id, snap, child = _link(fault)
    parent = Parent(pool_id=session.headers.pool_id, image_id=image_id, snap=snap)
    if session.headers.parent(child) != parent or session.links.knows(parent, child):
        return False
    _call(session, image_id, "child_attach", snap, child)
    return True


def _detach(session: Session, fault: Fault) -> bool:
    """Take a clone that does not exist out of its parent's list."""
    image_id, snap, child = _link(fault)
    with suppress(NotFoundError):
        parent = session.headers.parent(child)
        if parent is not None and (parent.image_id, parent.snap) == (image_id, snap):
            return False
    if any(e.link is not None and e.link.image_id == child for e in session.directory.walk()):
        return False
    with suppress(NotFoundError):
        _call(session, image_id, "child_detach", snap, child)
        drop_needless(session.ioctx, session.headers, image_id, snap)
        session.reaper.reap_quietly(image_id)
        return True
    return False


def _sweep(session: Session, fault: Fault) -> bool:
    """Delete a name without an image."""
    with session.claiming((fault.subject,)):
        if session.directory.find(fault.subject) is not None:
            return False
        return session.direct.recovery.sweep_name(fault.subject)


def _free(session: Session, fault: Fault) -> bool:
    """Free the image of a deleted volume."""
    return session.reaper.reap(fault.part) > 0


def _drop_maps(session: Session, fault: Fault) -> bool:
    """Delete the object maps of an image without a header."""
    if session.headers.exists(fault.subject):
        return False
    with translated("list the objects of the pool"):
        names = [
            item.key
            for item in session.ioctx.list_objects()
            if owner_of(item.key) == (FaultKind.ORPHAN_OBJECT_MAP, fault.subject)
        ]
        for name in names:
            with suppress(NotFoundError), translated(f"delete {name}"):
                session.ioctx.remove_object(name)
    return bool(names)


def _link(fault: Fault) -> tuple[str, int, str]:
    """Return parent, snapshot and clone that a fault is about."""
    image_id, snap, child = fault.part.split()
    return image_id, int(snap), child


def _call(session: Session, image_id: str, method: str, snap: int, child: str) -> Any:
    body = wire.child_link(session.headers.pool_id, child, snap)
    missing = NotFoundError(
        f"rbd image {image_id} has no such link", reason=Reason.OBJECT_NOT_FOUND
    )
    with translated(f"call rbd.{method} of rbd image {image_id}", missing=missing):
        session.ioctx.execute(header_object(image_id), "rbd", method, body)


_MENDERS: Final[Mapping[FaultKind, Callable[[Session, Fault], bool]]] = {
    FaultKind.CHILD_WITHOUT_LINK: _attach,
    FaultKind.HALF_MADE: _finish,
    FaultKind.IMAGE_IN_TRASH: _restore,
    FaultKind.IMAGE_WITHOUT_ROW: _enter,
    FaultKind.LINK_WITHOUT_CHILD: _detach,
    FaultKind.NAME_WITHOUT_IMAGE: _sweep,
    FaultKind.ORPHAN_OBJECT_MAP: _drop_maps,
    FaultKind.ROW_WITHOUT_IMAGE: _drop_row,
    FaultKind.UNFREED_IMAGE: _free,
}
