"""What is still to be looked at when a call has its answer, in one thread for each pool.

A check is begun a moment after the answer, so that it takes no processor from it, and all that are
there by then are begun before any is waited for: together they cost one round trip.
"""

import math
import threading
import time
from collections.abc import Callable
from typing import Final

import structlog

from volcore.errors import VolcoreError

DELAY_S: Final = 0.001
"""How long an answer gets to be on its way."""
RETRY_S: Final = 1.0

Check = Callable[[], Callable[[], None]]
"""Begins a check, and returns what waits for its end. An error of either means: once more."""
_log = structlog.get_logger("volcore.engine")


class Behind:
    """The checks of one pool; any thread."""

    def __init__(self) -> None:
        """Nothing runs until there is a first check."""
        self._changed = threading.Condition()
        self._waiting: list[tuple[float, Check]] = []
        """With the time from which on each may begin."""
        self._running = 0
        self._asleep_until_s = 0.0
        self._thread: threading.Thread | None = None
        self._closed = False

    def add(self, check: Check) -> None:
        """Check something soon."""
        with self._changed:
            from_s = time.monotonic() + DELAY_S
            self._waiting.append((from_s, check))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="behind", daemon=True)
                self._thread.start()
            elif from_s < self._asleep_until_s:
                self._changed.notify_all()

    def wait(self, timeout_s: float) -> bool:
        """Wait until nothing is to be checked; return whether that came in time."""
        with self._changed:
            return self._changed.wait_for(
                lambda: not self._waiting and not self._running, timeout_s
            )

    def close(self) -> None:
        """Check what there is, once, and end; idempotent. What fails then is not tried again."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while checks := self._next():
            again = _together(checks)
            with self._changed:
                self._running = 0
                if not self._closed:
                    later_s = time.monotonic() + RETRY_S
                    self._waiting += [(later_s, check) for check in again]
                self._changed.notify_all()

    def _next(self) -> list[Check]:
        """Return what may begin, as soon as there is any; nothing: closed."""
        with self._changed:
            while True:
                now_s = time.monotonic()
                due = [one for one in self._waiting if self._closed or one[0] <= now_s]
                if due or self._closed:
                    self._waiting = [one for one in self._waiting if one not in due]
                    self._running = len(due)
                    self._asleep_until_s = 0.0
                    return [check for _, check in due]
                first_s = min((from_s for from_s, _ in self._waiting), default=math.inf)
                self._asleep_until_s = first_s
                self._changed.wait(None if first_s == math.inf else first_s - now_s)


def _together(checks: list[Check]) -> list[Check]:
    """Begin all, then wait for each; return those that failed, a bug included: somebody waits."""
    begun: list[tuple[Check, Callable[[], None]]] = []
    failed: list[Check] = []
    for check in checks:
        try:
            begun.append((check, check()))
        except Exception as err:
            _tell(err)
            failed.append(check)
    for check, end in begun:
        try:
            end()
        except Exception as err:
            _tell(err)
            failed.append(check)
    return failed


def _tell(error: Exception) -> None:
    """Log a failure: a bug with where it is, storage that does not answer with a word."""
    tell = _log.warning if isinstance(error, VolcoreError) else _log.exception
    tell("not checked behind an answer, tried again", problem=str(error))
