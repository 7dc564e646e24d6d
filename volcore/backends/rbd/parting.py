"""Taking a deleted clone from a parent that keeps a deleted snapshot for it.

librbd deletes that snapshot when it removes the last clone, and holds the parent's lock until the
monitors have taken the snapshot's number back: up to a second, in which the parent takes no direct
snapshot. Here the parent is held for no more than a few requests:

1. the parent forgets the clone, as librbd would do first;
2. if it was the last, the number goes back to the monitors while nobody holds anything, for nobody
   reads this snapshot any more, and it takes no new clones;
3. librbd deletes the snapshot; the monitors have nothing to do;
4. the clone's header forgets the parent, so that librbd has no parent to care for.

A crash in between leaves what librbd's own removal may leave: a deleted image that its parent does
not know, with or without the snapshot. `Links.end_all` ends that. Each step may be repeated.

Invariants:
1. INV-RBD-10 (must): the number of a deleted snapshot goes back to the monitors before the snapshot
   only when no clone, and nobody who has one open, can read it.
"""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from volcore.backends.rbd.direct import wire
from volcore.backends.rbd.direct.plan import header_object
from volcore.backends.rbd.direct.snapshotter import told
from volcore.backends.rbd.direct.waves import Waves
from volcore.backends.rbd.directory import Directory
from volcore.backends.rbd.errmap import translated
from volcore.backends.rbd.handles import Handles
from volcore.backends.rbd.header import Headers, Parent
from volcore.backends.rbd.links import Links
from volcore.errors import NotFoundError


class Parting:
    """Takes deleted clones from their parents in one pool; any thread."""

    def __init__(
        self,
        waves: Waves,
        headers: Headers,
        directory: Directory,
        handles: Handles,
        links: Links,
        *,
        give_back: Callable[[int], None],
        unlinked: Callable[[str], None],
    ) -> None:
        """Do nothing yet.

        Args:
            waves: of the pool.
            headers: of the pool.
            directory: of the pool.
            handles: of the pool.
            links: of the pool.
            give_back: tells the monitors that a snapshot number is not used.
            unlinked: called with a parent when the last clone of a snapshot of it has gone.
        """
        self._waves = waves
        self._headers = headers
        self._directory = directory
        self._handles = handles
        self._links = links
        self._give_back = give_back
        self._unlinked = unlinked

    def part(self, image_id: str, parent: Parent) -> None:
        """Take the image of a deleted volume, which has no snapshots, from its parent. Idempotent.

        Left to librbd: a parent in another pool or itself deleted, a snapshot that stays when its
        clones go, and an image that somebody still has open.
        """
        volume_id = self._keeper(parent)
        if volume_id is None or not self._goes_with_its_clones(parent):
            return
        watching = self._waves.notify(header_object(image_id), wire.HEADER_UPDATE)
        if told(watching) != 0:
            return
        with suppress(NotFoundError):
            link = wire.child_link(self._headers.pool_id, image_id, parent.snap)
            self._headers.forget_child(parent.image_id, link)
        if not self._headers.has_children(parent.image_id, parent.snap):
            self._give_back(parent.snap)
            self._delete_snapshot(volume_id, parent)
        self._links.cut(image_id)

    def parted(self, parent: Parent) -> None:
        """Note that a clone has gone: its parent's header may show that by its features."""
        if parent.pool_id != self._headers.pool_id:
            return
        if not self._headers.has_children(parent.image_id, parent.snap):
            self._unlinked(parent.image_id)

    def _keeper(self, parent: Parent) -> str | None:
        """Return the volume that a parent is; None if it is none of ours, or deleted."""
        if parent.pool_id != self._headers.pool_id:
            return None
        volume_id = self._headers.owner(parent.image_id)
        entry = None if volume_id is None else self._directory.find(volume_id)
        return volume_id if entry is not None and entry.image_id == parent.image_id else None

    def _goes_with_its_clones(self, parent: Parent) -> bool:
        """Return whether the snapshot is deleted and waits for its last clone, or is gone."""
        try:
            return self._headers.snapshot(parent.image_id, parent.snap).trashed
        except NotFoundError:
            return True

    def _delete_snapshot(self, volume_id: str, parent: Parent) -> None:
        """Delete a snapshot whose number is given back; another thread may do the same."""
        image: Any
        with (
            suppress(NotFoundError),
            self._handles.briefly(volume_id, parent.image_id) as image,
            translated(f"delete snapshot {parent.snap} of volume {volume_id}"),
        ):
            image.remove_snap_by_id(parent.snap)
