"""The transmission phase of one connection: receive requests, run them, send replies.

One reader thread receives. What is short and quick it runs itself; long or slow requests that
overlap go to up to WORKERS_PER_CONNECTION worker threads, which are started when first needed.

Invariants:
1. INV-NBD-3 (must): a request is answered at most once, and its buffer is free only after that.
2. INV-NBD-4 (should): at most NBD_IN_FLIGHT_MAX requests and NBD_IN_FLIGHT_BYTES_MAX bytes of one
   connection are in memory: beyond it the reader stops reading, and the client's socket fills up.
3. INV-NBD-5 (must): `run` returns only when no thread uses the device for this connection.
"""

import select
import socket
import threading
import time
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Final

from volcore.limits import KIB, NBD_IN_FLIGHT_BYTES_MAX, NBD_IN_FLIGHT_MAX, NBD_REQUEST_BYTES_MAX
from volcore.nbd.buffers import BufferPool
from volcore.nbd.commands import Executor, Reply
from volcore.nbd.protocol import (
    REQUEST,
    Command,
    NbdErrno,
    ProtocolError,
    Request,
    unpack_request,
)
from volcore.nbd.tls import Stream

WORKERS_PER_CONNECTION: Final = 4
WORKERS_MAX: Final = 128
"""Worker threads of one server; beyond it readers run everything themselves."""
WORKER_IDLE_S: Final = 5.0
"""An idle worker ends, so that sleeping connections hold one thread each."""
STAGE_BYTES: Final = 16 * KIB
"""What one receive may fetch ahead: many small requests, little of a long payload."""
BULK_BYTES_MIN: Final = 64 * KIB
"""From here on copying takes longer than waking a worker."""
SLOW_NS: Final = 200_000
"""Short requests that take longer than this on average wait for storage: let them overlap."""
BATCH_REPLIES_MAX: Final = 32
"""Replies to short requests that are sent together while more requests are at hand."""
DRAIN_S: Final = 30.0
"""How long a client that hung up or disconnects gets to read its last replies."""

_MOVING: Final = frozenset({Command.READ, Command.WRITE})
_IOV_MAX: Final = 1024
"""Most pieces that Linux takes in one sendmsg."""


class _Job:
    """A request, the buffer of its payload, and the bytes of payload or reply it counts for."""

    __slots__ = ("cost_bytes", "payload", "request", "short")

    def __init__(self, request: Request, payload: bytearray | None, cost_bytes: int) -> None:
        self.request = request
        self.payload = payload
        self.cost_bytes = cost_bytes
        self.short = cost_bytes < BULK_BYTES_MIN and request.command in _MOVING


class WorkerBudget:
    """Bounds the worker threads of a server."""

    def __init__(self, workers_max: int = WORKERS_MAX) -> None:
        self._permits = threading.Semaphore(workers_max)

    def acquire(self) -> bool:
        """Return whether one more worker may be started."""
        return self._permits.acquire(blocking=False)

    def release(self) -> None:
        """Give back the right to one worker."""
        self._permits.release()


class Transmission:
    """Serves one connection after its handshake; `run` on the reader thread does it all."""

    def __init__(
        self,
        sock: Stream,
        executor: Executor,
        *,
        pool: BufferPool,
        budget: WorkerBudget,
        name: str,
    ) -> None:
        self._sock = sock
        self._executor = executor
        self._pool = pool
        self._budget = budget
        self._name = name
        self._stage = bytearray(STAGE_BYTES)
        self._stage_view = memoryview(self._stage)
        self._start = 0
        self._end = 0
        self._send_lock = threading.Lock()
        self._broken = False
        self._batch: list[Reply] = []
        self._state = threading.Condition()
        """Guards the numbers below and the life of workers."""
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._workers: set[threading.Thread] = set()
        self._in_flight = 0
        self._in_flight_bytes = 0
        self._short_ns = 0
        """Moving average of what a short request takes in the device."""
        self._draining = False
        self._poller = select.poll()
        self._poller.register(sock, select.POLLIN)

    def drain(self) -> None:
        """Answer requests that are not yet read with ESHUTDOWN; any thread may call it."""
        self._draining = True

    def run(self) -> None:
        """Serve until the client disconnects, breaks the protocol, or the socket is shut down.

        Raises:
            ProtocolError: the client broke the protocol; everything is cleaned up.
        """
        try:
            while self._serve_one():
                pass
        except OSError:
            pass  # the client is gone, which it may be at any time
        finally:
            self._finish()

    def _serve_one(self) -> bool:
        """Receive and run or hand on one request; False when there will be no more."""
        if self._end - self._start < REQUEST.size and not self._fill():
            return False
        request = unpack_request(self._stage, self._start)
        self._start += REQUEST.size
        command = request.command
        if command == Command.DISC:
            return False
        errno = self._executor.check(request)
        if self._draining:
            errno = NbdErrno.ESHUTDOWN
        if errno:
            return self._refuse(request, errno)
        cost_bytes = request.length_bytes if command in _MOVING else 0
        self._admit(cost_bytes)
        handed_on = False
        try:
            payload = None
            if command == Command.WRITE:
                payload = self._pool.take(cost_bytes)
                if not self._receive(memoryview(payload)[:cost_bytes]):
                    return False
            job = _Job(request, payload, cost_bytes)
            overlap = not job.short or self._short_ns > SLOW_NS
            handed_on = overlap and self._more_to_do() and self._hand_on(job)
            if not handed_on:
                self._run_here(job)
        finally:
            if not handed_on:
                self._retire(cost_bytes)
        return True

    def _run_here(self, job: _Job) -> None:
        if not job.short:
            self._send_batch()  # what is done does not wait for what is slow
            self._send(self._run(job))
            return
        self._batch.append(self._run(job))
        if self._end - self._start < REQUEST.size or len(self._batch) >= BATCH_REPLIES_MAX:
            self._send_batch()

    def _run(self, job: _Job) -> Reply:
        start_ns = time.monotonic_ns()
        payload = job.payload
        if payload is None:
            reply = self._executor.execute(job.request, None)
        else:
            reply = self._executor.execute(job.request, memoryview(payload)[: job.cost_bytes])
            self._pool.give(payload)
        if job.short:
            self._short_ns += (time.monotonic_ns() - start_ns - self._short_ns) >> 3
        return reply

    def _refuse(self, request: Request, errno: NbdErrno) -> bool:
        if request.command == Command.WRITE:
            if request.length_bytes > NBD_REQUEST_BYTES_MAX:
                self._send(self._executor.refuse(request, errno))
                raise ProtocolError("write with a payload that is too long")
            if not self._skip(request.length_bytes):
                return False
        self._send_batch()
        self._send(self._executor.refuse(request, errno))
        return True

    # Receiving.

    def _fill(self) -> bool:
        """Receive until a whole request header is staged; False at the end of the stream."""
        self._send_batch()
        staged = self._end - self._start
        self._stage_view[:staged] = self._stage_view[self._start : self._end]
        self._start, self._end = 0, staged
        while self._end < REQUEST.size:
            count = self._sock.recv_into(self._stage_view[self._end :])
            if not count:
                return False
            self._end += count
        return True

    def _receive(self, target: memoryview) -> bool:
        """Fill `target` from the stage and then the socket; False at the end of the stream."""
        staged = min(self._end - self._start, len(target))
        target[:staged] = self._stage_view[self._start : self._start + staged]
        self._start += staged
        if staged == len(target):
            return True
        self._send_batch()
        while staged < len(target):
            count = self._sock.recv_into(target[staged:], 0, socket.MSG_WAITALL)
            if not count:
                return False
            staged += count
        return True

    def _skip(self, length_bytes: int) -> bool:
        scratch = memoryview(bytearray(min(length_bytes, BULK_BYTES_MIN)))
        while length_bytes:
            piece = scratch[:length_bytes]
            if not self._receive(piece):
                return False
            length_bytes -= len(piece)
        return True

    def _more_to_do(self) -> bool:
        """Return whether this request would keep another one waiting."""
        if self._in_flight > 1 or self._start != self._end:
            return True
        return bool(self._poller.poll(0))

    # In flight.

    def _admit(self, cost_bytes: int) -> None:
        if self._is_full(cost_bytes):
            self._send_batch()
        with self._state:
            while self._is_full(cost_bytes):
                self._state.wait()
            self._in_flight += 1
            self._in_flight_bytes += cost_bytes

    def _is_full(self, cost_bytes: int) -> bool:
        if not self._in_flight:
            return False
        if self._in_flight >= NBD_IN_FLIGHT_MAX:
            return True
        return self._in_flight_bytes + cost_bytes > NBD_IN_FLIGHT_BYTES_MAX

    def _retire(self, cost_bytes: int) -> None:
        with self._state:
            self._in_flight -= 1
            self._in_flight_bytes -= cost_bytes
            self._state.notify()

    def _hand_on(self, job: _Job) -> bool:
        """Give `job` to a worker; False if there is none and none may be started."""
        with self._state:
            wanted = min(self._in_flight, WORKERS_PER_CONNECTION)
            if len(self._workers) < wanted and self._budget.acquire():
                self._start_worker()
            if not self._workers:
                return False
            self._jobs.put(job)
        return True

    def _start_worker(self) -> None:
        worker = threading.Thread(target=self._work, name=f"{self._name}-worker", daemon=True)
        try:
            worker.start()
        except RuntimeError:  # the system gives no more threads
            self._budget.release()
            return
        self._workers.add(worker)

    def _work(self) -> None:
        """Run jobs until `None` comes, or none comes for a while."""
        me = threading.current_thread()
        try:
            while True:
                try:
                    job = self._jobs.get(timeout=WORKER_IDLE_S)
                except Empty:
                    with self._state:
                        if not self._jobs.empty():
                            continue
                        self._workers.discard(me)  # under the lock: nobody counts on this one now
                        return
                if job is None:
                    return
                self._send(self._run(job))
                self._retire(job.cost_bytes)
        finally:
            self._budget.release()

    # Sending.

    def _send_batch(self) -> None:
        if self._batch:
            batch, self._batch = self._batch, []
            self._send(*batch)

    def _send(self, *replies: Reply) -> None:
        """Send whole replies; a client that cannot be reached ends the connection."""
        parts = [part for reply in replies for part in reply.parts]
        with self._send_lock:
            if not self._broken:
                try:
                    _send_all(self._sock, parts)
                except OSError:
                    self._broken = True
                    with suppress(OSError):
                        self._sock.shutdown(socket.SHUT_RDWR)
        for reply in replies:
            if reply.buffer is not None:
                self._pool.give(reply.buffer)

    def _finish(self) -> None:
        """Let what is in flight end, then the workers."""
        self._send_batch()
        with self._state:
            if not self._state.wait_for(lambda: not self._in_flight, DRAIN_S):
                with suppress(OSError):
                    self._sock.shutdown(socket.SHUT_RDWR)
                self._state.wait_for(lambda: not self._in_flight)
            workers = tuple(self._workers)
        for _ in workers:
            self._jobs.put(None)
        for worker in workers:
            worker.join()


def _send_all(sock: Stream, parts: list[bytes | memoryview]) -> None:
    for start in range(0, len(parts), _IOV_MAX):
        group = parts[start : start + _IOV_MAX]
        sent = sock.sendmsg(group)
        if sent == sum(map(len, group)):
            continue
        for part in group:  # a signal cut it short
            rest = memoryview(part)[sent:]
            sent = max(0, sent - len(part))
            if rest:
                sock.sendall(rest)
