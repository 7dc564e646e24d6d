"""One client connection from accept to close: its thread, its socket, its export."""

import socket
import threading
from collections.abc import Callable
from contextlib import suppress

import structlog

from volcore.errors import VolcoreError
from volcore.kernels.datapath import HAS_LOOP
from volcore.nbd.buffers import BufferPool
from volcore.nbd.commands import Executor
from volcore.nbd.exports import ExportTable
from volcore.nbd.handshake import Handshake, Session
from volcore.nbd.native import NativeTransmission, SupportsDataPath
from volcore.nbd.protocol import ProtocolError
from volcore.nbd.tls import ContextSource, TlsStream
from volcore.nbd.transmission import Transmission, WorkerBudget

_log = structlog.get_logger("volcore.nbd")


class Connection:
    """A client; implements `ExportUser`.

    `drain` and `disconnect` may come from any thread at any time, even before `start` and after
    the end.
    """

    def __init__(
        self,
        sock: socket.socket,
        *,
        exports: ExportTable,
        pool: BufferPool,
        budget: WorkerBudget,
        name: str,
        option_timeout_s: float,
        tls: ContextSource | None,
        attached_only: bool,
        on_end: Callable[["Connection"], None],
    ) -> None:
        self._sock = sock
        self._exports = exports
        self._pool = pool
        self._budget = budget
        self._name = name
        self._on_end = on_end
        self._lock = threading.Lock()
        """Guards the socket against being closed while somebody shuts it down."""
        self._closed = False
        self._draining = False
        self._handshake = Handshake(
            sock,
            exports,
            self,
            option_timeout_s=option_timeout_s,
            tls=tls,
            attached_only=attached_only,
        )
        self._transmission: Transmission | NativeTransmission | None = None
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)

    def start(self) -> None:
        """Serve on a thread of its own.

        Raises:
            RuntimeError: the system gives no more threads.
        """
        self._thread.start()

    def join(self, timeout_s: float) -> bool:
        """Return whether the connection has ended, waiting for it that long."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def drain(self) -> None:
        """Let requests in flight finish, refuse the others, then end."""
        with self._lock:
            self._draining = True
            self._handshake.drain()
            if self._transmission is not None:
                self._transmission.drain()
            self._shutdown(socket.SHUT_RD)

    def disconnect(self) -> None:
        """End without waiting for the client; calls into the device are waited for."""
        with self._lock:
            self._shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close a connection that was never started."""
        with self._lock:
            self._closed = True
            self._sock.close()

    def _shutdown(self, how: int) -> None:
        if not self._closed:
            with suppress(OSError):
                self._sock.shutdown(how)

    def _serve(self) -> None:
        try:
            session = self._handshake.run()
            if session is not None:
                self._transmit(session)
        except ProtocolError as error:
            _log.warning("nbd client broke the protocol", connection=self._name, error=str(error))
        except (OSError, VolcoreError) as error:
            _log.info("nbd connection ended", connection=self._name, error=str(error))
        except Exception:  # the boundary of the thread: the server lives on
            _log.exception("nbd connection failed", connection=self._name)
        finally:
            self.close()
            self._on_end(self)

    def _transmit(self, session: Session) -> None:
        lease = session.lease
        try:
            executor = Executor(
                export=lease.name,
                device=lease.device,
                pool=self._pool,
                read_only=lease.read_only,
                gate=lease.gate,
                structured=session.structured,
                block_status=session.block_status,
            )
            transmission = self._make_transmission(session, executor)
            with self._lock:
                self._transmission = transmission
                if self._draining:
                    transmission.drain()
            if isinstance(transmission, NativeTransmission) and not lease.read_only:
                lease.gate.join(transmission)
            transmission.run()
        finally:
            # Replies are all sent by now; the client need not wait for the device to be closed.
            if isinstance(session.stream, TlsStream):
                session.stream.farewell()
            self.disconnect()
            if isinstance(self._transmission, NativeTransmission):
                lease.gate.quit(self._transmission)
            lease.release()

    def _make_transmission(
        self, session: Session, executor: Executor
    ) -> Transmission | NativeTransmission:
        """Choose: without the GIL where device, socket and build allow it."""
        lease = session.lease
        plain = session.stream is self._sock
        if HAS_LOOP and plain and isinstance(lease.device, SupportsDataPath):
            return NativeTransmission(
                self._sock,
                executor,
                device=lease.device,
                structured=session.structured,
                writable=False,  # until it has joined the gate
                budget=self._budget,
                name=self._name,
            )
        return Transmission(
            session.stream, executor, pool=self._pool, budget=self._budget, name=self._name
        )
