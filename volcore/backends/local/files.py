"""Layer files: sparse files in which block b lives at its own offset, behind few descriptors."""

import ctypes
import errno
import os
import threading
from collections.abc import Container
from contextlib import suppress
from pathlib import Path
from typing import Final

from volcore.errors import (
    BackendIOError,
    ExhaustedError,
    PermissionDeniedError,
    Reason,
    VolcoreError,
)
from volcore.kernels.datapath import LayerFd

FILES_OPEN_MAX: Final = 512
"""Descriptors kept open for layers: 1000 volumes may be open, and 1024 is a usual process limit."""
_PUNCH_HOLE_KEEP_SIZE: Final = 0x02 | 0x01
_SECTOR_BYTES: Final = 512
"""Unit of st_blocks, whatever the filesystem."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


def translated(err: OSError, what: str) -> VolcoreError:
    """Return our error for a failed call of the operating system on `what`."""
    if err.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
        return ExhaustedError(
            f"no space for {what}: {err.strerror}; free space or grow the disk, then repeat",
            reason=Reason.POOL_FULL,
            retryable=True,
        )
    if err.errno in {errno.EACCES, errno.EPERM}:
        return PermissionDeniedError(
            f"{what} may not be used: {err.strerror}; give this process's user the rights",
            reason=Reason.PERMISSION_DENIED,
        )
    return BackendIOError(
        f"{what} failed: {err.strerror}; look at the disk", reason=Reason.BACKEND_IO
    )


class LayerFiles:
    """All layer files of a pool; usable from any thread.

    *Concurrency*: its locks are leaves: held for no other lock.
    """

    def __init__(self, directory: Path) -> None:
        """Use `directory`, which exists."""
        self._directory = directory
        self._lock = threading.Lock()
        self._files: dict[int, LayerFd] = {}
        """Those that were used and not deleted; some of them are open."""
        self._open_count = 0
        self._sync_lock = threading.Lock()
        self._created = 1
        """Names that may not be durable: an earlier process, killed, may have left some."""
        self._created_synced = 0

    def read(self, layer_id: int, target: memoryview, offset_bytes: int) -> int:
        """Fill `target`; return how many bytes there were, fewer at the end of the file."""
        file = self._enter(layer_id, create=False)
        if file is None:
            return 0
        entry, fd = file
        try:
            got = os.preadv(fd, [target], offset_bytes)
            while 0 < got < len(target):
                more = os.preadv(fd, [target[got:]], offset_bytes + got)
                if not more:
                    break
                got += more
        except OSError as err:
            raise translated(err, f"reading layer {layer_id}") from err
        finally:
            entry.leave()
        return got

    def write(
        self, layer_id: int, source: memoryview, offset_bytes: int, *, direct: bool = False
    ) -> tuple[int, VolcoreError | None]:
        """Write `source`; return how many bytes were written, and what stopped it, if anything.

        `direct`: past the page cache, where the filesystem can and `source` lies on whole pages.
        """
        written = 0
        try:
            file = self._enter(layer_id, create=True)
        except VolcoreError as err:
            return 0, err
        assert file is not None
        entry, fd = file
        try:
            if direct:
                written = self._write_direct(fd, layer_id, source, offset_bytes)
            while written < len(source):
                written += os.pwrite(fd, source[written:], offset_bytes + written)
        except OSError as err:
            return written, translated(err, f"writing layer {layer_id}")
        finally:
            entry.leave()
        return written, None

    def _write_direct(self, fd: int, layer_id: int, source: memoryview, offset_bytes: int) -> int:
        """Write what goes past the page cache; return how many bytes, 0 if that is refused here."""
        try:
            direct_fd = os.open(self.path(layer_id), os.O_WRONLY | os.O_DIRECT | os.O_CLOEXEC)
        except OSError:
            return 0
        try:
            # Space first: else each write would wait for the ones that allocate before it.
            _libc.fallocate(fd, 0, offset_bytes, len(source))
            return os.pwrite(direct_fd, source, offset_bytes)
        except OSError as err:
            if err.errno != errno.EINVAL:
                raise
            return 0
        finally:
            os.close(direct_fd)

    def punch(self, layer_id: int, offset_bytes: int, length_bytes: int) -> None:
        """Free the space of the range where the filesystem can; what is freed reads as zeroes."""
        file = self._enter(layer_id, create=False)
        if file is not None:
            entry, fd = file
            # A refusal only costs space: nothing points at these blocks any more.
            _libc.fallocate(fd, _PUNCH_HOLE_KEEP_SIZE, offset_bytes, length_bytes)
            entry.leave()

    def sync(self, layer_id: int) -> None:
        """Make what was written to the layer durable, its name included."""
        file = self._enter(layer_id, create=False)
        if file is None:
            return
        entry, fd = file
        try:
            os.fdatasync(fd)
            self._sync_names()
        except OSError as err:
            raise translated(err, f"syncing layer {layer_id}") from err
        finally:
            entry.leave()

    def uncache(self, layer_id: int, offset_bytes: int, length_bytes: int) -> None:
        """Have the next read of the range, which was synced, ask the disk.

        After a failed sync the page cache may hold what the disk does not, and call it clean.
        """
        file = self._enter(layer_id, create=False)
        if file is not None:
            entry, fd = file
            os.posix_fadvise(fd, offset_bytes, length_bytes, os.POSIX_FADV_DONTNEED)
            entry.leave()

    def file(self, layer_id: int, *, create: bool) -> LayerFd | None:
        """Return the layer's descriptor, open at this moment; None without a file.

        Raises:
            VolcoreError: it cannot be opened.
        """
        file = self._enter(layer_id, create=create)
        if file is None:
            return None
        file[0].leave()
        return file[0]

    def delete(self, layer_id: int) -> None:
        """Delete the layer's file, if it has one; a file that stays is swept at the next start."""
        with self._lock:
            entry = self._files.pop(layer_id, None)
            if entry is not None:
                self._open_count -= entry.is_open
                entry.close()
        with suppress(OSError):
            self.path(layer_id).unlink(missing_ok=True)

    def sweep(self, known: Container[int]) -> int:
        """Delete every file that belongs to no layer in `known`; return how many."""
        count = 0
        with os.scandir(self._directory) as entries:
            for entry in entries:
                stem, _, suffix = entry.name.partition(".")
                if suffix == "data" and stem.isdigit() and int(stem) not in known:
                    os.unlink(entry.path)
                    count += 1
        return count

    def allocated_bytes(self, layer_id: int) -> int:
        """Return the space that the layer's file occupies."""
        try:
            return self.path(layer_id).stat().st_blocks * _SECTOR_BYTES
        except FileNotFoundError:
            return 0

    def total_bytes(self) -> int:
        """Return the space that all files occupy."""
        total = 0
        with os.scandir(self._directory) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):
                    total += entry.stat().st_blocks * _SECTOR_BYTES
        return total

    def close(self) -> None:
        """Close every descriptor; syncs nothing."""
        with self._lock:
            for entry in self._files.values():
                entry.close()
            self._files.clear()
            self._open_count = 0

    def path(self, layer_id: int) -> Path:
        """Return where the layer's file is."""
        return self._directory / f"{layer_id}.data"

    def _enter(self, layer_id: int, *, create: bool) -> tuple[LayerFd, int] | None:
        """Return the layer's descriptor and its number, to be left after use; None: no file."""
        with self._lock:
            entry = self._files.get(layer_id)
            if entry is not None and (fd := entry.enter()) >= 0:
                return entry, fd
            opened = self._open(layer_id, create=create)
            if opened < 0:
                return None
            if entry is None:
                entry = self._files[layer_id] = LayerFd()
            entry.install(opened)
            fd = entry.enter()
            self._open_count += 1
            if self._open_count > FILES_OPEN_MAX:
                self._evict()
            return entry, fd

    def _open(self, layer_id: int, *, create: bool) -> int:
        try:
            return os.open(self.path(layer_id), os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            if not create:
                return -1
        except OSError as err:
            raise translated(err, f"opening layer {layer_id}") from err
        try:
            fd = os.open(self.path(layer_id), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as err:
            raise translated(err, f"creating layer {layer_id}") from err
        self._created += 1
        return fd

    def _evict(self) -> None:
        """Close the eighth of the descriptors that was used longest ago; those in use stay."""
        candidates = [entry for entry in self._files.values() if entry.is_open]
        candidates.sort(key=lambda entry: entry.used)
        for entry in candidates[: max(1, len(candidates) // 8)]:
            self._open_count -= entry.close(unless_used=True)

    def _sync_names(self) -> None:
        """Make the names of new files durable."""
        with self._sync_lock:
            created = self._created
            if self._created_synced < created:
                fd = os.open(self._directory, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    os.fsync(fd)
                finally:
                    os.close(fd)
                self._created_synced = created
