"""Which devices are served under which names, and how long they stay open.

Life of an export: published; its device opened for the first connection and shared by all; closed
when the last connection goes, and opened again for the next; withdrawn: connections drained, device
closed, name free.

Invariants:
1. INV-NBD-1 (must): a device is closed only when no request of any connection uses it.
2. INV-NBD-2 (must): after `withdraw` returned, the device is flushed and closed, and stays closed.
3. INV-NBD-9 (must): after `set_writable(False)` returned, no client changes the device.
"""

import threading
import time
from collections.abc import Callable, Collection
from typing import Final, Protocol

import structlog

from volcore.backends.contract import BlockDevice
from volcore.errors import (
    ConflictError,
    DeadlineError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    Reason,
    VolcoreError,
)
from volcore.nbd.gate import WriteGate
from volcore.nbd.protocol import STRING_BYTES_MAX

Opener = Callable[[bool], BlockDevice]
"""Called as opener(read_only); the device belongs to the export, which closes it."""
Clients = Callable[[], Collection[str]]
"""Names of the clients that may use an export, asked for each connection."""

_DISCONNECT_GRACE_S: Final = 1.0
"""How long a withdrawal that ran out of time waits for connections it just cut off."""

_log = structlog.get_logger("volcore.nbd")


class ExportUser(Protocol):
    """A connection, seen from the export that it uses."""

    def drain(self) -> None:
        """Finish what is in flight, refuse the rest, then end. Does not wait."""

    def disconnect(self) -> None:
        """End at once; only calls into the device may still go on. Does not wait."""


class _Borrower:
    """A user that ends soon by itself."""

    def drain(self) -> None:
        """See `ExportUser.drain`."""

    def disconnect(self) -> None:
        """See `ExportUser.disconnect`."""


class _Export:
    """One published name. `changed` guards every field; `busy` stands for a slow open or close."""

    def __init__(
        self,
        name: str,
        opener: Opener,
        *,
        read_only: bool,
        owned: bool,
        clients: Clients,
        writable: bool,
    ) -> None:
        self.name = name
        self.opener = opener
        self.clients = clients
        self.read_only = read_only
        self.gate = WriteGate(writable=writable)
        self.owned = owned
        self.changed = threading.Condition()
        self.users: dict[ExportUser, frozenset[str] | None] = {}
        """Each with the names of its client; None: they do not matter."""
        self.device: BlockDevice | None = None
        self.busy = False
        self.withdrawn = threading.Event()
        self.failure: VolcoreError | None = None

    def admits(self, client_names: frozenset[str] | None) -> bool:
        """Return whether a client with these names may use it; None: who it is does not matter."""
        if client_names is None:
            return True
        return not client_names.isdisjoint(map(str.lower, self.clients()))

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
        self.gate = export.gate

    def release(self) -> None:
        """Let go; the last one closes the device."""
        if self._released:
            return
        self._released = True
        export = self._export
        with export.changed:
            export.users.pop(self._user, None)
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

    def publish(
        self,
        name: str,
        opener: Opener,
        *,
        read_only: bool,
        owned: bool = True,
        clients: Clients = tuple,
        writable: bool = True,
    ) -> None:
        """Offer a device under `name`, which is any printable text of at most 4096 bytes.

        Where clients are told apart (`TlsPolicy.attached_only`) only those that `clients` names may
        use it; by default nobody.

        With `writable` False writes are refused until `set_writable`, but clients are not told that
        the export is read-only: they open it for the time when they may write.

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
            self._exports[name] = _Export(
                name,
                opener,
                read_only=read_only,
                owned=owned,
                clients=clients,
                writable=writable,
            )

    def set_writable(self, name: str, *, writable: bool, timeout_s: float) -> None:
        """Let the clients of `name` write from now on, or not any more; reads go on.

        Idempotent: an unknown name is no error.
        Durability: what they wrote before they were stopped is durable at return.

        Raises:
            DeadlineError: writes are still in the device after `timeout_s`; no more are let in.
            VolcoreError: what the device raised when it was flushed.
        """
        with self._lock:
            export = self._exports.get(name)
        if export is None:
            return
        if writable:
            export.gate.open()
            return
        if not export.gate.shut(timeout_s):
            raise DeadlineError(
                f"export {name!r} still has writes in its device; repeat the call",
                reason=Reason.DEADLINE_PASSED,
                retryable=True,
                export=name,
            )
        lease = self._borrow(export)
        if lease is not None:
            try:
                lease.device.flush()
            finally:
                lease.release()

    def _borrow(self, export: _Export) -> Lease | None:
        """Return a hold on the device if it is open; closing has flushed it."""
        with export.changed:
            export.changed.wait_for(lambda: not export.busy)
            if export.device is None or export.device.read_only:
                return None
            user = _Borrower()
            export.users[user] = None
            return Lease(export, user, export.device)

    def expel(self, name: str) -> None:
        """Drain the clients of `name` that may not use it any more; does not wait.

        Idempotent: an unknown name is no error.
        """
        with self._lock:
            export = self._exports.get(name)
        if export is None:
            return
        with export.changed:
            users = tuple(export.users.items())
        for user, client_names in users:
            if not export.admits(client_names):
                user.drain()

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

    def names(self, client_names: frozenset[str] | None = None) -> list[str]:
        """Return what can be connected to, sorted; by a client of these names, if they matter."""
        with self._lock:
            found = sorted(self._exports.items())
        return [
            name
            for name, export in found
            if not export.withdrawn.is_set() and export.admits(client_names)
        ]

    def exists(self, name: str, client_names: frozenset[str] | None = None) -> bool:
        """Return whether `name` can be connected to; see `names`."""
        with self._lock:
            export = self._exports.get(name)
        if export is None or export.withdrawn.is_set():
            return False
        return export.admits(client_names)

    def open(
        self, name: str, user: ExportUser, client_names: frozenset[str] | None = None
    ) -> Lease:
        """Open the device of `name`, or share the open one, for `user`.

        Raises:
            NotFoundError: OBJECT_NOT_FOUND, no such export, or it is being withdrawn.
            PermissionDeniedError: it is not for clients of these names.
            VolcoreError: whatever the opener raises.
        """
        with self._lock:
            export = self._exports.get(name)
        if export is None:
            raise _not_found(name)
        if not export.admits(client_names):
            raise _not_attached(name, client_names)
        lease = self._lease(export, user, client_names)
        if not export.admits(client_names):  # an `expel` meanwhile has not seen this user
            lease.release()
            raise _not_attached(name, client_names)
        return lease

    def _lease(
        self, export: _Export, user: ExportUser, client_names: frozenset[str] | None
    ) -> Lease:
        with export.changed:
            export.changed.wait_for(lambda: not export.busy)
            if export.withdrawn.is_set():
                raise _not_found(export.name)
            if export.device is not None:
                export.users[user] = client_names
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
            export.users[user] = client_names
            export.busy = False
            withdrawn = export.withdrawn.is_set()
            export.changed.notify_all()
        lease = Lease(export, user, device)
        if withdrawn:  # meanwhile, and without having seen this user
            lease.release()
            raise _not_found(export.name)
        return lease

    def _wait_unused(self, export: _Export, timeout_s: float) -> bool:
        deadline_s = time.monotonic() + timeout_s
        with export.changed:
            return export.changed.wait_for(
                lambda: not export.users and not export.busy, deadline_s - time.monotonic()
            )


def _not_attached(name: str, client_names: frozenset[str] | None) -> PermissionDeniedError:
    shown = ", ".join(sorted(client_names or ())) or "a client without a name"
    return PermissionDeniedError(
        f"export {name!r} is not attached to {shown}",
        reason=Reason.PERMISSION_DENIED,
        export=name,
    )


def _not_found(name: str) -> NotFoundError:
    return NotFoundError(
        f"there is no export {name!r}", reason=Reason.OBJECT_NOT_FOUND, export=name
    )
