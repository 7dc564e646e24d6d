"""The end of a direct snapshot, behind its answer: its object map cleared, its number's row gone.

The map of an image says of each object whether it was written since the newest snapshot. All of it
is older than a new one, which step 4 of `snapshotter` writes there. Where a crash or a client
prevented that, the map tells of too much: so do fast diffs, and `rbd object-map check` finds fault.
Then each object that the map calls written is looked at: librados tells an object's version, at a
snapshot too, and the two are the same exactly if nobody wrote between. Such objects are marked
clean.

Nobody may write meanwhile. Who writes holds the header's lock, and locks the map right after taking
it, which changes the map's version: so the lock must be free after a look at that version, and each
change asserts it. A direct snapshot in the making, which copies the map, is kept out by `alone`.

A newer snapshot has taken the map over: its copy goes on telling of too much. Nobody locks such a
copy, and a deletion that adds another snapshot's map to it may leave it as it is, version and all;
to mark then would hide changes.
"""

import errno
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from itertools import islice
from typing import Any, Final

from volcore.backends.rbd.bindings import bindings
from volcore.backends.rbd.direct import wire
from volcore.backends.rbd.direct.plan import data_object, header_object, map_object
from volcore.backends.rbd.direct.waves import Pending, Waves
from volcore.backends.rbd.directory import Directory
from volcore.backends.rbd.errmap import ceph_errors, errno_of, error_of, translated
from volcore.backends.rbd.header import Headers
from volcore.errors import NotFoundError, VolcoreError

RETRY_S: Final = 10.0
"""Between two tries to mend the map of an image that somebody has open."""
_OBJECTS_AT_ONCE: Final = 256
"""Objects that are looked at, then marked; who wants a snapshot waits while they are marked."""
_LOOKS_AT_ONCE: Final = 8
_CHANGED: Final = (errno.ERANGE, errno.EOVERFLOW, errno.ENOENT)
"""What an assertion of a version fails with, or finds no map any more."""
_LOG: Final = logging.getLogger(__name__)


class Clearing:
    """Ends the direct snapshots of one pool; any thread.

    A number's row goes when the map is as it should be, so that a restart finds what is left.
    """

    def __init__(
        self,
        waves: Waves,
        directory: Directory,
        headers: Headers,
        alone: Callable[[str], AbstractContextManager[object]],
    ) -> None:
        """Do nothing until the first snapshot.

        Args:
            waves: to the pool.
            directory: of the pool.
            headers: of the pool.
            alone: keeps direct snapshots of a volume from being made in this process.
        """
        self._waves = waves
        self._directory = directory
        self._headers = headers
        self._alone = alone
        self._changed = threading.Condition()
        self._ending = threading.Lock()
        self._left: dict[int, tuple[str, Pending | None]] = {}
        """Number to image, and to step 4 if it was sent."""
        self._fresh = False
        self._thread: threading.Thread | None = None
        self._closed = False

    def add(self, snap: int, image_id: str, last: Pending) -> None:
        """End a snapshot when its step 4, which was sent, has ended."""
        self._add(snap, image_id, last)

    def mend(self, snap: int, image_id: str) -> None:
        """End a snapshot of which nobody knows whether its step 4 was done. Idempotent."""
        self._add(snap, image_id, None)

    def _add(self, snap: int, image_id: str, last: Pending | None) -> None:
        with self._changed:
            if last is None and snap in self._left:
                return
            self._left[snap] = (image_id, last)
            self._fresh = True
            self._changed.notify_all()
            if self._thread is None and not self._closed:
                self._thread = threading.Thread(target=self._run, name="volcore-maps", daemon=True)
                self._thread.start()

    def flush(self) -> None:
        """Return when nothing that was added before is under way, but what is to be mended."""
        with self._changed:
            left = dict(self._left)
        with suppress(VolcoreError):
            self._end([snap for snap, (_, last) in left.items() if _was_done(last)])

    def close(self) -> None:
        """End; the row of a number whose map is yet to be mended stays. Idempotent."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        """End snapshots until closed."""
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._fresh or self._closed, RETRY_S if self._left else None
                )
                self._fresh = False
                left, closing = dict(self._left), self._closed
            with _logged():
                self._end([snap for snap, (_, last) in left.items() if _was_done(last)])
            for snap, (image_id, last) in left.items():
                with _logged():
                    if not self._closed and not _was_done(last) and self._mend(image_id, snap):
                        self._end([snap])
            if closing:
                return

    def _end(self, snaps: list[int]) -> None:
        """Forget these numbers, and delete their rows."""
        with self._ending:
            with self._changed:
                snaps = [snap for snap in snaps if snap in self._left]
            self._directory.drop_numbers(snaps)
            with self._changed:
                for snap in snaps:
                    self._left.pop(snap, None)

    def _mend(self, image_id: str, snap: int) -> bool:
        """Mark as clean what was not written since a snapshot; return whether that is done.

        A snapshot that is being deleted has added its map to the image's: what that says was
        written must stay marked. Who deletes has the lock; who died of it leaves no map, or one
        that will be added again.

        Complexity: two requests for each object that the map calls written.
        """
        try:
            volume_id = self._headers.owner(image_id)
            snaps = self._headers.snaps(image_id)
            if volume_id is None or snap != max(snaps, default=None):
                return True
            name, own_name = map_object(image_id), map_object(image_id, snap)
            with translated(f"read {name}"), self._waves.ioctx.dup() as ioctx:
                object_map = ioctx.read(name, wire.MAP_BYTES_MAX)
                version = int(ioctx.get_last_version())
            if self._is_locked(image_id):
                return False
            with translated(f"look at {own_name}"):
                self._waves.ioctx.stat(own_name)
        except NotFoundError:  # the image, or one of the maps
            return True
        written = wire.written_objects(object_map)
        while batch := list(islice(written, _OBJECTS_AT_ONCE)):
            clean = self._unwritten(image_id, batch, snap)
            with self._alone(volume_id):
                if self._closed or self._headers.snaps(image_id) != snaps:
                    return False
                marked = self._mark(name, clean, version)
            if marked is None:
                return False
            version = marked
        return True

    def _is_locked(self, image_id: str) -> bool:
        """Return whether somebody may write to the image."""
        locking = self._waves.call(header_object(image_id), "lock", "get_info", wire.LOCK_QUESTION)
        code, found = locking.wait()
        return code < 0 or wire.lockers(found[0]) > 0

    def _unwritten(self, image_id: str, numbers: Sequence[int], snap: int) -> list[int]:
        """Return those objects that are the same at a snapshot and now."""

        def look(part: Sequence[int]) -> list[int]:
            with self._waves.ioctx.dup() as then, self._waves.ioctx.dup() as now:
                then.set_read(snap)
                names = [(number, data_object(image_id, number)) for number in part]
                return [
                    number
                    for number, name in names
                    if (version := _version(then, name)) is not None
                    and version == _version(now, name)
                ]

        with ThreadPoolExecutor(_LOOKS_AT_ONCE) as pool:
            parts = pool.map(look, (numbers[at::_LOOKS_AT_ONCE] for at in range(_LOOKS_AT_ONCE)))
            return sorted(number for part in parts for number in part)

    def _mark(self, name: str, clean: Sequence[int], version: int) -> int | None:
        """Mark objects as clean in a map of that version; return the new one, None: it changed.

        One run of objects in each request: of several calls of the method in one, the last wins.
        """
        with self._waves.ioctx.dup() as ioctx:
            for start, end in _runs(clean):
                with bindings().rados.WriteOpCtx() as op:
                    op.assert_version(version)
                    op.execute(
                        "rbd",
                        "object_map_update",
                        wire.marking(start, end, wire.EXISTS_CLEAN, was=wire.EXISTS),
                    )
                    try:
                        ioctx.operate_write_op(op, name)
                    except ceph_errors() as err:
                        if errno_of(err) in _CHANGED:
                            return None
                        raise error_of(err, f"write {name}") from err
                version = int(ioctx.get_last_version())
        return version


@contextmanager
def _logged() -> Iterator[None]:
    """Log what fails: it is tried again."""
    try:
        yield
    except VolcoreError as err:
        _LOG.warning("an object map is cleared later: %s", err)
    except Exception:
        _LOG.exception("an object map is cleared later")


def _was_done(last: Pending | None) -> bool:
    """Return whether a step 4 was done; waits for it."""
    return last is not None and last.wait() == 0


def _version(ioctx: Any, name: str) -> int | None:
    """Return the version of an object as `ioctx` sees it; None: there is none."""
    with suppress(NotFoundError), translated(f"look at {name}"):
        ioctx.stat(name)
        return int(ioctx.get_last_version())
    return None


def _runs(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield (start, end) of the runs in ascending numbers."""
    start = 0
    for at in range(1, len(numbers) + 1):
        if at == len(numbers) or numbers[at] != numbers[at - 1] + 1:
            yield numbers[start], numbers[at - 1] + 1
            start = at
