"""One SQLite database shared by the embedded catalog and the embedded backend.

Sharing it is what makes a clone one commit: the catalog's record and the backend's layer row become
durable together. WAL with full synchronisation: a commit is one append and one sync of the log.

Lock order (INV-LOCK-1): the database's lock is taken before any device lock, never while one is
held.
"""

import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from volcore.errors import BackendIOError, ExhaustedError, IntegrityError, Reason, UnavailableError


class Database:
    """A connection with one writer at a time; usable from any thread."""

    def __init__(self, path: Path | None) -> None:
        """Open or create the database at `path`; None keeps it in memory."""
        self._lock = threading.RLock()
        self._depth = 0
        self._owner = 0
        self._after_commit: list[Callable[[], None]] = []
        self._after_rollback: list[Callable[[], None]] = []
        with self._translated():
            self._connection = sqlite3.connect(
                ":memory:" if path is None else path,
                isolation_level=None,
                check_same_thread=False,
                timeout=10,
            )
            for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
                self._connection.execute(f"PRAGMA {pragma}")

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Run the block in one transaction; nested uses join the outermost one.

        Durability: at the end of the outermost block everything is on disk. On an exception
        nothing of it is.

        Raises:
            ExhaustedError: POOL_FULL, the disk is full.
            IntegrityError: BAD_RECORD, the file is damaged.
        """
        with self._lock:
            if self._depth:
                self._depth += 1
                try:
                    yield
                finally:
                    self._depth -= 1
                return
            with self._translated():
                self._connection.execute("BEGIN IMMEDIATE")
            self._depth = 1
            self._owner = threading.get_ident()
            try:
                yield
                with self._translated():
                    self._connection.execute("COMMIT")
            except BaseException as err:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                if isinstance(err, ExhaustedError):
                    # What is in the log moves to its place, so that the log's space serves again:
                    # a repeated call, such as a delete that frees space, then succeeds.
                    with suppress(sqlite3.Error):
                        self._connection.execute("PRAGMA wal_checkpoint(RESTART)").fetchall()
                self._finish(self._after_rollback)
                raise
            else:
                self._finish(self._after_commit)

    def _finish(self, hooks: list[Callable[[], None]]) -> None:
        """End the transaction's bookkeeping, then run `hooks`, still under the lock."""
        self._depth = self._owner = 0
        todo = list(hooks)
        self._after_commit.clear()
        self._after_rollback.clear()
        with ExitStack() as stack:
            # One that fails keeps no other from running: they release locks.
            for hook in reversed(todo):
                stack.callback(hook)

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
        with self.transaction(), self._translated():
            return self._connection.execute(sql, parameters).rowcount

    def execute_many(self, sql: str, rows: Sequence[Sequence[Any]]) -> None:
        """Run one statement for each of `rows`, in the current transaction or in its own."""
        with self.transaction(), self._translated():
            self._connection.executemany(sql, rows)

    def query(self, sql: str, parameters: Sequence[Any] = ()) -> list[Any]:
        """Return all rows."""
        with self._lock, self._translated():
            return self._connection.execute(sql, parameters).fetchall()

    def close(self) -> None:
        """Close the database; idempotent."""
        with self._lock:
            self._connection.close()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Turn SQLite's errors into ours."""
        try:
            yield
        except sqlite3.OperationalError as err:
            text = str(err)
            if "full" in text:
                raise ExhaustedError(
                    "the pool's disk is full; free space or grow it, then repeat the call",
                    reason=Reason.POOL_FULL,
                    retryable=True,
                ) from err
            if "locked" in text or "busy" in text:
                raise UnavailableError(
                    "the pool's database is locked by another process; end that process",
                    reason=Reason.POOL_LOCKED,
                    retryable=True,
                ) from err
            raise BackendIOError(
                f"the pool's database failed: {text}; look at its disk", reason=Reason.BACKEND_IO
            ) from err
        except sqlite3.DatabaseError as err:
            if isinstance(err, sqlite3.IntegrityError | sqlite3.ProgrammingError):
                raise
            raise IntegrityError(
                f"the pool's database is damaged: {err}; restore it from a backup",
                reason=Reason.BAD_RECORD,
            ) from err
