"""TLS below the two phases of a connection: a stream over memory buffers, and its policy.

An OpenSSL object serves one thread at a time, and `ssl.SSLSocket` does not see to that (CPython
before 3.13). Here a lock guards the object alone: bytes are waited for, and sent, outside of it.

Invariants:
1. INV-NBD-7 (must): one thread at a time is in the TLS object.
2. INV-NBD-8 (must): encrypted bytes are sent in the order in which they were made.
"""

import socket
import ssl
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Protocol

import structlog

from volcore.credentials import Credentials, server_context
from volcore.errors import InvalidArgumentError
from volcore.limits import KIB
from volcore.nbd.protocol import ProtocolError

RECORD_BYTES: Final = 16 * KIB
"""*Source*: RFC 8446, section 5.1. Smaller pieces share a record."""
FETCH_BYTES: Final = 256 * KIB
SEND_BYTES: Final = 256 * KIB
"""Encrypted bytes that are collected for one send."""

_log = structlog.get_logger("volcore.nbd")

Buffer = bytes | bytearray | memoryview


class Stream(Protocol):
    """What the two phases need of a socket; one thread receives, one at a time sends."""

    def fileno(self) -> int:
        """Return the descriptor to poll; data that is decrypted already does not show there."""

    def settimeout(self, value: float | None, /) -> None:
        """Bound what follows."""

    def recv_into(self, buffer: memoryview, nbytes: int = 0, flags: int = 0, /) -> int:
        """Receive into `buffer`; 0 at the end of the stream."""

    def sendall(self, data: Buffer, /) -> None:
        """Send all of `data`."""

    def sendmsg(self, buffers: Iterable[Buffer], /) -> int:
        """Send pieces in order and return how many bytes that were."""

    def shutdown(self, how: int, /) -> None:
        """End one or both directions of the socket itself; any thread."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsPolicy:
    """How clients prove who they are, and where they must.

    Every TCP connection needs TLS, those of unix sockets with `on_unix`. With `attached_only` a
    client may use only the exports that name it (`ExportTable.publish`).
    """

    credentials: Credentials
    on_unix: bool = False
    attached_only: bool = False


class ContextSource:
    """The TLS context for each new connection, from the files as they are then; any thread.

    A renewed certificate counts from the next connection on. While the files do not fit together
    (half of them renewed) the last ones that did go on.

    Raises:
        InvalidArgumentError: CONFIG_INVALID, the files cannot be used at the start.
    """

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials
        self._last = server_context(credentials)

    def context(self) -> ssl.SSLContext:
        """Return the context for one connection."""
        try:
            self._last = server_context(self._credentials)
        except InvalidArgumentError as err:
            _log.warning("nbd tls files do not fit; the last ones are used", error=err.message)
        return self._last


class TlsStream:
    """The server's end of a TLS connection; implements `Stream`.

    A time limit set by `settimeout` counts from that call on, however many packets it takes.

    Concurrency: one thread may receive while others send; `shutdown` may come at any time.
    """

    def __init__(self, sock: socket.socket, context: ssl.SSLContext) -> None:
        self._sock = sock
        self._lock = threading.Lock()
        """Guards the TLS object and its two buffers."""
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._sending = threading.Lock()
        """Held from encrypting to sending."""
        self._scratch = memoryview(bytearray(FETCH_BYTES))
        self._deadline_s: float | None = None
        self._ended = False

    def accept(self, timeout_s: float) -> None:
        """Shake hands.

        Raises:
            ProtocolError: the client does not speak TLS, or not as it must, or is not trusted.
            OSError: the client went away (TimeoutError: was too slow).
        """
        self.settimeout(timeout_s)
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                self._flush()
                if not self._fetch():
                    raise ConnectionResetError("the client hung up during TLS") from None
            except ssl.SSLError as err:
                self._send_now()
                raise ProtocolError(f"TLS handshake failed: {_words(err)}") from err
            else:
                self._flush()
                return

    def client_names(self) -> frozenset[str]:
        """Return the names in the client's certificate, in lower case: dNSNames, common name."""
        shown: Any = self._tls.getpeercert() or {}
        names = [value for kind, value in shown.get("subjectAltName", ()) if kind == "DNS"]
        for part in shown.get("subject", ()):
            names += [value for kind, value in part if kind == "commonName"]
        return frozenset(map(str.lower, names))

    def fileno(self) -> int:
        """Return the socket's descriptor."""
        return self._sock.fileno()

    def settimeout(self, value: float | None, /) -> None:
        """Give all that follows `value` seconds from now; None: any time."""
        self._deadline_s = None if value is None else time.monotonic() + value
        self._sock.settimeout(value)

    def recv_into(self, buffer: memoryview, nbytes: int = 0, flags: int = 0, /) -> int:
        """Receive up to `nbytes` (0: the buffer's length), with MSG_WAITALL exactly so many.

        Raises:
            ProtocolError: what came is not what the client sent.
            OSError: the client is gone.
        """
        view = buffer[: nbytes or len(buffer)]
        received = 0
        while True:
            received += self._decrypt(view[received:])
            enough = len(view) if flags & socket.MSG_WAITALL else 1
            if received >= min(enough, len(view)) or self._ended or not self._fetch():
                return received

    def sendall(self, data: Buffer, /) -> None:
        """Send all of `data`."""
        self.sendmsg((data,))

    def sendmsg(self, buffers: Iterable[Buffer], /) -> int:
        """Send all pieces in order, never less than all."""
        sent = 0
        with self._sending:
            for piece in _joined(buffers):
                sent += len(piece)
                while piece:
                    with self._lock:
                        piece = piece[self._tls.write(piece) :]
                        waiting = self._outgoing.pending
                    if waiting >= SEND_BYTES:
                        self._flush()
            self._flush()
        return sent

    def shutdown(self, how: int, /) -> None:
        """End directions of the socket."""
        self._sock.shutdown(how)

    def farewell(self) -> None:
        """Tell the client that nothing follows, if that takes no waiting."""
        if not self._sending.acquire(blocking=False):
            return
        try:
            with self._lock, suppress(OSError):
                self._tls.unwrap()
            self._send_now()
        finally:
            self._sending.release()

    def _decrypt(self, view: memoryview) -> int:
        """Fill `view` with what is here, and note the end of the stream."""
        done = 0
        with self._lock:
            try:
                while done < len(view):
                    count: Any = self._tls.read(len(view) - done, view[done:])
                    if not count:
                        self._ended = True
                        break
                    done += count
            except ssl.SSLWantReadError:
                pass
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                self._ended = True
            except ssl.SSLError as err:
                raise ProtocolError(f"TLS failed: {_words(err)}") from err
        return done

    def _fetch(self) -> bool:
        """Receive encrypted bytes; False at the end of the stream."""
        self._start_clock()
        count = self._sock.recv_into(self._scratch)
        with self._lock:
            self._incoming.write(self._scratch[:count])
        self._ended = not count
        return not self._ended

    def _flush(self) -> None:
        with self._lock:
            data = self._outgoing.read()
        if data:
            self._start_clock()
            self._sock.sendall(data)

    def _send_now(self) -> None:
        """Send last words as far as they go."""
        with self._lock:
            data = self._outgoing.read()
        with suppress(OSError):
            self._sock.send(data, socket.MSG_DONTWAIT)

    def _start_clock(self) -> None:
        if self._deadline_s is None:
            return
        left_s = self._deadline_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError("the client was silent for too long")
        self._sock.settimeout(left_s)


def _joined(buffers: Iterable[Buffer]) -> Iterator[memoryview]:
    """Join what is small, such as a header and a short payload; empty pieces vanish."""
    small = bytearray()
    for buffer in buffers:
        if len(small) + len(buffer) <= RECORD_BYTES:
            small += buffer
            continue
        if small:
            yield memoryview(small)
            small = bytearray()
        yield memoryview(buffer)
    if small:
        yield memoryview(small)


def _words(err: ssl.SSLError) -> str:
    """Return what OpenSSL says, without its place in the source."""
    found = getattr(err, "verify_message", "") or (err.reason or "").lower().replace("_", " ")
    return found or str(err)
