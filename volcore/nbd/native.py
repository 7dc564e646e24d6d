"""The transmission phase on a plain socket over a `DataPath`: bytes move without the GIL.

The compiled loop receives, runs aligned reads and writes, and replies. Python gets what is left:
flushes, trims, status, partial blocks, the first touch of a chunk, refusals, and all errors; it
answers them through `Executor`, like `Transmission`. What is long, or would wait for the disk,
goes to worker threads as soon as something else waits behind it.

Invariants: INV-NBD-3, INV-NBD-4 and INV-NBD-5, as in `transmission`.
"""

import socket
import struct
import threading
import time
from contextlib import suppress
from typing import Final, Protocol, runtime_checkable

from volcore.kernels import datapath
from volcore.limits import (
    BLOCK_SIZE_BYTES,
    NBD_IN_FLIGHT_BYTES_MAX,
    NBD_IN_FLIGHT_MAX,
    NBD_REQUEST_BYTES_MAX,
)
from volcore.nbd.commands import Executor
from volcore.nbd.protocol import Command, NbdErrno, ProtocolError, Request
from volcore.nbd.transmission import (
    BULK_BYTES_MIN,
    DRAIN_S,
    SLOW_NS,
    WORKER_IDLE_S,
    WORKERS_PER_CONNECTION,
    WorkerBudget,
)

_NS: Final = 1_000_000_000
_IDLE: Final = struct.pack("ll", 0, 200_000)
"""After so long without a request (a `struct timeval`) a connection gives its buffers back."""


@runtime_checkable
class SupportsDataPath(Protocol):
    """A device whose blocks can be reached without the GIL."""

    @property
    def data_path(self) -> datapath.DataPath:
        """The path to its blocks; it may decline any request. Good until the device is closed."""

    def prepare(self, offset_bytes: int, length_bytes: int, *, write: bool) -> bool:
        """Load what the path lacks for these whole blocks; tell whether it may do them now."""


class NativeTransmission:
    """Serves one connection after its handshake; `run` on the reader thread does it all."""

    def __init__(
        self,
        sock: socket.socket,
        executor: Executor,
        *,
        device: SupportsDataPath,
        structured: bool,
        writable: bool,
        budget: WorkerBudget,
        name: str,
    ) -> None:
        self._sock = sock
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _IDLE)
        self._executor = executor
        self._budget = budget
        self._name = name
        self._workers: set[threading.Thread] = set()
        self._short_ns = 0
        """Moving average of what a short request takes here."""
        self._device = device
        self._retried = -1
        """Cookie of the request that was prepared last: nothing is prepared twice."""
        self._again = False
        self._loop = datapath.make_loop(
            device.data_path,
            sock.fileno(),
            structured=structured,
            writable=writable,
            request_bytes_max=NBD_REQUEST_BYTES_MAX,
            in_flight_max=NBD_IN_FLIGHT_MAX,
            in_flight_bytes_max=NBD_IN_FLIGHT_BYTES_MAX,
        )

    def drain(self) -> None:
        """Answer requests that are not yet read with ESHUTDOWN; any thread may call it."""
        self._loop.draining = True

    def set_writable(self, writable: bool) -> None:
        """Let writes in from now on, or none; any thread may call it (see `gate.GateMember`)."""
        self._loop.writable = writable

    def wait_writes(self, timeout_s: float) -> bool:
        """Return whether no write is under way in the compiled loop, waiting that long."""
        return self._loop.wait_writes(int(timeout_s * _NS))

    def run(self) -> None:
        """Serve until the client disconnects, breaks the protocol, or the socket is shut down.

        Raises:
            ProtocolError: the client broke the protocol; everything is cleaned up.
        """
        try:
            while self._serve():
                pass
        finally:
            self._finish()

    def _serve(self) -> bool:
        """Serve until Python is needed once; False when there will be no more."""
        again, self._again = self._again, False
        why = self._loop.pump(again)
        if why == datapath.SPAWN:
            self._add_worker()
            return True
        if why == datapath.RARE:
            return self._serve_rare()
        if why == datapath.BAD:
            raise ProtocolError("request with a wrong magic number")
        return False

    def _serve_rare(self) -> bool:
        loop = self._loop
        request = Request(*loop.request())
        if request.command == Command.DISC:
            return False
        errno = self._executor.check(request)
        if loop.draining:
            errno = NbdErrno.ESHUTDOWN
        if errno:
            return self._refuse(request, errno)
        if self._retried != request.cookie and self._prepare(request):
            self._retried = request.cookie
            self._again = True
            return True
        self._retried = -1
        if request.command == Command.WRITE and not loop.take_payload():
            return False
        if self._is_long(request) and loop.is_busy():
            if loop.hand():
                self._add_worker()
            return True
        loop.flush()
        payload = loop.payload()
        try:
            self._answer(request, payload)
        finally:
            if payload is not None:
                payload.release()
            loop.end_request()
        return True

    def _refuse(self, request: Request, errno: NbdErrno) -> bool:
        loop = self._loop
        if request.command == Command.WRITE:
            if request.length_bytes > NBD_REQUEST_BYTES_MAX:
                loop.flush()
                loop.send(self._executor.refuse(request, errno).parts)
                raise ProtocolError("write with a payload that is too long")
            if not loop.skip(request.length_bytes):
                return False
        loop.flush()
        loop.send(self._executor.refuse(request, errno).parts)
        return True

    def _prepare(self, request: Request) -> bool:
        if request.flags or request.command not in (Command.READ, Command.WRITE):
            return False
        if request.offset_bytes % BLOCK_SIZE_BYTES or request.length_bytes % BLOCK_SIZE_BYTES:
            return False
        write = request.command == Command.WRITE
        try:
            return self._device.prepare(request.offset_bytes, request.length_bytes, write=write)
        except Exception:
            return False  # whoever carries the request out meets it again, and tells the client

    def _is_long(self, request: Request) -> bool:
        moving = request.command in (Command.READ, Command.WRITE)
        short = moving and not request.flags and request.length_bytes < BULK_BYTES_MIN
        return not short or self._short_ns > SLOW_NS

    def _answer(self, request: Request, payload: memoryview | None) -> None:
        start_ns = time.monotonic_ns()
        reply = self._executor.execute(request, payload)
        if request.length_bytes < BULK_BYTES_MIN:
            self._short_ns += (time.monotonic_ns() - start_ns - self._short_ns) >> 3
        self._loop.send(reply.parts)
        self._executor.give_back(reply)

    def _handle(self, request: tuple[int, int, int, int, int], payload: memoryview | None) -> None:
        self._answer(Request(*request), payload)

    def _prepare_job(self, request: tuple[int, int, int, int, int]) -> bool:
        return self._prepare(Request(*request))

    # Workers.

    def _add_worker(self) -> None:
        """Start a worker; where none may be started and there is none, do its job here."""
        if not self._loop.enlist(WORKERS_PER_CONNECTION):
            return
        if self._budget.acquire():
            worker = threading.Thread(target=self._work, name=f"{self._name}-worker", daemon=True)
            try:
                self._workers.add(worker)
                worker.start()
            except RuntimeError:  # the system gives no more threads
                self._workers.discard(worker)
                self._budget.release()
            else:
                return
        self._loop.discharge()
        if not self._loop.workers_now:
            self._loop.work_once(self._prepare_job, self._handle)

    def _work(self) -> None:
        try:
            self._loop.work(int(WORKER_IDLE_S * _NS), self._prepare_job, self._handle)
        finally:
            self._workers.discard(threading.current_thread())
            self._budget.release()

    def _finish(self) -> None:
        """Let what is in flight end, then the workers."""
        loop = self._loop
        loop.flush()
        if not loop.wait_idle(int(DRAIN_S * _NS)):
            with suppress(OSError):
                self._sock.shutdown(socket.SHUT_RDWR)
            while not loop.wait_idle(int(DRAIN_S * _NS)):
                pass
        loop.stop()
        for worker in tuple(self._workers):
            worker.join()
