"""Copies of the records in the storage that they are about, written behind the answers.

What a commit has changed is noted, and some moments later compared: what the catalog has by then is
what the volumes of the backend are to carry. So it does not matter in which order commits are
noted, and a hundred of one volume cost one write. At a start everything is compared, which fills in
what a crash or an older server has left out.

Invariants (docs/invariants.md):
1. INV-CARRY-2 (must): what is carried is taken away only when a commit of this server has dropped
   the record, never because the catalog has none: that one may be lost.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import structlog

from volcore.backends.carrying import Load, SupportsCarry
from volcore.catalog.contract import Catalog, Change
from volcore.errors import IntegrityError, PreconditionError, Reason, VolcoreError
from volcore.model.records import (
    Attachment,
    Image,
    Kind,
    Snapshot,
    State,
    TrashedVolume,
    Volume,
)

DELAY_S: Final = 0.25
"""How long a change waits for others to go with."""
RETRY_S: Final = 1.0
RETRY_S_MAX: Final = 30.0
"""After failures, one after another."""
TOGETHER: Final = 128
"""Volumes compared at once."""
VOLUME_KINDS: Final = (Kind.VOLUME, Kind.SNAPSHOT, Kind.ATTACHMENT, Kind.TRASH)
IMAGE_KINDS: Final = (Kind.IMAGE,)
_UNREADABLE: Final = (IntegrityError, PreconditionError)
_PAGE: Final = 1000
_MAIN: Final[Mapping[Kind, type[Volume] | type[Image] | type[TrashedVolume]]] = {
    Kind.VOLUME: Volume,
    Kind.IMAGE: Image,
    Kind.TRASH: TrashedVolume,
}
Subject = tuple[Kind, str]
"""Kind and key of a record that has storage of its own."""
_log = structlog.get_logger("volcore.engine")


class Carrier:
    """The copies of one pool; any thread."""

    def __init__(
        self, backend: SupportsCarry, catalog: Catalog, hides: Callable[[str], bool]
    ) -> None:
        """Nothing runs until something has changed. `hides`: is this volume still being made?"""
        self._backend = backend
        self._catalog = catalog
        self._hides = hides
        self._changed = threading.Condition()
        self._subjects: dict[Subject, None] = {}
        self._dropped: set[str] = set()
        """Volumes of the backend whose records were dropped."""
        self._later: dict[Subject, None] = {}
        """Being made, or not written: once more after a pause."""
        self._others: dict[Subject, None] = {}
        """All, at a start: when nothing else is to be done."""
        self._is_listing = False
        self._due_s = 0.0
        """When those are compared again."""
        self._running = False
        self._has_failed = False
        self._is_idle = False
        """Whether the thread must be woken; else it looks by itself, and takes no processor."""
        self._hasty = 0
        """How many wait for an end."""
        self._thread: threading.Thread | None = None
        self._closed = False

    def follow(self, changes: Sequence[Change]) -> None:
        """Note what a commit has changed."""
        lines = [change for change in changes if not change.check_only]
        subjects = dict.fromkeys(subject for line in lines for subject in _subjects(line))
        if not subjects:
            return
        dropped = {
            _backend_id_of(line.kind, line.expect)
            for line in lines
            if line.kind in _MAIN and line.value is None and isinstance(line.expect, bytes)
        }
        if dropped:  # else nothing is decoded before an answer
            dropped -= {
                _backend_id_of(line.kind, line.value)
                for line in lines
                if line.kind in _MAIN and line.value is not None
            }
            dropped.discard("")
        with self._changed:
            self._subjects |= subjects
            self._dropped |= dropped
            self._wake()

    def compare(self, subjects: Sequence[Subject]) -> None:
        """Compare some, soon."""
        with self._changed:
            self._subjects |= dict.fromkeys(subjects)
            self._wake()

    def compare_all(self) -> None:
        """Compare everything, in the background."""
        with self._changed:
            self._is_listing = True
            self._wake()

    def flush(self, timeout_s: float) -> bool:
        """Write what there is, now; return whether that is done: all but what is being made."""
        until_s = time.monotonic() + timeout_s
        with self._changed:
            self._hasty += 1
            self._changed.notify_all()
            try:
                if not self._changed.wait_for(lambda: not self._running, timeout_s):
                    return False
                self._subjects |= self._later  # it was being made a moment ago
                self._later = {}
                self._changed.notify_all()
                left_s = until_s - time.monotonic()
                done = self._changed.wait_for(lambda: not self._is_busy(), left_s)
                return done and not self._has_failed
            finally:
                self._hasty -= 1

    def close(self) -> None:
        """Write what calls have changed, once, and end; idempotent."""
        with self._changed:
            self._closed, self._is_listing, self._others = True, False, {}
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    def _is_busy(self) -> bool:
        return bool(
            self._subjects or self._others or self._dropped or self._is_listing or self._running
        )

    def _wake(self) -> None:
        if self._thread is None and not self._closed:
            self._thread = threading.Thread(target=self._run, name="carrier", daemon=True)
            self._thread.start()
        elif self._is_idle:
            self._changed.notify_all()

    def _run(self) -> None:
        failures = 0
        while (work := self._next()) is not None:
            subjects, dropped, is_listing = work
            others: dict[Subject, None] = {}
            later: Sequence[Subject] = ()
            try:
                if is_listing:
                    others = self._all()
                later = self._compare(subjects, dropped)
                failures = 0
            except Exception as err:
                if isinstance(err, VolcoreError) and err.reason is Reason.SHUTTING_DOWN:
                    return  # the pool is closed
                if not failures:
                    tell = _log.warning if isinstance(err, VolcoreError) else _log.exception
                    tell("records not written into the storage, tried again", problem=str(err))
                later, failures = subjects, failures + 1
            pause_s = min(RETRY_S * failures, RETRY_S_MAX)
            with self._changed:
                if not self._closed:
                    self._others |= others
                    self._later |= dict.fromkeys(later)
                    self._due_s = time.monotonic() + (pause_s or DELAY_S)
                    if failures:
                        self._dropped |= dropped
                        self._is_listing |= is_listing
                self._running = False
                self._has_failed = failures > 0
                self._changed.notify_all()
                if failures:
                    self._pause(pause_s)

    def _next(self) -> tuple[list[Subject], set[str], bool] | None:
        """Return what is to be compared, and whether all is to be listed; None: closed."""
        with self._changed:
            while True:
                now_s = time.monotonic()
                if self._later and now_s >= self._due_s:
                    self._subjects |= self._later
                    self._later = {}
                if self._subjects or self._others or self._is_listing or self._closed:
                    break
                self._is_idle = True
                self._changed.wait(self._due_s - now_s if self._later else None)
                self._is_idle = False
            if self._subjects:
                self._pause(DELAY_S)
            if self._closed and not self._subjects and not self._dropped:
                return None
            source = self._subjects or self._others
            found = list(source)[:TOGETHER]
            for subject in found:
                del source[subject]
            dropped, self._dropped = self._dropped, set()
            is_listing, self._is_listing = self._is_listing, False
            self._running = True
            return found, dropped, is_listing

    def _all(self) -> dict[Subject, None]:
        found: dict[Subject, None] = {}
        for kind in _MAIN:
            after = ""
            while page := self._catalog.list(kind, after=after, limit=_PAGE):
                found |= {(kind, key): None for key, _ in page}
                after = page[-1][0]
        return found

    def _pause(self, seconds: float) -> None:
        """Wait, unless somebody waits for the end."""
        until_s = time.monotonic() + seconds
        while not self._closed and not self._hasty and (left_s := until_s - time.monotonic()) > 0:
            self._changed.wait(left_s)

    def _compare(self, subjects: Sequence[Subject], dropped: set[str]) -> list[Subject]:
        """Let the volumes carry what the catalog has; return what is still being made."""
        loads, later = loads_of(self._catalog, subjects, self._hides)
        gone = {one: Load(kinds=VOLUME_KINDS + IMAGE_KINDS) for one in dropped}
        self._backend.carry(gone | loads)
        return later


def loads_of(
    catalog: Catalog, subjects: Sequence[Subject], hides: Callable[[str], bool]
) -> tuple[dict[str, Load], list[Subject]]:
    """Return what volumes of the backend are to carry, by id, and which are still being made."""
    raws, _ = catalog.gather(subjects, []) if subjects else ([], [])
    loads: dict[str, Load] = {}
    later = []
    volumes: list[tuple[Volume, bytes]] = []
    for (kind, key), raw in zip(subjects, raws, strict=True):
        if raw is None:
            continue
        try:
            record = _MAIN[kind].decode(raw)
        except _UNREADABLE:  # of a newer server, which sees to it
            continue
        if isinstance(record, Volume):
            if hides(record.id):
                later.append((kind, key))
            elif record.state is State.READY:
                volumes.append((record, raw))
        elif isinstance(record, TrashedVolume):
            loads[_backend_id(record)] = Load(kinds=VOLUME_KINDS, records={f"{kind}/{key}": raw})
        elif record.state is State.READY:
            loads[_backend_id(record)] = Load(kinds=IMAGE_KINDS, records={f"{kind}/{key}": raw})
    return loads | _loads_of_volumes(catalog, volumes), later


def _loads_of_volumes(catalog: Catalog, volumes: Sequence[tuple[Volume, bytes]]) -> dict[str, Load]:
    """Return what these are to carry, with all that belongs to them."""
    prefixes = [
        (kind, f"{volume.name}/")
        for volume, _ in volumes
        for kind in (Kind.SNAPSHOT, Kind.ATTACHMENT)
    ]
    if not volumes:
        return {}
    _, below = catalog.gather([], prefixes)
    loads = {}
    for (volume, raw), frozen, attached in zip(volumes, below[::2], below[1::2], strict=True):
        records = {f"{Kind.VOLUME}/{volume.name}": raw}
        try:
            for key, one in frozen:
                snapshot = Snapshot.decode(one)
                if snapshot.volume_id == volume.id and snapshot.state is State.READY:
                    records[f"{Kind.SNAPSHOT}/{key}"] = one
            for key, one in attached:
                if Attachment.decode(one).volume_id == volume.id:
                    records[f"{Kind.ATTACHMENT}/{key}"] = one
        except _UNREADABLE:  # of a newer server, which sees to it; others must not wait for it
            continue
        loads[volume.backend_id] = Load(kinds=VOLUME_KINDS, records=records)
    return loads


def first_load(volume: Volume) -> dict[str, bytes]:
    """Return what a new volume carries."""
    return {f"{volume.KIND}/{volume.key}": volume.encode()}


def _subjects(change: Change) -> list[Subject]:
    """Return what a line of a commit concerns."""
    if change.kind in _MAIN:
        return [(change.kind, change.key)]
    if change.kind in {Kind.SNAPSHOT, Kind.ATTACHMENT}:
        return [(Kind.VOLUME, change.key.partition("/")[0])]
    return []


def _backend_id_of(kind: Kind, raw: bytes) -> str:
    """Return whose records these are; empty if this server cannot read it."""
    try:
        return _backend_id(_MAIN[kind].decode(raw))
    except _UNREADABLE:
        return ""


def _backend_id(record: Volume | Image | TrashedVolume) -> str:
    if isinstance(record, Image):
        return record.backend_volume_id
    return record.volume.backend_id if isinstance(record, TrashedVolume) else record.backend_id
