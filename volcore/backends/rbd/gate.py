"""Keeping what is read by threads of the background open until they have ended.

A librados context that is closed under a call ends the process.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from volcore.errors import Reason, UnavailableError

WAIT_S: Final = 10.0
"""How long a close waits; calls to a cluster that does not answer take longer."""


class Gate:
    """Lets calls in until it is closed; any thread."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._users = 0
        self._closed = False

    @contextmanager
    def using(self) -> Iterator[None]:
        """Keep what is behind it open.

        Raises:
            UnavailableError: SHUTTING_DOWN.
        """
        with self._changed:
            if self._closed:
                raise UnavailableError(
                    "the pool is being closed; repeat the call with the next server",
                    reason=Reason.SHUTTING_DOWN,
                    retryable=True,
                )
            self._users += 1
        try:
            yield
        finally:
            with self._changed:
                self._users -= 1
                if not self._users:
                    self._changed.notify_all()

    def close(self, wait_s: float = WAIT_S) -> bool:
        """Let nobody in any more, and wait for those who are; return whether all have left.

        Idempotent.
        """
        with self._changed:
            self._closed = True
            return self._changed.wait_for(lambda: not self._users, wait_s)
