"""Where the states of a pool's open volumes lie: in shared memory, one directory for each pool.

They count only as long as the page cache that has the data. A power cut takes both. A disk that
went away takes the cache alone; its file system was then mounted again. A copy of a pool is another
pool.
"""

import hashlib
import os
from contextlib import suppress
from pathlib import Path
from typing import Final

import structlog

from volcore.backends.local.layers import Layers
from volcore.backends.local.mounted import mounting_of
from volcore.backends.local.unflushed import Left, Unflushed, found
from volcore.database import Database

_PLACE: Final = Path("/dev/shm")  # noqa: S108 - a directory there is ours alone
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_POOL: Final = "pool"
"""A file with the path of the pool, for people."""

_log = structlog.get_logger("volcore.local")


class SharedMemory:
    """The files of one pool, and what a killed process left in them.

    *Concurrency*: one thread at a time, inside a transaction of the pool.
    """

    def __init__(self, database: Database, lock: Path, lock_fd: int) -> None:
        """Look for what was left of the pool with that lock, which is held.

        Where there is no shared memory a pool is opened nevertheless, with a warning.
        """
        self._database = database
        self._directory: Path | None = None
        self._left: dict[str, Left] = {}
        try:
            parent = _own_directory(_PLACE / f"volcore-{os.geteuid()}")
            directory = _directory_of(parent, lock, lock_fd)
            self._left = _left_in(directory)
            self._directory = directory
        except OSError as err:
            _log.warning(
                "what guests have not flushed is lost if this server is killed",
                pool=str(lock.parent),
                reason=str(err),
            )

    def volume(self, volume_id: str, layer_id: int, page_sum: int) -> Unflushed:
        """Return where the states of a volume are kept while it is open; it was settled."""
        path = self._directory / _name(volume_id) if self._directory else None
        return Unflushed(path, layer_id, page_sum)

    def left(self, volume_id: str) -> Left | None:
        """Return what was left of the volume; deleted with the commit, when the rows say it."""
        left = self._left.get(_name(volume_id))
        if left is not None:
            self._database.after_commit(lambda: self._forget(_name(volume_id)))
        return left

    def left_of(self, layers: Layers) -> list[str]:
        """Return the volumes of which something was left."""
        return (
            [one for one in layers.volume_ids() if _name(one) in self._left] if self._left else []
        )

    def keep(self, unflushed: Unflushed) -> None:
        """Leave what could not be made durable for the next opening."""
        left = unflushed.leave()
        if left is not None:
            self._left[left.path.name] = left

    def keep_only(self, volume_ids: list[str]) -> None:
        """Delete what was left of other volumes."""
        for name in self._left.keys() - set(map(_name, volume_ids)):
            self._forget(name)

    def _forget(self, name: str) -> None:
        left = self._left.pop(name, None)
        if left is not None:
            left.path.unlink(missing_ok=True)


def _name(volume_id: str) -> str:
    return hashlib.blake2b(volume_id.encode(), digest_size=16).hexdigest()


def _own_directory(path: Path) -> Path:
    """Make a directory for this user alone, or find it."""
    with suppress(FileExistsError):
        path.mkdir(mode=0o700)
    stat = path.lstat()
    if stat.st_uid != os.geteuid() or stat.st_mode & 0o170077 != 0o040000:
        raise PermissionError(f"{path} must be a directory of this user with mode 0700")
    return path


def _directory_of(parent: Path, lock: Path, lock_fd: int) -> Path:
    """Return the pool's directory; no other boot, mounting or copy of the pool has the same."""
    stat = os.fstat(lock_fd)
    made_as = (_BOOT_ID.read_text().strip(), stat.st_dev, stat.st_ino, mounting_of(lock_fd))
    directory = parent / _name(repr(made_as))
    directory.mkdir(mode=0o700, exist_ok=True)
    (directory / _POOL).write_text(f"{lock.parent.resolve()}\n")
    return directory


def _left_in(directory: Path) -> dict[str, Left]:
    """Return what the files say of themselves, by name; delete what was never finished."""
    all_left: dict[str, Left] = {}
    for path in directory.iterdir():
        if path.name == _POOL:
            continue
        left = found(path)
        if left is None:
            path.unlink()
        else:
            all_left[path.name] = left
    return all_left
