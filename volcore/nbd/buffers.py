"""Buffers that are used again: fresh memory costs a page fault per 4 KiB, as much as copying."""

import threading
from typing import Final

from volcore.limits import KIB, MIB

POOLED_BYTES_MIN: Final = 64 * KIB
"""Smaller buffers come from the allocator, which keeps them warm by itself."""
POOL_BYTES_MAX: Final = 64 * MIB
"""Memory that a pool may keep while nobody uses it."""


class BufferPool:
    """Hands out byte buffers and takes them back.

    Buffers come in powers of two and hold old bytes: whoever takes one fills what he shows to
    others. Thread-safe.
    """

    def __init__(self, *, kept_bytes_max: int = POOL_BYTES_MAX) -> None:
        self._kept_bytes_max = kept_bytes_max
        self._lock = threading.Lock()
        self._free: dict[int, list[bytearray]] = {}
        self._kept_bytes = 0

    @property
    def kept_bytes(self) -> int:
        """Bytes that lie in the pool now."""
        return self._kept_bytes

    def take(self, length_bytes: int) -> bytearray:
        """Return a buffer of at least `length_bytes`."""
        if length_bytes < POOLED_BYTES_MIN:
            return bytearray(length_bytes)
        class_bytes = 1 << (length_bytes - 1).bit_length()
        with self._lock:
            free = self._free.get(class_bytes)
            if free:
                self._kept_bytes -= class_bytes
                return free.pop()
        return bytearray(class_bytes)

    def give(self, buffer: bytearray) -> None:
        """Take back a buffer of `take`; nobody may use it any more."""
        class_bytes = len(buffer)
        if class_bytes < POOLED_BYTES_MIN:
            return
        with self._lock:
            if self._kept_bytes + class_bytes <= self._kept_bytes_max:
                self._kept_bytes += class_bytes
                self._free.setdefault(class_bytes, []).append(buffer)
