"""How an image file gets here: from a directory of the server, handed over, or as an upload.

A raw upload of known size streams straight into the device. Any other upload waits in an unlinked
temporary file (`spool`), since its tables may stand anywhere in it. So does a copy of a handed file
that a tool must read: its sender could change it after the inspection. Either way nothing is left
after the `with` block, whatever happened.
"""

import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final, Protocol

from volcore.backends.contract import BlockDevice, Progress
from volcore.errors import InvalidArgumentError, NotFoundError, PermissionDeniedError, Reason
from volcore.images import refusals, spool
from volcore.images.convert import convert_into, needs_tool, read_into
from volcore.images.fileio import read_at, size_of
from volcore.images.inspect import ImageFacts, detect, inspect
from volcore.limits import BLOCK_SIZE_BYTES, MIB

_COPY_BYTES: Final = 1 * MIB
_PATH_CHARACTERS_MAX: Final = 1024
"""A longer path is not worth its place in a record."""


class HandedFile(Protocol):
    """An open file of somebody else, who may take it back at any time; any thread."""

    def opened(self) -> AbstractContextManager[BinaryIO]:
        """Return it for reading, for the length of a `with` block.

        Raises:
            CancelledError: it has been taken back.
        """

    def check(self) -> None:
        """Raise CancelledError if it has been taken back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where the file comes from: one of `server_path`, `handed`, `chunks` (its bytes in order)."""

    format_name: str = ""
    """What the caller says it is; empty to find out."""
    server_path: str = ""
    handed: HandedFile | None = None
    chunks: Iterator[spool.Piece] | None = None
    upload_size_bytes: int = 0
    """Size that the caller announced; 0: unknown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Incoming:
    """An inspected image, ready to be written into a device of `size_bytes`, once."""

    format_name: str
    size_bytes: int
    write_into: Callable[[BlockDevice, Progress], str]
    """Writes into a blank device, flushes, and returns the content digest; see `convert_into`."""
    source_path: str = ""
    """Where the file is on this machine; empty when it was uploaded."""


@contextmanager
def receive(
    source: Source,
    *,
    directories: Sequence[Path],
    spool_directory: Path | None,
    progress: Progress,
) -> Iterator[Incoming]:
    """Open or receive the file, inspect it, and hand it over for writing.

    Args:
        source: where the file comes from.
        directories: places on the server that files may be imported from.
        spool_directory: where uploads wait; None: the system's place for temporary files.
        progress: called while a file is received into the spool.

    Raises:
        InvalidArgumentError: SOURCE_MISSING, and what `inspect` refuses.
        PermissionDeniedError: the path is not in an allowed directory, or may not be read.
        NotFoundError: OBJECT_NOT_FOUND, no such file.
        ExhaustedError: POOL_FULL, the spool directory is full.
        OutOfRangeError: SIZE_NOT_ALLOWED.
        CancelledError: a handed file was taken back; raised while writing, too.
    """
    given = (bool(source.server_path), source.handed is not None, source.chunks is not None)
    if sum(given) != 1:
        raise InvalidArgumentError(
            "an import needs one of a path on the server, a handed file, the bytes of the file; "
            "give one",
            reason=Reason.SOURCE_MISSING,
        )
    if source.server_path:
        with open_server_file(source.server_path, directories) as file:
            yield _of_file(file, source.format_name)
        return
    if source.handed is not None:
        with _handed(source.handed, source.format_name, spool_directory, progress) as incoming:
            yield incoming
        return
    assert source.chunks is not None
    head, chunks = spool.peek(source.chunks)
    format_name = detect(head, expected_format=source.format_name)
    if format_name == "raw" and source.upload_size_bytes:
        yield _of_stream(chunks, source.upload_size_bytes)
        return
    with spool.receive(
        chunks,
        directory=spool_directory,
        upload_size_bytes=source.upload_size_bytes,
        progress=progress,
    ) as file:
        yield _of_file(file, source.format_name)


def open_server_file(server_path: str, directories: Sequence[Path]) -> BinaryIO:
    """Open a regular file that lies, with all symbolic links followed, in an allowed directory.

    Raises:
        PermissionDeniedError: PERMISSION_DENIED.
        NotFoundError: OBJECT_NOT_FOUND.
    """
    if "\0" in server_path or not server_path.startswith("/"):
        raise _not_allowed()
    resolved = Path(os.path.realpath(server_path))
    allowed = [directory.resolve() for directory in directories]
    if not any(resolved.is_relative_to(directory) for directory in allowed):
        raise _not_allowed()
    try:
        # The resolved path has no links; one that appears meanwhile is refused where it counts.
        descriptor = os.open(resolved, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError as err:
        raise NotFoundError(
            "the file to import does not exist on the server; check the path",
            reason=Reason.OBJECT_NOT_FOUND,
        ) from err
    except OSError as err:
        raise PermissionDeniedError(
            "the server may not read the file to import; change its permissions",
            reason=Reason.PERMISSION_DENIED,
        ) from err
    try:
        _check_opened(descriptor, allowed)
        return os.fdopen(descriptor, "rb", buffering=0)
    except BaseException:
        os.close(descriptor)
        raise


def _check_opened(descriptor: int, allowed: Sequence[Path]) -> None:
    """Look at what was really opened; the path may have changed since it was resolved."""
    opened = Path(os.path.realpath(f"/proc/self/fd/{descriptor}"))
    if not any(opened.is_relative_to(directory) for directory in allowed):
        raise _not_allowed()
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        raise InvalidArgumentError(
            "the path to import is not a regular file; give the path of an image file",
            reason=Reason.IMAGE_FORMAT_UNKNOWN,
        )


@contextmanager
def _handed(
    handed: HandedFile, expected_format: str, spool_directory: Path | None, progress: Progress
) -> Iterator[Incoming]:
    """Read a handed file where it is, or copy it for a tool: what that opens must not change."""
    with handed.opened() as file:
        facts = inspect(file, expected_format=expected_format)
        if not needs_tool(file, facts):
            yield _incoming(file, facts, read_into, handed)
            return
        with spool.receive(
            _pieces(file),
            directory=spool_directory,
            upload_size_bytes=facts.file_size_bytes,
            progress=_checking(handed, progress),
        ) as copy:
            yield _of_file(copy, expected_format, handed)


def _pieces(file: BinaryIO) -> Iterator[bytes]:
    """Yield the bytes of a file up to its present end; the file position stays."""
    size_bytes = size_of(file)
    for offset_bytes in range(0, size_bytes, _COPY_BYTES):
        yield read_at(file, offset_bytes, min(_COPY_BYTES, size_bytes - offset_bytes))


def _checking(handed: HandedFile | None, progress: Progress) -> Progress:
    """Return `progress` that also notices when a handed file is taken back."""
    if handed is None:
        return progress

    def checked(done_bytes: int, total_bytes: int) -> None:
        handed.check()
        progress(done_bytes, total_bytes)

    return checked


def _of_file(file: BinaryIO, expected_format: str, handed: HandedFile | None = None) -> Incoming:
    facts = inspect(file, expected_format=expected_format)
    return _incoming(file, facts, convert_into, handed)


def _incoming(
    file: BinaryIO, facts: ImageFacts, write: Callable[..., str], handed: HandedFile | None
) -> Incoming:
    return Incoming(
        format_name=facts.format_name,
        size_bytes=facts.virtual_size_bytes,
        write_into=lambda device, progress: write(
            file, facts, device, progress=_checking(handed, progress)
        ),
        source_path=_path_of(file),
    )


def _path_of(file: BinaryIO) -> str:
    """Return the path of an open file, or nothing when it has none that can be written down."""
    path = os.path.realpath(f"/proc/self/fd/{file.fileno()}")
    has_name = os.fstat(file.fileno()).st_nlink > 0 and len(path) <= _PATH_CHARACTERS_MAX
    return path if has_name and path.isprintable() else ""


def _of_stream(chunks: Iterator[spool.Piece], upload_size_bytes: int) -> Incoming:
    refusals.check_virtual_size(upload_size_bytes)
    return Incoming(
        format_name="raw",
        size_bytes=-(-upload_size_bytes // BLOCK_SIZE_BYTES) * BLOCK_SIZE_BYTES,
        write_into=lambda device, progress: spool.import_raw_stream(
            chunks, device, upload_size_bytes=upload_size_bytes, progress=progress
        ),
    )


def _not_allowed() -> PermissionDeniedError:
    return PermissionDeniedError(
        "files are imported only from the directories that the server's configuration allows; "
        "upload the file, or ask the operator to allow its directory",
        reason=Reason.PERMISSION_DENIED,
    )
