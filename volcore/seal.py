"""Seals a database: rows that were lost, changed or put back as they were do not go unseen.

SQLite checks its log, not its pages, and takes a log that ends early for the end of the log. So:

1. Each covered table has a digest: the sum of the hashes of its rows. Triggers of the writing
   connection keep it, in the transaction of the change; `cover` compares it with the rows.
2. Each transaction that changes something counts up `commits`. After it is durable the count goes
   to a small file, the *witness*, unsynced: what it says reaches the disk later or never, so it is
   never ahead of the database. A database that is behind its witness has lost commits.

Both are rows of one table, so a commit writes one page more. *Complexity* of `cover`: rows.
"""

import os
import sqlite3
import struct
import zlib
from collections.abc import Sequence
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import Final

from volcore.errors import IntegrityError, Reason

SCHEMA: Final = """CREATE TABLE IF NOT EXISTS seal (
  name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT, WITHOUT ROWID"""
COMMITS: Final = "commits"
DIGEST_MASK: Final = (1 << 48) - 1
"""Sums stay far below 2**63, where SQLite would go on in floating point."""
_WITNESS: Final = struct.Struct("<8sQI")
_MAGIC: Final = b"volcore1"


def damaged(what: str) -> IntegrityError:
    """Return the error for a database that is not as it was left."""
    return IntegrityError(
        f"the pool's database is damaged: {what}; restore the pool from a copy",
        reason=Reason.BAD_RECORD,
    )


def row_hash(*values: str | int | bytes | None) -> int:
    """Return the hash of a row; the first value is the table's name."""
    return int.from_bytes(blake2b(repr(values).encode(), digest_size=6).digest(), "little")


class Witness:
    """The file that knows how many commits there were at least."""

    def __init__(self, path: Path) -> None:
        """Use the file at `path`, which may be missing."""
        self._path = path
        self._fd = -1

    def read(self) -> int | None:
        """Return the count, or None when the file cannot tell."""
        try:
            raw = self._path.read_bytes()
        except FileNotFoundError:
            return None
        if len(raw) != _WITNESS.size:
            return None
        magic, commits, checksum = _WITNESS.unpack(raw)
        return int(commits) if (magic, checksum) == (_MAGIC, zlib.crc32(raw[:-4])) else None

    def create(self) -> None:
        """Make the file durable, with a count of 0; it lies in one sector, so it never tears."""
        self._open()
        os.pwrite(self._fd, _packed(0), 0)
        os.fsync(self._fd)
        fd = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def write(self, commits: int) -> None:
        """Note that so many commits are durable; a failure only makes the file less useful."""
        with suppress(OSError):
            self._open()
            os.pwrite(self._fd, _packed(commits), 0)

    def _open(self) -> None:
        if self._fd < 0:
            self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def close(self) -> None:
        """Close it; idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _packed(commits: int) -> bytes:
    body = struct.pack("<8sQ", _MAGIC, commits)
    return body + struct.pack("<I", zlib.crc32(body))


class Seal:
    """The seal of one connection, the only one that writes."""

    def __init__(self, connection: sqlite3.Connection, witness: Witness) -> None:
        """Use the connection, in a transaction; `table` exists from here on."""
        self._connection = connection
        self.witness = witness
        connection.create_function("row_hash", -1, row_hash, deterministic=True)
        self.fresh = not connection.execute(
            "SELECT 1 FROM sqlite_master WHERE name = 'seal'"
        ).fetchall()
        """There was no seal before: the database is new, or older than seals."""
        self._commits = 0
        known = witness.read()
        if self.fresh:
            if known:
                raise damaged(f"it lacks all of {known} commits")
            return
        if known is None:
            raise damaged("its witness is missing or unreadable, so it may be an old copy")
        self._commits = self._value(COMMITS)
        if self._commits < known:
            raise damaged(f"it is at commit {self._commits}, but commit {known} was made")

    def create(self) -> None:
        """Make the table in the current transaction, and the witness."""
        if self.fresh:
            self.witness.create()
        self._connection.execute(SCHEMA)
        self._connection.execute("INSERT OR IGNORE INTO seal VALUES (?, 0)", (COMMITS,))

    def cover(self, table: str, columns: Sequence[str], *, adopt: bool) -> None:
        """Compare a table with its digest, and keep the digest from now on.

        Args:
            table: its name; never from outside.
            columns: what counts; all that never changes without a trigger.
            adopt: take the rows as they are if there is no digest yet.

        Raises:
            IntegrityError: BAD_RECORD, the table is not as it was left.
        """
        for (text,) in self._connection.execute(f"PRAGMA integrity_check({table})").fetchall():
            if text != "ok":
                raise damaged(text)
        names = ", ".join(columns)
        (digest,) = self._connection.execute(
            f"SELECT coalesce(sum(row_hash('{table}', {names})), 0) & {DIGEST_MASK} FROM {table}"  # noqa: S608
        ).fetchone()
        self.check(table, digest, adopt=adopt or not digest)
        new, old = (
            f"row_hash('{table}', {', '.join(f'{row}.{column}' for column in columns)})"
            for row in ("NEW", "OLD")
        )
        self.follow(table, "INSERT", f"+ {new}")
        self.follow(table, "DELETE", f"- {old}")
        self.follow(table, f"UPDATE OF {names}", f"+ {new} - {old}")

    def check(self, name: str, value: int, *, adopt: bool) -> None:
        """Compare a digest; with `adopt` one that is not there is taken over."""
        rows = self._connection.execute("SELECT value FROM seal WHERE name = ?", (name,)).fetchall()
        if not rows and adopt:
            self._connection.execute("INSERT INTO seal VALUES (?, ?)", (name, value))
        elif not rows or rows[0][0] != value:
            raise damaged(f"table {name} is not as it was left")

    def follow(self, table: str, change: str, term: str) -> None:
        """Add `term` to the table's digest at each such change."""
        trigger = f"seal_{table}_{change.split()[0]}".lower()
        self._connection.execute(
            f"CREATE TEMP TRIGGER {trigger} AFTER {change} ON main.{table} BEGIN"  # noqa: S608
            f" UPDATE seal SET value = (value {term}) & {DIGEST_MASK} WHERE name = '{table}'; END"
        )

    def count(self) -> None:
        """Count the current transaction, which changed something."""
        self._connection.execute(
            "UPDATE seal SET value = ? WHERE name = ?", (self._commits + 1, COMMITS)
        )

    def committed(self) -> None:
        """Take note that the counted transaction is durable."""
        self._commits += 1
        self.witness.write(self._commits)

    def _value(self, name: str) -> int:
        rows = self._connection.execute("SELECT value FROM seal WHERE name = ?", (name,)).fetchall()
        if not rows:
            raise damaged(f"it lacks the count of {name}")
        return int(rows[0][0])
