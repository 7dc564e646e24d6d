"""The catalog of a Ceph pool: all records in the omap of one RADOS object.

One object, because RADOS changes one object atomically and never two: a commit of any records is
one operation, "compare these, then set those". Layout and limits: docs/formats/omap.md.

The map itself is handed in (`volcore.backends.rbd.omap.OmapObject`): this room knows no bindings.

Invariants:
1. INV-OMAP-3 (must): a commit is one call of `OmapStore.commit`.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Final, Protocol

from volcore.catalog.contract import Absent, Anything, Catalog, Change, Gathered, conflict
from volcore.model.records import Kind

OBJECT_NAME: Final = "volcore_catalog"
_KINDS: Final = frozenset(map(str, Kind))
_BEHIND: Final = "0"
"""The character after `/`: behind all keys of a kind."""


class OmapStore(Protocol):
    """An ordered map with atomic compare-and-set."""

    def find(self, key: str) -> bytes | None:
        """Return the value of `key`, or None."""

    def rows(self, *, prefix: str, after: str, limit: int) -> list[tuple[str, bytes]]:
        """Return up to `limit` rows with `prefix` and a key > `after`, ascending by key bytes."""

    def gather(
        self, keys: Sequence[str], prefixes: Sequence[str]
    ) -> tuple[dict[str, bytes], list[list[tuple[str, bytes]]]]:
        """Return the values of the keys that are there, and all rows with each prefix."""

    def commit(
        self,
        *,
        expect: Mapping[str, bytes | None],
        puts: Mapping[str, bytes] | None = None,
        removals: Collection[str] = (),
    ) -> bool:
        """Change the map atomically if every expectation holds; return whether it did."""

    def close(self) -> None:
        """Release the map; idempotent."""


class OmapCatalog(Catalog):
    """Records in an `OmapStore`, under the key `<kind>/<key>`; closing it closes the store."""

    def __init__(self, store: OmapStore) -> None:
        self._store = store

    def find(self, kind: Kind, key: str) -> bytes | None:
        """See `Catalog.find`."""
        return self._store.find(_stored_key(kind, key))

    def list(
        self, kind: Kind, *, prefix: str = "", after: str = "", limit: int = 1000
    ) -> list[tuple[str, bytes]]:
        """See `Catalog.list`."""
        rows = self._store.rows(
            prefix=_stored_key(kind, prefix), after=_stored_key(kind, after), limit=limit
        )
        start = len(_stored_key(kind, ""))
        return [(key[start:], value) for key, value in rows]

    def gather(
        self, keys: Sequence[tuple[Kind, str]], prefixes: Sequence[tuple[Kind, str]]
    ) -> Gathered:
        """See `Catalog.gather`."""
        stored = [_stored_key(*key) for key in keys]
        found, below = self._store.gather(stored, [_stored_key(*prefix) for prefix in prefixes])
        starts = [len(_stored_key(kind, "")) for kind, _ in prefixes]
        return [found.get(key) for key in stored], [
            [(key[start:], value) for key, value in rows]
            for start, rows in zip(starts, below, strict=True)
        ]

    def unknown(self, limit: int) -> Sequence[tuple[str, str, bytes]]:
        """See `Catalog.unknown`. *Complexity*: a request for each kind."""
        found: list[tuple[str, str, bytes]] = []
        after = ""
        while len(found) < limit and (first := self._store.rows(prefix="", after=after, limit=1)):
            kind = first[0][0].partition("/")[0]
            if kind not in _KINDS:
                prefix = _stored_key(kind, "")
                rows = self._store.rows(prefix=prefix, after="", limit=limit - len(found))
                found += [(kind, key.removeprefix(prefix), value) for key, value in rows]
            after = kind + _BEHIND
        return found

    def commit(self, changes: Sequence[Change]) -> None:
        """See `Catalog.commit`."""
        expect: dict[str, bytes | None] = {}
        puts: dict[str, bytes] = {}
        removals: set[str] = set()
        for change in changes:
            key = _stored_key(change.kind, change.key)
            if not isinstance(change.expect, Anything):
                wanted = None if isinstance(change.expect, Absent) else change.expect
                if expect.setdefault(key, wanted) != wanted:
                    raise conflict(change)
            if change.check_only:
                continue
            puts.pop(key, None)
            removals.discard(key)
            if change.value is None:
                removals.add(key)
            else:
                puts[key] = change.value
        if changes and not self._store.commit(expect=expect, puts=puts, removals=removals):
            raise conflict(self._culprit(changes))

    def _culprit(self, changes: Sequence[Change]) -> Change:
        """Return the line that fails now; the first with an expectation if all hold by now."""
        guarded = [change for change in changes if not isinstance(change.expect, Anything)]
        found, _ = self.gather([(change.kind, change.key) for change in guarded], [])
        for change, present in zip(guarded, found, strict=True):
            wanted = None if isinstance(change.expect, Absent) else change.expect
            if present != wanted:
                return change
        return guarded[0]

    def close(self) -> None:
        """See `Catalog.close`."""
        self._store.close()


def _stored_key(kind: str, key: str) -> str:
    """Return the key in the omap."""
    return f"{kind}/{key}"
