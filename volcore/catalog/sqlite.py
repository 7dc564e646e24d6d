"""The embedded catalog: one table in the pool's SQLite database.

Nobody else writes the table, so what was found is remembered until it changes: a call looks at its
records two or three times, and all deployments look at the same image.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from typing import Final

from volcore.catalog.contract import Absent, Anything, Catalog, Change, conflict
from volcore.database import Database
from volcore.model.records import Kind

_SCHEMA = """CREATE TABLE IF NOT EXISTS record (
  kind TEXT NOT NULL, key TEXT NOT NULL, value BLOB NOT NULL, PRIMARY KEY (kind, key)
) STRICT, WITHOUT ROWID"""


KNOWN_MAX: Final = 1024
"""Records that are remembered; then all are forgotten."""


class SqliteCatalog(Catalog):
    """Records in a `Database`; closing it leaves the database to its owner."""

    def __init__(self, database: Database) -> None:
        """Create the table if it is missing."""
        self._database = database
        self._known: dict[tuple[str, str], bytes | None] = {}
        """Committed values; added to under the database's lock, outside of transactions."""
        database.execute(_SCHEMA)
        database.cover("record", ("kind", "key", "value"))

    def find(self, kind: Kind, key: str) -> bytes | None:
        """See `Catalog.find`."""
        at = (kind, key)
        with suppress(KeyError):
            return self._known[at]
        with self._database.reading():
            rows = self._database.query("SELECT value FROM record WHERE kind = ? AND key = ?", at)
            found = bytes(rows[0][0]) if rows else None
            if not self._database.inside():
                if len(self._known) >= KNOWN_MAX:
                    self._known.clear()
                self._known[at] = found
        return found

    def list(
        self, kind: Kind, *, prefix: str = "", after: str = "", limit: int = 1000
    ) -> list[tuple[str, bytes]]:
        """See `Catalog.list`."""
        rows = self._database.query(
            "SELECT key, value FROM record WHERE kind = ? AND key > ? AND key >= ? AND key < ?"
            " ORDER BY key LIMIT ?",
            (kind, after, prefix, prefix + "\U0010ffff", limit),
        )
        return [(key, bytes(value)) for key, value in rows]

    def count(self, kind: Kind, *, prefix: str, limit: int) -> int:
        """See `Catalog.count`."""
        rows = self._database.query(
            "SELECT count(*) FROM (SELECT 1 FROM record WHERE kind = ? AND key >= ? AND key < ?"
            " LIMIT ?)",
            (kind, prefix, prefix + "\U0010ffff", limit),
        )
        return int(rows[0][0])

    def unknown(self, limit: int) -> Sequence[tuple[str, str, bytes]]:
        """See `Catalog.unknown`."""
        marks = ", ".join("?" for _ in Kind)
        rows = self._database.query(
            f"SELECT kind, key, value FROM record WHERE kind NOT IN ({marks})"  # noqa: S608
            " ORDER BY kind, key LIMIT ?",
            (*Kind, limit),
        )
        return [(kind, key, bytes(value)) for kind, key, value in rows]

    def commit(self, changes: Sequence[Change]) -> None:
        """See `Catalog.commit`."""
        with self._database.transaction():
            for change in changes:
                self._check(change)
            for change in changes:
                if change.check_only:
                    continue
                self._known.pop((change.kind, change.key), None)
                if change.value is None:
                    self._database.execute(
                        "DELETE FROM record WHERE kind = ? AND key = ?", (change.kind, change.key)
                    )
                else:
                    self._database.execute(
                        "INSERT OR REPLACE INTO record VALUES (?, ?, ?)",
                        (change.kind, change.key, change.value),
                    )

    def _check(self, change: Change) -> None:
        """Raise unless the expectation of `change` holds."""
        if isinstance(change.expect, Anything):
            return
        found = self.find(change.kind, change.key)
        expected = None if isinstance(change.expect, Absent) else change.expect
        if found != expected:
            raise conflict(change)

    def transaction(self) -> AbstractContextManager[None]:
        """See `Catalog.transaction`."""
        return self._database.transaction()

    def close(self) -> None:
        """See `Catalog.close`."""
