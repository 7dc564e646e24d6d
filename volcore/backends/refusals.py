"""The errors that every backend raises alike: one wording, one reason for each."""

from volcore.errors import (
    Blocker,
    ConflictError,
    NotFoundError,
    OutOfRangeError,
    PreconditionError,
    Reason,
    UnavailableError,
)
from volcore.limits import BLOCK_SIZE_BYTES


def volume_missing(volume_id: str) -> NotFoundError:
    """Return the error for an unknown volume id."""
    return NotFoundError(
        f"volume {volume_id} does not exist in this pool; check the id",
        reason=Reason.OBJECT_NOT_FOUND,
        volume=volume_id,
    )


def snapshot_missing(volume_id: str, snapshot_id: str) -> NotFoundError:
    """Return the error for an unknown snapshot id."""
    return NotFoundError(
        f"volume {volume_id} has no snapshot {snapshot_id}; check the id",
        reason=Reason.OBJECT_NOT_FOUND,
        volume=volume_id,
        snapshot=snapshot_id,
    )


def id_taken(object_id: str) -> ConflictError:
    """Return the error for an id that exists already."""
    return ConflictError(
        f"{object_id} exists already; use a new id", reason=Reason.NAME_TAKEN, id=object_id
    )


def volume_in_use(volume_id: str) -> PreconditionError:
    """Return the error for a volume or snapshot on which a device is open."""
    return PreconditionError(
        f"volume {volume_id} is in use; close what has it open, then repeat the call",
        reason=Reason.VOLUME_IN_USE,
        blockers=(Blocker(kind="device", name=volume_id),),
        volume=volume_id,
    )


def read_only(volume_id: str) -> PreconditionError:
    """Return the error for a change through a read-only device."""
    return PreconditionError(
        f"the device of volume {volume_id} is open read-only; open it for writing",
        reason=Reason.READ_ONLY,
        volume=volume_id,
    )


def shrink_refused(volume_id: str, *, size_bytes: int, size_bytes_min: int) -> OutOfRangeError:
    """Return the error for a size below the present one."""
    return OutOfRangeError(
        f"volume {volume_id} cannot have {size_bytes} bytes, fewer than the {size_bytes_min} of "
        "its content; ask for at least that",
        reason=Reason.SHRINK_REFUSED,
        volume=volume_id,
    )


def depth_limit(volume_id: str, depth_max: int) -> PreconditionError:
    """Return the error for a volume that has as many ancestors as are allowed."""
    return PreconditionError(
        f"volume {volume_id} has {depth_max} ancestors, the most allowed; flatten it first",
        reason=Reason.DEPTH_LIMIT,
        volume=volume_id,
    )


def device_closed(volume_id: str) -> UnavailableError:
    """Return the error for the use of a closed device."""
    return UnavailableError(
        f"the device of volume {volume_id} is closed; open it again",
        reason=Reason.SHUTTING_DOWN,
        retryable=True,
        volume=volume_id,
    )


def check_range(volume_id: str, *, offset_bytes: int, length_bytes: int, size_bytes: int) -> None:
    """Raise unless the range lies within the device.

    Raises:
        OutOfRangeError: OFFSET_PAST_END.
    """
    if offset_bytes < 0 or length_bytes < 0 or offset_bytes + length_bytes > size_bytes:
        raise OutOfRangeError(
            f"bytes {offset_bytes} + {length_bytes} lie outside of volume {volume_id}, which has "
            f"{size_bytes} bytes",
            reason=Reason.OFFSET_PAST_END,
            volume=volume_id,
        )


def check_size(size_bytes: int) -> None:
    """Assert what the engine made sure of: a whole, positive number of blocks."""
    assert size_bytes > 0, "a volume has at least one block"
    assert size_bytes % BLOCK_SIZE_BYTES == 0, "a volume has whole blocks"
