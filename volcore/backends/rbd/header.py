"""Reading what librbd keeps about an image without opening it, and marking it as ours.

Opening an image costs 11 serial requests and 13 more per ancestor; most questions need one. These
are calls of the OSD class `rbd`, the wire contract that librbd and the kernel client rely on.

Source: Ceph, src/cls/rbd/cls_rbd.cc and cls_rbd_types.h.
"""

import errno
import struct
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from volcore.backends.rbd.bindings import bindings
from volcore.backends.rbd.errmap import ceph_errors, errno_of, error_of, translated
from volcore.backends.rbd.reads import Wave
from volcore.errors import NotFoundError, Reason

OWNER_KEY: Final = "volcore.volume_id"
"""Image metadata key that says whose an image is (`rbd image-meta list` shows it)."""
_ROLLBACK_KEY: Final = "volcore.rollback"
"""That of an image whose rollback has begun, and not ended; see `rollback.py`."""
RECORD_PREFIX: Final = "volcore.record/"
"""Of the rows with the records of the catalog that an image carries, see `carrying.py`."""

_HEAD: Final = 0xFFFFFFFFFFFFFFFE
"""CEPH_NOSNAP: the image itself, not one of its snapshots."""
_USER_NAMESPACE: Final = 0
_TRASH_NAMESPACE: Final = 2
_REPLY_BYTES_MAX: Final = 64 << 10
_PAGE_ROWS: Final = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Parent:
    """Where an image reads what it does not hold."""

    pool_id: int
    image_id: str
    snap: int


@dataclass(frozen=True, slots=True, kw_only=True)
class HeaderSnapshot:
    """A snapshot as the image header has it.

    `user` is False for one that is deleted but still has clones; `name` is what it was called.
    """

    snap: int
    name: str
    size_bytes: int
    user: bool
    trashed: bool
    """Whether it goes with its last clone; such a snapshot takes no new clones."""


class Headers:
    """Questions to image headers of one pool."""

    def __init__(self, ioctx: Any) -> None:
        self._ioctx = ioctx
        self.pool_id = int(ioctx.get_pool_id())

    def image_id(self, name: str) -> str | None:
        """Return the id of the rbd image called `name`, also when it is half made."""
        return self.listed_id(name) or self.named_id(name)

    def listed_id(self, name: str) -> str | None:
        """Return the id that the pool's list of rbd images has for `name`."""
        with suppress(NotFoundError):
            return _Reader(self._execute("rbd_directory", "dir_get_id", _string(name))).string()
        return None

    def named_id(self, name: str) -> str | None:
        """Return the id in the image's name object, which librbd writes before the list."""
        try:
            return _Reader(self._ioctx.read(f"rbd_id.{name}", 4096)).string()
        except ceph_errors() as err:
            if errno_of(err) == errno.ENOENT:
                return None
            raise error_of(err, f"look up rbd image {name}") from err

    def delete_name(self, name: str) -> None:
        """Delete the name object that a create cut short left without a directory entry."""
        with suppress(NotFoundError), translated(f"delete rbd_id.{name}"):
            self._ioctx.remove_object(f"rbd_id.{name}")

    def exists(self, image_id: str) -> bool:
        """Return whether the image has a header."""
        try:
            self.size_bytes(image_id)
        except NotFoundError:
            return False
        return True

    def mark(self, image_id: str, volume_id: str) -> None:
        """Write into the image whose it is."""
        body = struct.pack("<I", 1) + _string(OWNER_KEY) + _string(volume_id)
        self._execute(header_object(image_id), "metadata_set", body)

    def unmark(self, image_id: str) -> None:
        """Take back what `mark` wrote, and the records that the image carries. Idempotent."""
        with suppress(NotFoundError):
            drop_rows(self._ioctx, header_object(image_id), RECORD_PREFIX)
            self._execute(header_object(image_id), "metadata_remove", _string(OWNER_KEY))

    def owner(self, image_id: str) -> str | None:
        """Return the volume id that `mark` wrote; None for a foreign or vanished image."""
        with suppress(NotFoundError):
            raw = self._execute(header_object(image_id), "metadata_get", _string(OWNER_KEY))
            return _Reader(raw).string()
        return None

    def begin_rollback(self, image_id: str) -> None:
        """Note that a rollback begins; durable at return. Idempotent."""
        body = struct.pack("<I", 1) + _string(_ROLLBACK_KEY) + _string("begun")
        self._execute(header_object(image_id), "metadata_set", body)

    def has_begun_rollback(self, image_id: str) -> bool:
        """Return whether a rollback has begun, and not ended."""
        with suppress(NotFoundError):
            self._execute(header_object(image_id), "metadata_get", _string(_ROLLBACK_KEY))
            return True
        return False

    def end_rollback(self, image_id: str) -> None:
        """Note that a rollback has ended. Idempotent."""
        with suppress(NotFoundError):
            self._execute(header_object(image_id), "metadata_remove", _string(_ROLLBACK_KEY))

    def size_bytes(self, image_id: str) -> int:
        """Return the image's present size."""
        body = self._execute(header_object(image_id), "get_size", struct.pack("<Q", _HEAD))
        return int(struct.unpack_from("<BQ", body)[1])

    def parent(self, image_id: str) -> Parent | None:
        """Return the parent, None for an image without; whether or not it is in the trash."""
        return parse_parent(self._execute(header_object(image_id), "parent_get", b""))

    def overlap_bytes(self, image_id: str, snap: int) -> int:
        """Return how much of a snapshot is read from the image's parent; 0 without a parent."""
        body = self._execute(header_object(image_id), "parent_overlap_get", struct.pack("<Q", snap))
        return int(struct.unpack_from("<Q", body, 1)[0]) if body[0] else 0

    def depth(self, image_id: str, *, depth_max: int) -> int:
        """Return the count of ancestors; stops counting above `depth_max`.

        Ancestors in the trash count, for a read may have to go through them.
        """
        depth = 0
        parent = self.parent(image_id)
        while parent is not None and depth <= depth_max:
            depth += 1
            if parent.pool_id != self.pool_id:
                break
            parent = self.parent(parent.image_id)
        return depth

    def snaps(self, image_id: str) -> list[int]:
        """Return the numbers of all snapshots, newest first, the trashed ones too."""
        body = self._execute(header_object(image_id), "get_snapcontext", b"")
        _, count = struct.unpack_from("<QI", body)
        return list(struct.unpack_from(f"<{count}Q", body, 12))

    def snap_seq(self, image_id: str) -> int:
        """Return the highest number that a snapshot of the image has had."""
        body = self._execute(header_object(image_id), "get_snapcontext", b"")
        return int(struct.unpack_from("<Q", body)[0])

    def snapshot(self, image_id: str, snap: int) -> HeaderSnapshot:
        """Return what the header says about one snapshot."""
        body = struct.pack("<Q", snap)
        return parse_snapshot(self._execute(header_object(image_id), "snapshot_get", body))

    def snapshots(self, image_id: str) -> list[HeaderSnapshot]:
        """Return all snapshots, newest first, the trashed ones too; two rounds."""
        with Wave(self._ioctx) as wave:
            asked = [
                wave.call(header_object(image_id), "snapshot_get", struct.pack("<Q", snap))
                for snap in self.snaps(image_id)
            ]
        found = []
        for reply in asked:
            with suppress(NotFoundError):  # deleted meanwhile
                found.append(parse_snapshot(reply()))
        return found

    def find_snapshot(self, image_id: str, name: str) -> HeaderSnapshot | None:
        """Return the live snapshot called `name`, or None."""
        live = (one for one in self.snapshots(image_id) if one.user)
        return next((one for one in live if one.name == name), None)

    def has_children(self, image_id: str, snap: int) -> bool:
        """Return whether any clone still reads from this snapshot."""
        try:
            _, body = self._ioctx.execute(
                header_object(image_id),
                "rbd",
                "children_list",
                struct.pack("<Q", snap),
                _REPLY_BYTES_MAX,
            )
        except ceph_errors() as err:
            code = errno_of(err)
            if code == errno.ENOENT:
                return False
            if code == errno.ERANGE:  # more children than the reply has room for
                return True
            raise error_of(err, f"list the clones of rbd image {image_id}") from err
        return int(struct.unpack_from("<I", body)[0]) > 0

    def forget_child(self, image_id: str, link: bytes) -> None:
        """Take a clone out of the list of its parent, `image_id`; `link` is of `wire.child_link`.

        Raises:
            NotFoundError: it is not in that list.
        """
        self._execute(header_object(image_id), "child_detach", link)

    def is_old_child(self, parent: Parent, image_id: str) -> bool:
        """Return whether an image of this pool is a clone of format 1 of `parent`.

        Such clones are listed in an object of their own pool.
        """
        body = struct.pack("<q", parent.pool_id) + _string(parent.image_id)
        with suppress(NotFoundError):
            reply = self._execute(
                "rbd_children", "get_children", body + struct.pack("<Q", parent.snap)
            )
            reader = _Reader(reply)
            return image_id in [reader.string() for _ in range(reader.number("<I"))]
        return False

    def _execute(self, name: str, method: str, body: bytes) -> bytes:
        """Return the answer of a method of the OSD class `rbd`."""
        missing = NotFoundError(f"{name} has no such entry", reason=Reason.OBJECT_NOT_FOUND)
        with translated(f"call rbd.{method} on {name}", missing=missing):
            _, reply = self._ioctx.execute(name, "rbd", method, body, _REPLY_BYTES_MAX)
            return bytes(reply)


def drop_rows(ioctx: Any, name: str, prefix: str) -> None:
    """Delete an object's rows with a prefix.

    Raises:
        NotFoundError: no such object.
    """
    missing = NotFoundError(f"there is no {name}", reason=Reason.OBJECT_NOT_FOUND)
    rados = bindings().rados
    while True:
        with translated(f"read {name}", missing=missing), rados.ReadOpCtx() as reading:
            found, _ = ioctx.get_omap_vals(reading, "", prefix, _PAGE_ROWS)
            ioctx.operate_read_op(reading, name)
            keys = tuple(key for key, _ in found)
        if not keys:
            return
        with translated(f"write {name}", missing=missing), rados.WriteOpCtx() as writing:
            ioctx.remove_omap_keys(writing, keys)
            ioctx.operate_write_op(writing, name)


def header_object(image_id: str) -> str:
    """Return the name of an image's header object."""
    return f"rbd_header.{image_id}"


def parse_parent(raw: bytes) -> Parent | None:
    """Return the parent in an answer of `parent_get`, or in a row `parent` of version 2."""
    reader = _Reader(raw)
    reader.enter()
    pool_id = reader.number("<q")
    reader.string()
    found = Parent(pool_id=pool_id, image_id=reader.string(), snap=reader.number("<Q"))
    return found if found.pool_id >= 0 and found.image_id else None


def parse_snapshot(raw: bytes) -> HeaderSnapshot:
    """Return the snapshot in an answer of `snapshot_get`."""
    reader = _Reader(raw)
    reader.enter()
    number = reader.number("<Q")
    end = reader.enter()
    namespace = reader.number("<I")
    original = reader.string() if namespace == _TRASH_NAMESPACE else ""
    reader.at = end
    name, size_bytes = reader.string(), reader.number("<Q")
    return HeaderSnapshot(
        snap=number,
        user=namespace == _USER_NAMESPACE,
        trashed=namespace == _TRASH_NAMESPACE,
        name=original or name,
        size_bytes=size_bytes,
    )


def _string(text: str) -> bytes:
    """Encode a string as Ceph does."""
    raw = text.encode()
    return struct.pack("<I", len(raw)) + raw


class _Reader:
    """Decodes Ceph's encoding from the front."""

    def __init__(self, raw: bytes) -> None:
        self._raw = raw
        self.at = 0

    def number(self, form: str) -> int:
        """Return the next fixed-width number."""
        (value,) = struct.unpack_from(form, self._raw, self.at)
        self.at += struct.calcsize(form)
        return int(value)

    def string(self) -> str:
        """Return the next string."""
        length = self.number("<I")
        self.at += length
        return self._raw[self.at - length : self.at].decode()

    def enter(self) -> int:
        """Step over a struct's version and length; return where it ends."""
        self.at += 2
        length = self.number("<I")
        return self.at + length
