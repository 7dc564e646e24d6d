"""A device of the local backend: cuts requests of any alignment into whole and partial blocks."""

from collections.abc import Callable
from typing import Final

from volcore.backends import refusals
from volcore.backends.contract import BlockDevice
from volcore.backends.local.chunkstore import ChunkStore
from volcore.kernels.datapath import DataPath
from volcore.limits import BLOCK_SIZE_BYTES, CHUNK_SIZE_BYTES, KIB
from volcore.model.extent import Extent, block_count

BULK_BYTES_MIN: Final = 512 * KIB
"""Shorter runs go through the page cache: there they are joined before a slow disk sees them."""
_ZEROES = bytes(CHUNK_SIZE_BYTES)


class LocalDevice(BlockDevice):
    """One opening of a volume or snapshot; devices of the same one share a `ChunkStore`."""

    def __init__(
        self,
        chunks: ChunkStore,
        release: Callable[["LocalDevice"], None],
        *,
        read_only: bool,
    ) -> None:
        self.chunks = chunks
        self._release = release
        self._read_only = read_only
        self.closed = False

    @property
    def size_bytes(self) -> int:
        """See `BlockDevice.size_bytes`."""
        return self.chunks.size_bytes

    @property
    def read_only(self) -> bool:
        """See `BlockDevice.read_only`."""
        return self._read_only

    @property
    def data_path(self) -> DataPath:
        """The path to whole blocks without the GIL; good until the device is closed."""
        return self.chunks.path

    def prepare(self, offset_bytes: int, length_bytes: int, *, write: bool) -> bool:
        """Load what the data path lacks for these whole blocks; tell whether it may do them now."""
        self._check(offset_bytes, length_bytes)
        block, count = offset_bytes // BLOCK_SIZE_BYTES, length_bytes // BLOCK_SIZE_BYTES
        if write and self._read_only:
            return False
        if write:
            self.chunks.prepare_write(block, count)
        else:
            self.chunks.prepare_read(block, count)
        return True

    def read_into(self, offset_bytes: int, buffer: bytearray | memoryview) -> None:
        """See `BlockDevice.read_into`."""
        target = memoryview(buffer)
        if target.format != "B" or target.ndim != 1:
            target = target.cast("B")
        self._check(offset_bytes, len(target))
        block, start = divmod(offset_bytes, BLOCK_SIZE_BYTES)
        if start and len(target):
            count = min(BLOCK_SIZE_BYTES - start, len(target))
            target[:count] = self._one(block)[start : start + count]
            target, block = target[count:], block + 1
        whole = len(target) // BLOCK_SIZE_BYTES
        if whole:
            self.chunks.read(block, target[: whole * BLOCK_SIZE_BYTES])
        rest = len(target) % BLOCK_SIZE_BYTES
        if rest:
            target[-rest:] = self._one(block + whole)[:rest]

    def write(
        self, offset_bytes: int, data: bytes | bytearray | memoryview, *, fua: bool = False
    ) -> None:
        """See `BlockDevice.write`."""
        source = memoryview(data)
        if source.format != "B" or source.ndim != 1:
            source = source.cast("B")
        self._check_change(offset_bytes, len(source))
        block, start = divmod(offset_bytes, BLOCK_SIZE_BYTES)
        if start and len(source):
            count = min(BLOCK_SIZE_BYTES - start, len(source))
            self.chunks.patch(block, start, source[:count])
            source, block = source[count:], block + 1
        whole = len(source) // BLOCK_SIZE_BYTES
        if whole:
            self.chunks.write(block, source[: whole * BLOCK_SIZE_BYTES])
        if len(source) % BLOCK_SIZE_BYTES:
            self.chunks.patch(block + whole, 0, source[whole * BLOCK_SIZE_BYTES :])
        if fua:
            self.chunks.durability.flush()

    def write_bulk(self, offset_bytes: int, data: memoryview) -> None:
        """See `BlockDevice.write_bulk`."""
        uneven = offset_bytes % BLOCK_SIZE_BYTES or len(data) % BLOCK_SIZE_BYTES
        if uneven or len(data) < BULK_BYTES_MIN:
            self.write(offset_bytes, data)
            return
        self._check_change(offset_bytes, len(data))
        self.chunks.write_bulk(offset_bytes // BLOCK_SIZE_BYTES, data)

    def discard(self, offset_bytes: int, length_bytes: int) -> None:
        """See `BlockDevice.discard`."""
        self._check_change(offset_bytes, length_bytes)
        block, start = divmod(offset_bytes, BLOCK_SIZE_BYTES)
        if start and length_bytes:
            count = min(BLOCK_SIZE_BYTES - start, length_bytes)
            self.chunks.patch_zeroes(block, start, count)
            length_bytes, block = length_bytes - count, block + 1
        whole, rest = divmod(length_bytes, BLOCK_SIZE_BYTES)
        if whole:
            self.chunks.trim(block, whole)
        if rest:
            self.chunks.patch_zeroes(block + whole, 0, rest)

    def write_zeroes(
        self, offset_bytes: int, length_bytes: int, *, may_trim: bool = True, fua: bool = False
    ) -> None:
        """See `BlockDevice.write_zeroes`."""
        if may_trim:
            self.discard(offset_bytes, length_bytes)
        else:
            self._check_change(offset_bytes, length_bytes)
            for at in range(0, length_bytes, CHUNK_SIZE_BYTES):
                count = min(CHUNK_SIZE_BYTES, length_bytes - at)
                self.write(offset_bytes + at, memoryview(_ZEROES)[:count])
        if fua:
            self.chunks.durability.flush()

    def flush(self) -> None:
        """See `BlockDevice.flush`."""
        self._check(0, 0)
        if self.chunks.writable:
            self.chunks.durability.flush()

    def extents(self, offset_bytes: int, length_bytes: int) -> list[Extent]:
        """See `BlockDevice.extents`."""
        self._check(offset_bytes, length_bytes)
        extents: list[Extent] = []
        if not length_bytes:
            return extents
        end_bytes = offset_bytes + length_bytes
        block = offset_bytes // BLOCK_SIZE_BYTES
        for first, count, kind in self.chunks.kinds(block, block_count(end_bytes) - block):
            low = max(offset_bytes, first * BLOCK_SIZE_BYTES)
            high = min(end_bytes, (first + count) * BLOCK_SIZE_BYTES)
            if extents and (extents[-1].end_bytes, extents[-1].kind) == (low, kind):
                low = extents.pop().offset_bytes
            extents.append(Extent(low, high - low, kind))
        return extents

    def close(self) -> None:
        """See `BlockDevice.close`."""
        self._release(self)

    def _one(self, block: int) -> memoryview:
        target = memoryview(bytearray(BLOCK_SIZE_BYTES))
        self.chunks.read(block, target)
        return target

    def _check(self, offset_bytes: int, length_bytes: int) -> None:
        if self.closed:
            raise refusals.device_closed(self.chunks.volume_id)
        refusals.check_range(
            self.chunks.volume_id,
            offset_bytes=offset_bytes,
            length_bytes=length_bytes,
            size_bytes=self.chunks.size_bytes,
        )

    def _check_change(self, offset_bytes: int, length_bytes: int) -> None:
        if self._read_only:
            raise refusals.read_only(self.chunks.volume_id)
        self._check(offset_bytes, length_bytes)
