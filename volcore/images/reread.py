"""Blocks of an image file that is still where it was imported from, long after the import.

The file may have changed or gone: whoever asks proves what he gets. It is inspected again before it
is read, and read by the same readers as at the import.
"""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from volcore.errors import VolcoreError
from volcore.images.arrival import open_server_file
from volcore.images.convert import needs_tool, open_source
from volcore.images.inspect import ImageFacts, inspect
from volcore.limits import BLOCK_SIZE_BYTES, CHUNK_SIZE_BYTES


class SourceBlocks:
    """Reads blocks of image files; keeps the last file open and its last chunk. Close it.

    *Concurrency*: one thread.
    """

    def __init__(self, directories: Sequence[Path]) -> None:
        """Read files in `directories` only."""
        self._directories = directories
        self._opened: tuple[str, str] = ("", "")
        self._file: BinaryIO | None = None
        self._facts: ImageFacts | None = None
        self._chunk_index = -1
        self._chunk: memoryview | None = None

    def read(self, server_path: str, format_name: str, offset_bytes: int) -> bytes | None:
        """Return the block at `offset_bytes` of the disk; None if it cannot be had any more.

        Formats that need a tool to be read (see `needs_tool`) are not read again.
        """
        with suppress(VolcoreError, OSError):
            if (server_path, format_name) != self._opened:
                self._open(server_path, format_name)
            index, start = divmod(offset_bytes, CHUNK_SIZE_BYTES)
            if index != self._chunk_index:
                self._fill(index)
            if self._chunk is not None:
                return bytes(self._chunk[start : start + BLOCK_SIZE_BYTES])
        return None

    def close(self) -> None:
        """Close the file; idempotent."""
        if self._file is not None:
            self._file.close()
        self._file = self._facts = self._chunk = None
        self._chunk_index = -1

    def _open(self, server_path: str, format_name: str) -> None:
        self.close()
        self._opened = server_path, format_name
        self._file = open_server_file(server_path, self._directories)
        facts = inspect(self._file, expected_format=format_name)
        if not needs_tool(self._file, facts):
            self._facts = facts

    def _fill(self, index: int) -> None:
        self._chunk = None
        self._chunk_index = index
        if self._file is None or self._facts is None:
            return
        if index * CHUNK_SIZE_BYTES >= self._facts.virtual_size_bytes:
            return
        buffer = memoryview(bytearray(CHUNK_SIZE_BYTES))
        # A new reader each time: the qcow2 one counts what it gives.
        open_source(self._file, self._facts).fill(index, buffer)
        self._chunk = buffer
