"""The engine of import and hashing: whole 4 MiB chunks, several at once, each by one thread.

A thread takes the next chunk, fills its own buffer from the source, and does the work on it (hash,
find zeroes, write) while the bytes are warm. Nothing is read twice, memory is one chunk per thread,
and reading, hashing and writing of different chunks overlap without hand-over between threads.
"""

import mmap
import os
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Final, Protocol

from volcore.backends.contract import BlockDevice, Progress
from volcore.kernels.zero import find_zero_blocks
from volcore.limits import CHUNK_SIZE_BYTES, KIB, MIB
from volcore.model.digest import ContentDigest, chunk_digest

Fill = Callable[[memoryview], bool]
"""Fills the whole buffer with a chunk, zeroes after its end; False: all zeroes, nothing filled."""
Work = Callable[[int, memoryview], None]
"""Does something with a chunk: called as work(chunk_index, buffer)."""

THREADS_MAX: Final = 8
"""Beyond that, memory bandwidth and storage are the limit, not hashing."""
ZERO_PIECE_BYTES: Final = 64 * KIB
"""A piece of zeroes of this size is not written; smaller ones are not worth an extra request."""
FLUSH_EVERY_BYTES: Final = 64 * MIB
"""Long enough that a flush costs little, short enough that the last one is short."""
_PIECES_PER_CHUNK: Final = CHUNK_SIZE_BYTES // ZERO_PIECE_BYTES
_POLL_S: Final = 0.25
"""How long a cancel may go unnoticed while no chunk is done."""

assert CHUNK_SIZE_BYTES % ZERO_PIECE_BYTES == 0


class ChunkSource(Protocol):
    """Something that consists of chunks."""

    @property
    def size_bytes(self) -> int:
        """Size of the content, a multiple of the block size."""

    def chunks(self) -> Iterator[tuple[int, Fill]]:
        """Yield, ascending, (chunk index, fill) of each chunk that may hold data.

        *Concurrency*: the iterator is advanced under a lock; fills run beside it and each other.
        """


def threads_default() -> int:
    """Return one thread per usable processor, and one that waits for storage."""
    return min(THREADS_MAX, len(os.sched_getaffinity(0)) + 1)


def store(source: ChunkSource, device: BlockDevice, progress: Progress) -> str:
    """Write a source into a blank device, zeroes left out; flush; return the content digest.

    Raises:
        CancelledError: raised by `progress`; no thread of this call is left.
    """
    assert device.size_bytes == source.size_bytes, "the device was made for this content"
    digest = ContentDigest(source.size_bytes)
    flusher = _EarlyFlusher(device)

    def work(chunk_index: int, buffer: memoryview) -> None:
        offset_bytes = chunk_index * CHUNK_SIZE_BYTES
        runs = data_runs(buffer, device.size_bytes - offset_bytes)
        for start, end in runs:
            device.write_bulk(offset_bytes + start, buffer[start:end])
        if runs:
            flusher.note_written(CHUNK_SIZE_BYTES)
            digest.add(chunk_index, chunk_digest(buffer))

    for_each_chunk(source, work, progress)
    device.flush()
    return digest.result()


def data_runs(buffer: memoryview, length_bytes: int) -> list[tuple[int, int]]:
    """Return ascending (start, end) of what is not zeroes in a chunk, none after `length_bytes`."""
    zero = bytearray(_PIECES_PER_CHUNK)
    zero_count = find_zero_blocks(buffer, ZERO_PIECE_BYTES, zero)
    runs: list[tuple[int, int]] = []
    first = -1 if zero_count == _PIECES_PER_CHUNK else zero.find(0)
    while first >= 0:
        after = zero.find(1, first)
        last = _PIECES_PER_CHUNK if after < 0 else after
        runs.append((first * ZERO_PIECE_BYTES, min(last * ZERO_PIECE_BYTES, length_bytes)))
        first = -1 if after < 0 else zero.find(0, after)
    return runs


def for_each_chunk(
    source: ChunkSource, work: Work, progress: Progress, *, threads: int | None = None
) -> None:
    """Do `work` on each chunk that holds data, in any order, in several threads.

    `progress` is called in the calling thread, also while nothing moves; what it raises stops the
    work. The first error of any thread is raised here, after all threads have ended.
    """
    count_max = -(-source.size_bytes // CHUNK_SIZE_BYTES)
    crew = _Crew(source.chunks(), work)
    crew.start(min(threads or threads_default(), count_max))
    done_bytes = 0
    try:
        progress(0, source.size_bytes)
        while (event := crew.wait()) is not None:
            if isinstance(event, BaseException):
                raise event
            done_bytes = max(done_bytes, event * CHUNK_SIZE_BYTES)
            progress(min(done_bytes, source.size_bytes), source.size_bytes)
    finally:
        crew.stop()
    progress(source.size_bytes, source.size_bytes)


class _EarlyFlusher:
    """Flushes while others go on writing, so that storage is busy from the beginning.

    The thread that wrote the byte too many waits for the flush; there is a thread more than
    processors, so that hashing goes on at full speed meanwhile.
    """

    def __init__(self, device: BlockDevice) -> None:
        self._device = device
        self._lock = threading.Lock()
        self._unflushed_bytes = 0
        self._busy = False

    def note_written(self, length_bytes: int) -> None:
        """Count; flush when it is time and nobody else does."""
        with self._lock:
            self._unflushed_bytes += length_bytes
            if self._busy or self._unflushed_bytes < FLUSH_EVERY_BYTES:
                return
            self._busy = True
            self._unflushed_bytes = 0
        try:
            self._device.flush()
        finally:
            self._busy = False


class _Crew:
    """The threads of one `for_each_chunk`, and what they report."""

    def __init__(self, chunks: Iterator[tuple[int, Fill]], work: Work) -> None:
        self._chunks = chunks
        self._work = work
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._events: queue.SimpleQueue[int | BaseException | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._running_count = 0

    def start(self, count: int) -> None:
        self._running_count = count
        for number in range(count):
            thread = threading.Thread(target=self._run, name=f"chunks-{number}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def wait(self) -> int | BaseException | None:
        """Return how many leading chunks are behind, an error, or None when all is done."""
        while self._running_count:
            try:
                event = self._events.get(timeout=_POLL_S)
            except queue.Empty:
                return 0
            if event is not None:
                return event
            self._running_count -= 1
        return None

    def stop(self) -> None:
        """End after the chunks in hand; return when no thread is left."""
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        try:
            # Memory of its own pages: a device may write it past the page cache.
            with memoryview(mmap.mmap(-1, CHUNK_SIZE_BYTES)) as buffer:
                while not self._stopping.is_set():
                    with self._lock:
                        taken = next(self._chunks, None)
                    if taken is None:
                        break
                    index, fill = taken
                    if fill(buffer):
                        self._work(index, buffer)
                    self._events.put(index + 1)
        except BaseException as err:
            self._events.put(err)
        finally:
            self._events.put(None)
