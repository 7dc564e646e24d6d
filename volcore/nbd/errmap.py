"""The translation of the error taxonomy into the few error numbers that NBD knows."""

from volcore.errors import (
    ExhaustedError,
    InvalidArgumentError,
    NotSupportedError,
    OutOfRangeError,
    PermissionDeniedError,
    Reason,
    VolcoreError,
)
from volcore.nbd.protocol import Command, NbdErrno, Request

_WRITING = frozenset({Command.WRITE, Command.TRIM, Command.WRITE_ZEROES})


def to_errno(error: BaseException, command: int) -> NbdErrno:
    """Return the error number that tells a client of `command` about `error`.

    EIO is the answer to all that has no better one: damaged data (IntegrityError), failed storage
    (BackendIOError), storage out of reach, and programmer errors.
    """
    if isinstance(error, MemoryError):
        return NbdErrno.ENOMEM
    if not isinstance(error, VolcoreError):
        return NbdErrno.EIO
    if error.reason is Reason.READ_ONLY or isinstance(error, PermissionDeniedError):
        return NbdErrno.EPERM
    if error.reason is Reason.SHUTTING_DOWN:
        return NbdErrno.ESHUTDOWN
    if isinstance(error, OutOfRangeError):
        return past_end_errno(command)
    if isinstance(error, ExhaustedError):
        return NbdErrno.ENOSPC
    if isinstance(error, NotSupportedError):
        return NbdErrno.ENOTSUP
    if isinstance(error, InvalidArgumentError):
        return NbdErrno.EINVAL
    return NbdErrno.EIO


def past_end_errno(command: int) -> NbdErrno:
    """Return the error number for a range that ends after the device."""
    return NbdErrno.ENOSPC if command in _WRITING else NbdErrno.EINVAL


def error_offset(error: BaseException, request: Request) -> int | None:
    """Return the byte at which `error` happened, if known and inside of the request."""
    if not isinstance(error, VolcoreError):
        return None
    text = error.context.get("offset_bytes", "")
    if not text.isdecimal():
        return None
    offset_bytes = int(text)
    end_bytes = request.offset_bytes + request.length_bytes
    return offset_bytes if request.offset_bytes <= offset_bytes < end_bytes else None


def client_message(error: BaseException) -> str:
    """Return the sentence for the client: the taxonomy's own, nothing of other exceptions."""
    return error.message if isinstance(error, VolcoreError) else "internal error"
