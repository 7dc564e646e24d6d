"""Making siblings of popular snapshots behind the answers, by the direct path for snapshots.

A sibling is a snapshot of the volume as it is, so it has the content of an earlier snapshot only if
nothing was written since. That is proven, not assumed, after the sibling is made: no snapshot but
siblings was made since; nobody has the image open, so who opens it later knows the sibling; and
after that the image's object map, in which every writer marks an object before its data, still
says of each object what it said when the earlier snapshot was made. Only then does the sibling get
its name. A crash before leaves one with the name of an unproven sibling, which takes no clones;
the next caller proves it, or it goes with the snapshot.

Whatever fails, clones go on with the snapshots that there are.

Invariants:
1. INV-RBD-7 (must): a snapshot with the name of a proven sibling has the content of its original.
"""

import logging
import struct
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any, Final

from volcore.backends.rbd.direct import wire
from volcore.backends.rbd.direct.family import SIBLINGS_MAX, Family, look, proven_name
from volcore.backends.rbd.direct.plan import header_object, map_object
from volcore.backends.rbd.direct.snapshotter import (
    Outcome,
    Snapshotter,
    Source,
    is_locked,
    told,
)
from volcore.backends.rbd.direct.waves import Waves, calling
from volcore.backends.rbd.directory import Entry
from volcore.backends.rbd.errmap import error_of_code
from volcore.backends.rbd.header import Headers, HeaderSnapshot
from volcore.backends.rbd.reads import Wave
from volcore.errors import VolcoreError
from volcore.limits import CHUNK_SIZE_BYTES, VOLUME_SIZE_BYTES_MAX

PROOF_DELAY_S: Final = 1.0
"""librbd reads a header, then watches it: whoever read that of before is seen after so long."""
_MAP_BYTES_MAX: Final = VOLUME_SIZE_BYTES_MAX // CHUNK_SIZE_BYTES // 4 * 2
_LOG: Final = logging.getLogger(__name__)


class Siblings:
    """Makes siblings in one pool, one at a time in a thread; any thread may ask."""

    def __init__(
        self,
        waves: Waves,
        headers: Headers,
        snapshotter: Snapshotter,
        *,
        find: Callable[[str], Entry | None],
        alone: Callable[[str], AbstractContextManager[bool]],
        ready: Callable[[str, str], None],
    ) -> None:
        """Do nothing until asked.

        Args:
            waves: of the pool.
            headers: of the pool.
            snapshotter: of the pool.
            find: returns the row of a volume.
            alone: lends whether a volume may be changed and is closed, and keeps it so.
            ready: called after each try, with volume and snapshot.
        """
        self._waves = waves
        self._headers = headers
        self._snapshotter = snapshotter
        self._find = find
        self._alone = alone
        self._ready = ready
        self._lock = threading.Lock()
        self._asked: set[tuple[str, str]] = set()
        self._thread: ThreadPoolExecutor | None = None
        self._closed = False

    def ask(self, volume_id: str, snapshot_id: str) -> None:
        """Start to make a sibling of a snapshot, unless that is under way; never waits."""
        with self._lock:
            key = (volume_id, snapshot_id)
            if self._closed or key in self._asked:
                return
            self._asked.add(key)
            if self._thread is None:
                self._thread = ThreadPoolExecutor(1, thread_name_prefix="volcore-siblings")
            self._thread.submit(self._work, volume_id, snapshot_id)

    def close(self) -> None:
        """Return when nothing is being made; nothing will be. Idempotent."""
        with self._lock:
            self._closed = True
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)

    def _work(self, volume_id: str, snapshot_id: str) -> None:
        """Make one, or log why not."""
        try:
            with self._alone(volume_id) as is_alone:
                if is_alone:
                    self.make(volume_id, snapshot_id)
            self._ready(volume_id, snapshot_id)
        except VolcoreError as err:
            _LOG.info("no sibling of snapshot %s of volume %s: %s", snapshot_id, volume_id, err)
        finally:
            with self._lock:
                self._asked.discard((volume_id, snapshot_id))

    def make(self, volume_id: str, snapshot_id: str) -> bool:
        """Make a sibling if one is missing; return whether one was made.

        Precondition: the volume is closed in this process, and stays so. Durability: at return the
        sibling is whole; a crash leaves an unproven one, or nothing.
        """
        entry = self._find(volume_id)
        if entry is None or not entry.image_id:
            return False
        family = look(self._waves.ioctx, self._headers, entry.image_id, snapshot_id)
        if family is None or not family.is_full or len(family.siblings) >= SIBLINGS_MAX:
            return False
        if not self._is_unchanged(entry.image_id, family.own, newest=family.newest):
            return False
        unproven = family.unproven or self._snapshot(entry, family)
        if unproven is None or unproven.size_bytes != family.own.size_bytes:
            return False
        time.sleep(PROOF_DELAY_S)
        if not self._is_unchanged(
            entry.image_id, family.own, newest=unproven.snap, sibling=unproven.snap
        ):
            return False
        body = struct.pack("<Q", unproven.snap) + wire.string(proven_name(unproven.name))
        renaming = calling(header_object(entry.image_id), "snapshot_rename", body)
        (code,) = self._waves.run([renaming])
        if code < 0:
            raise error_of_code(-code, f"name a sibling of {snapshot_id}", f"error {-code}")
        return True

    def _snapshot(self, entry: Entry, family: Family) -> HeaderSnapshot | None:
        """Make a snapshot of the volume as it is; None: refused."""
        outcome = self._snapshotter.create(
            Source(
                volume_id=entry.volume_id,
                image_id=entry.image_id,
                snapshot_id=family.new_name,
                size_bytes=family.own.size_bytes,
            )
        )
        if outcome is Outcome.REFUSED:
            return None
        return self._headers.find_snapshot(entry.image_id, family.new_name)

    def _is_unchanged(
        self, image_id: str, own: HeaderSnapshot, *, newest: int, sibling: int | None = None
    ) -> bool:
        """Return whether nothing was written since a snapshot, and nobody has the image open.

        `newest` is the highest number that the image may have had. The map is read last: who opens
        the image after the question for watchers knows all snapshots of before it. A snapshot makes
        the image's map forget what was written, and keeps that in its own: so the map of `sibling`,
        if there is one, must say the same.
        """
        header = header_object(image_id)
        locking = self._waves.call(header, "lock", "get_info", wire.LOCK_QUESTION)
        watching = self._waves.notify(header, wire.HEADER_UPDATE)
        if is_locked(locking) or told(watching) != 0:
            return False
        with Wave(self._waves.ioctx) as wave:
            reading = wave.rows(header, ("flags", "size", "snap_seq"))
            flags = wave.call(header, "get_flags", struct.pack("<Q", own.snap))
            now = wave.content(map_object(image_id), _MAP_BYTES_MAX)
            then, between = (
                wave.content(f"{map_object(image_id)}.{snap:016x}", _MAP_BYTES_MAX)
                for snap in (own.snap, own.snap if sibling is None else sibling)
            )
        numbers: dict[str, Any] = {
            key: int.from_bytes(value, "little") for key, value in reading().items()
        }
        (flagged,) = struct.unpack_from("<Q", flags())
        return (
            not numbers.get("flags", 0)
            and not flagged
            and numbers["size"] == own.size_bytes
            and numbers["snap_seq"] == newest
            and wire.is_unwritten(now(), then())
            and (sibling is None or wire.is_unwritten(between(), then()))
        )
