"""Which devices are served under which names, and how long they stay open.

Life of an export: published; its device opened for the first connection and shared by all; closed
when the last connection goes, and opened again for the next; withdrawn: connections drained, device
closed, name free.

Invariants:
1. INV-NBD-1 (must): a device is closed only when no request of any connection uses it.
2. INV-NBD-2 (must): after `withdraw` returned, the device is flushed and closed, and stays closed.
"""

import threading
import time
from collections.abc import Callable
from typing import Final, Protocol

import structlog

from volcore.backends.contract import BlockDevice
from volcore.errors import (
    ConflictError,
    DeadlineError,
    InvalidArgumentError,
    NotFoundError,
    Reason,
    VolcoreError,
)
from volcore.nbd.protocol import STRING_BYTES_MAX

Opener = Callable[[bool], BlockDevice]
"""Called as opener(read_only); the device belongs to the export, which closes it."""

_DISCONNECT_GRACE_S: Final = 1.0
"""How long a withdrawal that ran out of time waits for connections it just cut off."""

_log = structlog.get_logger("volcore.nbd")


class ExportUser(Protocol):
    """A connection, seen from the export that it uses."""

    def drain(self) -> None:
        """Finish what is in flight, refuse the rest, then end. Does not wait."""

    def disconnect(self) -> None:
        """End at once; only calls into the device may still go on. Does not wait."""


class _Export:
    """One published name. `changed` guards every field; `busy` stands for a slow open or close."""

    def __init__(self, name: str, opener: Opener, *, read_only: bool, owned: bool) -> None:
        self.name = name
        self.opener = opener
        self.read_only = read_only
        self.owned = owned
        self.changed = threading.Condition()
        self.users: set[ExportUser] = set()
        self.device: BlockDevice | None = None
        self.busy = False
        self.withdrawn = threading.Event()
        self.failure: VolcoreError | None = None

    def close_device(self) -> None:
        """Close the device, or flush a borrowed one; the caller has set `busy`."""
        device, self.device = self.device, None
        if device is None:
            return
        if self.owned:
            device.close()
        elif not device.read_only:
            device.flush()


class Lease:
    """A connection's hold on an open device; `release` is idempotent."""

    def __init__(self, export: _Export, user: ExportUser, device: BlockDevice) -> None:
        self._export = export
        self._user = user
        self._released = False
        self.name = export.name
        self.device = device
        self.read_only = export.read_only or device.read_only

    def release(self) -> None:
        """Let go; the last one closes the device."""
        if self._released:
            return
        self._released = True
        export = self._export
        with export.changed:
            export.users.discard(self._user)
            last = not export.users and not export.busy
            if not last:
                export.changed.notify_all()
                return
            export.busy = True
        failure: VolcoreError | None = None
        try:
            export.close_device()
        except VolcoreError as error:
            failure = error
            _log.error("nbd device did not close", export=export.name, error=error.message)
        finally:
            with export.changed:
                export.busy = False
                if export.withdrawn.is_set():
                    export.failure = failure
                export.changed.notify_all()


class ExportTable:
    """The names that NBD servers offer. Thread-safe; several servers may share one table."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._exports: dict[str, _Export] = {}

    def publish(self, name: str, opener: Opener, *, read_only: bool, owned: bool = True) -> None:
        """Offer a device under `name`, which is any printable text of at most 4096 bytes.

        `opener` is called for the first connection, so that a mistake in it shows there. With
        `owned` False the device is the caller's: it is flushed instead of closed.

        Raises:
            InvalidArgumentError: BAD_NAME.
            ConflictError: NAME_TAKEN; also while an earlier export of this name is withdrawn.
        """
        if not name.isprintable() or len(name.encode(errors="replace")) > STRING_BYTES_MAX:
            raise InvalidArgumentError(
                "an export name is printable text of at most 4096 bytes", reason=Reason.BAD_NAME
            )
        with self._lock:
            if name in self._exports:
                raise ConflictError(
                    f"export {name!r} is already published", reason=Reason.NAME_TAKEN, export=name
                )
            self._exports[name] = _Export(name, opener, read_only=read_only, owned=owned)

    def withdraw(self, name: str, *, timeout_s: float) -> None:
        """Stop offering `name`: refuse new connections, drain the others, close the device.

        Idempotent: an unknown name is no error, and a second call waits for the same end.
        Durability: what clients wrote is durable at return.

        Raises:
            DeadlineError: requests are still in the device after `timeout_s`; the clients are
                disconnected, the name stays taken. Repeat the call.
            VolcoreError: what the device raised when it was flushed and closed; it is closed.
        """
        with self._lock:
            export = self._exports.get(name)
        if export is None:
            return
        with export.changed:
            export.withdrawn.set()
            users = tuple(export.users)
        for user in users:
            user.drain()
        if not self._wait_unused(export, timeout_s):
            with export.changed:
                users = tuple(export.users)
            for user in users:
                user.disconnect()
            if not self._wait_unused(export, _DISCONNECT_GRACE_S):
                raise DeadlineError(
                    f"export {name!r} still has requests in its device; withdraw it again",
                    reason=Reason.DEADLINE_PASSED,
                    retryable=True,
                    export=name,
                )
        with self._lock:
            if self._exports.get(name) is export:
                del self._exports[name]
        failure, export.failure = export.failure, None
        if failure is not None:
            raise failure

    def names(self) -> list[str]:
        """Return what can be connected to, sorted."""
        with self._lock:
            return sorted(
                name for name, export in self._exports.items() if not export.withdrawn.is_set()
            )

    def exists(self, name: str) -> bool:
        """Return whether `name` can be connected to."""
        with self._lock:
            export = self._exports.get(name)
            return export is not None and not export.withdrawn.is_set()

    def open(self, name: str, user: ExportUser) -> Lease:
        """Open the device of `name`, or share the open one, for `user`.

        Raises:
            NotFoundError: OBJECT_NOT_FOUND, no such export, or it is being withdrawn.
            VolcoreError: whatever the opener raises.
        """
        with self._lock:
            export = self._exports.get(name)
        if export is None:
            raise _not_found(name)
        with export.changed:
            export.changed.wait_for(lambda: not export.busy)
            if export.withdrawn.is_set():
                raise _not_found(name)
            if export.device is not None:
                export.users.add(user)
                return Lease(export, user, export.device)
            export.busy = True
        try:
            device = export.opener(export.read_only)
        except BaseException:
            with export.changed:
                export.busy = False
                export.changed.notify_all()
            raise
        with export.changed:
            export.device = device
            export.users.add(user)
            export.busy = False
            withdrawn = export.withdrawn.is_set()
            export.changed.notify_all()
        lease = Lease(export, user, device)
        if withdrawn:  # meanwhile, and without having seen this user
            lease.release()
            raise _not_found(name)
        return lease

    def _wait_unused(self, export: _Export, timeout_s: float) -> bool:
        deadline_s = time.monotonic() + timeout_s
        with export.changed:
            return export.changed.wait_for(
                lambda: not export.users and not export.busy, deadline_s - time.monotonic()
            )


def _not_found(name: str) -> NotFoundError:
    return NotFoundError(
        f"there is no export {name!r}", reason=Reason.OBJECT_NOT_FOUND, export=name
    )
