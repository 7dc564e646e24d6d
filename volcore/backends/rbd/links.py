"""Ending links between clone and parent that a killed client has cut on the parent's side only.

librbd's flatten, once everything is copied, first takes the clone out of the parent's header, then
the parent out of the clone's. Removing an image begins so, too, and a clone is made in the opposite
order. A client that dies in between leaves a clone that its parent does not know. Nothing keeps the
parent then from being freed, and librbd opens no image whose parent is gone: the volume is lost,
though all its bytes are there (seen in 16.2.15).

So a flatten is written down before it starts, and when a pool is opened, before anything is freed,
the links of all images that may be in this state are looked at. Where the parent does not know the
clone, the clone's side is cut, as librbd was about to do: what was flattened needs its parent no
more, and what was being deleted or made goes. (The parent cannot be told of the clone again: a
deleted snapshot takes no new clone.) tests/rbd_backend/test_links.py plants such links, holds
librbd to that order, and fails without this module.

Invariants:
1. INV-RBD-5 (must): an image is freed only when no clone names it as its parent.
2. INV-RBD-6 (must): a parent is cut off only from a clone whose flatten, deletion or making has
   begun, and which the parent does not know.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any, Final

from volcore.backends.rbd.bindings import bindings
from volcore.backends.rbd.direct import wire
from volcore.backends.rbd.directory import Directory
from volcore.backends.rbd.errmap import translated
from volcore.backends.rbd.header import Headers, Parent
from volcore.errors import NotFoundError, PermissionDeniedError, VolcoreError

_LOG: Final = logging.getLogger(__name__)


class Links:
    """The links of one pool's images; any thread, every call may be repeated."""

    def __init__(
        self,
        ioctx: Any,
        headers: Headers,
        directory: Directory,
        open_pool: Callable[[int], Any],
    ) -> None:
        """Look at nothing yet.

        Args:
            ioctx: the pool.
            headers: of the pool.
            directory: of the pool.
            open_pool: returns a fresh handle on another pool, where parents are.
        """
        self._ioctx = ioctx
        self._headers = headers
        self._directory = directory
        self._open_pool = open_pool
        self._pool_id = int(ioctx.get_pool_id())

    def end_all(self) -> int:
        """End all links that a crash may have left cut on one side; return how many.

        Precondition: this server has the pool, and frees nothing meanwhile. Complexity: the pages
        of the directory, and two requests for each image that is deleted, flattened or half made.
        """
        ended = [parent for one in list(self._suspects()) if (parent := self.cut(one))]
        for parent in ended:
            self._drop_needless(parent)
        if ended:
            _LOG.warning("%s links of rbd images ended that a crash had cut in half", len(ended))
        return len(ended)

    def end(self, image_id: str) -> None:
        """End the link of one image, if its parent does not know it.

        Precondition: a flatten of it has begun, and none is running.
        """
        parent = self.cut(image_id)
        if parent is not None:
            self._drop_needless(parent)

    def cut(self, image_id: str) -> Parent | None:
        """Cut an image off from a parent that does not know it; return which, None if none was.

        Precondition: its flatten, deletion or making has begun, and nothing of this process works
        on it.
        """
        try:
            parent = self._headers.parent(image_id)
        except NotFoundError:
            return None
        if parent is None or self.knows(parent, image_id):
            return None
        with translated(f"end the link of rbd image {image_id} to {parent.image_id}"):
            self._ioctx.execute(f"rbd_header.{image_id}", "rbd", "parent_detach", b"")
        return parent

    def _suspects(self) -> Iterator[str]:
        yield from self._directory.walk_retired()
        for volume_id in self._directory.walk_flattening():
            entry = self._directory.find(volume_id)
            if entry is not None and entry.image_id:
                yield entry.image_id
        for entry in self._directory.walk():
            if not entry.image_id and entry.link is None:
                image_id = self._headers.image_id(entry.volume_id)
                if image_id is not None:
                    yield image_id

    def knows(self, parent: Parent, image_id: str) -> bool:
        """Return whether a parent that exists knows the image as a clone of its snapshot.

        One in a pool that cannot be read is taken to know it: nothing is cut on a guess.
        """
        known = self.children(parent)
        if known is None or image_id in known:
            return True
        return self._headers.is_old_child(parent, image_id)

    def children(self, parent: Parent) -> set[str] | None:
        """Return the clones of format 2 that a snapshot knows; None if its pool cannot be read."""
        key = wire.children_key(parent.snap)
        try:
            with (
                self._pool_of(parent) as ioctx,
                suppress(NotFoundError),
                translated(f"read the clones of rbd image {parent.image_id}"),
                bindings().rados.ReadOpCtx() as op,
            ):
                found, _ = ioctx.get_omap_vals_by_keys(op, (key,))
                ioctx.operate_read_op(op, f"rbd_header.{parent.image_id}")
                return {child for _, row in found for child in wire.children(row)}
        except (NotFoundError, PermissionDeniedError):
            return None
        return set()

    def _drop_needless(self, parent: Parent) -> None:
        with suppress(VolcoreError), self._pool_of(parent) as ioctx:
            headers = self._headers if ioctx is self._ioctx else Headers(ioctx)
            drop_needless(ioctx, headers, parent.image_id, parent.snap)

    @contextmanager
    def _pool_of(self, parent: Parent) -> Iterator[Any]:
        """Lend a handle on the pool of a parent.

        Raises:
            NotFoundError: OBJECT_NOT_FOUND, that pool is gone.
        """
        if parent.pool_id == self._pool_id:
            yield self._ioctx
            return
        with closing(self._open_pool(parent.pool_id)) as ioctx:
            yield ioctx


def drop_needless(ioctx: Any, headers: Headers, image_id: str, snap: int) -> None:
    """Delete a deleted snapshot if its last clone has gone, as librbd does after a cut.

    Idempotent. What fails is logged: such a snapshot costs space, no data.
    """
    try:
        if headers.snapshot(image_id, snap).user or headers.has_children(image_id, snap):
            return
        with (
            translated(f"delete snapshot {snap} of rbd image {image_id}"),
            bindings().rbd.Image(ioctx, image_id=image_id) as image,
        ):
            image.remove_snap_by_id(snap)
    except NotFoundError:
        return
    except VolcoreError as err:
        _LOG.warning("a deleted snapshot of rbd image %s stays: %s", image_id, err)
