"""Uploads: bytes that arrive in order, in pieces of any size."""

import errno
import functools
import itertools
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

from volcore.backends.contract import BlockDevice, Progress
from volcore.errors import ExhaustedError, PreconditionError, Reason
from volcore.images import chunks, refusals
from volcore.images.chunks import Fill
from volcore.images.inspect import HEAD_BYTES
from volcore.limits import BLOCK_SIZE_BYTES, CHUNK_SIZE_BYTES, GIB, MIB
from volcore.writeback import Writeback

Piece = bytes | memoryview
RESERVE_BYTES: Final = 1 * GIB
"""Free space that an upload leaves to others: a full root file system stops more than imports."""
_CHECK_EVERY_BYTES: Final = 64 * MIB
_MODE: Final = 0o644
"""Nobody, the converter's user, may read it; there is no name by which anybody else could."""


def peek(pieces: Iterator[Piece], length_bytes: int = HEAD_BYTES) -> tuple[bytes, Iterator[Piece]]:
    """Return the first bytes, and an iterator that yields all of them from the beginning.

    Fewer than `length_bytes` come only from a stream that ends there.
    """
    taken: list[Piece] = []
    got_bytes = 0
    for piece in pieces:
        taken.append(piece)
        got_bytes += len(piece)
        if got_bytes >= length_bytes:
            break
    return b"".join(taken)[:length_bytes], itertools.chain(taken, pieces)


@contextmanager
def receive(
    pieces: Iterator[Piece],
    *,
    directory: Path | None,
    upload_size_bytes: int,
    progress: Progress,
    reserve_bytes: int = RESERVE_BYTES,
) -> Iterator[BinaryIO]:
    """Write a stream into a file without a name; yield it, ready to be inspected.

    A file without a name is gone with the process, even a killed one.

    Args:
        pieces: the bytes of the file, in order.
        directory: where; None: the system's place for temporary files.
        upload_size_bytes: size that was announced, checked at the end; 0: unknown.
        progress: called with bytes received and announced.
        reserve_bytes: free space to leave.

    Raises:
        ExhaustedError: POOL_FULL, the directory has not enough space.
        InvalidArgumentError: IMAGE_CORRUPT, other than the announced size.
    """
    place = directory or Path(tempfile.gettempdir())
    _check_space(place, upload_size_bytes, reserve_bytes)
    with _open_nameless(place) as file:
        descriptor = file.fileno()
        received_bytes, writeback = 0, Writeback(descriptor)
        check_at_bytes = _CHECK_EVERY_BYTES
        for piece in pieces:
            received_bytes += len(piece)
            if upload_size_bytes and received_bytes > upload_size_bytes:
                raise _other_size(upload_size_bytes)
            if received_bytes >= check_at_bytes:
                _check_space(place, len(piece), reserve_bytes)
                check_at_bytes = received_bytes + _CHECK_EVERY_BYTES
            _write(descriptor, piece)
            writeback.wrote(received_bytes)
            progress(received_bytes, max(received_bytes, upload_size_bytes))
        if upload_size_bytes and received_bytes != upload_size_bytes:
            raise _other_size(upload_size_bytes)
        yield file


def import_raw_stream(
    pieces: Iterator[Piece],
    device: BlockDevice,
    *,
    upload_size_bytes: int,
    progress: Progress,
) -> str:
    """Write a raw upload into a blank device as it arrives; flush; return the content digest.

    The caller has made sure with `detect` that it is raw. *Concurrency*: `pieces` is advanced by
    threads of this call, one at a time; `progress` is called in the calling thread.

    Raises:
        InvalidArgumentError: IMAGE_CORRUPT, other than the announced size.
        CancelledError: raised by `progress` or by `pieces`.
    """
    return chunks.store(_StreamSource(pieces, upload_size_bytes), device, progress)


class _StreamSource:
    """The chunks of a stream; see `volcore.images.chunks.ChunkSource`."""

    def __init__(self, pieces: Iterator[Piece], upload_size_bytes: int) -> None:
        self._pieces = pieces
        self._upload_size_bytes = upload_size_bytes
        self.size_bytes = -(-upload_size_bytes // BLOCK_SIZE_BYTES) * BLOCK_SIZE_BYTES

    def chunks(self) -> Iterator[tuple[int, Fill]]:
        """See `ChunkSource.chunks`; what is yielded keeps its bytes until it is filled."""
        index = 0
        held: list[memoryview] = []
        held_bytes = 0
        received_bytes = 0
        for piece in self._pieces:
            received_bytes += len(piece)
            if received_bytes > self._upload_size_bytes:
                raise _other_size(self._upload_size_bytes)
            view = memoryview(piece)
            while held_bytes + len(view) >= CHUNK_SIZE_BYTES:
                cut = CHUNK_SIZE_BYTES - held_bytes
                yield index, functools.partial(_fill, [*held, view[:cut]])
                index += 1
                view = view[cut:]
                held, held_bytes = [], 0
            if view:
                held.append(view)
                held_bytes += len(view)
        if received_bytes != self._upload_size_bytes:
            raise _other_size(self._upload_size_bytes)
        if held:
            yield index, functools.partial(_fill, held)


def _fill(pieces: list[memoryview], buffer: memoryview) -> bool:
    position = 0
    for piece in pieces:
        buffer[position : position + len(piece)] = piece
        position += len(piece)
    if position < len(buffer):
        buffer[position:] = bytes(len(buffer) - position)
    return True


def _open_nameless(place: Path) -> BinaryIO:
    try:
        file: BinaryIO = tempfile.TemporaryFile(dir=place, buffering=0)  # noqa: SIM115 - returned
    except OSError as err:
        raise PreconditionError(
            "the server has no usable directory for uploaded files; set one that exists and that "
            "it may write to",
            reason=Reason.POOL_UNUSABLE,
        ) from err
    os.fchmod(file.fileno(), _MODE)
    return file


def _write(descriptor: int, piece: Piece) -> None:
    view = memoryview(piece)
    try:
        while view:
            view = view[os.write(descriptor, view) :]
    except OSError as err:
        if err.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _no_space() from err
        raise


def _check_space(place: Path, needed_bytes: int, reserve_bytes: int) -> None:
    try:
        free = os.statvfs(place)
    except OSError:
        return  # opening the file in there tells better what is wrong
    if free.f_bavail * free.f_frsize < needed_bytes + reserve_bytes:
        raise _no_space()


def _no_space() -> ExhaustedError:
    return ExhaustedError(
        "the server has not enough free space for uploaded files; free some, upload the image as "
        "raw with its size, or import it from a file on the server",
        reason=Reason.POOL_FULL,
    )


def _other_size(upload_size_bytes: int) -> Exception:
    return refusals.corrupt(
        f"the upload has not the {upload_size_bytes} bytes that were announced; repeat it, or "
        "announce no size"
    )
