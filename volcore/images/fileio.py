"""Positioned reads of an image file that may shrink under us."""

import os
import stat
from typing import BinaryIO, Final

from volcore.errors import BackendIOError, Reason
from volcore.images import refusals

_OFFSET_BYTES_MAX: Final = 1 << 62
"""Beyond, no file has bytes and the kernel takes no number."""


def size_of(file: BinaryIO) -> int:
    """Return the present size in bytes of a regular file (position stays) or a block device."""
    found = os.fstat(file.fileno())
    if stat.S_ISBLK(found.st_mode):
        return os.lseek(file.fileno(), 0, os.SEEK_END)
    return found.st_size


def read_at(file: BinaryIO, offset_bytes: int, length_bytes: int) -> bytes:
    """Return up to `length_bytes`, fewer only at the end of the file; the file position stays.

    `length_bytes` is the caller's to bound: it never comes straight from a header.
    """
    pieces: list[bytes] = []
    if not 0 <= offset_bytes <= _OFFSET_BYTES_MAX:
        return b""
    while length_bytes > 0:
        try:
            piece = os.pread(file.fileno(), length_bytes, offset_bytes)
        except OSError as err:
            raise unreadable(err) from err
        if not piece:
            break
        pieces.append(piece)
        offset_bytes += len(piece)
        length_bytes -= len(piece)
    return b"".join(pieces)


def read_exactly(
    file: BinaryIO, offset_bytes: int, length_bytes: int, *, format_name: str
) -> bytes:
    """Return exactly `length_bytes`.

    Raises:
        InvalidArgumentError: IMAGE_CORRUPT, the file ends before.
    """
    data = read_at(file, offset_bytes, length_bytes)
    if len(data) < length_bytes:
        raise refusals.truncated(format_name)
    return data


def fill_exactly(
    file: BinaryIO, offset_bytes: int, buffer: memoryview, *, format_name: str
) -> None:
    """Fill all of `buffer`.

    Raises:
        InvalidArgumentError: IMAGE_CORRUPT, the file ends before.
    """
    done = 0
    while done < len(buffer):
        try:
            count = os.preadv(file.fileno(), [buffer[done:]], offset_bytes + done)
        except OSError as err:
            raise unreadable(err) from err
        if count == 0:
            raise refusals.truncated(format_name)
        done += count


def unreadable(err: OSError) -> BackendIOError:
    """Return the error for a file whose own storage fails."""
    return BackendIOError(
        f"the image file cannot be read ({err.strerror}); look at the storage that it is on",
        reason=Reason.BACKEND_IO,
    )
