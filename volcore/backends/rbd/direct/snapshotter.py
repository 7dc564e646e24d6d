"""Snapshots of detached volumes by a few writes, with a number from stock, no image opened.

Nobody may write to the image meanwhile. A writer holds the header's lock, and every taking and
giving back of that lock changes the header's version. So:

1. look: header and its version, the lock, the object map; beside it the row that says which number
   is being used for which image;
2. copy the object map for the snapshot; look who watches the header and who holds the lock, and at
   the map once more: if it did not change, it is what it is as long as the header has that version;
3. add the snapshot, if the header still has the version, and tell whoever watches when openers
   have had time to (`openers`);
4. mark in the object map that all of it is older than the snapshot, if the map is still that one.

When 3 is done and nobody watched, the snapshot is there, and 4 goes behind the answer: until then a
diff from this snapshot tells of more objects than have changed, never of fewer, and `clearing` sees
to it that it is done. A client that came in between was told before it could write, if the map is
still as it was at 4; else the snapshot is taken back. While 3 waits for the openers of an attached
volume, one may come, write and go: then 4 decides, whoever watches.

Whoever watches is found by a notification, librbd's own for a changed header; who holds the lock is
found before, and left alone.

Before 3 there is nothing but a row and the copy of a map, which `settle` deletes.
"""

import errno
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

from volcore.backends.rbd.bindings import bindings
from volcore.backends.rbd.direct import family, wire
from volcore.backends.rbd.direct.clearing import Clearing
from volcore.backends.rbd.direct.facts import Facts, is_usual_row
from volcore.backends.rbd.direct.openers import Reminders, patience_s
from volcore.backends.rbd.direct.plan import header_object, map_object
from volcore.backends.rbd.direct.stock import Stock
from volcore.backends.rbd.direct.waves import Reply, Waves, Write, calling
from volcore.backends.rbd.directory import OBJECT_NAME, Directory
from volcore.backends.rbd.errmap import error_of_code, translated
from volcore.backends.rbd.header import Headers
from volcore.backends.refusals import id_taken, volume_missing
from volcore.errors import (
    ExhaustedError,
    NotFoundError,
    Reason,
    UnavailableError,
    VolcoreError,
)
from volcore.limits import (
    CHUNK_SIZE_BYTES,
    RBD_DEPTH_MAX,
    SNAPSHOTS_PER_VOLUME_MAX,
)

_ATTEMPTS: Final = 4
"""A clone that is linked meanwhile changes the header's version, too."""
_PAGE_ROWS: Final = 1000
_STALE: Final = -errno.ESTALE
_CHANGED: Final = (-errno.ERANGE, -errno.EOVERFLOW)
"""What an assertion of a version fails with."""
_UNKNOWN: Final = (-errno.ETIMEDOUT, -errno.ESHUTDOWN, -errno.ENOTCONN)


class Outcome(Enum):
    """What became of a direct snapshot."""

    MADE = "made"
    REFUSED = "refused"
    """Nothing was made; librbd has to do it."""
    DOUBTFUL = "doubtful"
    """It is there, but a client may have written past it: it must be deleted and made anew."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """The image to make a snapshot of, and the snapshot's name."""

    volume_id: str
    image_id: str
    snapshot_id: str
    attached: bool = False
    """A client may be opening the image."""
    size_bytes: int | None = None
    """What the image must have, else the snapshot is refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Header:
    """What step 1 finds."""

    version: int
    size_bytes: int
    snap_seq: int
    features: int
    has_parent: bool
    usual: bool


class _AgainError(Exception):
    """Something changed between two steps; nothing was made."""


class _NumberTooLowError(Exception):
    """The image has had newer numbers; nothing was made."""

    def __init__(self, snap_seq: int) -> None:
        super().__init__()
        self.snap_seq = snap_seq


class Snapshotter:
    """Makes direct snapshots in one pool; any thread.

    The caller keeps the image closed in this process meanwhile.
    """

    def __init__(
        self,
        waves: Waves,
        directory: Directory,
        headers: Headers,
        stock: Stock,
        clearing: Clearing,
        reminders: Reminders,
        features: int,
    ) -> None:
        self._waves = waves
        self._ioctx = waves.ioctx
        self._directory = directory
        self._headers = headers
        self._stock = stock
        self._clearing = clearing
        self._reminders = reminders
        self._features = features
        self._lock = threading.Lock()
        self._busy: set[int] = set()

    def create(self, source: Source, *, note: Callable[[Facts], None] = lambda _: None) -> Outcome:
        """Make a snapshot; at return it is durable, or nothing was made, unless DOUBTFUL.

        `note` is called for one that is MADE, with what a clone of it needs to know.

        Raises:
            ConflictError: NAME_TAKEN.
            NotFoundError: OBJECT_NOT_FOUND, the volume has gone.
            ExhaustedError: TOO_MANY_SNAPSHOTS, POOL_FULL.
            UnavailableError: CLUSTER_UNREACHABLE; `settle` will look whether it was made.
        """
        above = 0
        for _ in range(_ATTEMPTS):
            snap = self._stock.take(above=above)
            if snap is None:
                return Outcome.REFUSED
            try:
                return self._with_number(source, snap, note)
            except _NumberTooLowError as err:
                above = err.snap_seq
        return Outcome.REFUSED

    def create_numbered(self, source: Source, snap: int) -> Outcome:
        """Make a snapshot with a number from stock, which goes back there if nothing was made.

        Errors as `create`.
        """
        try:
            return self._with_number(source, snap, lambda _: None)
        except _NumberTooLowError:
            return Outcome.REFUSED

    def settle(self) -> None:
        """Delete what snapshots cut short have left; each was made or was not. Idempotent.

        A number that was not used goes back to the monitors: up to a second for each. That a map
        is cleared which was not follows.
        """
        for snap, image_id in list(self._directory.numbers()):
            with self._lock:
                busy = snap in self._busy
            if image_id and not busy:
                self._settle(snap, image_id)

    def _settle(self, snap: int, image_id: str) -> None:
        """Settle the number of one snapshot; nobody of this process uses it."""
        if not self._is_made(image_id, snap):
            # A write that is still under way asserts a version which the header then has no more.
            self._run(calling(header_object(image_id), "set_modify_timestamp", b""), -errno.ENOENT)
        if self._is_made(image_id, snap):
            self._clearing.mend(snap, image_id)
            return
        self._run(Write(map_object(image_id, snap), _remove), -errno.ENOENT)
        self._stock.give_back(snap)
        self._directory.drop_numbers([snap])

    def _is_made(self, image_id: str, snap: int) -> bool:
        """Return whether the image has a snapshot with that number."""
        try:
            self._headers.snapshot(image_id, snap)
        except NotFoundError:
            return False
        return True

    def _with_number(self, source: Source, snap: int, note: Callable[[Facts], None]) -> Outcome:
        """Make a snapshot with that number, which is free again if nothing was made."""
        steps = _Steps(self._waves, self._directory, self._headers, source, snap, self._features)
        with self._lock:
            self._busy.add(snap)
        try:
            outcome = self._attempt(steps)
        except UnavailableError:
            steps.is_open = True
            raise
        finally:
            if not steps.is_open:
                self._take_back(steps, source.image_id, snap)
            with self._lock:
                self._busy.discard(snap)
        if outcome is Outcome.MADE:
            self._reminders.add(source.image_id)
        if steps.last is not None:
            self._clearing.add(snap, source.image_id, self._waves.send(steps.last))
        elif outcome is not Outcome.REFUSED:
            self._clearing.mend(snap, source.image_id)
        if outcome is Outcome.MADE and steps.facts is not None:
            note(steps.facts)
        return outcome

    def _attempt(self, steps: "_Steps") -> Outcome:
        """Go through the steps until nothing changes between them."""
        for _ in range(_ATTEMPTS):
            with suppress(_AgainError):
                return steps.run()
        return Outcome.REFUSED

    def _take_back(self, steps: "_Steps", image_id: str, snap: int) -> None:
        """Undo what there is of a snapshot that was not made."""
        if steps.is_copied:
            self._run(Write(map_object(image_id, snap), _remove), -errno.ENOENT)
        if steps.is_reserved:
            self._directory.restore_number(snap, image_id)
        self._stock.put_back(snap)

    def _run(self, write: Write, *accepted: int) -> None:
        """Do one write."""
        code = self._waves.send(write).wait()
        if code < 0 and code not in accepted:
            raise error_of_code(-code, f"write {write.name}", f"error {-code}")


class _Steps:
    """The steps of one snapshot, which may be gone through again as long as it is not made."""

    def __init__(
        self,
        waves: Waves,
        directory: Directory,
        headers: Headers,
        source: Source,
        snap: int,
        features: int,
    ) -> None:
        self._waves = waves
        self._directory = directory
        self._headers = headers
        self._source = source
        self._snap = snap
        self._features = features
        self._header_name = header_object(source.image_id)
        self._map_name = map_object(source.image_id)
        self.is_reserved = False
        self.is_copied = False
        self.is_open = False
        """The snapshot is made, or nobody knows: the number must not be used again."""
        self.last: Write | None = None
        """Step 4, if it is still to be sent."""
        self.facts: Facts | None = None
        """What a clone of the snapshot needs to know, if that is known."""
        self._read_s = 0.0
        """What the quickest of two requests took."""

    def run(self) -> Outcome:
        """Go through all steps once.

        Raises:
            _AgainError: the image changed meanwhile.
            _NumberTooLowError: the image has had a newer number.
        """
        header, object_map = self._look()
        if header is None or not header.usual:
            return Outcome.REFUSED
        if header.snap_seq >= self._snap:
            raise _NumberTooLowError(header.snap_seq)
        if self._source.size_bytes not in (None, header.size_bytes):
            return Outcome.REFUSED
        objects = -(-header.size_bytes // CHUNK_SIZE_BYTES)
        if wire.mapped_objects(object_map) != objects:
            return Outcome.REFUSED
        map_version = self._copy(object_map, header)
        if map_version is None:
            return Outcome.REFUSED
        told_count = self._add(header.version)
        last = self._cleaning(map_version)
        if told_count == 0 and not self._source.attached:
            self.last = last
            return Outcome.MADE
        (code,) = self._waves.run([last])
        return Outcome.MADE if told_count is not None and code == 0 else Outcome.DOUBTFUL

    def _look(self) -> tuple[_Header | None, bytes]:
        """Do step 1; the header is None when somebody writes to the image."""
        locking = self._ask_lock()
        reading = self._waves.read(self._map_name, wire.MAP_BYTES_MAX)
        rows = [] if self.is_reserved else [Write(OBJECT_NAME, self._fill_row)]
        self.is_reserved = True
        found: list[_Header] = []

        def look() -> None:
            started_s = time.monotonic()
            found.append(self._header())
            self._read_s = time.monotonic() - started_s

        codes = self._waves.run(rows, beside=look)
        locked = is_locked(locking)
        read_code, object_map = reading.wait()
        if codes == [-errno.ECANCELED]:  # not in stock: not ours
            self.is_open = True
            return None, b""
        self._check(*codes)
        if locked or read_code <= 0:
            return None, b""
        return found[0], bytes(object_map[0])

    def _ask_lock(self) -> Reply:
        """Start to ask who holds the lock."""
        return self._waves.call(self._header_name, "lock", "get_info", wire.LOCK_QUESTION)

    def _fill_row(self, op: Any) -> None:
        self._directory.using_number(op, self._snap, self._source.image_id)

    def _header(self) -> _Header:
        """Read the header and its version."""
        rados = bindings().rados
        missing = volume_missing(self._source.volume_id)
        with (
            translated(f"read {self._header_name}", missing=missing),
            self._waves.ioctx.dup() as ioctx,
            rados.ReadOpCtx() as op,
        ):
            keys, _ = ioctx.get_omap_keys(op, "", _PAGE_ROWS)
            rows, _ = ioctx.get_omap_vals_by_keys(op, ("features", "flags", "size", "snap_seq"))
            ioctx.operate_read_op(op, self._header_name)
            version = int(ioctx.get_last_version())
            names = [key for key, _ in keys]
            numbers = {key: int.from_bytes(value, "little") for key, value in rows}
        if sum(name.startswith("snapshot_") for name in names) >= SNAPSHOTS_PER_VOLUME_MAX:
            raise too_many_snapshots(self._source.volume_id)
        return _Header(
            version=version,
            size_bytes=numbers.get("size", 0),
            snap_seq=numbers.get("snap_seq", 0),
            features=numbers.get("features", 0),
            has_parent="parent" in names,
            usual=len(names) < _PAGE_ROWS
            and all(map(is_usual_row, names))
            and numbers.get("features", 0) & ~wire.OPERATIONS == self._features
            and not numbers.get("flags", 0),
        )

    def _copy(self, object_map: bytes, header: _Header) -> int | None:
        """Do step 2; return the map's version, None if somebody has the image open."""
        locking = self._ask_lock()
        watching = self._waves.notify(self._header_name, wire.HEADER_UPDATE)
        name = map_object(self._source.image_id, self._snap)
        found: list[tuple[bytes, int]] = []
        self.is_copied = True

        def look() -> None:
            started_s = time.monotonic()
            found.append(self._map())
            self._read_s = min(self._read_s, time.monotonic() - started_s)
            self.facts = self._facts(header)

        codes = self._waves.run([Write(name, lambda op: op.write_full(object_map))], beside=look)
        is_free = not is_locked(locking) and told(watching) == 0
        self._check(*codes)
        if not is_free:
            return None
        again, version = found[0]
        if again != object_map:
            raise _AgainError
        return version

    def _facts(self, header: _Header) -> Facts | None:
        """Return the facts of the snapshot when it is made, if the header is still that one."""
        depth = 0
        time_s = time.monotonic()
        if header.has_parent:
            try:
                depth = self._headers.depth(self._source.image_id, depth_max=RBD_DEPTH_MAX)
            except VolcoreError:
                return None
        return Facts(
            parent_id=self._source.image_id,
            snap=self._snap,
            size_bytes=header.size_bytes,
            features=header.features,
            depth=depth,
            load_time_s=time_s,
            room=family.CHILDREN_MAX,
        )

    def _map(self) -> tuple[bytes, int]:
        """Read the object map and its version."""
        with translated(f"read {self._map_name}"), self._waves.ioctx.dup() as ioctx:
            return ioctx.read(self._map_name, wire.MAP_BYTES_MAX), int(ioctx.get_last_version())

    def _add(self, version: int) -> int | None:
        """Do step 3; return how many clients were told of it, None if some did not answer."""
        body = wire.new_snapshot(self._snap, self._source.snapshot_id)
        name = self._header_name

        def fill(op: Any) -> None:
            op.assert_version(version)
            op.execute("rbd", "snapshot_add", body)

        telling: list[Reply] = []
        depth = RBD_DEPTH_MAX if self.facts is None else self.facts.depth
        wait_s = patience_s(self._read_s, depth, attached=self._source.attached)

        def tell() -> None:
            time.sleep(wait_s)
            telling.append(self._waves.notify(name, wire.HEADER_UPDATE))

        self.is_open = True
        (code,) = self._waves.run(
            [Write(name, fill)],
            beside=tell,
        )
        watching = told(telling[0])
        self.is_open = code == 0 or code in _UNKNOWN
        if code in _CHANGED:
            raise _AgainError
        if code == _STALE:
            raise _NumberTooLowError(self._snap)
        if code == -errno.EEXIST:
            raise id_taken(self._source.snapshot_id)
        if code == -errno.ENOENT:
            raise volume_missing(self._source.volume_id)
        self._check(code)
        return watching

    def _cleaning(self, version: int) -> Write:
        """Return step 4."""

        def fill(op: Any) -> None:
            op.assert_version(version)
            op.execute("rbd", "object_map_snap_add", b"")

        return Write(self._map_name, fill)

    def _check(self, *codes: int) -> None:
        """Raise for the first error."""
        for code in codes:
            if code < 0:
                self.is_open = self.is_open or code in _UNKNOWN
                doing = f"snapshot volume {self._source.volume_id}"
                raise error_of_code(-code, doing, f"error {-code}")


def too_many_snapshots(volume_id: str) -> ExhaustedError:
    """Return the error for a volume with as many snapshots as are allowed."""
    return ExhaustedError(
        f"volume {volume_id} has {SNAPSHOTS_PER_VOLUME_MAX} snapshots, the most allowed (deleted"
        " ones that still have clones count); delete or flatten",
        reason=Reason.TOO_MANY_SNAPSHOTS,
    )


def told(reply: Reply) -> int | None:
    """Return how many clients have answered a notification; None if some did not."""
    code, found = reply.wait()
    if code < 0 or len(found) != 3:
        return None
    _, answered, silent = found
    return None if silent else len(answered)


def is_locked(reply: Reply) -> bool:
    """Return whether somebody holds the lock, or may."""
    code, found = reply.wait()
    return code < 0 or wire.lockers(found[0]) > 0


def _remove(op: Any) -> None:
    op.remove()
