"""What a volume is and holds, for many volumes in the same few rounds; no image is opened.

One round for volumes that are known, without snapshots: the row of the directory (is it still this
image?), the rows of the header and the object map, all at once. A volume that is met for the first
time takes one round more, so do snapshots, and each ancestor that is not remembered.

Source: Ceph, src/cls/rbd/cls_rbd.cc (rows of a header) and src/common/bit_vector.hpp.
"""

import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from volcore.backends.contract import VolumeFacts
from volcore.backends.rbd.direct.family import original
from volcore.backends.rbd.directory import HIDDEN_PREFIX, Directory, Entry
from volcore.backends.rbd.errmap import translated
from volcore.backends.rbd.header import (
    Headers,
    HeaderSnapshot,
    Parent,
    header_object,
    parse_parent,
    parse_snapshot,
)
from volcore.backends.rbd.reads import Wave
from volcore.errors import NotFoundError
from volcore.limits import (
    CHUNK_SIZE_BYTES,
    RBD_DEPTH_MAX,
    SNAPSHOTS_PER_VOLUME_MAX,
    VOLUME_SIZE_BYTES_MAX,
)

AGE_S_MAX: Final = 60.0
"""How old the figures of ancestors may be, when another server flattened one."""
KNOWN_MAX: Final = 50_000
"""Volumes, and ancestors, that are remembered; then all are forgotten."""
TOGETHER: Final = 64
"""Volumes in one wave."""
_MAP_HEAD_BYTES: Final = 4 + 6 + 8
"""Of an object map's bit vector: length, struct header, count of bits."""
_MAP_BYTES_MAX: Final = _MAP_HEAD_BYTES + VOLUME_SIZE_BYTES_MAX // CHUNK_SIZE_BYTES // 4
_INVALID: Final = 3
"""RBD_FLAG_OBJECT_MAP_INVALID | RBD_FLAG_FAST_DIFF_INVALID."""
_SNAPSHOT_ROW: Final = "snapshot_"
_KEYS: Final = ("flags", "parent", "size")
_PARENT_VERSION: Final = 2


@dataclass(frozen=True, slots=True)
class _Ancestor:
    """An image that others read from."""

    owner: str | None
    parent: Parent | None
    time_s: float


@dataclass(slots=True)
class _Found:
    """What the reads of one volume gave."""

    size_bytes: int
    flags: int
    parent: Parent | None
    snaps: list[int]
    object_map: Callable[[], bytes]
    snapshots: list[HeaderSnapshot]
    chunk_count: int | None = None


class Descriptions:
    """Describes volumes of one pool; any thread."""

    def __init__(
        self,
        ioctx: Any,
        headers: Headers,
        directory: Directory,
        *,
        find: Callable[[str], Entry | None],
        open_image: Callable[[str], Any],
    ) -> None:
        """Remember nothing yet.

        Args:
            ioctx: the pool.
            headers: of the pool.
            directory: of the pool.
            find: returns the row of a volume, after it has settled what was cut short.
            open_image: opens an image whose object map is invalid.
        """
        self._ioctx = ioctx
        self._headers = headers
        self._directory = directory
        self._find = find
        self._open_image = open_image
        self._image_ids: dict[str, str] = {}
        self._ancestors: dict[str, _Ancestor] = {}
        self._names: dict[tuple[str, int], str | None] = {}
        self.wave_count = 0
        """Round trips that callers have waited for, those for new ancestors apart."""

    def describe_many(self, volume_ids: Sequence[str]) -> dict[str, VolumeFacts]:
        """Return the facts of those volumes that exist."""
        facts: dict[str, VolumeFacts] = {}
        for start in range(0, len(volume_ids), TOGETHER):
            together = volume_ids[start : start + TOGETHER]
            found = self._read(together)
            self._read_snapshots(found)
            facts |= {volume_id: self._facts(volume_id, one) for volume_id, one in found.items()}
        return facts

    def forget(self) -> None:
        """Forget the ancestors: one was flattened."""
        # What is being read right now goes into the old ones, which nobody looks at again.
        self._ancestors = {}

    def _read(self, volume_ids: Sequence[str]) -> dict[str, _Found]:
        """Read what does not depend on snapshots; volumes that do not exist are left out."""
        known = {
            volume_id: self._image_ids[volume_id]
            for volume_id in volume_ids
            if volume_id in self._image_ids
        }
        with self._wave() as wave:
            rows = self._directory.finding(wave, volume_ids)
            begun = {volume_id: _Begun(wave, image_id) for volume_id, image_id in known.items()}
        present = rows()
        for volume_id, entry in present.items():
            if not entry.image_id:
                settled = self._find(volume_id)
                present[volume_id] = settled if settled is not None else entry
        image_ids = {key: entry.image_id for key, entry in present.items() if entry.image_id}
        fresh = {key: value for key, value in image_ids.items() if known.get(key) != value}
        if fresh:
            with self._wave() as wave:
                begun |= {key: _Begun(wave, image_id) for key, image_id in fresh.items()}
        found: dict[str, _Found] = {}
        if len(self._image_ids) + len(fresh) > KNOWN_MAX:
            self._image_ids.clear()
        for volume_id, image_id in image_ids.items():
            with suppress(NotFoundError):  # deleted meanwhile
                found[volume_id] = begun[volume_id].found(self._headers)
                self._image_ids[volume_id] = image_id
        for volume_id in known.keys() - found.keys():
            self._image_ids.pop(volume_id, None)
        return found

    def _read_snapshots(self, found: dict[str, _Found]) -> None:
        """Read the snapshots of all, and count what is stored."""
        pending = {}
        if any(one.snaps for one in found.values()):
            with self._wave() as wave:
                for volume_id, one in found.items():
                    image_id = self._image_ids[volume_id]
                    pending[volume_id] = [_BegunSnapshot(wave, image_id, n) for n in one.snaps]
        for volume_id, one in found.items():
            counts = [None if one.flags & _INVALID else _stored_chunks(one.object_map)]
            for begun in pending.get(volume_id, ()):
                with suppress(NotFoundError):  # deleted meanwhile
                    one.snapshots.append(parse_snapshot(begun.snapshot()))
                    counts.append(begun.chunk_count())
            known = [count for count in counts if count is not None]
            one.chunk_count = sum(known) if len(known) == len(counts) else None

    def _facts(self, volume_id: str, found: _Found) -> VolumeFacts:
        parent = found.parent
        chunk_count = found.chunk_count
        if chunk_count is None:
            chunk_count = self._count_chunks(self._image_ids[volume_id])
        return VolumeFacts(
            volume_id=volume_id,
            size_bytes=found.size_bytes,
            allocated_bytes=chunk_count * CHUNK_SIZE_BYTES,
            depth=sum(1 for _ in self._line(parent)),
            parent_volume_id=None if parent is None else self._ancestor(parent).owner,
            parent_snapshot_id=None if parent is None else self._name(parent),
            snapshot_ids=tuple(
                one.name for one in found.snapshots if one.user and _shown(one) == one.name
            ),
        )

    def _count_chunks(self, image_id: str) -> int:
        """Return how many objects the image itself holds, when its object map cannot tell."""
        found: list[int] = []
        with translated(f"describe rbd image {image_id}"), self._open_image(image_id) as image:
            image.diff_iterate(
                0, image.size(), None, lambda offset, _, has: found.append(has), False, True
            )
        return sum(found)

    def _line(self, parent: Parent | None) -> Iterator[Parent]:
        """Yield the ancestors, nearest first; those in the trash count, for reads go through."""
        for _ in range(RBD_DEPTH_MAX * 2 + 1):
            if parent is None:
                return
            yield parent
            if parent.pool_id != self._headers.pool_id:
                return
            parent = self._ancestor(parent).parent

    def _ancestor(self, at: Parent) -> _Ancestor:
        """Return what is known of an image that is a parent; nothing of one in another pool."""
        if at.pool_id != self._headers.pool_id:
            return _Ancestor(None, None, time.monotonic())
        ancestors = self._ancestors
        known = ancestors.get(at.image_id)
        now_s = time.monotonic()
        if known is None or now_s - known.time_s > AGE_S_MAX:
            parent = None
            with suppress(NotFoundError):
                parent = self._headers.parent(at.image_id)
            known = _Ancestor(self._headers.owner(at.image_id), parent, now_s)
            if len(ancestors) >= KNOWN_MAX:
                ancestors.clear()
            ancestors[at.image_id] = known
        return known

    def _name(self, parent: Parent) -> str | None:
        """Return the id of a snapshot that has clones: it keeps its name, in the trash too."""
        if parent.pool_id != self._headers.pool_id:
            return None
        key = (parent.image_id, parent.snap)
        if key not in self._names:
            name = None
            with suppress(NotFoundError):
                name = _shown(self._headers.snapshot(*key))
            if len(self._names) >= KNOWN_MAX:
                self._names.clear()
            self._names[key] = name
        return self._names[key]

    def _wave(self) -> Wave:
        self.wave_count += 1
        return Wave(self._ioctx)


class _Begun:
    """Reads of one image that are under way."""

    def __init__(self, wave: Wave, image_id: str) -> None:
        self._image_id = image_id
        self._rows = wave.rows(
            header_object(image_id),
            _KEYS,
            prefix=_SNAPSHOT_ROW,
            row_count=2 * SNAPSHOTS_PER_VOLUME_MAX,
        )
        self._map = wave.content(f"rbd_object_map.{image_id}", _MAP_BYTES_MAX)

    def found(self, headers: Headers) -> _Found:
        """Return what they gave.

        Raises:
            NotFoundError: there is no such image.
        """
        rows = self._rows()
        raw, parent = rows.get("parent"), None
        if raw is not None:
            # Before Ceph 14 the row had another form.
            usual = raw[0] == _PARENT_VERSION
            parent = parse_parent(raw) if usual else headers.parent(self._image_id)
        return _Found(
            size_bytes=int(struct.unpack("<Q", rows["size"])[0]),
            flags=int(struct.unpack("<Q", rows.get("flags", bytes(8)))[0]),
            parent=parent,
            snaps=[
                int(key.removeprefix(_SNAPSHOT_ROW), 16)
                for key in sorted(rows)
                if key.startswith(_SNAPSHOT_ROW)
            ],
            object_map=self._map,
            snapshots=[],
        )


class _BegunSnapshot:
    """Reads of one snapshot that are under way."""

    def __init__(self, wave: Wave, image_id: str, snap: int) -> None:
        body = struct.pack("<Q", snap)
        self.snapshot = wave.call(header_object(image_id), "snapshot_get", body)
        self._flags = wave.call(header_object(image_id), "get_flags", body)
        self._map = wave.content(f"rbd_object_map.{image_id}.{snap:016x}", _MAP_BYTES_MAX)

    def chunk_count(self) -> int | None:
        """Return how many objects were written between the snapshot before and this one."""
        (flags,) = struct.unpack_from("<Q", self._flags())
        return None if flags & _INVALID else _stored_chunks(self._map)


def _stored_chunks(object_map: Callable[[], bytes]) -> int | None:
    """Return how many objects a map marks as written since the snapshot before; None: no map.

    The sum over the maps of an image and of its snapshots counts each stored object version once.
    """
    try:
        raw = object_map()
    except NotFoundError:
        return None
    if len(raw) < _MAP_HEAD_BYTES:
        return None
    (object_count,) = struct.unpack_from("<Q", raw, _MAP_HEAD_BYTES - 8)
    states = raw[_MAP_HEAD_BYTES : _MAP_HEAD_BYTES - (-object_count // 4)]
    packed = int.from_bytes(states, "little")
    return (packed & ~(packed >> 1) & _low_bits(len(states))).bit_count()


@lru_cache(maxsize=16)
def _low_bits(length_bytes: int) -> int:
    """Return a number with the lower bit of each two-bit state set; 01 is "written"."""
    return int.from_bytes(b"\x55" * length_bytes, "little")


def _shown(snapshot: HeaderSnapshot) -> str | None:
    """Return the id of a snapshot of ours, of a sibling its original's; None for a hidden one."""
    return None if snapshot.name.startswith(HIDDEN_PREFIX) else original(snapshot.name)
