"""Freeing rbd images, in whatever order volumes are deleted.

With clone format 2 a snapshot that has clones can be deleted: librbd moves it out of sight and
drops it when its last clone goes. An image cannot go while it has such snapshots, so the image of
a deleted volume waits in the rbd trash, with a row in the directory, until its last clone is
deleted or flattened; whoever does that frees it, then its parent, and so on up. What cannot be
freed at that time (an OSD is away, a dead client has it open) is tried again until it can.

Invariants:
1. INV-RBD-3 (must): an image with a clone is never removed (librbd refuses it too).
2. INV-RBD-4 (should): after the last clone went, its deleted ancestors go at once; what a crash
   leaves is freed by `collect`, what a failure leaves by `_run`.
"""

import errno
import logging
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any, Final

from volcore.backends.rbd.bindings import bindings
from volcore.backends.rbd.direct.recovery import DirectRecovery
from volcore.backends.rbd.directory import HIDDEN_PREFIX, Directory, Entry
from volcore.backends.rbd.errmap import translated
from volcore.backends.rbd.handles import Handles
from volcore.backends.rbd.header import Headers, Parent
from volcore.backends.rbd.opening import open_image
from volcore.backends.rbd.parting import Parting
from volcore.backends.rbd.protection import CLONES_ONLY_SUFFIX, delete_unneeded
from volcore.backends.rbd.watchers import Watchers
from volcore.errors import (
    BackendIOError,
    NotFoundError,
    OperationPendingError,
    PreconditionError,
    Reason,
    VolcoreError,
)

RETRY_S: Final = 10.0
_PASSES_MAX: Final = 64
_SNAPSHOT_THREADS: Final = 8
"""Deletions of snapshots at once: they share the monitor's proposals of a second each."""
_LOG: Final = logging.getLogger(__name__)


class Reaper:
    """Frees the images of one pool."""

    def __init__(
        self,
        ioctx: Any,
        headers: Headers,
        directory: Directory,
        handles: Handles,
        watchers: Watchers,
        direct: DirectRecovery,
        parting: Parting,
    ) -> None:
        self._ioctx = ioctx
        self._headers = headers
        self._directory = directory
        self._handles = handles
        self._watchers = watchers
        self._direct = direct
        self._parting = parting
        self._lock = threading.Lock()
        self._busy: dict[str, tuple[threading.Lock, int]] = {}
        self._changed = threading.Condition()
        self._left: set[str] = set()
        """Images to be tried again."""
        self._thread: threading.Thread | None = None
        self._closed = False

    def move_to_trash(self, volume_id: str, image_id: str) -> None:
        """Take an image's name away, if it still has it; clones and handles keep working.

        librbd may answer "not found" for a move that failed for another reason, so the list of
        images has the last word.
        """
        if self._headers.image_id(volume_id) != image_id:
            return
        with suppress(NotFoundError), translated(f"delete volume {volume_id}"):
            bindings().rbd.RBD().trash_move(self._ioctx, volume_id, 0)
        if self._headers.listed_id(volume_id) == image_id:
            raise BackendIOError(
                f"volume {volume_id} could not be moved to the rbd trash; nothing was deleted,"
                " look at the cluster's health",
                reason=Reason.BACKEND_IO,
            )
        if self._headers.image_id(volume_id) == image_id:
            self._headers.delete_name(volume_id)

    def reap_quietly(self, image_id: str) -> None:
        """Free what can be freed after a change that has already succeeded; the rest follows."""
        try:
            self.reap(image_id)
        except VolcoreError as err:
            _LOG.warning("rbd image %s is not freed yet, tried again: %s", image_id, err)

    def reap(self, image_id: str) -> int:
        """Free the image of a deleted volume, then its deleted ancestors that nothing needs.

        Idempotent. Returns how many images were freed; where that fails, it is tried again later.
        """
        count, parent = 0, None
        try:
            for _ in range(_PASSES_MAX):
                with self._alone(image_id):
                    name = self._directory.retired_name(image_id)
                    if name is None:
                        break
                    parent = self._parent(image_id)
                    if not self._free(image_id, name, parent):
                        break
                    self._directory.freed(image_id)
                count += 1
                if parent is None:
                    break
                self._parting.parted(parent)
                self.drop_stand_in(parent)
                image_id = parent.image_id
        except VolcoreError:
            self._later(image_id)
            if parent is not None:  # the next try may not see any more whose clone it was
                self._later(parent.image_id)
            raise
        return count

    def close(self) -> None:
        """Try nothing again; idempotent."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    def _later(self, image_id: str) -> None:
        with self._changed:
            self._left.add(image_id)
            self._changed.notify_all()
            if self._thread is None and not self._closed:
                self._thread = threading.Thread(target=self._run, name="reaper", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        """Try again what is left, until closed."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._left or self._closed)
                if self._changed.wait_for(lambda: self._closed, RETRY_S):
                    return
                left, self._left = self._left, set()
            for image_id in left:
                if self._closed:
                    return
                try:
                    self.reap_quietly(image_id)
                except Exception:
                    _LOG.exception("rbd image %s is not freed yet, tried again", image_id)
                    self._later(image_id)

    def drop_stand_in(self, parent: Parent) -> None:
        """Delete the snapshot that a clone had, if it holds clones only and this was the last.

        Only of an image of ours. What fails is logged: such a snapshot costs space, no data.
        """
        if parent.pool_id != self._headers.pool_id:
            return
        try:
            with suppress(NotFoundError):
                snapshot = self._headers.snapshot(parent.image_id, parent.snap)
                volume_id = self._headers.owner(parent.image_id)
                if not snapshot.name.endswith(CLONES_ONLY_SUFFIX) or volume_id is None:
                    return
                entry = self._directory.find(volume_id)
                if entry is not None and entry.image_id == parent.image_id:
                    with self._handles.image(volume_id, parent.image_id) as image:
                        delete_unneeded(image, snapshot.name)
        except VolcoreError as err:
            _LOG.warning("a snapshot of rbd image %s stays: %s", parent.image_id, err)

    def collect(self) -> int:
        """Free every image of a deleted volume that nothing needs; return how many."""
        total = 0
        for _ in range(_PASSES_MAX):
            count = sum(self.reap(image_id) for image_id in list(self._directory.walk_retired()))
            total += count
            if not count:
                break
        return total

    def undo(self, entry: Entry) -> None:
        """Delete what a create or clone cut short has left.

        Idempotent: the volume's row goes last, or becomes a row of the trash.
        """
        if entry.link is not None:
            self._direct.undo(entry.volume_id, entry.link)
            if entry.link.parent_id:
                self.reap_quietly(entry.link.parent_id)
            return
        if entry.source:
            self._delete_hidden(entry)
        image_id = self._headers.image_id(entry.volume_id)
        if image_id is None:
            self._directory.forget(entry.volume_id)
        elif self._directory.retire(entry, image_id):
            self.reap(image_id)

    def _delete_hidden(self, entry: Entry) -> None:
        """Delete the hidden snapshot of a clone cut short."""
        source = self._directory.find(entry.source)
        if source is None or not source.image_id:
            return
        name = HIDDEN_PREFIX + entry.volume_id
        if self._headers.find_snapshot(source.image_id, name) is None:
            return
        with (
            suppress(NotFoundError),
            self._handles.image(entry.source, source.image_id) as image,
            translated(f"delete snapshot {name}"),
        ):
            image.remove_snap(name)

    def is_needed(self, image_id: str) -> bool:
        """Return whether a deleted image has a snapshot with clones."""
        with suppress(NotFoundError):
            return any(self._has_clones(image_id, snap) for snap in self._headers.snaps(image_id))
        return False

    def is_busy(self, image_id: str) -> bool:
        """Return whether a thread is freeing the image, or is about to."""
        with self._lock:
            return image_id in self._busy

    def _parent(self, image_id: str) -> Parent | None:
        """Return the parent; None also when the header is gone already."""
        with suppress(NotFoundError):
            return self._headers.parent(image_id)
        return None

    def _free(self, image_id: str, name: str, parent: Parent | None) -> bool:
        """Remove one image with its snapshots; return False while something needs it."""
        self.move_to_trash(name, image_id)
        if not self._delete_snapshots(image_id):
            return False
        if parent is not None:
            self._parting.part(image_id, parent)
        try:
            self._remove(image_id, name)
        except NotFoundError:
            return not self._headers.exists(image_id)
        except PreconditionError:  # a new clone or a watcher
            return self._remove_unwatched(image_id, name)
        return True

    def _remove_unwatched(self, image_id: str, name: str) -> bool:
        """Remove an image that only dead clients have open; else it is tried again later."""
        try:
            if self._watchers.forget_dead(name, image_id):
                self._remove(image_id, name)
                return True
        except (NotFoundError, PreconditionError, OperationPendingError):
            pass
        self._later(image_id)
        return False

    def _remove(self, image_id: str, name: str) -> None:
        """Remove a trashed image, finishing first its move there if a crash cut that short."""
        librbd = bindings().rbd.RBD()
        try:
            with translated(f"free rbd image {image_id}"):
                librbd.trash_remove(self._ioctx, image_id, True)
        except BackendIOError as err:
            if err.context.get("errno") != str(errno.EUCLEAN):
                raise
            with translated(f"free rbd image {image_id}"):
                if self._headers.image_id(name) in (None, image_id):  # else it is another's by now
                    librbd.trash_move(self._ioctx, name, 0)
                librbd.trash_remove(self._ioctx, image_id, True)

    def _delete_snapshots(self, image_id: str) -> bool:
        """Delete all snapshots of a trashed image; return False if clones need some of them."""
        try:
            snaps = [self._headers.snapshot(image_id, n) for n in self._headers.snaps(image_id)]
        except NotFoundError:
            return True
        if not snaps:
            return True
        if any(snap.user for snap in snaps):
            with self._open(image_id) as image:
                self.delete_live(image, [snap.name for snap in snaps if snap.user])
        left = self._headers.snaps(image_id)
        if any(self._has_clones(image_id, snap) for snap in left):
            return False
        if left:
            with self._open(image_id) as image:
                for snap in left:
                    with suppress(NotFoundError), translated(f"delete snapshot {snap}"):
                        image.remove_snap_by_id(snap)
        return True

    def _has_clones(self, image_id: str, snap: int) -> bool:
        """Return whether a snapshot that could not be deleted has clones."""
        with suppress(NotFoundError):
            is_live = self._headers.snapshot(image_id, snap).user  # kept for clones of format 1
            return is_live or self._headers.has_children(image_id, snap)
        return False

    def delete_live(self, image: Any, names: list[str]) -> None:
        """Delete live snapshots side by side; those with clones become invisible.

        Those with clones of format 1 stay.
        """

        def work(name: str) -> None:
            delete_unneeded(image, name)

        with ThreadPoolExecutor(min(_SNAPSHOT_THREADS, len(names))) as pool:
            list(pool.map(work, names))

    @contextmanager
    def _open(self, image_id: str) -> Iterator[Any]:
        """Open a trashed image for changes."""
        with translated(f"open rbd image {image_id}"):
            image = open_image(self._ioctx, image_id, read_only=False)
        try:
            yield image
        finally:
            with translated(f"close rbd image {image_id}"):
                image.close()

    @contextmanager
    def _alone(self, image_id: str) -> Iterator[None]:
        """Keep other threads from freeing the same image."""
        with self._lock:
            lock, users = self._busy.get(image_id, (threading.Lock(), 0))
            self._busy[image_id] = (lock, users + 1)
        try:
            with lock:
                yield
        finally:
            with self._lock:
                lock, users = self._busy.pop(image_id)
                if users > 1:
                    self._busy[image_id] = (lock, users - 1)
