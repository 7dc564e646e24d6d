"""Listening sockets, and the connections that come from them.

Invariant INV-NBD-6 (must): nobody but this machine reaches an export without TLS: a unix socket
has mode 0600 in a directory of mode 0700, and TCP listens on loopback addresses.
"""

import ipaddress
import itertools
import os
import selectors
import socket
import stat
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self
from urllib.parse import quote

import structlog

from volcore.errors import DeadlineError, InvalidArgumentError, PreconditionError, Reason
from volcore.limits import MIB, NBD_CONNECTIONS_MAX
from volcore.nbd.buffers import BufferPool
from volcore.nbd.connection import Connection
from volcore.nbd.exports import ExportTable
from volcore.nbd.handshake import OPTION_TIMEOUT_S
from volcore.nbd.tls import ContextSource, TlsPolicy
from volcore.nbd.transmission import WorkerBudget

UNIX_PATH_BYTES_MAX: Final = 107
"""`sun_path` of Linux has 108 bytes, one of them the final zero."""
SOCKET_BUFFER_BYTES: Final = 4 * MIB
"""Two large requests; the kernel may grant less (net.core.wmem_max)."""
BACKLOG: Final = 128
ACCEPT_PAUSE_S: Final = 0.1
"""Wait after a failed accept (no descriptors left) instead of spinning."""
HARD_STOP_GRACE_S: Final = 1.0

_log = structlog.get_logger("volcore.nbd")


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """A socket in a directory that only its owner may enter; made with mode 0700 if missing."""

    path: Path


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """An IP address, without TLS a loopback one; port 0 lets the system choose."""

    host: str
    port: int


Address = UnixAddress | TcpAddress


class NbdServer:
    """Serves the exports of a table on some addresses.

    Args:
        addresses: where to listen.
        exports: what to serve; may change at any time, and may be shared with other servers.
        tls: whom to serve over TLS; None: nobody.
        connections_max: clients at a time; more are hung up on.
        option_timeout_s: how long a client may be silent during the handshake.

    Raises:
        InvalidArgumentError: CONFIG_INVALID: an address that is not loopback and has no TLS, a long
            path, TLS files that cannot be used.
    """

    def __init__(
        self,
        *addresses: Address,
        exports: ExportTable,
        tls: TlsPolicy | None = None,
        connections_max: int = NBD_CONNECTIONS_MAX,
        option_timeout_s: float = OPTION_TIMEOUT_S,
    ) -> None:
        for address in addresses:
            _check(address, tls)
        self._wanted = addresses
        self._exports = exports
        self._tls = tls
        self._contexts = None if tls is None else ContextSource(tls.credentials)
        self._connections_max = connections_max
        self._option_timeout_s = option_timeout_s
        self._pool = BufferPool()
        self._budget = WorkerBudget()
        self._lock = threading.Lock()
        self._connections: set[Connection] = set()
        self._numbers = itertools.count(1)
        self._listeners: list[tuple[socket.socket, Address]] = []
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self._stop_lock = threading.Lock()
        self._wake_read, self._wake_write = -1, -1

    @property
    def addresses(self) -> tuple[Address, ...]:
        """Where it listens, with the ports that the system chose; empty unless started."""
        return tuple(address for _, address in self._listeners)

    @property
    def connection_count(self) -> int:
        """Connections that are open now."""
        with self._lock:
            return len(self._connections)

    def uris(self, export: str) -> list[str]:
        """Return the NBD URI of `export` at each address."""
        return [uri(one, export, tls=self.needs_tls(one)) for one in self.addresses]

    def needs_tls(self, address: Address) -> bool:
        """Return whether clients of `address` must use TLS."""
        if self._tls is None:
            return False
        return self._tls.on_unix or isinstance(address, TcpAddress)

    def start(self) -> None:
        """Listen and accept.

        Raises:
            PreconditionError: WRONG_STATE: started before, the address is in use, or the socket's
                directory lets others in.
            InvalidArgumentError: CONFIG_INVALID: the system refuses the address.
        """
        if self._thread is not None:
            raise PreconditionError("the NBD server was started before", reason=Reason.WRONG_STATE)
        try:
            for address in self._wanted:
                self._listeners.append(_listen(address))
            selector = selectors.DefaultSelector()
            self._wake_read, self._wake_write = os.pipe()
        except BaseException:
            self._close_listeners()
            raise
        selector.register(self._wake_read, selectors.EVENT_READ)
        for listener, address in self._listeners:
            selector.register(listener, selectors.EVENT_READ, self.needs_tls(address))
        self._thread = threading.Thread(
            target=self._accept_loop, args=(selector,), name="volcore-nbd", daemon=True
        )
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        """Stop accepting, let requests in flight finish, answer others ESHUTDOWN, disconnect.

        Idempotent. Exports stay published; their devices are closed as connections end.

        Raises:
            DeadlineError: requests are still in a device after `timeout_s`; all clients are
                disconnected. Repeat the call.
        """
        deadline_s = time.monotonic() + timeout_s
        if self._thread is None:
            return
        with self._stop_lock:
            if not self._stopping.is_set():
                self._stopping.set()
                os.write(self._wake_write, b"x")
                self._thread.join()
                os.close(self._wake_read)
                os.close(self._wake_write)
        connections = self._snapshot()
        for connection in connections:
            connection.drain()
        left = [one for one in connections if not one.join(max(0, deadline_s - time.monotonic()))]
        for connection in left:
            connection.disconnect()
        grace_end_s = time.monotonic() + HARD_STOP_GRACE_S
        left = [one for one in left if not one.join(max(0, grace_end_s - time.monotonic()))]
        if left:
            raise DeadlineError(
                f"{len(left)} NBD connections still have requests in their device",
                reason=Reason.DEADLINE_PASSED,
                retryable=True,
            )

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop(HARD_STOP_GRACE_S)

    def _snapshot(self) -> list[Connection]:
        with self._lock:
            return list(self._connections)

    def _accept_loop(self, selector: selectors.BaseSelector) -> None:
        with selector:
            while not self._stopping.is_set():
                for key, _ in selector.select():
                    if isinstance(key.fileobj, socket.socket):
                        self._accept(key.fileobj, key.data)
        self._close_listeners()

    def _accept(self, listener: socket.socket, needs_tls: bool) -> None:
        try:
            sock, _ = listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError as error:
            _log.error("nbd accept failed", error=str(error))
            self._stopping.wait(ACCEPT_PAUSE_S)
            return
        sock.setblocking(True)
        _tune(sock)
        name = f"volcore-nbd-{next(self._numbers)}"
        connection = Connection(
            sock,
            exports=self._exports,
            pool=self._pool,
            budget=self._budget,
            name=name,
            option_timeout_s=self._option_timeout_s,
            tls=self._contexts if needs_tls else None,
            attached_only=self._tls is not None and self._tls.attached_only,
            on_end=self._ended,
        )
        with self._lock:
            full = len(self._connections) >= self._connections_max
            if not full:
                self._connections.add(connection)
        if full:
            _log.warning("nbd connection refused", connections_max=self._connections_max)
            connection.close()
            return
        try:
            connection.start()
        except RuntimeError as error:
            _log.error("nbd connection refused", error=str(error))
            connection.close()
            self._ended(connection)

    def _ended(self, connection: Connection) -> None:
        with self._lock:
            self._connections.discard(connection)

    def _close_listeners(self) -> None:
        for listener, address in self._listeners:
            listener.close()
            if isinstance(address, UnixAddress):
                with suppress(OSError):
                    address.path.unlink()
        self._listeners.clear()


def uri(address: Address, export: str, *, tls: bool = False) -> str:
    """Return the NBD URI of an export.

    Source: https://github.com/NetworkBlockDevice/nbd/blob/master/doc/uri.md.
    """
    if isinstance(address, UnixAddress):
        return f"nbd{'s' if tls else ''}+unix:///{quote(export)}?socket={quote(str(address.path))}"
    host = f"[{address.host}]" if ":" in address.host else address.host
    return f"nbd{'s' if tls else ''}://{host}:{address.port}/{quote(export)}"


def _check(address: Address, tls: TlsPolicy | None) -> None:
    if isinstance(address, UnixAddress):
        if len(os.fsencode(address.path)) > UNIX_PATH_BYTES_MAX:
            raise InvalidArgumentError(
                f"the path of a unix socket has at most {UNIX_PATH_BYTES_MAX} bytes",
                reason=Reason.CONFIG_INVALID,
                path=address.path,
            )
        return
    try:
        loopback = ipaddress.ip_address(address.host).is_loopback
    except ValueError:
        loopback = False
    if tls is None and not loopback:
        raise InvalidArgumentError(
            f"NBD without TLS listens on a loopback address (127.0.0.1, ::1), not {address.host}",
            reason=Reason.CONFIG_INVALID,
            host=address.host,
        )


def _listen(address: Address) -> tuple[socket.socket, Address]:
    try:
        if isinstance(address, UnixAddress):
            return _listen_unix(address), address
        family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        listener = socket.create_server(
            (address.host, address.port), family=family, backlog=BACKLOG
        )
        listener.setblocking(False)
        return listener, TcpAddress(address.host, listener.getsockname()[1])
    except OSError as error:
        raise InvalidArgumentError(
            f"cannot listen on {address}: {error.strerror}", reason=Reason.CONFIG_INVALID
        ) from error


def _listen_unix(address: UnixAddress) -> socket.socket:
    path = address.path
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    facts = path.parent.stat()
    if facts.st_uid != os.geteuid() or stat.S_IMODE(facts.st_mode) & 0o077:
        raise PreconditionError(
            f"{path.parent} must belong to this user and have mode 0700",
            reason=Reason.WRONG_STATE,
            path=path.parent,
        )
    _delete_stale(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(os.fspath(path))
        path.chmod(0o600)
        listener.setblocking(False)
        listener.listen(BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


def _delete_stale(path: Path) -> None:
    """Delete the socket of a server that died; leave anything else alone."""
    if not path.is_socket():
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
    raise PreconditionError(
        f"another server listens on {path}", reason=Reason.WRONG_STATE, path=path
    )


def _tune(sock: socket.socket) -> None:
    with suppress(OSError):
        if sock.family == socket.AF_UNIX:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER_BYTES)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BUFFER_BYTES)
        else:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
