"""A pool directory: its lock, its database and its layer files.

lock          held while a process uses the pool; names that process
witness       how many commits there were at least (`volcore.seal`)
volcore.db    catalog records, layers, volumes, snapshots, pages, notes (SQLite, WAL)
layers/N.data the blocks of layer N, sparse

Beside it, in shared memory: what is not flushed (`volcore.backends.local.shared_memory`).
"""

import errno
import fcntl
import os
from contextlib import suppress
from pathlib import Path
from typing import Final, Self

from volcore.backends.local.files import LayerFiles, translated
from volcore.backends.local.layers import Layers
from volcore.backends.local.shared_memory import SharedMemory
from volcore.database import Database
from volcore.errors import ExhaustedError, PreconditionError, Reason
from volcore.seal import damaged

_UNUSABLE: Final = {errno.ENOTDIR, errno.EEXIST, errno.EROFS, errno.ELOOP, errno.ENAMETOOLONG}


class LocalStore:
    """An open pool directory; one process at a time has it."""

    def __init__(self, directory: Path, lock_fd: int) -> None:
        """Use `open` instead."""
        self.directory = directory
        self._lock_fd = lock_fd
        self.files = LayerFiles(directory / "layers")
        self.database = Database(directory / "volcore.db")
        self.layers = Layers(self.database)
        self.reader = Layers(Database(directory / "volcore.db"))
        """A connection of its own for page look-ups, so that they may happen under device locks.

        It sees what is committed.
        """
        self.scanner = Layers(Database(directory / "volcore.db"))
        """Another one, for long looks in the background."""
        self.memory = SharedMemory(self.database, directory / "lock", lock_fd)

    @classmethod
    def open(cls, directory: Path) -> Self:
        """Open the pool in `directory`, making it when it is new, and lock it.

        Raises:
            PreconditionError: POOL_LOCKED, another process has it; POOL_UNUSABLE, it is no
                directory, not writable, or of a newer format.
            PermissionDeniedError: the rights do not allow it.
            ExhaustedError: POOL_FULL, no space even for an empty pool.
            IntegrityError: BAD_RECORD, the database is damaged.
        """
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock_fd = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as err:
            raise _refusal(err, directory) from err
        try:
            _lock(lock_fd, directory)
            _prepare(directory)
            _check_database(directory)
            store = cls(directory, lock_fd)
        except BaseException:
            os.close(lock_fd)
            raise
        try:
            store.layers.create_schema(directory)
            # A disk that is full already must still open, to be read from and deleted on.
            with suppress(ExhaustedError):
                store.layers.reserve()
        except OSError as err:
            store.close()
            raise _refusal(err, directory) from err
        except BaseException:
            store.close()
            raise
        return store

    def close(self) -> None:
        """Release everything, flushing nothing; idempotent."""
        self.scanner.database.close()
        self.reader.database.close()
        self.database.close()
        self.files.close()
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1


def _lock(lock_fd: int, directory: Path) -> None:
    try:
        fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as err:
        holder = os.pread(lock_fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
        raise PreconditionError(
            f"pool directory {directory} is in use by process {holder}; stop that process, or "
            "give this server another directory",
            reason=Reason.POOL_LOCKED,
            pid=holder,
        ) from err
    except OSError as err:
        raise _refusal(err, directory) from err
    # The number only helps a reader of the message: a full disk may not refuse the pool.
    with suppress(OSError):
        os.ftruncate(lock_fd, 0)
        os.pwrite(lock_fd, f"{os.getpid()}\n".encode(), 0)


def _prepare(directory: Path) -> None:
    try:
        (directory / "layers").mkdir(mode=0o700, exist_ok=True)
        for path in (directory, directory.parent):
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
    except PermissionError:
        # A parent that may be passed but not read is somebody else's to sync.
        if not os.access(directory / "layers", os.R_OK | os.W_OK | os.X_OK):
            raise
    except OSError as err:
        raise _refusal(err, directory) from err


def _check_database(directory: Path) -> None:
    """Refuse layers without a database: a new one would take them for leftovers."""
    path = directory / "volcore.db"
    if path.exists() and path.stat().st_size:
        return
    if any(directory.glob("layers/*.data")):
        raise damaged(f"{path} is missing or empty, but there are layers")


def _refusal(err: OSError, directory: Path) -> Exception:
    if err.errno in _UNUSABLE:
        return PreconditionError(
            f"{directory} cannot hold a pool: {err.strerror}; name a writable directory",
            reason=Reason.POOL_UNUSABLE,
        )
    return translated(err, f"pool directory {directory}")
