"""Bytes and progress between the event loop and a blocking thread, with back-pressure."""

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Iterator
from typing import Any, Final

from volcore.errors import CancelledError, Reason, VolcoreError
from volcore.model.records import Operation

FRAMES_QUEUED_MAX: Final = 4
"""Frames of an upload in memory; more wait in the network."""


class Upload:
    """Frames on their way: `put` by the event loop, iterated by one thread.

    The iterator ends only after `end`; after `fail` it raises, so that a broken upload is never
    taken for a short one.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._room = asyncio.Event()
        self._changed = threading.Condition()
        self._frames: deque[bytes | memoryview] = deque()
        self._ended = False
        self._error: VolcoreError | None = None

    async def put(self, frame: bytes | memoryview) -> None:
        """Add a frame; waits while the queue is full."""
        while True:
            with self._changed:
                if len(self._frames) < FRAMES_QUEUED_MAX:
                    self._frames.append(frame)
                    self._changed.notify()
                    return
                self._room.clear()
            await self._room.wait()

    def end(self) -> None:
        """Say that all bytes have been put."""
        with self._changed:
            self._ended = True
            self._changed.notify()

    def fail(self, error: VolcoreError) -> None:
        """Make the iterator raise `error`, unless the upload has ended. Idempotent."""
        with self._changed:
            if not self._ended and self._error is None:
                self._error = error
                self._changed.notify()

    def __iter__(self) -> Iterator[bytes | memoryview]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._frames or self._ended or self._error)
                if self._error is not None:
                    raise self._error
                if not self._frames:
                    return
                frame = self._frames.popleft()
            self._loop.call_soon_threadsafe(self._room.set)
            yield frame


class ProgressFeed:
    """The latest state of an operation, told by a thread and read by the event loop.

    Only the latest is kept: a slow reader misses steps, and costs no memory.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()
        self._latest: Operation | None = None
        self._news = False
        self._received: asyncio.Future[None] = self._loop.create_future()
        self._asked = False

    def put(self, operation: Operation) -> None:
        """Tell a new state; called by any thread."""
        self._loop.call_soon_threadsafe(self._set, operation)

    def _set(self, operation: Operation) -> None:
        self._latest = operation
        self._news = True
        self._changed.set()

    async def received(self) -> None:
        """Return once the reader has taken one more state; call it once at most."""
        self._asked = True
        self._changed.set()
        await self._received

    async def until(self, work: asyncio.Future[Any]) -> AsyncIterator[Operation]:
        """Yield states until `work` is done."""
        work.add_done_callback(lambda _: self._changed.set())
        while not work.done():
            await self._changed.wait()
            self._changed.clear()
            asked = self._asked and not self._received.done()
            if self._latest is not None and (self._news or asked):
                self._news = False
                yield self._latest
                if asked:
                    self._received.set_result(None)


def broken_off() -> CancelledError:
    """Return the error for an upload whose sender has left."""
    return CancelledError(
        "the upload broke off before its end; nothing of it is left: send it again",
        reason=Reason.CANCELLED,
    )
