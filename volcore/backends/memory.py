"""The shortest correct backend: dictionaries under one lock; the judge in tests.

A content is a dict from block index to its bytes, or to None where it was trimmed; a block that is
not in it was never written. Snapshots and clones copy the dict. Nothing survives the object.
"""

import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from volcore import limits
from volcore.backends import refusals
from volcore.backends.contract import (
    BackendCaps,
    BlockDevice,
    PoolStats,
    Progress,
    VolumeBackend,
    VolumeFacts,
)
from volcore.limits import BLOCK_SIZE_BYTES, CHUNK_SIZE_BYTES
from volcore.model.extent import Extent, ExtentKind

_Content = dict[int, bytes | None]
_ZEROES = bytes(BLOCK_SIZE_BYTES)


@dataclass(slots=True)
class _Point:
    """A content with its size and origin: what a volume is, and what a snapshot keeps of it."""

    size_bytes: int
    blocks: _Content = field(default_factory=dict)
    inherited: _Content = field(default_factory=dict)
    """What was there when it was cloned."""
    depth: int = 0
    parent: tuple[str | None, str | None] = (None, None)

    def copy(self) -> "_Point":
        return _Point(self.size_bytes, dict(self.blocks), self.inherited, self.depth, self.parent)


@dataclass(slots=True)
class _Volume:
    head: _Point
    snapshots: dict[str, _Point] = field(default_factory=dict)


class MemoryBackend(VolumeBackend):
    """Volumes in memory; supports flatten, revert, group snapshots and diff."""

    def __init__(self) -> None:
        """Start with an empty pool."""
        self._lock = threading.RLock()
        self._volumes: dict[str, _Volume] = {}
        self._open: Counter[tuple[str, str | None]] = Counter()
        self._devices: set[_MemoryDevice] = set()

    @property
    def caps(self) -> BackendCaps:
        """See `VolumeBackend.caps`."""
        return BackendCaps(
            kind="memory",
            block_size_bytes=BLOCK_SIZE_BYTES,
            chunk_size_bytes=CHUNK_SIZE_BYTES,
            depth_max=limits.LOCAL_DEPTH_MAX,
            snapshots_max=limits.SNAPSHOTS_PER_VOLUME_MAX,
            checksums=False,
            joins_catalog=False,
        )

    def open(self) -> None:
        """See `VolumeBackend.open`."""

    def close(self) -> None:
        """See `VolumeBackend.close`."""
        with self._lock:
            for device in list(self._devices):
                device.close()

    def create(self, volume_id: str, size_bytes: int) -> None:
        """See `VolumeBackend.create`."""
        refusals.check_size(size_bytes)
        with self._lock:
            self._add(volume_id, _Point(size_bytes))

    def delete(self, volume_id: str) -> None:
        """See `VolumeBackend.delete`."""
        with self._lock:
            self._volume(volume_id)
            self.refuse_if_open(volume_id)
            del self._volumes[volume_id]

    def refuse_if_open(self, volume_id: str, snapshot_id: str | None = None) -> None:
        """See `VolumeBackend.refuse_if_open`."""
        found = [point for opened, point in list(self._open) if opened == volume_id]
        if found and (snapshot_id is None or snapshot_id in found):
            raise refusals.volume_in_use(volume_id)

    def resize(self, volume_id: str, size_bytes: int) -> None:
        """See `VolumeBackend.resize`."""
        refusals.check_size(size_bytes)
        with self._lock:
            head = self._volume(volume_id).head
            if size_bytes < head.size_bytes:
                raise refusals.shrink_refused(
                    volume_id, size_bytes=size_bytes, size_bytes_min=head.size_bytes
                )
            head.size_bytes = size_bytes

    def describe(self, volume_id: str) -> VolumeFacts:
        """See `VolumeBackend.describe`."""
        with self._lock:
            volume = self._volume(volume_id)
            points = [volume.head, *volume.snapshots.values()]
            own = {id(b) for p in points for b in p.blocks.values() if b is not None}
            own -= {id(b) for p in points for b in p.inherited.values()}
            others = [v for v in self._volumes.values() if v is not volume]
            shared = {
                id(b)
                for other in others
                for p in (other.head, *other.snapshots.values())
                for b in p.blocks.values()
            }
            mine = {id(b) for p in points for b in p.blocks.values() if b is not None}
            return VolumeFacts(
                volume_id=volume_id,
                size_bytes=volume.head.size_bytes,
                allocated_bytes=len(own) * BLOCK_SIZE_BYTES,
                depth=volume.head.depth,
                parent_volume_id=volume.head.parent[0],
                parent_snapshot_id=volume.head.parent[1],
                snapshot_ids=tuple(volume.snapshots),
                exclusive_bytes=len(mine - shared) * BLOCK_SIZE_BYTES,
            )

    def walk(self) -> Iterator[str]:
        """See `VolumeBackend.walk`."""
        with self._lock:
            return iter(list(self._volumes))

    def create_snapshot(self, volume_id: str, snapshot_id: str, *, attached: bool = False) -> None:
        """See `VolumeBackend.create_snapshot`."""
        del attached
        self.create_group_snapshot([(volume_id, snapshot_id)])

    def create_group_snapshot(self, members: Sequence[tuple[str, str]]) -> None:
        """See `SupportsGroupSnapshot.create_group_snapshot`."""
        with self._lock:
            for volume_id, snapshot_id in members:
                if snapshot_id in self._volume(volume_id).snapshots:
                    raise refusals.id_taken(snapshot_id)
            for volume_id, snapshot_id in members:
                volume = self._volumes[volume_id]
                volume.snapshots[snapshot_id] = volume.head.copy()

    def delete_snapshot(self, volume_id: str, snapshot_id: str) -> None:
        """See `VolumeBackend.delete_snapshot`."""
        with self._lock:
            self._point(volume_id, snapshot_id)
            self.refuse_if_open(volume_id, snapshot_id)
            del self._volumes[volume_id].snapshots[snapshot_id]

    def clone(
        self, volume_id: str, snapshot_id: str | None, target_id: str, size_bytes: int
    ) -> None:
        """See `VolumeBackend.clone`."""
        refusals.check_size(size_bytes)
        with self._lock:
            source = self._point(volume_id, snapshot_id)
            if size_bytes < source.size_bytes:
                raise refusals.shrink_refused(
                    target_id, size_bytes=size_bytes, size_bytes_min=source.size_bytes
                )
            if source.depth >= self.caps.depth_max:
                raise refusals.depth_limit(volume_id, self.caps.depth_max)
            blocks = dict(source.blocks)
            parent = (volume_id, snapshot_id)
            self._add(target_id, _Point(size_bytes, blocks, dict(blocks), source.depth + 1, parent))

    def open_device(
        self, volume_id: str, snapshot_id: str | None = None, *, read_only: bool
    ) -> BlockDevice:
        """See `VolumeBackend.open_device`."""
        if snapshot_id is not None and not read_only:
            raise refusals.read_only(volume_id)
        with self._lock:
            self._point(volume_id, snapshot_id)
            device = _MemoryDevice(self, volume_id, snapshot_id, read_only=read_only)
            self._open[volume_id, snapshot_id] += 1
            self._devices.add(device)
            return device

    def stats(self) -> PoolStats:
        """See `VolumeBackend.stats`."""
        with self._lock:
            used = sum(self.describe(volume_id).allocated_bytes for volume_id in self._volumes)
            return PoolStats(
                capacity_bytes=limits.TIB, available_bytes=limits.TIB - used, allocated_bytes=used
            )

    def flatten(self, volume_id: str, progress: Progress) -> None:
        """See `SupportsFlatten.flatten`."""
        with self._lock:
            head = self._volume(volume_id).head
            progress(0, head.size_bytes)
            head.inherited, head.depth, head.parent = {}, 0, (None, None)
            progress(head.size_bytes, head.size_bytes)

    def revert(self, volume_id: str, snapshot_id: str) -> None:
        """See `SupportsRevert.revert`."""
        with self._lock:
            point = self._point(volume_id, snapshot_id)
            if self._open[volume_id, None]:
                raise refusals.volume_in_use(volume_id)
            self._volumes[volume_id].head = point.copy()

    def diff(
        self, volume_id: str, from_snapshot_id: str | None, to_snapshot_id: str | None
    ) -> list[Extent]:
        """See `SupportsDiff.diff`."""
        with self._lock:
            target = self._point(volume_id, to_snapshot_id)
            old: _Content = {}
            if from_snapshot_id is not None:
                old = self._point(volume_id, from_snapshot_id).blocks
            changed = [
                Extent(
                    block * BLOCK_SIZE_BYTES,
                    BLOCK_SIZE_BYTES,
                    ExtentKind.DATA if target.blocks.get(block) else ExtentKind.ZERO,
                )
                for block in sorted(old.keys() | target.blocks.keys())
                if (old.get(block) or _ZEROES) != (target.blocks.get(block) or _ZEROES)
            ]
            return [e for e in _merged(changed) if e.offset_bytes < target.size_bytes]

    def _volume(self, volume_id: str) -> _Volume:
        if volume_id not in self._volumes:
            raise refusals.volume_missing(volume_id)
        return self._volumes[volume_id]

    def _point(self, volume_id: str, snapshot_id: str | None) -> _Point:
        volume = self._volume(volume_id)
        if snapshot_id is None:
            return volume.head
        if snapshot_id not in volume.snapshots:
            raise refusals.snapshot_missing(volume_id, snapshot_id)
        return volume.snapshots[snapshot_id]

    def _add(self, volume_id: str, head: _Point) -> None:
        if volume_id in self._volumes:
            raise refusals.id_taken(volume_id)
        self._volumes[volume_id] = _Volume(head)


class _MemoryDevice(BlockDevice):
    """Looks its point up at each call, so it follows what happens to the volume."""

    def __init__(
        self, backend: MemoryBackend, volume_id: str, snapshot_id: str | None, *, read_only: bool
    ) -> None:
        self._backend = backend
        self._key = (volume_id, snapshot_id)
        self._read_only = read_only
        self._closed = False

    @property
    def size_bytes(self) -> int:
        """See `BlockDevice.size_bytes`."""
        return self._backend._point(*self._key).size_bytes

    @property
    def read_only(self) -> bool:
        """See `BlockDevice.read_only`."""
        return self._read_only

    def read_into(self, offset_bytes: int, buffer: bytearray | memoryview) -> None:
        """See `BlockDevice.read_into`."""
        target = memoryview(buffer).cast("B")
        with self._backend._lock:
            blocks = self._range(offset_bytes, len(target)).blocks
            for at, block, start, count in _pieces(offset_bytes, len(target)):
                content = blocks.get(block) or _ZEROES
                target[at : at + count] = content[start : start + count]

    def write(
        self, offset_bytes: int, data: bytes | bytearray | memoryview, *, fua: bool = False
    ) -> None:
        """See `BlockDevice.write`."""
        del fua
        source = memoryview(data).cast("B")
        with self._backend._lock:
            blocks = self._changeable(offset_bytes, len(source)).blocks
            for at, block, start, count in _pieces(offset_bytes, len(source)):
                content = bytearray(blocks.get(block) or _ZEROES)
                content[start : start + count] = source[at : at + count]
                blocks[block] = bytes(content)

    def discard(self, offset_bytes: int, length_bytes: int) -> None:
        """See `BlockDevice.discard`."""
        with self._backend._lock:
            blocks = self._changeable(offset_bytes, length_bytes).blocks
            for _, block, start, count in _pieces(offset_bytes, length_bytes):
                content = blocks.get(block)
                if count == BLOCK_SIZE_BYTES and block in blocks:
                    blocks[block] = None
                elif content:
                    blocks[block] = content[:start] + bytes(count) + content[start + count :]

    def write_zeroes(
        self, offset_bytes: int, length_bytes: int, *, may_trim: bool = True, fua: bool = False
    ) -> None:
        """See `BlockDevice.write_zeroes`."""
        if may_trim:
            super().write_zeroes(offset_bytes, length_bytes, fua=fua)
        else:
            self._changeable(offset_bytes, length_bytes)
            self.write(offset_bytes, bytes(length_bytes))

    def flush(self) -> None:
        """See `BlockDevice.flush`."""
        self._range(0, 0)

    def extents(self, offset_bytes: int, length_bytes: int) -> list[Extent]:
        """See `BlockDevice.extents`."""
        with self._backend._lock:
            blocks = self._range(offset_bytes, length_bytes).blocks
            return _merged(
                [
                    Extent(offset_bytes + at, count, _kind(blocks, block))
                    for at, block, _, count in _pieces(offset_bytes, length_bytes)
                ]
            )

    def close(self) -> None:
        """See `BlockDevice.close`."""
        with self._backend._lock:
            if not self._closed:
                self._closed = True
                self._backend._devices.discard(self)
                self._backend._open[self._key] -= 1
                self._backend._open += Counter()

    def _range(self, offset_bytes: int, length_bytes: int) -> _Point:
        if self._closed:
            raise refusals.device_closed(self._key[0])
        point = self._backend._point(*self._key)
        refusals.check_range(
            self._key[0],
            offset_bytes=offset_bytes,
            length_bytes=length_bytes,
            size_bytes=point.size_bytes,
        )
        return point

    def _changeable(self, offset_bytes: int, length_bytes: int) -> _Point:
        if self._read_only:
            raise refusals.read_only(self._key[0])
        return self._range(offset_bytes, length_bytes)


def _kind(blocks: _Content, block: int) -> ExtentKind:
    if block not in blocks:
        return ExtentKind.ABSENT
    return ExtentKind.ZERO if blocks[block] is None else ExtentKind.DATA


def _pieces(offset_bytes: int, length_bytes: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield (position in the range, block index, offset in the block, byte count)."""
    at = 0
    while at < length_bytes:
        block, start = divmod(offset_bytes + at, BLOCK_SIZE_BYTES)
        count = min(BLOCK_SIZE_BYTES - start, length_bytes - at)
        yield at, block, start, count
        at += count


def _merged(extents: list[Extent]) -> list[Extent]:
    """Join neighbours of one kind."""
    merged: list[Extent] = []
    for extent in extents:
        if merged and (merged[-1].end_bytes, merged[-1].kind) == (extent.offset_bytes, extent.kind):
            last = merged.pop()
            length_bytes = last.length_bytes + extent.length_bytes
            merged.append(Extent(last.offset_bytes, length_bytes, extent.kind))
        else:
            merged.append(extent)
    return merged
