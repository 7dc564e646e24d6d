"""Locks by key inside one server: sources shared, what is being changed exclusive.

Across servers the catalog's compare-and-set decides; these locks only keep calls of one server from
working against each other and give the later one a clear answer.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial

from volcore import limits
from volcore.errors import OperationPendingError, Reason


class KeyedLocks:
    """Shared and exclusive locks by key; taken all at once, so they cannot deadlock."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._exclusive: Counter[str] = Counter()
        """More than once while what `keep` returned is to be called."""
        self._shared: Counter[str] = Counter()

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
            self._take(wanted, read)
        try:
            yield
        finally:
            self._free(wanted, read)

    def keep(self, exclusive: Iterable[str], shared: Iterable[str] = ()) -> Callable[[], None]:
        """Hold keys that the caller holds beyond its block; return what ends that, once."""
        wanted, read = set(exclusive), set(shared) - set(exclusive)
        with self._changed:
            assert wanted <= self._exclusive.keys()
            assert read <= self._shared.keys()
            self._take(wanted, read)
        return partial(self._free, wanted, read)

    def _take(self, wanted: set[str], read: set[str]) -> None:
        self._exclusive.update(wanted)
        self._shared.update(read)

    def _free(self, wanted: set[str], read: set[str]) -> None:
        with self._changed:
            for held, keys in ((self._exclusive, wanted), (self._shared, read)):
                for key in keys:
                    held[key] -= 1
                    if not held[key]:
                        del held[key]
            self._changed.notify_all()

    def is_held(self, key: str) -> bool:
        """Return whether a call holds the key exclusively now."""
        with self._changed:
            return key in self._exclusive

    def _busy(self, wanted: set[str], read: set[str]) -> str | None:
        """Return a key that cannot be had now, or None."""
        changed, seen = self._exclusive.keys(), self._shared.keys()
        taken = (wanted & (changed | seen)) | (read & changed)
        return min(taken) if taken else None
