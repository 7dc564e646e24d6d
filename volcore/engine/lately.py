"""What records were when this server last saw them: for guesses that a commit checks.

Whoever acts on a guess commits with the expectation that it is true, and looks after a conflict.
"""

import threading
from collections import OrderedDict
from collections.abc import Collection, Sequence
from typing import Final

from volcore.catalog.contract import Change
from volcore.errors import OperationPendingError
from volcore.model.records import Kind

SOURCES_MAX: Final = 1024
"""Images and snapshots; a record has up to 16 KiB."""
NAMES_MAX: Final = 50_000
"""Names of volumes, about 200 bytes each."""
MADE_MAX: Final = 1024
"""Volumes as they were made, up to 16 KiB each."""
_SOURCES: Final = (Kind.IMAGE, Kind.SNAPSHOT)


class Lately:
    """Images, snapshots, which volumes there are, and new ones, of one pool; any thread.

    Bounded: what was not seen for the longest is forgotten first.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sources: OrderedDict[tuple[Kind, str], bytes] = OrderedDict()
        self._names: OrderedDict[str, None] = OrderedDict()
        self._made: OrderedDict[str, bytes] = OrderedDict()

    def source(self, kind: Kind, key: str) -> bytes | None:
        """Return the bytes of an image or a snapshot; None: not seen lately."""
        with self._lock:
            return self._sources.get((kind, key))

    def made(self, name: str) -> bytes | None:
        """Return the bytes of a volume that has not changed since it was made; None: not known."""
        with self._lock:
            return self._made.get(name)

    def any_taken(self, names: Collection[str]) -> bool:
        """Return whether one of the names was that of a volume, whatever its state."""
        with self._lock:
            return not self._names.keys().isdisjoint(names)

    def saw(self, kind: Kind, key: str, raw: bytes | None) -> None:
        """Note what a record is; None: there is none."""
        with self._lock:
            if kind is Kind.VOLUME:
                if self._made.get(key) != raw:
                    self._made.pop(key, None)
                self._names.pop(key, None)
                if raw is not None:
                    self._names[key] = None
                    if len(self._names) > NAMES_MAX:
                        self._names.popitem(last=False)
            elif kind in _SOURCES:
                self._sources.pop((kind, key), None)
                if raw is not None:
                    self._sources[kind, key] = raw
                    if len(self._sources) > SOURCES_MAX:
                        self._sources.popitem(last=False)

    def follow(self, changes: Sequence[Change]) -> None:
        """Note what was changed."""
        for change in changes:
            if not change.check_only:
                self.saw(change.kind, change.key, change.value)
                if change.kind is Kind.VOLUME:
                    with self._lock:
                        self._made.pop(change.key, None)

    def note_made(self, name: str, raw: bytes) -> None:
        """Note a volume that was made just now and given to nobody; its name is locked."""
        with self._lock:
            self._made[name] = raw
            if len(self._made) > MADE_MAX:
                self._made.popitem(last=False)

    def follow_after(self, err: BaseException, changes: Sequence[Change]) -> None:
        """Note what is to be learned from a commit that failed: that there may be volumes now.

        Of a conflict: that the volume is there, or that the source has changed.
        """
        if not isinstance(err, OperationPendingError):
            self.follow(changes)
            return
        kind, key = err.context.get("kind"), err.context.get("key")
        if isinstance(kind, Kind) and isinstance(key, str):
            self.saw(kind, key, b"" if kind is Kind.VOLUME else None)
