"""How many volumes and images a pool has, and their sizes, without looking at all of them.

One server at a time changes a pool, and all its changes pass here: the records are looked at once,
when somebody asks for the first time, and followed from then on. *Complexity* of later questions:
constant. Memory: a name and a number for each volume.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from volcore.catalog.contract import Catalog, Change, Gathered
from volcore.engine.lately import Lately
from volcore.errors import BackendIOError, PreconditionError, UnavailableError, VolcoreError
from volcore.model.records import Image, Kind, Record, State, TrashedVolume, Volume

_PAGE: Final = 1000
_COUNTED: Final[dict[Kind, type[Volume] | type[Image] | type[TrashedVolume]]] = {
    Kind.VOLUME: Volume,
    Kind.IMAGE: Image,
    Kind.TRASH: TrashedVolume,
}
_UNCLEAR: Final = (UnavailableError, BackendIOError)
"""Errors after which a change may be there or not."""

_Line = tuple[Kind, str, bytes | Record | None]


class _Joined(threading.local):
    """The changes of this thread's transaction; None: it is in none."""

    lines: list[_Line] | None = None


@dataclass(frozen=True, slots=True)
class Figures:
    """Of the records that are READY, and of the trash; not those of a newer server."""

    volume_count: int
    provisioned_bytes: int
    """Of the volumes, and of those in the trash."""
    image_count: int
    deleted_volume_count: int = 0


class CountedCatalog(Catalog):
    """A catalog that knows its figures, and what it has seen; all else is done by the one below.

    Concurrency: any thread.
    """

    def __init__(self, below: Catalog) -> None:
        """Count nothing until somebody asks."""
        self.lately = Lately()
        """Of what was gathered, and changed outside of transactions."""
        self.follower: Callable[[Sequence[Change]], None] | None = None
        """Is told of what was changed, or may have been, outside of transactions."""
        self._catalog = below
        self._joined = _Joined()
        self._counting = threading.Lock()
        self._lock = threading.Lock()
        self._tally: _Tally | None = None
        self._meanwhile: list[_Line] | None = None
        """What is changed while all records are being looked at."""

    @property
    def below(self) -> Catalog:
        """The catalog itself, for reads that tell nothing of what callers have seen."""
        return self._catalog

    def figures(self) -> Figures:
        """Return the figures.

        Raises:
            UnavailableError: the store cannot be reached.
        """
        with self._counting:
            with self._lock:
                if self._tally is not None:
                    return self._tally.figures()
                self._meanwhile = []
            tally = _Tally()
            for kind in _COUNTED:
                after = ""
                while page := self._catalog.list(kind, after=after, limit=_PAGE):
                    tally.follow([(kind, key, value) for key, value in page])
                    after = page[-1][0]
            with self._lock:
                if self._meanwhile is not None:
                    tally.follow(self._meanwhile)
                    self._tally, self._meanwhile = tally, None
                return tally.figures()

    def find(self, kind: Kind, key: str) -> bytes | None:
        """See `Catalog.find`."""
        return self._catalog.find(kind, key)

    def gather(
        self, keys: Sequence[tuple[Kind, str]], prefixes: Sequence[tuple[Kind, str]]
    ) -> Gathered:
        """See `Catalog.gather`."""
        found = self._catalog.gather(keys, prefixes)
        for (kind, key), raw in zip(keys, found[0], strict=True):
            self.lately.saw(kind, key, raw)
        return found

    def list(
        self, kind: Kind, *, prefix: str = "", after: str = "", limit: int = 1000
    ) -> list[tuple[str, bytes]]:
        """See `Catalog.list`."""
        return self._catalog.list(kind, prefix=prefix, after=after, limit=limit)

    def count(self, kind: Kind, *, prefix: str, limit: int) -> int:
        """See `Catalog.count`."""
        return self._catalog.count(kind, prefix=prefix, limit=limit)

    def unknown(self, limit: int) -> Sequence[tuple[str, str, bytes]]:
        """See `Catalog.unknown`."""
        return self._catalog.unknown(limit)

    def commit(self, changes: Sequence[Change]) -> None:
        """See `Catalog.commit`."""
        try:
            self._catalog.commit(changes)
        except BaseException as err:
            self._forget_after(err)
            self.lately.follow_after(err, changes)
            if self.follower is not None and isinstance(err, _UNCLEAR):
                self.follower(changes)
            raise
        lines: list[_Line] = [
            (change.kind, change.key, change.record or change.value)
            for change in changes
            if change.kind in _COUNTED and not change.check_only
        ]
        joined = self._joined.lines
        if joined is None:
            self._follow(lines)
            self.lately.follow(changes)
            if self.follower is not None:
                self.follower(changes)
        else:
            joined += lines

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """See `Catalog.transaction`."""
        if self._joined.lines is not None:
            with self._catalog.transaction():
                yield
            return
        lines = self._joined.lines = []
        try:
            with self._catalog.transaction():
                yield
        except BaseException as err:
            self._forget_after(err)
            raise
        finally:
            self._joined.lines = None
        self._follow(lines)

    def close(self) -> None:
        """See `Catalog.close`."""
        self._catalog.close()

    def _follow(self, lines: Sequence[_Line]) -> None:
        """Take over what was changed; the locks of the engine keep changes of a record in order."""
        if not lines:
            return
        with self._lock:
            if self._tally is not None:
                self._tally.follow(lines)
            elif self._meanwhile is not None:
                self._meanwhile += lines

    def _forget_after(self, err: BaseException) -> None:
        """Count anew at the next question, unless it is clear that nothing was changed."""
        if isinstance(err, _UNCLEAR) or not isinstance(err, VolcoreError):
            with self._lock:
                self._tally = self._meanwhile = None


class _Tally:
    """Sizes in bytes of what is READY, by name."""

    def __init__(self) -> None:
        self._sizes: dict[Kind, dict[str, int]] = {kind: {} for kind in _COUNTED}
        self._provisioned_bytes = 0

    def follow(self, lines: Sequence[_Line]) -> None:
        """Take over lines; the last one of a record counts."""
        for kind, key, value in lines:
            sizes = self._sizes[kind]
            before = sizes.pop(key, 0)
            if value is not None:
                record = _known(kind, key, value)
                if isinstance(record, TrashedVolume):
                    sizes[key] = record.volume.size_bytes
                elif record is not None and record.state is State.READY:
                    sizes[key] = record.size_bytes
            if kind is not Kind.IMAGE:
                self._provisioned_bytes += sizes.get(key, 0) - before

    def figures(self) -> Figures:
        return Figures(
            volume_count=len(self._sizes[Kind.VOLUME]),
            provisioned_bytes=self._provisioned_bytes,
            image_count=len(self._sizes[Kind.IMAGE]),
            deleted_volume_count=len(self._sizes[Kind.TRASH]),
        )


def _known(kind: Kind, key: str, value: bytes | Record) -> Volume | Image | TrashedVolume | None:
    if isinstance(value, Record):
        assert isinstance(value, Volume | Image | TrashedVolume)
        return value
    try:
        return _COUNTED[kind].decode(value, key)
    except PreconditionError:  # of a newer server
        return None
