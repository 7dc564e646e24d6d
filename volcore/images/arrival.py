"""How an image file gets here: from an allowed directory of the server, or as an upload.

A raw upload of known size streams straight into the device. Anything else waits in an unlinked
temporary file (`spool`), since its tables may stand anywhere in it. Either way nothing is left
after the `with` block, whatever happened.
"""

import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from volcore.backends.contract import BlockDevice, Progress
from volcore.errors import InvalidArgumentError, NotFoundError, PermissionDeniedError, Reason
from volcore.images import refusals, spool
from volcore.images.convert import convert_into
from volcore.images.inspect import ImageFacts, detect, inspect
from volcore.limits import BLOCK_SIZE_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where the file comes from: `server_path`, or `chunks` with its bytes in order."""

    format_name: str = ""
    """What the caller says it is; empty to find out."""
    server_path: str = ""
    chunks: Iterator[bytes] | None = None
    upload_size_bytes: int = 0
    """Size that the caller announced; 0: unknown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Incoming:
    """An inspected image, ready to be written into a device of `size_bytes`, once."""

    format_name: str
    size_bytes: int
    write_into: Callable[[BlockDevice, Progress], str]
    """Writes into a blank device, flushes, and returns the content digest; see `convert_into`."""


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
        progress: called while an upload is received into the spool.

    Raises:
        InvalidArgumentError: SOURCE_MISSING, and what `inspect` refuses.
        PermissionDeniedError: the path is not in an allowed directory, or may not be read.
        NotFoundError: OBJECT_NOT_FOUND, no such file.
        ExhaustedError: POOL_FULL, the spool directory is full.
        OutOfRangeError: SIZE_NOT_ALLOWED.
    """
    if bool(source.server_path) == (source.chunks is not None):
        raise InvalidArgumentError(
            "an import needs either a path on the server or the bytes of the file; give one",
            reason=Reason.SOURCE_MISSING,
        )
    if source.chunks is None:
        with open_server_file(source.server_path, directories) as file:
            yield _of_file(file, source.format_name)
        return
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


def _of_file(file: BinaryIO, expected_format: str) -> Incoming:
    facts: ImageFacts = inspect(file, expected_format=expected_format)
    return Incoming(
        format_name=facts.format_name,
        size_bytes=facts.virtual_size_bytes,
        write_into=lambda device, progress: convert_into(file, facts, device, progress=progress),
    )


def _of_stream(chunks: Iterator[bytes], upload_size_bytes: int) -> Incoming:
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
