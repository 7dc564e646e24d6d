"""Reading no faster than allowed, without a burst after a pause."""

import time
from collections.abc import Callable
from typing import Final

PAUSE_S_MAX: Final = 0.2
"""Longest sleep: a cancel is noticed after it."""


class Pace:
    """Lets `bytes_per_s_max` bytes through in a second; 0: no limit. Used by one thread."""

    def __init__(self, bytes_per_s_max: int) -> None:
        self._bytes_per_s_max = bytes_per_s_max
        self._free_s = time.monotonic()
        """When the bytes let through so far are paid for."""

    def spend(self, length_bytes: int, tick: Callable[[], None]) -> None:
        """Return when `length_bytes` may be read; `tick` is called after each pause; may raise."""
        if not self._bytes_per_s_max:
            return
        while (wait_s := self._free_s - time.monotonic()) > 0:
            time.sleep(min(wait_s, PAUSE_S_MAX))
            tick()
        now_s = time.monotonic()
        self._free_s = max(self._free_s, now_s) + length_bytes / self._bytes_per_s_max
