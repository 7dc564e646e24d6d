"""Locks by key inside one server: sources shared, what is being changed exclusive.

Across servers the catalog's compare-and-set decides; these locks only keep calls of one server from
working against each other and give the later one a clear answer.
"""

import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from volcore import limits
from volcore.errors import OperationPendingError, Reason


class KeyedLocks:
    """Shared and exclusive locks by key; taken all at once, so they cannot deadlock."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._exclusive: set[str] = set()
        self._shared: dict[str, int] = {}

    @contextmanager
    def hold(
        self,
        exclusive: Iterable[str] = (),
        shared: Iterable[str] = (),
        *,
        timeout_s: float = limits.LOCK_WAIT_S_MAX,
    ) -> Iterator[None]:
        """Hold all keys for the block; not re-entrant.

        Raises:
            OperationPendingError: another call kept one of them for `timeout_s`.
        """
        wanted, read = set(exclusive), set(shared) - set(exclusive)
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while busy := self._busy(wanted, read):
                if (
                    not self._changed.wait(deadline - time.monotonic())
                    and time.monotonic() > deadline
                ):
                    raise OperationPendingError(
                        f"another call is working on {busy}; repeat this one in a moment",
                        reason=Reason.OPERATION_PENDING,
                        retryable=True,
                        busy=busy,
                    )
            self._exclusive |= wanted
            for key in read:
                self._shared[key] = self._shared.get(key, 0) + 1
        try:
            yield
        finally:
            with self._changed:
                self._exclusive -= wanted
                for key in read:
                    self._shared[key] -= 1
                    if not self._shared[key]:
                        del self._shared[key]
                self._changed.notify_all()

    def is_held(self, key: str) -> bool:
        """Return whether a call holds the key exclusively now."""
        with self._changed:
            return key in self._exclusive

    def _busy(self, wanted: set[str], read: set[str]) -> str | None:
        """Return a key that cannot be had now, or None."""
        taken = (wanted & (self._exclusive | self._shared.keys())) | (read & self._exclusive)
        return min(taken) if taken else None
