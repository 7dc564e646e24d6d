"""What one direct clone, or one blank image, is going to write, and in which order.

Wave 1, the names: row of the directory with the plan, entry in librbd's list.
Wave 2, the image: header in one write, object map, a clone's link in its parent, name object.
Behind the answer: the row says that the volume is complete.

Wave 2 starts when all of wave 1 is durable, so an image of ours always has a row and a name, and
what a crash leaves is what the row says or less.
"""

import hashlib
import secrets
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from volcore.backends.rbd.bindings import bindings
from volcore.backends.rbd.direct import wire
from volcore.backends.rbd.direct.waves import Write, calling
from volcore.backends.rbd.directory import Link
from volcore.backends.rbd.header import RECORD_PREFIX

DIRECTORY_OBJECT: Final = "rbd_directory"
LINK_WRITE: Final = 2
"""Which write of wave 2 is a clone's link; the last one is the name object."""
_DERIVED_DIGITS: Final = 8
_RANDOM_DIGITS: Final = 6
ID_DIGITS: Final = _DERIVED_DIGITS + _RANDOM_DIGITS
"""librbd allows 14 characters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One clone of a snapshot in the same pool, or one blank image."""

    volume_id: str
    link: Link
    pool_id: int
    size_bytes: int
    overlap_bytes: int = 0
    """Bytes that are read from the parent: the snapshot's size."""
    order: int
    features: int
    records: Mapping[str, bytes] = field(default_factory=dict, hash=False)
    """What the image carries, see `carrying.py`."""

    def name(self) -> Write:
        """Return the name object."""
        return naming(self.volume_id, self.link.image_id)

    def image(self, ioctx: Any, *, parent_features: int = 0) -> list[Write]:
        """Return wave 2: header, object map, a clone's link, name object.

        The link is refused (ECANCELED) unless the parent's features are `parent_features`, and
        (ENOENT) when the snapshot is gone.
        """
        rados, link = bindings().rados, self.link
        parent = None
        if link.parent_id:
            parent = wire.parent_row(self.pool_id, link.parent_id, link.snap, self.overlap_bytes)
        rows = wire.header_rows(
            image_id=link.image_id,
            owner=self.volume_id,
            size_bytes=self.size_bytes,
            order=self.order,
            features=self.features,
            parent=parent,
        )
        rows |= {RECORD_PREFIX + key: raw for key, raw in self.records.items()}
        object_map = wire.empty_object_map(self.size_bytes, self.order)

        def fill_header(op: Any) -> None:
            op.new(rados.LIBRADOS_CREATE_EXCLUSIVE)
            ioctx.set_omap(op, tuple(rows), tuple(rows.values()))

        def fill_map(op: Any) -> None:
            op.new(rados.LIBRADOS_CREATE_EXCLUSIVE)
            op.write_full(object_map)

        writes = [
            Write(header_object(link.image_id), fill_header),
            Write(map_object(link.image_id), fill_map),
        ]
        if link.parent_id:
            expected = parent_features.to_bytes(8, "little").decode("ascii")
            writes.append(attaching(self.pool_id, link, expect=("features", expected)))
        return [*writes, self.name()]


def new_image_id(volume_id: str) -> str:
    """Return an rbd image id that shows, with `is_derived`, for which volume it was made.

    Random digits at the end: a volume id that is used again must not meet the image of its
    predecessor in the trash.
    """
    return _derived(volume_id) + secrets.token_hex(_RANDOM_DIGITS // 2)


def is_derived(image_id: str, volume_id: str) -> bool:
    """Return whether the image id was made for that volume."""
    return len(image_id) == ID_DIGITS and image_id.startswith(_derived(volume_id))


def naming(name: str, image_id: str) -> Write:
    """Return the write of the name object of an image; EEXIST if there is one."""
    rados = bindings().rados

    def fill(op: Any) -> None:
        op.new(rados.LIBRADOS_CREATE_EXCLUSIVE)
        op.execute("rbd", "set_id", wire.string(image_id))

    return Write(id_object(name), fill)


def listing(plans: Sequence[Plan]) -> Write:
    """Return the entries of all images in librbd's list; all or none."""
    return _directory_entries(plans, "dir_add_image")


def unlisting(plans: Sequence[Plan]) -> Write:
    """Return the deletion of these entries; all or none, ENOENT or ESTALE if one is not there."""
    return _directory_entries(plans, "dir_remove_image")


def _directory_entries(plans: Sequence[Plan], method: str) -> Write:
    def fill(op: Any) -> None:
        for plan in plans:
            op.execute("rbd", method, wire.directory_entry(plan.volume_id, plan.link.image_id))

    return Write(DIRECTORY_OBJECT, fill)


def attaching(pool_id: int, link: Link, *, expect: tuple[str, str] | None = None) -> Write:
    """Return the write of the parent's link to the clone."""
    body = wire.child_link(pool_id, link.image_id, link.snap)
    return calling(header_object(link.parent_id), "child_attach", body, expect=expect)


def trashing(image_id: str, snap: int) -> Write:
    """Return the write that puts a snapshot out of sight; it goes with its last clone."""
    return calling(header_object(image_id), "snapshot_trash_add", struct.pack("<Q", snap))


def header_object(image_id: str) -> str:
    """Return the name of an image's header object."""
    return f"rbd_header.{image_id}"


def map_object(image_id: str, snap: int | None = None) -> str:
    """Return the name of the object map of an image, or of one of its snapshots."""
    return f"rbd_object_map.{image_id}" + ("" if snap is None else f".{snap:016x}")


def data_object(image_id: str, number: int) -> str:
    """Return the name of the object that holds one chunk of an image."""
    return f"rbd_data.{image_id}.{number:016x}"


def id_object(name: str) -> str:
    """Return the name of the object that says which id an image's name has."""
    return f"rbd_id.{name}"


def _derived(volume_id: str) -> str:
    """Return the digits of an image id that follow from the volume id."""
    return hashlib.sha256(volume_id.encode()).hexdigest()[:_DERIVED_DIGITS]
