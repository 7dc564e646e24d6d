"""Errors to gRPC statuses and back: the only place that knows `grpc.StatusCode`.

A status carries google.rpc details: ErrorInfo (domain `volcore`, reason, context), RequestInfo,
PreconditionFailure with what blocks, and RetryInfo when the same call may succeed later. They
travel in the trailing metadata, which HTTP/2 peers bound at 8 KiB by default; details are therefore
cut to fit, and `blockers_total` tells how many blockers there are.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple, cast

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError, Message
from google.rpc import code_pb2, error_details_pb2, status_pb2

from volcore import errors
from volcore.errors import DOMAIN, Blocker, Reason, VolcoreError

DETAILS_KEY: Final = "grpc-status-details-bin"
REQUEST_ID_KEY: Final = "x-request-id"
RETRY_DELAY_S: Final = 0.1
"""What RetryInfo asks for; clients add back-off and jitter."""
_DETAILS_BYTES_MAX: Final = 4096
_MESSAGE_CHARS_MAX: Final = 1024
_CONTEXT_CHARS_MAX: Final = 256
_TOO_LARGE: Final = "larger than max"
"""What grpc says in either direction when a message exceeds the limit."""

_CLASSES: Final[dict[str, type[VolcoreError]]] = {
    one.status: one
    for one in (
        errors.InvalidArgumentError,
        errors.OutOfRangeError,
        errors.NotFoundError,
        errors.ConflictError,
        errors.PreconditionError,
        errors.OperationPendingError,
        errors.ExhaustedError,
        errors.UnavailableError,
        errors.DeadlineError,
        errors.CancelledError,
        errors.IntegrityError,
        errors.NotSupportedError,
        errors.PermissionDeniedError,
        errors.UnauthenticatedError,
        errors.InvariantViolationError,
    )
}
BARE_REASONS: Final = {
    "INVALID_ARGUMENT": Reason.BAD_FIELD,
    "OUT_OF_RANGE": Reason.BAD_FIELD,
    "NOT_FOUND": Reason.OBJECT_NOT_FOUND,
    "ALREADY_EXISTS": Reason.NAME_TAKEN,
    "FAILED_PRECONDITION": Reason.WRONG_STATE,
    "ABORTED": Reason.OPERATION_PENDING,
    "RESOURCE_EXHAUSTED": Reason.TOO_MANY_REQUESTS,
    "UNAVAILABLE": Reason.SERVER_UNREACHABLE,
    "DEADLINE_EXCEEDED": Reason.DEADLINE_PASSED,
    "CANCELLED": Reason.CANCELLED,
    "DATA_LOSS": Reason.BAD_RECORD,
    "UNIMPLEMENTED": Reason.CAPABILITY_ABSENT,
    "PERMISSION_DENIED": Reason.PERMISSION_DENIED,
    "UNAUTHENTICATED": Reason.UNAUTHENTICATED,
}
"""Reasons for statuses that came without ours: from grpc itself or from something in between."""
_BARE_SENTENCES: Final = {
    Reason.SERVER_UNREACHABLE: "the server cannot be reached ({}); check that it runs and the "
    "endpoint is right, then repeat the call",
    Reason.DEADLINE_PASSED: "the deadline passed before the answer came; the outcome is unknown: "
    "repeat the same call, with more time",
    Reason.CANCELLED: "the call was cancelled; repeat it if it is still wanted",
    Reason.CAPABILITY_ABSENT: "the server does not know this call ({}); use a newer server",
    Reason.MESSAGE_TOO_LARGE: "the message is larger than the largest that is accepted ({}); send "
    "less in one call",
}


class Abort(NamedTuple):
    """What a servicer's context needs in order to abort a call."""

    code: grpc.StatusCode
    message: str
    trailing_metadata: tuple[tuple[str, str | bytes], ...]


def to_abort(error: VolcoreError, *, request_id: str) -> Abort:
    """Return how to end a call with `error`."""
    detailed = to_status(error, request_id=request_id)
    return Abort(
        grpc.StatusCode[error.status],
        detailed.message,
        ((REQUEST_ID_KEY, request_id), (DETAILS_KEY, detailed.SerializeToString())),
    )


def to_status(error: VolcoreError, *, request_id: str) -> status_pb2.Status:
    """Return `error` with all its details."""
    result = status_pb2.Status(
        code=code_pb2.Code.Value(error.status), message=_cut(error.message, _MESSAGE_CHARS_MAX)
    )
    context = {key: _cut(value, _CONTEXT_CHARS_MAX) for key, value in error.context.items()}
    if error.blockers:
        context["blockers_total"] = str(len(error.blockers))
    context["request_id"] = request_id
    info = error_details_pb2.ErrorInfo(domain=DOMAIN, reason=error.reason, metadata=context)
    details: list[Message] = [info, error_details_pb2.RequestInfo(request_id=request_id)]
    if error.retryable:
        delay = Duration(nanos=int(RETRY_DELAY_S * 1e9))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    room = _DETAILS_BYTES_MAX - sum(one.ByteSize() for one in details)
    if error.blockers:
        details.append(_blockers(error.blockers, room))
    for one in details:
        result.details.add().Pack(one)
    return result


def _blockers(blockers: Sequence[Blocker], room: int) -> error_details_pb2.PreconditionFailure:
    """Return as many of `blockers` as fit into `room` bytes, at least one."""
    failure = error_details_pb2.PreconditionFailure()
    for blocker in blockers:
        failure.violations.add(
            type=blocker.kind, subject=blocker.name, description=f"{blocker.kind} {blocker.name}"
        )
        if failure.ByteSize() > room and len(failure.violations) > 1:
            del failure.violations[-1]
            break
    return failure


def from_status(status: status_pb2.Status) -> VolcoreError:
    """Return the error that `to_status` turned into `status`; also for foreign statuses."""
    info = error_details_pb2.ErrorInfo()
    failure = error_details_pb2.PreconditionFailure()
    retry = error_details_pb2.RetryInfo()
    retryable = False
    for detail in status.details:
        retryable |= detail.Unpack(retry)
        if not detail.Unpack(info):
            detail.Unpack(failure)
    code = code_pb2.Code.Name(status.code) if status.code in code_pb2.Code.values() else "UNKNOWN"
    if info.domain != DOMAIN:
        return _bare(code, status.message)
    return error_of(
        code,
        info.reason,
        status.message,
        retryable=retryable,
        blockers=[Blocker(one.type, one.subject) for one in failure.violations],
        context=info.metadata,
    )


def from_rpc_error(error: grpc.RpcError, *, request_id: str = "") -> VolcoreError:
    """Return the error behind a failed call of a sync or async stub.

    `request_id` is the one that the call sent, for failures that never reached the server.
    """
    call = cast("Any", error)
    for key, value in call.trailing_metadata() or ():
        if key == DETAILS_KEY:
            try:
                return from_status(status_pb2.Status.FromString(value))
            except DecodeError:
                break
    # grpc's server cancels calls that it has no room for; our own cancellations carry details.
    code = call.code()
    name = "UNAVAILABLE" if code is grpc.StatusCode.CANCELLED else code.name
    result = _bare(name, call.details() or "")
    if request_id:
        result.context["request_id"] = request_id
    return result


def error_of(
    status_name: str,
    reason: str,
    message: str,
    *,
    retryable: bool = False,
    blockers: Iterable[Blocker] = (),
    context: Mapping[str, str] | None = None,
) -> VolcoreError:
    """Return an error of the class that `status_name` and `reason` belong to.

    A reason of a newer server becomes the general one of the status; context `reason` keeps it.
    """
    facts: dict[str, str] = dict(context or {})
    if reason in Reason.__members__:
        known = Reason(reason)
    else:
        known = BARE_REASONS.get(status_name, Reason.INVARIANT_VIOLATION)
        facts["newer_reason"] = reason
    kind = _CLASSES.get(status_name, errors.InvariantViolationError)
    if status_name == errors.BackendIOError.status and known is Reason.BACKEND_IO:
        kind = errors.BackendIOError
    result = kind(message, reason=known, retryable=retryable, blockers=tuple(blockers))
    result.context.update(facts)
    return result


def _bare(status_name: str, message: str) -> VolcoreError:
    """Return the error for a status without our details."""
    reason = BARE_REASONS.get(status_name, Reason.INVARIANT_VIOLATION)
    if status_name == "RESOURCE_EXHAUSTED" and _TOO_LARGE in message:
        reason = Reason.MESSAGE_TOO_LARGE
    sentence = _BARE_SENTENCES.get(reason, "the call failed ({}); report it with the request id")
    return error_of(
        status_name,
        reason,
        sentence.format(message.strip().rstrip(".") or "no details"),
        retryable=reason is Reason.SERVER_UNREACHABLE,
    )


def _cut(text: str, chars_max: int) -> str:
    return text if len(text) <= chars_max else text[: chars_max - 3] + "..."
