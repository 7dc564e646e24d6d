"""From the exceptions of librados and librbd to the error taxonomy; nobody else knows them.

Both bindings raise classes of their own: `rbd.OSError` is an `rbd.Error`, not the built-in OSError.
What an errno means depends on the call, so each call site says what it asked for.
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Final

from volcore.backends.rbd.bindings import bindings
from volcore.errors import (
    BackendIOError,
    CancelledError,
    ConflictError,
    ExhaustedError,
    InvariantViolationError,
    NotFoundError,
    NotSupportedError,
    PermissionDeniedError,
    PreconditionError,
    Reason,
    UnavailableError,
    VolcoreError,
)

_FULL: Final = {errno.ENOSPC, errno.EDQUOT}
_UNREACHABLE: Final = {
    errno.ETIMEDOUT,
    errno.ENOTCONN,
    errno.ECONNREFUSED,
    errno.ECONNRESET,
    errno.EHOSTUNREACH,
}
_REFUSED: Final = {errno.EPERM, errno.EACCES}
_ABSENT: Final = {errno.EOPNOTSUPP, errno.ENOSYS}
_BUSY: Final = {errno.EBUSY, errno.ENOTEMPTY, errno.EAGAIN}


@cache
def ceph_errors() -> tuple[type[Exception], ...]:
    """Return the base classes of everything that the bindings raise."""
    found = bindings()
    return (found.rados.Error, found.rbd.Error)


def errno_of(err: Exception) -> int:
    """Return the positive errno behind an exception of the bindings, 0 if it has none."""
    return abs(int(getattr(err, "errno", None) or 0))


@contextmanager
def translated(
    doing: str,
    *,
    missing: VolcoreError | None = None,
    exists: VolcoreError | None = None,
    busy: VolcoreError | None = None,
    range_error: VolcoreError | None = None,
) -> Iterator[None]:
    """Turn exceptions of the bindings inside into the taxonomy.

    Args:
        doing: what the call was about, as in "cannot {doing}".
        missing: what ENOENT means here.
        exists: what EEXIST means here.
        busy: what EBUSY, ENOTEMPTY and EAGAIN mean here.
        range_error: what ERANGE and EOVERFLOW (an `assert_version` that fails) mean here.
    """
    try:
        yield
    except ceph_errors() as err:
        code = errno_of(err)
        if missing is not None and code == errno.ENOENT:
            raise missing from err
        if exists is not None and code == errno.EEXIST:
            raise exists from err
        if busy is not None and code in _BUSY:
            raise busy from err
        if range_error is not None and code in {errno.ERANGE, errno.EOVERFLOW}:
            raise range_error from err
        raise error_of(err, doing) from err


def error_of(err: Exception, doing: str) -> VolcoreError:
    """Return the error for an exception of the bindings, where the call site has no better word."""
    code = errno_of(err)
    if not code and isinstance(err, _state_errors()):
        return UnavailableError(
            f"cannot {doing}: the connection to Ceph is closed",
            reason=Reason.SHUTTING_DOWN,
            retryable=True,
        )
    return error_of_code(code, doing, str(err))


def error_of_code(code: int, doing: str, words: str) -> VolcoreError:
    """Return the error for a positive errno and what Ceph said with it."""
    text = f"cannot {doing}: {words}"
    if code in _FULL:
        return ExhaustedError(
            f"cannot {doing}: the pool or its quota is full; free space or raise it, then retry",
            reason=Reason.POOL_FULL,
        )
    if code in _UNREACHABLE:
        return UnavailableError(
            f"cannot {doing}: the Ceph cluster does not answer ({words}); retry",
            reason=Reason.CLUSTER_UNREACHABLE,
            retryable=True,
        )
    if code == errno.ESHUTDOWN:
        return UnavailableError(
            f"cannot {doing}: the cluster has fenced this server off (blocklisted), because another"
            " one took over; restart it",
            reason=Reason.CLUSTER_UNREACHABLE,
            retryable=True,
        )
    if code == errno.EROFS:  # librbd says so whatever kept it from the exclusive lock
        return UnavailableError(
            f"cannot {doing}: the exclusive lock of the rbd image could not be taken: another"
            " client keeps it or has just died with it, or this server was fenced off; retry, and"
            " if that does not help look at `rbd lock ls`",
            reason=Reason.CLUSTER_UNREACHABLE,
            retryable=True,
        )
    if code in _REFUSED:
        return PermissionDeniedError(
            f"{text}; give the Ceph user the capabilities `mon 'profile rbd'` and"
            " `osd 'profile rbd pool=...'`",
            reason=Reason.PERMISSION_DENIED,
        )
    return _other_error_of(code, text)


def _other_error_of(code: int, text: str) -> VolcoreError:
    """Return the error for the less common codes."""
    if code == errno.ENOENT:
        return NotFoundError(text, reason=Reason.OBJECT_NOT_FOUND)
    if code == errno.EEXIST:
        return ConflictError(text, reason=Reason.NAME_TAKEN)
    if code in _BUSY:
        return PreconditionError(
            f"{text}; a client has it open", reason=Reason.VOLUME_IN_USE, retryable=True
        )
    if code in _ABSENT:
        return NotSupportedError(text, reason=Reason.CAPABILITY_ABSENT)
    if code == errno.ECANCELED:
        return CancelledError(text, reason=Reason.CANCELLED)
    if code == errno.EINVAL:
        return InvariantViolationError(text, reason=Reason.INVARIANT_VIOLATION)
    return BackendIOError(text, reason=Reason.BACKEND_IO, errno=code)


@cache
def _state_errors() -> tuple[type[Exception], ...]:
    """Return the classes that say "already shut down" without an errno."""
    rados = bindings().rados
    return (rados.RadosStateError, rados.IoctxStateError)
