"""The one hop from the event loop to blocking code, with everything bounded.

A call whose deadline has passed before a thread was free is not started; one that has begun is
finished, whether its caller still waits or not. The request id goes along into the thread.
"""

import asyncio
import contextvars
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
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
    """A bounded number of threads with a bounded queue before them."""

    def __init__(self, name: str, *, threads: int, queued_max: int) -> None:
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._threads = threads
        self._open_max = threads + queued_max
        self._open = 0
        self._ended_s = time.monotonic()
        self._lock = threading.Lock()

    async def run(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Return what `function` returns, called in a thread.

        Raises:
            ExhaustedError: TOO_MANY_REQUESTS, the queue is full; nothing was started.
            DeadlineError: the caller's deadline passed in the queue; nothing was started.
        """
        with self._lock:
            if self._open >= self._open_max:
                raise ExhaustedError(
                    "too many calls are waiting; repeat this one in a moment",
                    reason=Reason.TOO_MANY_REQUESTS,
                    retryable=True,
                )
            self._open += 1
        context = contextvars.copy_context()
        work = partial(context.run, _begin, CALLER.get(), partial(function, *args, **kwargs))
        try:
            future = self._executor.submit(work)
        except RuntimeError as err:
            self._ended(None)
            raise shutting_down() from err
        future.add_done_callback(self._ended)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            if not future.cancelled():
                future.add_done_callback(partial(_report_orphan, request_id()))
            raise

    async def gets_on(self) -> bool:
        """Say whether calls are worked on: a thread is free and runs, or one has ended lately.

        Threads that wait for storage are no deadlock before WORKERS_STUCK_S_MAX.
        """
        if self._open < self._threads:
            with suppress(TimeoutError, VolcoreError):
                await asyncio.wait_for(self.run(_nothing), limits.WATCHDOG_PERIOD_S_MAX)
                return True
        return time.monotonic() - self._ended_s < limits.WORKERS_STUCK_S_MAX

    def close(self, timeout_s: float) -> bool:
        """Start nothing more and wait for what has begun; say whether all of it has ended."""
        self._executor.shutdown(wait=False, cancel_futures=True)
        deadline_s = time.monotonic() + timeout_s
        while self._open and time.monotonic() < deadline_s:
            time.sleep(0.01)
        return not self._open

    def _ended(self, _future: Future[Any] | None) -> None:
        with self._lock:
            self._open -= 1
            self._ended_s = time.monotonic()


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


def _report_orphan(request_id: str, future: Future[Any]) -> None:
    """Log how a call ended whose caller has left: nobody else will hear of it."""
    error = None if future.cancelled() else future.exception()
    if error is None or isinstance(error, DeadlineError):
        return
    if isinstance(error, VolcoreError):
        _log.info("call failed after its caller left", request_id=request_id, reason=error.reason)
    else:
        _log.error("call failed after its caller left", request_id=request_id, exc_info=error)
