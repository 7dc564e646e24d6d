"""What a crash leaves of a direct clone or a blank image: finished if its header is there, or gone.

A row with a link says that wave 1 was sent; wave 2 may have been, in any part. The header decides:
it is one write, and what has a header may have been used. Its missing link is written; without
the snapshot, or without an object map, the clone was never shown and goes. A snapshot that was
made for the clone only goes to the trash or away.

A name without a row and without a header, whose id was derived from it, is what is left when the
row of wave 1 was lost: it goes too. It is no image, so INV-RBD-1 holds.
"""

import struct
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from volcore.backends.rbd.bindings import bindings
from volcore.backends.rbd.direct import wire
from volcore.backends.rbd.direct.plan import (
    DIRECTORY_OBJECT,
    attaching,
    header_object,
    id_object,
    is_derived,
    map_object,
    naming,
)
from volcore.backends.rbd.direct.waves import Waves, Write, calling
from volcore.backends.rbd.directory import Directory, Entry, Link
from volcore.backends.rbd.errmap import error_of_code, translated
from volcore.backends.rbd.header import Headers
from volcore.backends.rbd.links import drop_needless
from volcore.errors import NotFoundError

_OBJECT_MAP: Final = 8
_ENOENT: Final = -2
_EEXIST: Final = -17
_STALE: Final = -116


class DirectRecovery:
    """Finishes or undoes what the short path makes in one pool; every call may be repeated."""

    def __init__(self, waves: Waves, headers: Headers, directory: Directory) -> None:
        self._waves = waves
        self._ioctx = waves.ioctx
        self._headers = headers
        self._directory = directory
        self._pool_id = int(waves.ioctx.get_pool_id())

    def settle(self, entry: Entry) -> bool:
        """Finish the image of a row with a link, or undo it; return whether it exists now.

        Precondition: no thread of this process makes it. The row may be old: what it says is done
        only if it still says so.
        """
        assert entry.link is not None
        present = self._directory.find(entry.volume_id)
        if present is None or present.link != entry.link:
            return present is not None and bool(present.image_id)
        if self._make_whole(entry.volume_id, entry.link):
            self._drop_unshared(entry.volume_id, entry.link)
            self._directory.complete_link(present)
            return True
        self.undo(entry.volume_id, entry.link)
        return False

    def undo(
        self,
        volume_id: str,
        link: Link,
        *,
        names: bool = True,
        image: bool = True,
        snapshot: bool = True,
    ) -> None:
        """Delete what there is of an image: header, link, map, name, and its row last.

        Args:
            volume_id: of the image.
            link: as planned.
            names: False: name and entry are not the image's.
            image: False: header and map are not the image's.
            snapshot: False: the caller cares for the snapshot if it is not needed any more.
        """
        if image:
            self._delete(header_object(link.image_id))
        if link.parent_id:
            self._unlink(volume_id, link, snapshot=snapshot)
        if image:
            self._delete(map_object(link.image_id))
        if names:
            self.delete_name(volume_id, link.image_id)
        self.forget(volume_id, link)

    def _unlink(self, volume_id: str, link: Link, *, snapshot: bool) -> None:
        """Delete the link of a clone, and with `snapshot` its snapshot if it was only for it."""
        body = wire.child_link(self._pool_id, link.image_id, link.snap)
        detached = self._run(calling(header_object(link.parent_id), "child_detach", body), _ENOENT)
        if snapshot and link.hidden:
            self._drop_unshared(volume_id, link)
        elif snapshot and detached == 0:
            drop_needless(self._ioctx, self._headers, link.parent_id, link.snap)

    def _drop_unshared(self, volume_id: str, link: Link) -> None:
        """Drop a clone's hidden snapshot, unless another that was made with it is to be settled.

        That one may still need a link, which a snapshot in the trash does not take.
        """
        if link.hidden and not any(
            other.link is not None
            and other.volume_id != volume_id
            and (other.link.parent_id, other.link.snap) == (link.parent_id, link.snap)
            for other in self._directory.walk()
        ):
            self.drop_hidden(link)

    def drop_hidden(self, link: Link) -> None:
        """Delete the snapshot that was made for clones; with a clone it goes to the trash."""
        with suppress(NotFoundError):
            found = self._headers.snapshot(link.parent_id, link.snap)
            if not found.user and self._headers.has_children(link.parent_id, link.snap):
                return
            with (
                translated(f"delete snapshot {found.name}"),
                bindings().rbd.Image(self._ioctx, image_id=link.parent_id) as image,
            ):
                if found.user:
                    image.remove_snap(found.name)
                else:
                    image.remove_snap_by_id(link.snap)

    def forget(self, volume_id: str, link: Link) -> None:
        """Delete the row of an image in the making, if it is still that."""
        entry = self._directory.find(volume_id)
        if entry is not None and entry.link == link:
            self._directory.forget(volume_id)

    def delete_name(self, name: str, image_id: str) -> None:
        """Delete a name that stands for `image_id`: librbd's entry, then the name object."""
        body = wire.directory_entry(name, image_id)
        self._run(calling(DIRECTORY_OBJECT, "dir_remove_image", body), _ENOENT, _STALE)
        if self._headers.named_id(name) == image_id:
            self._delete(id_object(name))

    def sweep_name(self, name: str) -> bool:
        """Delete a name that a lost reservation left; return whether it was one."""
        image_id = self._headers.image_id(name)
        if image_id is None or not is_derived(image_id, name) or self._headers.exists(image_id):
            return False
        self.delete_name(name, image_id)
        return True

    def sweep(self, in_flight: Callable[[str], bool]) -> int:
        """Delete all names that lost reservations left in librbd's list; return how many.

        Args:
            in_flight: says whether a volume is being made right now.
        """
        owned = {entry.volume_id for entry in self._directory.walk()}
        listed = [name for name, image_id in self._listed() if is_derived(image_id, name)]
        return sum(
            self.sweep_name(name) for name in listed if name not in owned and not in_flight(name)
        )

    def _make_whole(self, volume_id: str, link: Link) -> bool:
        """Add what is missing of an image with a header; return whether it is whole."""
        rows = self._rows(header_object(link.image_id), ("features", "parent"))
        if rows is None or "features" not in rows:
            return False
        reads = bool(link.parent_id) and self._reads_from_parent(rows.get("parent", b""), link)
        if reads and not self._is_linked(link):
            code = self._run(attaching(self._pool_id, link), _EEXIST, _ENOENT)
            if code == _ENOENT:
                return False
        if self._headers.listed_id(volume_id) == link.image_id:  # else it was renamed since
            self._run(naming(volume_id, link.image_id), _EEXIST)
            if self._headers.named_id(volume_id) != link.image_id:
                return False
        if not struct.unpack("<Q", rows["features"])[0] & _OBJECT_MAP:
            return True
        try:
            with translated(f"look at {link.image_id}"):
                self._ioctx.stat(map_object(link.image_id))
        except NotFoundError:
            return False
        return True

    def _reads_from_parent(self, row: bytes, link: Link) -> bool:
        """Return whether a header's row `parent` is still as it was planned."""
        planned = wire.parent_row(self._pool_id, link.parent_id, link.snap, 0)
        body = slice(6, len(planned) - 8)  # without head and overlap
        return row[body] == planned[body]

    def _is_linked(self, link: Link) -> bool:
        """Return whether the parent knows the clone; a snapshot in the trash takes no new ones."""
        key = wire.children_key(link.snap)
        rows = self._rows(header_object(link.parent_id), (key,)) or {}
        return wire.child_spec(self._pool_id, link.image_id) in rows.get(key, b"")

    def _listed(self) -> list[tuple[str, str]]:
        """Return (name, image id) of every image in librbd's list."""
        with translated("list the pool's images"):
            return [(one["name"], one["id"]) for one in bindings().rbd.RBD().list2(self._ioctx)]

    def _rows(self, name: str, keys: tuple[str, ...]) -> dict[str, bytes] | None:
        """Return some rows of an object; None if there is no such object."""
        with (
            suppress(NotFoundError),
            translated(f"read {name}"),
            bindings().rados.ReadOpCtx() as op,
        ):
            found, _ = self._ioctx.get_omap_vals_by_keys(op, keys)
            self._ioctx.operate_read_op(op, name)
            return dict(found)
        return None

    def _delete(self, name: str) -> None:
        """Delete an object; it may be gone."""
        self._run(Write(name, _remove), _ENOENT)

    def _run(self, write: Write, *accepted: int) -> int:
        """Do one write; return its code, which is 0 or one that is accepted."""
        code = self._waves.send(write).wait()
        if code < 0 and code not in accepted:
            raise error_of_code(-code, f"write {write.name}", f"error {-code}")
        return code


def _remove(op: Any) -> None:
    op.remove()
