"""The content digest of a device, see `volcore.model.digest`."""

import functools
from collections.abc import Iterator

from volcore.backends.contract import BlockDevice, Progress
from volcore.images.chunks import Fill, for_each_chunk
from volcore.kernels.zero import is_zero
from volcore.limits import CHUNK_SIZE_BYTES, GIB
from volcore.model.digest import ContentDigest, chunk_digest
from volcore.model.extent import ExtentKind, chunk_count, chunk_index

_WINDOW_BYTES = 64 * GIB
"""Extents are asked for in windows: bounded memory on huge devices. A multiple of the chunk."""


def digest_device(device: BlockDevice, progress: Progress, threads: int | None = None) -> str:
    """Return the digest of a device's content; chunks that are holes are not read.

    *Concurrency*: nobody may write meanwhile. *Complexity*: O(chunks with data), and O(chunks) for
    putting the digests together.

    Raises:
        IntegrityError: a block fails its checksum.
        CancelledError: raised by `progress`; no thread of this call is left.
    """
    digest = ContentDigest(device.size_bytes)

    def work(index: int, buffer: memoryview) -> None:
        if not is_zero(buffer):
            digest.add(index, chunk_digest(buffer))

    for_each_chunk(DeviceSource(device), work, progress, threads=threads)
    return digest.result()


class DeviceSource:
    """The chunks of a device."""

    def __init__(self, device: BlockDevice) -> None:
        self._device = device
        self.size_bytes = device.size_bytes

    def chunks(self) -> Iterator[tuple[int, Fill]]:
        """See `ChunkSource.chunks`."""
        for index in data_chunks(self._device):
            yield index, functools.partial(self._fill, index)

    def _fill(self, index: int, buffer: memoryview) -> bool:
        offset_bytes = index * CHUNK_SIZE_BYTES
        end = min(CHUNK_SIZE_BYTES, self.size_bytes - offset_bytes)
        self._device.read_into(offset_bytes, buffer[:end])
        if end < CHUNK_SIZE_BYTES:
            buffer[end:] = bytes(CHUNK_SIZE_BYTES - end)
        return True


def data_chunks(device: BlockDevice) -> Iterator[int]:
    """Yield, ascending, the index of each chunk with at least one DATA extent."""
    last = -1
    for start in range(0, device.size_bytes, _WINDOW_BYTES):
        length = min(_WINDOW_BYTES, device.size_bytes - start)
        for extent in device.extents(start, length):
            if extent.kind is ExtentKind.DATA:
                first = max(last + 1, chunk_index(extent.offset_bytes))
                last = max(last, chunk_count(extent.end_bytes) - 1)
                yield from range(first, last + 1)
