"""What is stored of an image, without what differs from its twin's: ids, names, times."""

import hashlib
import re
import struct
import time
from contextlib import suppress
from typing import Any, Final

from volcore.backends.rbd.bindings import bindings
from volcore.backends.rbd.direct import wire
from volcore.backends.rbd.direct.plan import header_object, map_object
from volcore.backends.rbd.errmap import translated
from volcore.backends.rbd.header import Headers
from volcore.errors import NotFoundError
from volcore.limits import CHUNK_SIZE_BYTES

_DIGEST_BYTES: Final = 64 << 10
_PAGE_ROWS: Final = 1000
_TIME_ERROR_S_MAX: Final = 24 * 3600
"""By how much a time in a row may differ from our clock."""
_TIMES: Final = frozenset({"access_timestamp", "create_timestamp", "modify_timestamp"})
_UUID: Final = re.compile(rb"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
"""The name of a snapshot in the trash."""


class DifferenceError(Exception):
    """What was made directly is not what librbd makes."""


class Likeness:
    """Looks at images of one pool."""

    def __init__(self, ioctx: Any, headers: Headers) -> None:
        self._ioctx = ioctx
        self._headers = headers
        self._rbd = bindings().rbd

    def content(self, name: str) -> list[object]:
        """Return what a reader gets of a clone, of its snapshot, and of what lies between."""
        found: list[object] = []
        with translated(f"read {name}"), self._rbd.Image(self._ioctx, name) as image:
            snapshots = [one["name"] for one in image.list_snaps() if one["namespace"] == 0]
            for snapshot in snapshots:
                image.set_snap(snapshot)
                found += [digest(image), differences(image, None)]
                image.set_snap(None)
            found.append(digest(image))
            found += [differences(image, snapshot) for snapshot in (None, *snapshots)]
        return found

    def stored(self, name: str) -> dict[str, bytes]:
        """Return all that is stored of an image besides data, without what may differ."""
        image_id = self.image_id(name)
        rows = self.rows(header_object(image_id))
        found: dict[str, bytes] = {}
        snaps = self._headers.snaps(image_id)
        for key, value in rows.items():
            text = key
            for number, snap in enumerate(snaps):
                text = text.replace(f"{snap:016x}", f"#{number}")
            found[f"row {text}"] = self._neutral(key, value, name, image_id, snaps)
        for number, suffix in enumerate(["", *(f".{snap:016x}" for snap in snaps)]):
            found[f"object map {number}"] = self._read(map_object(image_id) + suffix)
        raw = self._read(f"rbd_id.{name}")
        found["name"] = b"ID" if raw == wire.string(image_id) else raw
        listed = self._headers.listed_id(name)
        found["entry"] = b"" if listed is None else listed.replace(image_id, "ID").encode()
        return found

    def rows(self, name: str) -> dict[str, bytes]:
        """Return all rows of an object."""
        found: dict[str, bytes] = {}
        while True:
            with translated(f"read {name}"), bindings().rados.ReadOpCtx() as op:
                rows, _ = self._ioctx.get_omap_vals(
                    op, list(found)[-1] if found else "", "", _PAGE_ROWS
                )
                self._ioctx.operate_read_op(op, name)
                page = dict(rows)
            if not page:
                return found
            found |= page

    def image_id(self, name: str) -> str:
        """Return the id of a scratch image."""
        found = self._headers.image_id(name)
        if found is None:
            raise DifferenceError(f"librbd does not find {name}")
        return found

    def _neutral(self, key: str, value: bytes, name: str, image_id: str, snaps: list[int]) -> bytes:
        """Return a row without the image's own name and id, snapshot numbers and times."""
        if key in _TIMES:
            return b"time" if len(value) == 8 else value
        if key == "object_prefix":
            return value[4:].replace(image_id.encode(), b"ID")
        if key == "snap_seq":
            newest = int.from_bytes(value, "little")
            return b"newest" if newest >= max(snaps, default=1) else value
        if key.startswith("snap_children_"):
            return b"%d clones" % len(wire.children(value))
        if key.startswith("snapshot_"):
            snap = int(key.removeprefix("snapshot_"), 16).to_bytes(8, "little")
            value = _UUID.sub(b"UUID", value)
            value = _without_times(value[:6] + value[6:14].replace(snap, b"SNAPSHOT") + value[14:])
        return value.replace(name.encode(), b"NAME")

    def _read(self, name: str) -> bytes:
        """Return an object's bytes; empty if there is none."""
        with suppress(NotFoundError), translated(f"read {name}"):
            return bytes(self._ioctx.read(name, 1 << 20))
        return b""


def digest(image: Any) -> bytes:
    """Return a digest of the beginning of each object, where the steps above write."""
    found = hashlib.sha256()
    for at in range(0, image.size(), CHUNK_SIZE_BYTES):
        found.update(image.read(at, _DIGEST_BYTES))
    return found.digest()


def differences(image: Any, from_snapshot: str | None) -> list[tuple[int, int, bool]]:
    """Return what librbd tells of the differences to a snapshot, by object maps and exactly."""
    found: list[tuple[int, int, bool]] = []
    for whole_object in (True, False):
        image.diff_iterate(
            0, image.size(), from_snapshot, lambda *one: found.append(one), True, whole_object
        )
    return sorted(found)


def _without_times(value: bytes) -> bytes:
    """Return a row without the times in it that are about now.

    What follows a time is looked at from its end on: nanoseconds may look like one, too.
    """
    found, at = bytearray(value), 0
    while at + 8 <= len(value):
        seconds, nanoseconds = struct.unpack_from("<II", value, at)
        if abs(seconds - time.time()) < _TIME_ERROR_S_MAX and nanoseconds < 10**9:
            found[at : at + 8] = b"the-time"
            at += 7
        at += 1
    return bytes(found)
