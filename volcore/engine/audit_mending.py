"""What an audit mends: each looks once more with the lock that calls hold, then commits.

Each returns False, and has changed nothing, when the fault is not there any more.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Final

from volcore.backends.adopting import SupportsAdopt
from volcore.backends.auditing import SupportsAudit
from volcore.backends.carrying import SupportsCarry
from volcore.engine.audit_records import lock_of
from volcore.engine.changes import settle
from volcore.engine.exports import KINDS
from volcore.engine.pool import Pool, drop, now_ns, put, storage_lock, volume_lock
from volcore.errors import (
    IntegrityError,
    NotFoundError,
    OperationPendingError,
    PreconditionError,
    Reason,
)
from volcore.model import names
from volcore.model.faults import Fault, FaultKind
from volcore.model.records import (
    Attachment,
    Image,
    Intent,
    Kind,
    Snapshot,
    State,
    Volume,
    WarmClone,
)


def mend_storage(at: Pool, backend: SupportsAudit, fault: Fault) -> bool:
    """Let the backend mend what only it knows."""
    with _alone(at, fault.subject):
        return backend.mend(fault)


def _release(at: Pool, fault: Fault) -> bool:
    """Give a volume without a record up, so that it can be adopted."""
    assert isinstance(at.backend, SupportsAdopt)
    with _alone(at, fault.subject):
        if fault.subject not in at.backend.describe_many([fault.subject]):
            return False
        _refuse_newer(at, fault.subject)
        at.backend.release(fault.subject, fault.subject, {})
    return True


def _refuse_newer(at: Pool, backend_id: str) -> None:
    """Refuse to take records away that only a newer server can read.

    Raises:
        PreconditionError: RECORD_NEWER.
    """
    if not isinstance(at.backend, SupportsCarry):
        return
    for place, raw in at.backend.carried([backend_id]).get(backend_id, {}).items():
        kind, _, key = place.partition("/")
        if kind not in KINDS:
            raise PreconditionError(
                f"it carries a {kind} record {key!r} of a newer server; repair with that server",
                reason=Reason.RECORD_NEWER,
            )
        with suppress(IntegrityError):
            KINDS[kind].decode(raw, key).check_known()


def _settle(at: Pool, fault: Fault) -> bool:
    """Settle an intent that nobody works on."""
    found = at.find(Intent, fault.key)
    if found is None:
        return False
    with at.locks.hold([lock_of(found), storage_lock(found.backend_volume_id)]):
        if at.find(Intent, fault.key) != found or str(found.create_time_ns) != fault.part:
            return False
        settle(at, found)
    return True


def _detach(at: Pool, fault: Fault) -> bool:
    """Delete the record of an attachment to nothing."""
    with at.locks.hold([volume_lock(fault.key.partition("/")[0])]):
        found = at.find(Attachment, fault.key)
        if found is None or found.volume_id != fault.part:
            return False
        volume = at.find(Volume, found.volume)
        if volume is not None and volume.id == found.volume_id:
            return False
        at.catalog.commit([drop(found)])
    return True


def _drop_snapshot(at: Pool, fault: Fault) -> bool:
    """Delete the record of a snapshot whose volume and storage are gone."""
    with at.locks.hold([volume_lock(fault.key.partition("/")[0])]):
        found = at.find(Snapshot, fault.key)
        if found is None or found.id != fault.part:
            return False
        volume = at.find(Volume, found.volume)
        if volume is not None and volume.id == found.volume_id:
            return False
        facts = at.backend.describe_many([found.backend_volume_id]).get(found.backend_volume_id)
        if facts is not None and found.backend_id in facts.snapshot_ids:
            raise OperationPendingError(
                f"the storage still has snapshot {found.backend_id!r}; restore the record of its "
                "volume, or release and adopt its storage",
                reason=Reason.OPERATION_PENDING,
            )
        at.catalog.commit([drop(found)])
    return True


def _take_size(at: Pool, fault: Fault) -> bool:
    """Write the size that the storage has."""
    with at.locks.hold([volume_lock(fault.key)]):
        volume = at.find(Volume, fault.key)
        if volume is None or volume.state is not State.READY or volume.backend_id != fault.subject:
            return False
        facts = at.backend.describe(volume.backend_id)
        if facts.size_bytes <= volume.size_bytes:
            return False
        at.catalog.commit([put(volume.but(size_bytes=facts.size_bytes), volume)])
    return True


def _record_snapshot(at: Pool, fault: Fault) -> bool:
    """Write the record of a snapshot that others made, as an adoption would."""
    with at.locks.hold([volume_lock(fault.key), storage_lock(fault.subject)]):
        volume, _, snapshots = at.whole_volume(fault.key)
        if volume is None or volume.state is not State.READY or volume.backend_id != fault.subject:
            return False
        facts = at.backend.describe(volume.backend_id)
        if fault.part not in facts.snapshot_ids or fault.part in {s.backend_id for s in snapshots}:
            return False
        made = Snapshot(
            volume=volume.name,
            name=fault.part,
            id=names.new_id(),
            volume_id=volume.id,
            backend_volume_id=volume.backend_id,
            backend_id=fault.part,
            size_bytes=facts.size_bytes,
            state=State.READY,
            create_time_ns=now_ns(),
        )
        at.catalog.commit([put(made)])
    return True


def _carry(at: Pool, fault: Fault) -> bool:
    """Write the records of a volume into its storage."""
    assert at.carrier is not None
    at.carrier.compare([(Kind(fault.part.partition(" ")[0]), fault.key)])
    return at.carrier.flush(CARRY_TIMEOUT_S)


def _drop_warm(at: Pool, fault: Fault) -> bool:
    """Delete a warm clone, or what is left of it; the stock finds its record gone."""
    clone = at.find(WarmClone, fault.key)
    if clone is None:
        return False
    image = at.find(Image, clone.image)
    has_image = image is not None and image.id == clone.image_id
    if has_image and at.backend.describe_many([clone.backend_id]):
        return False
    deleting = clone.but(state=State.DELETING)
    at.catalog.commit([put(deleting, clone)])  # from now on nobody claims it
    with suppress(NotFoundError):
        at.backend.delete(clone.backend_id)
    at.catalog.commit([drop(deleting)])
    return True


CARRY_TIMEOUT_S: Final = 10.0
MENDERS: Final[Mapping[FaultKind, Callable[[Pool, Fault], bool]]] = {
    FaultKind.ATTACHMENT_WITHOUT_VOLUME: _detach,
    FaultKind.IMAGE_WITHOUT_RECORD: _release,
    FaultKind.INTENT_WITHOUT_OWNER: _settle,
    FaultKind.RECORD_NOT_CARRIED: _carry,
    FaultKind.SIZE_MISMATCH: _take_size,
    FaultKind.SNAPSHOT_WITHOUT_RECORD: _record_snapshot,
    FaultKind.SNAPSHOT_WITHOUT_VOLUME: _drop_snapshot,
    FaultKind.WARM_CLONE_WITHOUT_IMAGE: _drop_warm,
}
"""Of those that the engine mends; the backend mends the others."""


@contextmanager
def _alone(at: Pool, backend_id: str) -> Iterator[None]:
    """Hold what is stored under a name.

    Raises:
        OperationPendingError: a change of it is unfinished.
    """
    with at.locks.hold([storage_lock(backend_id)]):
        for intent in at.list(Intent, wanted=lambda one: one.backend_volume_id == backend_id):
            raise OperationPendingError(
                f"{backend_id!r} is being changed or deleted ({intent.action}); repeat the check",
                reason=Reason.OPERATION_PENDING,
                retryable=True,
            )
        yield
