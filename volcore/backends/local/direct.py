"""Reads layer files from the disk itself, past the page cache.

A verify that reads the page cache proves memory, not the disk, and pushes out what VMs need. So
files are opened with O_DIRECT: the kernel writes back what is dirty in the range, reads the disk,
and leaves the cache as it is. Where the filesystem refuses that, the range is dropped from the
cache before and after it is read (POSIX_FADV_DONTNEED); a page that somebody has mapped or that is
being written stays, and is then read from memory.

*Concurrency*: one thread uses a reader.
"""

import errno
import os
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Final

from volcore.backends.local.files import translated
from volcore.backends.verifying import DamageKind
from volcore.limits import BLOCK_SIZE_BYTES, CHUNK_SIZE_BYTES

FILES_MAX: Final = 16
"""Descriptors kept: the layers of a chain take turns. A deleted file's space waits for its turn."""
_REFUSED: Final = {errno.EINVAL, errno.EOPNOTSUPP}


class DirectReader:
    """Reads blocks of layers; close it."""

    def __init__(self, path: Callable[[int], Path]) -> None:
        """Read the files that `path` names by layer."""
        self._path = path
        self._files: OrderedDict[int, tuple[int, bool]] = OrderedDict()

    def fetch(
        self, layer_id: int, chunk_index: int, first_block: int, target: memoryview
    ) -> dict[int, DamageKind]:
        """Fill `target` with blocks of a chunk; return those that cannot be had, by block.

        *Buffers*: whole blocks, aligned to a page of memory. What cannot be had is left as it was.

        Raises:
            PermissionDeniedError: the file may not be opened.
        """
        count = len(target) // BLOCK_SIZE_BYTES
        offset_bytes = chunk_index * CHUNK_SIZE_BYTES + first_block * BLOCK_SIZE_BYTES
        try:
            got = self._read(layer_id, offset_bytes, target) // BLOCK_SIZE_BYTES
        except FileNotFoundError:
            got = 0
        except PermissionError as err:
            raise translated(err, f"opening layer {layer_id}") from err
        except OSError:
            if count == 1:
                return {first_block: DamageKind.UNREADABLE}
            return self._fetch_each(layer_id, chunk_index, first_block, target)
        return dict.fromkeys(range(first_block + got, first_block + count), DamageKind.MISSING)

    def _fetch_each(
        self, layer_id: int, chunk_index: int, first_block: int, target: memoryview
    ) -> dict[int, DamageKind]:
        """Find out which blocks the disk refuses."""
        lost: dict[int, DamageKind] = {}
        for at in range(0, len(target), BLOCK_SIZE_BYTES):
            block = first_block + at // BLOCK_SIZE_BYTES
            lost |= self.fetch(layer_id, chunk_index, block, target[at : at + BLOCK_SIZE_BYTES])
        return lost

    def close(self) -> None:
        """Close all files; idempotent."""
        while self._files:
            os.close(self._files.popitem()[1][0])

    def _read(self, layer_id: int, offset_bytes: int, target: memoryview) -> int:
        fd, direct = self._open(layer_id)
        if not direct:
            os.posix_fadvise(fd, offset_bytes, len(target), os.POSIX_FADV_DONTNEED)
        got = 0
        try:
            while got < len(target):
                more = os.preadv(fd, [target[got:]], offset_bytes + got)
                got += more
                if not more or got % BLOCK_SIZE_BYTES:
                    break
        except OSError as err:
            if not direct or err.errno not in _REFUSED:
                raise
            os.close(self._files.pop(layer_id)[0])
            self._keep(layer_id, os.open(self._path(layer_id), os.O_RDONLY | os.O_CLOEXEC), False)
            return self._read(layer_id, offset_bytes, target)
        if not direct:
            os.posix_fadvise(fd, offset_bytes, len(target), os.POSIX_FADV_DONTNEED)
        return got

    def _open(self, layer_id: int) -> tuple[int, bool]:
        if layer_id not in self._files:
            path, flags = self._path(layer_id), os.O_RDONLY | os.O_CLOEXEC
            try:
                self._keep(layer_id, os.open(path, flags | os.O_DIRECT), True)
            except OSError as err:
                if err.errno not in _REFUSED:
                    raise
                self._keep(layer_id, os.open(path, flags), False)
        self._files.move_to_end(layer_id)
        return self._files[layer_id]

    def _keep(self, layer_id: int, fd: int, direct: bool) -> None:
        self._files[layer_id] = fd, direct
        if len(self._files) > FILES_MAX:
            os.close(self._files.popitem(last=False)[1][0])
