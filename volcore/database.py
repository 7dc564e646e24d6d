"""One SQLite database shared by the embedded catalog and the embedded backend.

Sharing it is what makes a clone one commit: the catalog's record and the backend's layer row become
durable together. WAL with full synchronisation: a commit is one append and one sync of the log.

Lock order (INV-LOCK-1): the database's lock is taken before any device lock, never while one is
held.
"""

import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from volcore.errors import (
    BackendIOError,
    ExhaustedError,
    Reason,
    UnavailableError,
    VolcoreError,
)
from volcore.seal import Seal, Witness, damaged

_PRAGMAS: Final = (
    "page_size=2048",  # of a new one: a small change writes half as much
    "journal_mode=WAL",
    "synchronous=FULL",
    "foreign_keys=ON",
    "recursive_triggers=ON",  # what REPLACE deletes counts, see volcore.seal
    "temp_store=MEMORY",
)
_DAMAGE: Final = ("malformed", "no such table", "no such column", "no such index", "decode")
"""Words of SQLite that mean a damaged file, though it calls them operational."""


class Database:
    """A connection with one writer at a time; usable from any thread."""

    def __init__(self, path: Path | None) -> None:
        """Open or create the database at `path`; None keeps it in memory."""
        self._lock = threading.RLock()
        self._depth = 0
        self._owner = 0
        self._after_commit: list[Callable[[], None]] = []
        self._after_rollback: list[Callable[[], None]] = []
        self._transaction = _Transaction(self)
        self._seal: Seal | None = None
        self._changes = 0
        """Rows changed before the current transaction."""
        with _TRANSLATED:
            self._connection = sqlite3.connect(
                ":memory:" if path is None else path,
                isolation_level=None,
                check_same_thread=False,
                timeout=10,
            )
            for pragma in _PRAGMAS:
                self._connection.execute(f"PRAGMA {pragma}")

    def transaction(self) -> AbstractContextManager[None]:
        """Run the block in one transaction; nested uses join the outermost one.

        Durability: at the end of the outermost block everything is on disk. On an exception
        nothing of it is.

        Raises:
            ExhaustedError: POOL_FULL, the disk is full.
            IntegrityError: BAD_RECORD, the file is damaged.
        """
        return self._transaction

    def _begin(self) -> None:
        """Enter a transaction: the outermost one begins it."""
        self._lock.acquire()
        if self._depth:
            self._depth += 1
            return
        try:
            with _TRANSLATED:
                self._connection.execute("BEGIN IMMEDIATE")
        except BaseException:
            self._lock.release()
            raise
        self._depth = 1
        self._owner = threading.get_ident()
        self._changes = self._connection.total_changes

    def _end(self, error: BaseException | None) -> None:
        """Leave a transaction: the outermost one is committed, or undone after an `error`."""
        try:
            if self._depth > 1:
                self._depth -= 1
                return
            if error is not None:
                self._roll_back(error)
                return
            seal = self._seal if self._connection.total_changes != self._changes else None
            try:
                with _TRANSLATED:
                    if seal is not None:
                        seal.count()
                    self._connection.execute("COMMIT")
            except BaseException as err:
                self._roll_back(err)
                raise
            if seal is not None:
                seal.committed()
            self._finish(self._after_commit)
        finally:
            self._lock.release()

    def _roll_back(self, error: BaseException) -> None:
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")
        if isinstance(error, ExhaustedError):
            # What is in the log moves to its place, so that the log's space serves again:
            # a repeated call, such as a delete that frees space, then succeeds.
            with suppress(sqlite3.Error):
                self._connection.execute("PRAGMA wal_checkpoint(RESTART)").fetchall()
        self._finish(self._after_rollback)

    def _finish(self, hooks: list[Callable[[], None]]) -> None:
        """End the transaction's bookkeeping, then run `hooks`, still under the lock."""
        self._depth = self._owner = 0
        todo = list(hooks)
        self._after_commit.clear()
        self._after_rollback.clear()
        if not todo:
            return
        with ExitStack() as stack:
            # One that fails keeps no other from running: they release locks.
            for hook in reversed(todo):
                stack.callback(hook)

    @contextmanager
    def sealing(self, witness: Path) -> Iterator[Seal]:
        """Begin to seal the database, with the tables that the block covers; one transaction.

        Raises:
            IntegrityError: BAD_RECORD, the database is not as it was left; nothing was changed.
        """
        with self.transaction(), _TRANSLATED:
            seal = Seal(self._connection, Witness(witness))
            yield seal
            self._seal = seal

    def cover(self, table: str, columns: Sequence[str]) -> None:
        """Seal one more table; nothing happens in a database without a seal."""
        if self._seal is not None:
            with self.transaction(), _TRANSLATED:
                self._seal.cover(table, columns, adopt=self._seal.fresh)

    def reading(self) -> AbstractContextManager[object]:
        """Keep other threads from changing anything for the block, without a transaction."""
        return self._lock

    @contextmanager
    def view(self) -> Iterator[None]:
        """Show the block one state of the database, whatever other connections commit meanwhile.

        It may change nothing, and others that use this connection wait for it.
        """
        with self._lock, _TRANSLATED:
            assert not self._depth, "a transaction has its own view"
            self._connection.execute("BEGIN")
            try:
                yield
            finally:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")

    def inside(self) -> bool:
        """Tell whether the calling thread is inside a transaction."""
        return self._owner == threading.get_ident()

    def after_commit(self, hook: Callable[[], None]) -> None:
        """Run `hook` once the current transaction is durable."""
        assert self._depth, "hooks belong to a transaction"
        self._after_commit.append(hook)

    def after_rollback(self, hook: Callable[[], None]) -> None:
        """Run `hook` if the current transaction is undone: restores memory that ran ahead."""
        assert self._depth, "hooks belong to a transaction"
        self._after_rollback.append(hook)

    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> int:
        """Run one statement in the current transaction, or in its own; return the changed rows."""
        return self._change(sql, parameters).rowcount

    def insert(self, sql: str, parameters: Sequence[Any] = ()) -> int:
        """Run one INSERT like `execute`; return the id of the row."""
        row_id = self._change(sql, parameters).lastrowid
        assert row_id is not None, "an INSERT into a table with row ids"
        return row_id

    def _change(self, sql: str, parameters: Sequence[Any]) -> sqlite3.Cursor:
        if self._owner != threading.get_ident():
            with self._transaction:
                return self._change(sql, parameters)
        try:
            return self._connection.execute(sql, parameters)
        except sqlite3.ProgrammingError:
            raise
        except sqlite3.DatabaseError as err:
            raise _translation(err) from err

    def execute_many(self, sql: str, rows: Sequence[Sequence[Any]]) -> None:
        """Run one statement for each of `rows`, in the current transaction or in its own."""
        with self.transaction(), _TRANSLATED:
            self._connection.executemany(sql, rows)

    def query(self, sql: str, parameters: Sequence[Any] = ()) -> list[Any]:
        """Return all rows."""
        try:
            with self._lock:
                return self._connection.execute(sql, parameters).fetchall()
        except sqlite3.ProgrammingError:
            raise
        except sqlite3.DatabaseError as err:
            raise _translation(err) from err

    def close(self) -> None:
        """Close the database; idempotent."""
        with self._lock:
            self._connection.close()
            if self._seal is not None:
                self._seal.witness.close()


class _Transaction(AbstractContextManager[None]):
    """What `Database.transaction` returns: one for all, since the database keeps the state."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def __enter__(self) -> None:
        self._database._begin()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._database._end(value)


class _Translated(AbstractContextManager[None]):
    """Turns SQLite's errors into ours.

    A class, because a generator costs as much as a small statement, and each call has a dozen.
    """

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(value, UnicodeDecodeError):  # SQLite quotes a damaged schema
            raise damaged("its schema is no text") from value
        if value is None or not isinstance(value, sqlite3.DatabaseError):
            return
        if isinstance(value, sqlite3.ProgrammingError):
            return
        raise _translation(value) from value


_TRANSLATED: Final = _Translated()


def _translation(err: sqlite3.DatabaseError) -> VolcoreError:
    """Return our error for one of SQLite's."""
    text = str(err)
    if not isinstance(err, sqlite3.OperationalError):
        return damaged(text)
    if "full" in text:
        return ExhaustedError(
            "the pool's disk is full; free space or grow it, then repeat the call",
            reason=Reason.POOL_FULL,
            retryable=True,
        )
    if "locked" in text or "busy" in text:
        return UnavailableError(
            "the pool's database is locked by another process; end that process",
            reason=Reason.POOL_LOCKED,
            retryable=True,
        )
    if any(word in text for word in _DAMAGE):
        return damaged(text)
    return BackendIOError(
        f"the pool's database failed: {text}; look at its disk", reason=Reason.BACKEND_IO
    )
