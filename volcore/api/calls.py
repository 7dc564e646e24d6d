"""The one hop from the event loop to blocking code, with everything bounded.

A call whose deadline has passed before a thread was free is not started; one that has begun is
finished, whether its caller still waits or not. The request id goes along into the thread.
"""

import asyncio
import contextvars
import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, ParamSpec, TypeVar

import structlog

from volcore import limits
from volcore.errors import DeadlineError, ExhaustedError, Reason, UnavailableError, VolcoreError

P = ParamSpec("P")
T = TypeVar("T")
_log = structlog.get_logger("volcore.api")


@dataclass(frozen=True, slots=True)
class Caller:
    """Who waits for the call at hand, and until when (`time.monotonic`; None: for ever)."""

    request_id: str
    deadline_s: float | None = None


_NOBODY: Final = Caller("")
CALLER: Final = contextvars.ContextVar("caller", default=_NOBODY)


def request_id() -> str:
    """Return the id of the call at hand."""
    return CALLER.get().request_id


class CallPool:
    """A bounded number of threads with a bounded queue before them.

    The futures of the standard library's pool, chained to those of the loop, cost a call that comes
    after a pause a tenth of a millisecond (docs/design/0012).
    """

    def __init__(self, name: str, *, threads: int, queued_max: int) -> None:
        self._name = name
        self._threads_max = threads
        self._open_max = threads + queued_max
        self._threads: list[threading.Thread] = []
        self._queue: queue.SimpleQueue[_Work | None] = queue.SimpleQueue()
        self._open = 0
        self._ended_s = time.monotonic()
        self._closed = False
        self._lock = threading.Lock()

    async def run(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Return what `function` returns, called in a thread.

        Raises:
            ExhaustedError: TOO_MANY_REQUESTS, the queue is full; nothing was started.
            DeadlineError: the caller's deadline passed in the queue; nothing was started.
            UnavailableError: SHUTTING_DOWN; nothing was started.
        """
        work = _Work(partial(function, *args, **kwargs))
        with self._lock:
            if self._closed:
                raise shutting_down()
            if self._open >= self._open_max:
                raise ExhaustedError(
                    "too many calls are waiting; repeat this one in a moment",
                    reason=Reason.TOO_MANY_REQUESTS,
                    retryable=True,
                )
            if len(self._threads) < min(self._open + 1, self._threads_max):
                self._start_thread()
            self._open += 1
            self._queue.put(work)
        result: T = await work.future
        return result

    async def gets_on(self) -> bool:
        """Say whether calls are worked on: a thread is free and runs, or one has ended lately.

        Threads that wait for storage are no deadlock before WORKERS_STUCK_S_MAX.
        """
        if self._open < self._threads_max:
            with suppress(TimeoutError, VolcoreError):
                # Not `wait_for`: it swallows a cancellation that comes with the end of the call.
                async with asyncio.timeout(limits.WATCHDOG_PERIOD_S_MAX):
                    await self.run(_nothing)
                return True
        return time.monotonic() - self._ended_s < limits.WORKERS_STUCK_S_MAX

    def close(self, timeout_s: float) -> bool:
        """Start nothing more and wait for what has begun; say whether all of it has ended."""
        with self._lock:
            self._closed = True
        with suppress(queue.Empty):
            while True:
                work = self._queue.get_nowait()
                if work is not None:
                    self._ended()
                    work.tell(None, shutting_down())
        for _ in self._threads:
            self._queue.put(None)
        deadline_s = time.monotonic() + timeout_s
        while self._open and time.monotonic() < deadline_s:
            time.sleep(0.01)
        return not self._open

    def _start_thread(self) -> None:
        name = f"{self._name}_{len(self._threads)}"
        thread = threading.Thread(target=self._work_off, name=name, daemon=True)
        thread.start()  # or it raises, and nothing was started
        self._threads.append(thread)

    def _work_off(self) -> None:
        while (work := self._queue.get()) is not None:
            outcome = work.do()
            self._ended()
            work.tell(*outcome)
            del work, outcome  # or they stay until the next call

    def _ended(self) -> None:
        with self._lock:
            self._open -= 1
            self._ended_s = time.monotonic()


class _Work:
    """A call on its way to a thread, and back to the loop where its caller waits."""

    __slots__ = ("_caller", "_context", "_function", "_loop", "future")

    def __init__(self, function: Callable[[], Any]) -> None:
        self._function = function
        self._caller = CALLER.get()
        self._context = contextvars.copy_context()
        self._loop = asyncio.get_running_loop()
        self.future = self._loop.create_future()

    def do(self) -> tuple[Any, BaseException | None]:
        """Return what the function returns, or raises; it is not called if nobody waits for it."""
        if self.future.cancelled():
            return None, None
        try:
            return self._context.run(_begin, self._caller, self._function), None
        except BaseException as err:
            return None, err

    def tell(self, result: Any, error: BaseException | None) -> None:
        """Give the outcome to the caller; any thread."""
        try:
            self._loop.call_soon_threadsafe(self._tell, result, error)
        except RuntimeError:  # the loop is closed
            _report_orphan(self._caller.request_id, error)

    def _tell(self, result: Any, error: BaseException | None) -> None:
        if self.future.done():
            _report_orphan(self._caller.request_id, error)
        elif error is None:
            self.future.set_result(result)
        else:
            self.future.set_exception(error)


def shutting_down() -> UnavailableError:
    """Return the error for calls that come while the server stops."""
    return UnavailableError(
        "the server is stopping; repeat the call when it is back, or at another server",
        reason=Reason.SHUTTING_DOWN,
        retryable=True,
    )


def _nothing() -> None:
    """Be a call that needs a thread and nothing else."""


def _begin(caller: Caller, function: Callable[[], T]) -> T:
    if caller.deadline_s is not None and time.monotonic() >= caller.deadline_s:
        raise DeadlineError(
            "the deadline passed before the call could start; nothing was done: repeat it with "
            "more time",
            reason=Reason.DEADLINE_PASSED,
        )
    return function()


def _report_orphan(request_id: str, error: BaseException | None) -> None:
    """Log how a call ended whose caller has left: nobody else will hear of it."""
    if error is None or isinstance(error, DeadlineError):
        return
    if isinstance(error, VolcoreError):
        _log.info("call failed after its caller left", request_id=request_id, reason=error.reason)
    else:
        _log.error("call failed after its caller left", request_id=request_id, exc_info=error)
