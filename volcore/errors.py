"""The closed error taxonomy: every failure that volcore reports is one of these classes.

`reason` is the stable word that clients match on (ErrorInfo.reason, domain `volcore`); the sentence
may change, the reason may not. `status` names the gRPC status code; `recovery` is what a caller can
do. `docs/errors.md` is generated from this module. Leaves carry no logic.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

DOMAIN = "volcore"


class Reason(StrEnum):
    """Every stable reason, in the order of `docs/errors.md`."""

    BAD_NAME = "BAD_NAME"
    BAD_FIELD = "BAD_FIELD"
    BAD_LABEL = "BAD_LABEL"
    BAD_PAGE_TOKEN = "BAD_PAGE_TOKEN"  # noqa: S105 - a reason, not a secret
    BAD_FILTER = "BAD_FILTER"
    SOURCE_IN_OTHER_POOL = "SOURCE_IN_OTHER_POOL"
    SOURCE_MISSING = "SOURCE_MISSING"
    HANDED_FILE_UNKNOWN = "HANDED_FILE_UNKNOWN"
    IMAGE_FORMAT_UNKNOWN = "IMAGE_FORMAT_UNKNOWN"
    IMAGE_FORMAT_MISMATCH = "IMAGE_FORMAT_MISMATCH"
    IMAGE_UNSAFE = "IMAGE_UNSAFE"
    IMAGE_CORRUPT = "IMAGE_CORRUPT"
    IMAGE_CHECKSUM_MISMATCH = "IMAGE_CHECKSUM_MISMATCH"
    CONFIG_INVALID = "CONFIG_INVALID"
    SIZE_NOT_ALLOWED = "SIZE_NOT_ALLOWED"
    SHRINK_REFUSED = "SHRINK_REFUSED"
    OFFSET_PAST_END = "OFFSET_PAST_END"
    MESSAGE_TOO_LARGE = "MESSAGE_TOO_LARGE"
    POOL_NOT_FOUND = "POOL_NOT_FOUND"
    VOLUME_NOT_FOUND = "VOLUME_NOT_FOUND"
    SNAPSHOT_NOT_FOUND = "SNAPSHOT_NOT_FOUND"
    GROUP_SNAPSHOT_NOT_FOUND = "GROUP_SNAPSHOT_NOT_FOUND"
    IMAGE_NOT_FOUND = "IMAGE_NOT_FOUND"
    ATTACHMENT_NOT_FOUND = "ATTACHMENT_NOT_FOUND"
    FENCED_HOST_NOT_FOUND = "FENCED_HOST_NOT_FOUND"
    OPERATION_NOT_FOUND = "OPERATION_NOT_FOUND"
    OBJECT_NOT_FOUND = "OBJECT_NOT_FOUND"
    NAME_TAKEN = "NAME_TAKEN"
    VOLUME_IN_USE = "VOLUME_IN_USE"
    VOLUME_HAS_SNAPSHOTS = "VOLUME_HAS_SNAPSHOTS"
    SNAPSHOT_IN_GROUP = "SNAPSHOT_IN_GROUP"
    WRONG_STATE = "WRONG_STATE"
    HOST_FENCED = "HOST_FENCED"
    FENCE_UNCONFIRMED = "FENCE_UNCONFIRMED"
    FENCE_HITS_SERVER = "FENCE_HITS_SERVER"
    CLIENTS_UNKNOWN = "CLIENTS_UNKNOWN"
    NOT_ADOPTABLE = "NOT_ADOPTABLE"
    CATALOG_NOT_EMPTY = "CATALOG_NOT_EMPTY"
    RECORD_NEWER = "RECORD_NEWER"
    READ_ONLY = "READ_ONLY"
    DEPTH_LIMIT = "DEPTH_LIMIT"
    POOL_LOCKED = "POOL_LOCKED"
    POOL_UNUSABLE = "POOL_UNUSABLE"
    POOL_ELSEWHERE = "POOL_ELSEWHERE"
    TOOL_MISSING = "TOOL_MISSING"
    OPERATION_PENDING = "OPERATION_PENDING"
    CATALOG_CONFLICT = "CATALOG_CONFLICT"
    POOL_FULL = "POOL_FULL"
    TOO_MANY_SNAPSHOTS = "TOO_MANY_SNAPSHOTS"
    TOO_MANY_REQUESTS = "TOO_MANY_REQUESTS"
    CLUSTER_UNREACHABLE = "CLUSTER_UNREACHABLE"
    SHUTTING_DOWN = "SHUTTING_DOWN"
    SERVER_UNREACHABLE = "SERVER_UNREACHABLE"
    DEADLINE_PASSED = "DEADLINE_PASSED"
    CANCELLED = "CANCELLED"
    BAD_CHECKSUM = "BAD_CHECKSUM"
    BAD_RECORD = "BAD_RECORD"
    CAPABILITY_ABSENT = "CAPABILITY_ABSENT"
    PERMISSION_DENIED = "PERMISSION_DENIED"
    UNAUTHENTICATED = "UNAUTHENTICATED"
    BACKEND_IO = "BACKEND_IO"
    INVARIANT_VIOLATION = "INVARIANT_VIOLATION"


@dataclass(frozen=True, slots=True)
class Blocker:
    """One thing that stands in the way: what kind it is, and its resource name."""

    kind: str
    name: str


class VolcoreError(Exception):
    """Base of all volcore errors.

    Args:
        message: one clear sentence: what is wrong and what to do next.
        reason: stable word.
        retryable: the same call may succeed later without any change by the caller.
        blockers: what blocks, for precondition errors.
        context: further facts (strings), sent as ErrorInfo metadata.
    """

    status = "INTERNAL"
    recovery = "report with the request id"

    def __init__(
        self,
        message: str,
        *,
        reason: Reason,
        retryable: bool = False,
        blockers: Sequence[Blocker] = (),
        **context: object,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason
        self.retryable = retryable
        self.blockers = tuple(blockers)
        self.context = {key: str(value) for key, value in context.items()}


class InvalidArgumentError(VolcoreError):
    """A field is missing or malformed, whatever the state of the system."""

    status = "INVALID_ARGUMENT"
    recovery = "fix the request"


class OutOfRangeError(VolcoreError):
    """A number is outside of what is allowed here."""

    status = "OUT_OF_RANGE"
    recovery = "fix the number"


class NotFoundError(VolcoreError):
    """What was asked for does not exist."""

    status = "NOT_FOUND"
    recovery = "check the name, then retry or stop"


class ConflictError(VolcoreError):
    """The name exists with other parameters."""

    status = "ALREADY_EXISTS"
    recovery = "use a new name or the same parameters"


class PreconditionError(VolcoreError):
    """The state does not allow the call now; `blockers` names what is in the way."""

    status = "FAILED_PRECONDITION"
    recovery = "change the state first"


class OperationPendingError(VolcoreError):
    """Another call works on the same object, or the record changed meanwhile."""

    status = "ABORTED"
    recovery = "retry with back-off"


class ExhaustedError(VolcoreError):
    """Space or a quota is used up."""

    status = "RESOURCE_EXHAUSTED"
    recovery = "free or raise, then retry"


class UnavailableError(VolcoreError):
    """The service or its storage cannot be reached now."""

    status = "UNAVAILABLE"
    recovery = "retry with back-off"


class DeadlineError(VolcoreError):
    """The caller's own deadline passed; the outcome is unknown."""

    status = "DEADLINE_EXCEEDED"
    recovery = "outcome unknown: repeat the same call"


class CancelledError(VolcoreError):
    """The operation was cancelled on request; nothing of it is left."""

    status = "CANCELLED"
    recovery = "start again if still wanted"


class IntegrityError(VolcoreError):
    """Bytes read back are not the bytes written: checksum, magic or record is wrong."""

    status = "DATA_LOSS"
    recovery = "stop, repair, restore"


class NotSupportedError(VolcoreError):
    """This pool or server cannot do it at all."""

    status = "UNIMPLEMENTED"
    recovery = "do not retry"


class PermissionDeniedError(VolcoreError):
    """The credentials in use do not allow it."""

    status = "PERMISSION_DENIED"
    recovery = "fix the permissions"


class UnauthenticatedError(VolcoreError):
    """The caller showed no valid credentials."""

    status = "UNAUTHENTICATED"
    recovery = "fix the credentials"


class BackendIOError(VolcoreError):
    """The storage below answered with an I/O error."""

    status = "INTERNAL"
    recovery = "look at the storage, report with the request id"


class InvariantViolationError(VolcoreError):
    """A programmer error inside volcore."""

    status = "INTERNAL"
    recovery = "report with the request id"
