"""Conversion by `qemu-img` in a cage: for the formats that this room does not read itself.

The image file and both ends of the way out are inherited descriptors. The file is the one that was
inspected; the way out is a connected socket of a private NBD server in front of the device.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

from volcore.backends.contract import BlockDevice, Progress
from volcore.errors import PreconditionError, Reason, UnavailableError, VolcoreError
from volcore.images import cage, refusals
from volcore.limits import CONVERT_CPU_S_MAX, CONVERT_MEMORY_BYTES_MAX, KIB
from volcore.model.extent import Extent
from volcore.nbd import private_export

_POLL_S: Final = 0.05
_STDERR_BYTES_MAX: Final = 4 * KIB
_DETAIL_CHARACTERS_MAX: Final = 160
_OUTSIDE_SIGNALS: Final = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def convert(file: BinaryIO, format_name: str, device: BlockDevice, progress: Progress) -> None:
    """Write the content of an inspected file into a blank device; flushed at return.

    *Concurrency*: the calling thread starts the process and must live until it ends, since the
    kernel ties the process's life to that thread.

    Raises:
        InvalidArgumentError: IMAGE_CORRUPT, the tool does not understand the file.
        PreconditionError: TOOL_MISSING.
        UnavailableError: the process was killed from outside.
        CancelledError: raised by `progress`; the process is gone.
    """
    tool = shutil.which("qemu-img")
    if tool is None:
        raise PreconditionError(
            f"reading {format_name} images needs qemu-img, which is not installed on the server; "
            "install the Debian package qemu-utils, or import the image as raw or qcow2",
            reason=Reason.TOOL_MISSING,
            tool="qemu-img",
            package="qemu-utils",
        )
    target = _Target(device)
    with (
        tempfile.TemporaryFile() as stderr,
        private_export(target) as path,
        _connected(path) as connection,
    ):
        process = _start(tool, file, format_name, connection, stderr)
        connection.close()
        try:
            while True:
                progress(min(target.end_bytes, device.size_bytes), device.size_bytes)
                try:
                    status = process.wait(_POLL_S)
                except subprocess.TimeoutExpired:
                    continue
                break
        finally:
            process.kill()
            process.wait()
        target.raise_error()
        if status != 0:
            raise _failure(format_name, status, stderr)


@contextmanager
def _connected(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.connect(str(path))
        yield connection


def _start(
    tool: str, file: BinaryIO, format_name: str, connection: socket.socket, stderr: BinaryIO
) -> "subprocess.Popen[bytes]":
    """Start the tool within the cage."""
    source = {
        "driver": format_name,
        "read-only": True,
        "backing": None,  # no backing file, whatever the header says by now
        "file": {"driver": "file", "filename": f"/dev/fd/{file.fileno()}", "locking": "off"},
    }
    target = {
        "driver": "raw",
        "file": {"driver": "nbd", "server": {"type": "fd", "str": str(connection.fileno())}},
    }
    plan: cage.Plan = {
        "parent": os.getpid(),
        "file": file.fileno(),
        "memory_bytes_max": CONVERT_MEMORY_BYTES_MAX,
        "cpu_s_max": CONVERT_CPU_S_MAX,
    }
    return subprocess.Popen(
        [
            sys.executable, "-I", "-S", cage.__file__, json.dumps(plan), os.path.realpath(tool),
            "convert", "-n", "--target-is-zero", "-W", "-m", "8", "-t", "writeback",
            f"json:{json.dumps(source)}", f"json:{json.dumps(target)}",
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=stderr,
        pass_fds=(file.fileno(), connection.fileno()),
        start_new_session=True,
    )  # fmt: skip


def _failure(format_name: str, status: int, stderr: BinaryIO) -> VolcoreError:
    """Return one sentence for what the tool said, or for how it died."""
    if -status in _OUTSIDE_SIGNALS:
        return UnavailableError(
            f"the process that converted the {format_name} file was killed by somebody else; "
            "import the image again",
            reason=Reason.SHUTTING_DOWN,
            retryable=True,
        )
    if status < 0:
        return refusals.corrupt(
            f"converting the {format_name} file took more memory or time than is allowed, or "
            "crashed the converter; convert it to raw or qcow2 first"
        )
    stderr.seek(0)
    detail = _detail(stderr.read(_STDERR_BYTES_MAX).decode("utf-8", "replace"))
    return refusals.corrupt(
        f"qemu-img cannot read the {format_name} file ({detail}); it is damaged or cut off: get it "
        "again"
    )


def _detail(text: str) -> str:
    """Return the gist of the tool's last line, free of names of files and of control characters."""
    lines = [line for line in text.splitlines() if line.strip()]
    line = lines[-1] if lines else "it does not say why"
    line = re.sub(r"^qemu-img:\s*", "", line)
    line = re.sub(r"'json:.*'|\"json:.*\"|json:\{.*\}", "the file", line)
    line = re.sub(r"'?/(?:dev|proc|tmp|var|usr)/[^\s':]*'?", "the file", line)
    line = "".join(character if character.isprintable() else "?" for character in line)
    return line[:_DETAIL_CHARACTERS_MAX].strip(" .:;") or "it does not say why"


class _Target(BlockDevice):
    """The device as the tool sees it: remembers how far it came and the first error."""

    def __init__(self, device: BlockDevice) -> None:
        self._device = device
        self._lock = threading.Lock()
        self._error: VolcoreError | None = None
        self.end_bytes = 0
        """Highest byte written so far."""

    def raise_error(self) -> None:
        """Raise the first error of the device itself, which the tool knows as a number only."""
        if self._error is not None:
            raise self._error

    @property
    def size_bytes(self) -> int:
        return self._device.size_bytes

    @property
    def read_only(self) -> bool:
        return self._device.read_only

    def read_into(self, offset_bytes: int, buffer: bytearray | memoryview) -> None:
        self._device.read_into(offset_bytes, buffer)

    def write(
        self, offset_bytes: int, data: bytes | bytearray | memoryview, *, fua: bool = False
    ) -> None:
        with self._noting(offset_bytes + len(data)):
            self._device.write(offset_bytes, data, fua=fua)

    def discard(self, offset_bytes: int, length_bytes: int) -> None:
        with self._noting(offset_bytes + length_bytes):
            self._device.discard(offset_bytes, length_bytes)

    def flush(self) -> None:
        with self._noting(0):
            self._device.flush()

    def extents(self, offset_bytes: int, length_bytes: int) -> list[Extent]:
        return self._device.extents(offset_bytes, length_bytes)

    def close(self) -> None:
        """Nothing: the device stays the caller's."""

    @contextmanager
    def _noting(self, end_bytes: int) -> Iterator[None]:
        try:
            yield
        except VolcoreError as err:
            with self._lock:
                self._error = self._error or err
            raise
        with self._lock:
            self.end_bytes = max(self.end_bytes, end_bytes)
