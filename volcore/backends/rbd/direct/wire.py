"""The bytes of a clone and of a blank image: arguments of class methods, header, object map.

All numbers are little-endian. What is built here is compared, byte for byte, with what librbd
writes on the cluster at hand before it is used (`proof.py`); docs/formats/direct-clone.md has the
tables.

Source: Ceph, src/cls/rbd/cls_rbd.cc, cls_rbd_types.cc (ParentImageSpec, ChildImageSpec) and
src/common/bit_vector.hpp.
"""

import struct
import time
from collections.abc import Iterator
from functools import lru_cache
from typing import Final

from volcore.backends.rbd.header import OWNER_KEY
from volcore.kernels.crc32c import crc32c
from volcore.limits import CHUNK_SIZE_BYTES, VOLUME_SIZE_BYTES_MAX

OPERATIONS: Final = 256
"""Feature bit: the header has a row `op_features`."""
CLONE_PARENT: Final = 1
"""Bit of `op_features` of an image that has clones of format 2."""
CLONE_CHILD: Final = 2
"""Bit of `op_features` of a clone of format 2."""
MAP_BLOCK_BYTES: Final = 4096
"""Part of an object map that has a checksum of its own."""

NONEXISTENT: Final = 0b00
"""In an object map: there is no such object."""
EXISTS: Final = 0b01
"""It is there, and was written since the snapshot before."""
EXISTS_CLEAN: Final = 0b11
"""It is there, and was not."""
MAP_BYTES_MAX: Final = VOLUME_SIZE_BYTES_MAX // CHUNK_SIZE_BYTES // 4 * 2
"""More than the largest object map with its checksums."""

HEADER_UPDATE: Final = "\x07\x01\x04\0\0\0\x03\0\0\0"
"""What librbd tells those who watch a header that has changed."""
LOCK_QUESTION: Final = b"\x01\x01\x0c\0\0\0\x08\0\0\0rbd_lock"
"""Argument of `lock.get_info` for the lock that a writer of an image holds."""

_ALL_ONES: Final = 0xFFFFFFFF
_MAP_HEAD_BYTES: Final = 18
"""Of an object map before its states: length, struct header, count of objects."""
_CLEAN: Final = bytes(states | (states & 0x55) << 1 for states in range(256))
"""Four states of two bits each, as they are after a snapshot: 01, written, becomes 11, clean."""


def string(text: str) -> bytes:
    """Encode a string as Ceph does."""
    raw = text.encode()
    return struct.pack("<I", len(raw)) + raw


def framed(version: int, compat: int, body: bytes) -> bytes:
    """Put the head of a versioned struct before its body."""
    return struct.pack("<BBI", version, compat, len(body)) + body


def child_link(pool_id: int, image_id: str, snap: int) -> bytes:
    """Return the argument of `child_attach` and `child_detach`: snapshot, then the clone."""
    child = struct.pack("<q", pool_id) + string(image_id) + string("")
    return struct.pack("<Q", snap) + framed(2, 1, child)


def child_spec(pool_id: int, image_id: str) -> bytes:
    """Return how a clone stands in the row `snap_children_...` of its parent."""
    return child_link(pool_id, image_id, 0)[8:]


def children(row: bytes) -> list[str]:
    """Return the image ids in a row `snap_children_...`, of whatever pool."""
    return [image_id for _, image_id in children_by_pool(row)]


def children_by_pool(row: bytes) -> list[tuple[int, str]]:
    """Return pool id and image id of each clone in a row `snap_children_...`."""
    found = []
    (count,) = struct.unpack_from("<I", row)
    at = 4
    for _ in range(count):
        (length, pool_id, id_bytes) = struct.unpack_from("<IqI", row, at + 2)
        found.append((pool_id, row[at + 18 : at + 18 + id_bytes].decode()))
        at += 6 + length
    return found


def children_key(snap: int) -> str:
    """Return the key of the row with a snapshot's clones."""
    return f"snap_children_{snap:016x}"


def directory_entry(name: str, image_id: str) -> bytes:
    """Return the argument of `dir_add_image` and `dir_remove_image`."""
    return string(name) + string(image_id)


def parent_row(pool_id: int, image_id: str, snap: int, overlap_bytes: int) -> bytes:
    """Return the row `parent` of a clone's header."""
    place = struct.pack("<q", pool_id) + string("") + string(image_id)
    return framed(2, 2, place + struct.pack("<QBQ", snap, 1, overlap_bytes))


def header_rows(
    *, image_id: str, owner: str, size_bytes: int, order: int, features: int, parent: bytes | None
) -> dict[str, bytes]:
    """Return all rows of the header of a new clone of format 2; without `parent`, a blank image."""
    now_ns = time.time_ns()
    now = struct.pack("<II", now_ns // 10**9, now_ns % 10**9)
    rows = {
        "access_timestamp": now,
        "create_timestamp": now,
        "features": struct.pack("<Q", features),
        f"metadata_{OWNER_KEY}": owner.encode(),
        "modify_timestamp": now,
        "object_prefix": string(f"rbd_data.{image_id}"),
        "order": struct.pack("<B", order),
        "size": struct.pack("<Q", size_bytes),
        "snap_seq": bytes(8),
    }
    if parent is not None:
        rows["features"] = struct.pack("<Q", features | OPERATIONS)
        rows["op_features"] = struct.pack("<Q", CLONE_CHILD)
        rows["parent"] = parent
    return rows


def new_snapshot(snap: int, name: str) -> bytes:
    """Return the argument of `snapshot_add` for a snapshot of a user."""
    return string(name) + struct.pack("<Q", snap) + framed(1, 1, bytes(4))


def lockers(reply: bytes) -> int:
    """Return how many hold a lock, from the answer of `lock.get_info`."""
    return int(struct.unpack_from("<I", reply, 6)[0])


def mapped_objects(object_map: bytes) -> int:
    """Return of how many objects an object map tells; -1 if it is none."""
    if len(object_map) < _MAP_HEAD_BYTES:
        return -1
    return int(struct.unpack_from("<Q", object_map, 10)[0])


def written_objects(object_map: bytes) -> Iterator[int]:
    """Yield the numbers of the objects that a map calls written since the snapshot before."""
    states = object_map[_MAP_HEAD_BYTES : _MAP_HEAD_BYTES - (-mapped_objects(object_map) // 4)]
    for at, four in enumerate(states):
        if four:
            yield from (4 * at + n for n in range(4) if four >> 6 - 2 * n & 3 == EXISTS)


def marking(start: int, end: int, state: int, *, was: int) -> bytes:
    """Return the argument of `object_map_update` for objects from `start` until before `end`.

    Of these, it changes those that are in the state `was`.
    """
    return struct.pack("<QQBBB", start, end, state, 1, was)


def is_unwritten(now: bytes, then: bytes) -> bool:
    """Return whether an image's object map differs in nothing from that of an older snapshot.

    What was written at the snapshot (01) must be clean since (11); any other difference, and an
    object that is being deleted (10), means a write.
    """
    if mapped_objects(now) < 0 or mapped_objects(now) != mapped_objects(then):
        return False
    states = slice(_MAP_HEAD_BYTES, _MAP_HEAD_BYTES - (-mapped_objects(now) // 4))
    return now[states] == then[states].translate(_CLEAN)


@lru_cache(maxsize=16)
def empty_object_map(size_bytes: int, order: int) -> bytes:
    """Return the object map of an image that holds nothing.

    Two bits per object, all zero; the checksum of zeroes, seeded with zero, is zero.
    """
    object_count = -(-size_bytes >> order)
    head = framed(1, 1, struct.pack("<Q", object_count))
    head_crc = crc32c(head, _ALL_ONES) ^ _ALL_ONES
    map_bytes = -(-object_count // 4)
    block_count = -(-map_bytes // MAP_BLOCK_BYTES)
    foot = struct.pack("<II", head_crc, block_count) + bytes(4 * block_count)
    return b"".join(
        (struct.pack("<I", len(head)), head, bytes(map_bytes), struct.pack("<I", len(foot)), foot)
    )
