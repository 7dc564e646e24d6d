"""What the sync and the async client share for images that move: headers, frames, target files."""

import io
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final, cast

from volcore import limits
from volcore.errors import BackendIOError, InvalidArgumentError, Reason
from volcore.v1 import image_pb2, image_service_pb2, operation_pb2
from volcore.wire.names import split_child
from volcore.writeback import Writeback

OnProgress = Callable[[operation_pb2.Operation], None]
OnBytes = Callable[[int, int], None]
"""Called as on_bytes(done_bytes, total_bytes)."""
_ZEROES: Final = bytes(limits.FRAME_BYTES_MAX)


def import_header(
    name: str,
    *,
    format: image_pb2.ImageFormat,
    server_path: str,
    upload_size_bytes: int,
    expected_digest: str,
    labels: Mapping[str, str] | None,
) -> image_service_pb2.ImportImageRequest:
    """Return the first message of an import."""
    parent, image_id = split_child(name, "images")
    return image_service_pb2.ImportImageRequest(
        header=image_service_pb2.ImportHeader(
            parent=parent,
            image_id=image_id,
            format=format,
            server_path=server_path,
            upload_size_bytes=upload_size_bytes,
            expected_digest=expected_digest,
            labels=labels or {},
        )
    )


def with_handle(
    header: image_service_pb2.ImportImageRequest, handle: str
) -> image_service_pb2.ImportImageRequest:
    """Return the first message of an import that reads a file which was handed over."""
    other = image_service_pb2.ImportImageRequest()
    other.CopyFrom(header)
    other.header.handed_file = handle
    return other


class Upload:
    """A source of bytes: a path, a readable binary file, or an iterator of pieces.

    A path can be read again, so only that is repeatable.
    """

    def __init__(self, source: str | Path | BinaryIO | Iterable[bytes]) -> None:
        self._source = source
        self.repeatable = isinstance(source, str | Path)
        self.size_bytes = self._find_size_bytes()
        self.error: Exception | None = None
        """What went wrong while reading the source."""

    @contextmanager
    def whole_file(self) -> Iterator[BinaryIO | None]:
        """Yield the source if it is a whole regular file or block device, else None.

        A file object counts when it stands at its beginning and is the file itself: what unpacks
        or wraps another file is not.

        Raises:
            OSError: the file cannot be opened any more.
        """
        if isinstance(self._source, str | Path):
            with open(self._source, "rb", buffering=0) as file:
                yield file if _is_whole(file) else None
            return
        raw: object = self._source
        if isinstance(raw, io.BufferedReader | io.BufferedRandom):
            raw.flush()  # what a BufferedRandom has not written yet
            raw = raw.raw
        if type(raw) is not io.FileIO or not _is_whole(raw):
            yield None
            return
        readable = cast("BinaryIO", self._source)
        yield readable if readable.tell() == 0 else None

    def finish(self) -> None:
        """Leave a file object at its end, as reading it does, when it was not read here."""
        if (readable := self._file()) is not None and readable.seekable():
            readable.seek(0, os.SEEK_END)

    def frames(self) -> Iterator[bytes]:
        """Yield the bytes in order, in frames of at most FRAME_BYTES_MAX."""
        try:
            if isinstance(self._source, str | Path):
                with open(self._source, "rb") as file:
                    yield from _read_frames(file)
            elif (readable := self._file()) is not None:
                yield from _read_frames(readable)
            else:
                for piece in self._source:
                    for at in range(0, len(piece), limits.FRAME_BYTES_MAX):
                        yield piece[at : at + limits.FRAME_BYTES_MAX]
        except Exception as err:
            self.error = err
            raise

    def _find_size_bytes(self) -> int:
        """Return the size when the source knows it, else 0.

        Raises:
            InvalidArgumentError: BAD_FIELD, the file cannot be read.
        """
        try:
            if isinstance(self._source, str | Path):
                with open(self._source, "rb") as file:
                    return file.seek(0, os.SEEK_END)
            readable = self._file()
            if readable is not None and readable.seekable():
                start_bytes = readable.tell()
                end_bytes = readable.seek(0, os.SEEK_END)
                readable.seek(start_bytes)
                return end_bytes - start_bytes
        except OSError as err:
            raise InvalidArgumentError(
                f"{self._source} cannot be read: {err.strerror}; correct the path or its rights",
                reason=Reason.BAD_FIELD,
                field="source",
            ) from err
        return 0

    def _file(self) -> BinaryIO | None:
        return cast("BinaryIO", self._source) if hasattr(self._source, "read") else None


def _is_whole(file: BinaryIO | io.FileIO) -> bool:
    """Say whether the descriptor alone gives every byte to whoever has it."""
    mode = os.fstat(file.fileno()).st_mode
    return file.readable() and (stat.S_ISREG(mode) or stat.S_ISBLK(mode))


def _read_frames(file: BinaryIO) -> Iterator[bytes]:
    while frame := file.read(limits.FRAME_BYTES_MAX):
        yield frame


class Download:
    """Writes the pieces of an export into a file; gaps become holes, or zeroes in a pipe."""

    def __init__(self, file: BinaryIO, on_bytes: OnBytes | None) -> None:
        self._file = file
        self._on_bytes = on_bytes
        self._seekable = file.seekable()
        self._writeback = Writeback(file.fileno()) if _is_regular(file) else None
        self._size_bytes = 0
        self._at_bytes = 0

    def take(self, piece: image_service_pb2.ExportImageResponse) -> None:
        """Write one piece; the first one tells the size."""
        if piece.file_size_bytes:
            self._size_bytes = piece.file_size_bytes
        if piece.data:
            self._go_to(piece.offset_bytes)
            self._file.write(piece.data)
            self._at_bytes = piece.offset_bytes + len(piece.data)
            if self._writeback is not None:
                self._writeback.wrote(self._file.tell())
        if self._on_bytes is not None:
            self._on_bytes(self._at_bytes, self._size_bytes)

    def finish(self) -> None:
        """Give the file its full size."""
        if self._at_bytes < self._size_bytes:
            self._go_to(self._size_bytes)
            if self._seekable:
                self._file.truncate()
        self._file.flush()
        if self._on_bytes is not None:
            self._on_bytes(self._size_bytes, self._size_bytes)

    def _go_to(self, offset_bytes: int) -> None:
        gap_bytes = offset_bytes - self._at_bytes
        if self._seekable:
            self._file.seek(gap_bytes, os.SEEK_CUR)
            return
        while gap_bytes > 0:
            gap_bytes -= self._file.write(_ZEROES[:gap_bytes])


class Target:
    """What an export goes to: `open` it for each try.

    A path, or a regular file from where it stands, can be written again from the beginning.
    """

    def __init__(self, target: str | Path | BinaryIO) -> None:
        self._target = target
        self._start_bytes: int | None = None
        if not isinstance(target, str | Path) and _is_regular(target):
            self._start_bytes = target.tell()
        self.repeatable = isinstance(target, str | Path) or self._start_bytes is not None
        self._opened = False

    @contextmanager
    def open(self) -> Iterator[BinaryIO]:
        """Yield the file; a path gets it only when it is whole and durable.

        Raises:
            BackendIOError: BACKEND_IO, the file cannot be written.
        """
        if isinstance(self._target, str | Path):
            with _whole_file(Path(self._target)) as file:
                yield file
            return
        if self._opened and self._start_bytes is not None:
            self._target.seek(self._start_bytes)
            self._target.truncate()  # what an earlier try wrote must not show in holes
        self._opened = True
        yield self._target


def _is_regular(file: BinaryIO) -> bool:
    """Say whether a file object is a regular file itself, not something that wraps one."""
    raw = file.raw if isinstance(file, io.BufferedWriter | io.BufferedRandom) else file
    return type(raw) is io.FileIO and stat.S_ISREG(os.fstat(raw.fileno()).st_mode)


@contextmanager
def _whole_file(path: Path) -> Iterator[BinaryIO]:
    partial = path.with_name(path.name + ".partial")
    try:
        with open(partial, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as err:
        partial.unlink(missing_ok=True)
        raise BackendIOError(
            f"{path} cannot be written: {err.strerror}; choose another place or make room",
            reason=Reason.BACKEND_IO,
            path=path,
        ) from err
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
