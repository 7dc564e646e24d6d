"""Files that clients of this machine open themselves and hand over, for imports without an upload.

A client passes an open descriptor over a unix socket of its own (`volcore.wire.handover`) and gets
a handle that is good for one import. Nobody opens a file here, so nobody gets to read what he could
not open himself. Each connection has a thread: a file system that hangs holds up its own client.

1. A descriptor is held no longer than its connection; an import works with a duplicate.
2. At most HANDED_FILES_MAX are held.
3. A handle is used once.
"""

import fcntl
import os
import secrets
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Final

import structlog

from volcore import limits
from volcore.api.streams import broken_off
from volcore.errors import ExhaustedError, InvalidArgumentError, Reason, VolcoreError
from volcore.wire import handover

_GREETING_S: Final = 5.0
"""How long a client may take to send its descriptor."""
_CONNECTIONS_MAX: Final = 2 * limits.HANDED_FILES_MAX
"""Those beyond the files that are held get an answer; more than that are just closed."""
_MODES: Final = (os.O_RDONLY, os.O_RDWR)
_HANDLE_BYTES: Final = 16
_log = structlog.get_logger("volcore.api")


class HandedFile:
    """A descriptor that its sender can take back; any thread."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._lock = threading.Lock()
        self._withdrawn = False

    @contextmanager
    def opened(self) -> Iterator[BinaryIO]:
        """Yield a duplicate, closed at the end of the block.

        Raises:
            CancelledError: it has been taken back.
        """
        with self._lock:
            if self._withdrawn:
                raise broken_off()
            descriptor = os.dup(self._descriptor)
        with os.fdopen(descriptor, "rb", buffering=0) as file:
            yield file

    def check(self) -> None:
        """Raise CancelledError if it has been taken back."""
        if self._withdrawn:
            raise broken_off()

    def withdraw(self) -> None:
        """Close it, and let an import that reads it know by `check`. Idempotent."""
        with self._lock:
            if not self._withdrawn:
                self._withdrawn = True
                os.close(self._descriptor)


class HandedFiles:
    """The sockets where files are handed over, and the files that wait for their import."""

    def __init__(self, check: Callable[[], object] = lambda: None) -> None:
        """Listen nowhere yet; `check` raises VolcoreError when no file is to be taken now."""
        self._check = check
        self._lock = threading.Lock()
        self._listeners: list[socket.socket] = []
        self._connections: set[socket.socket] = set()
        self._held = 0
        self._unused: dict[str, HandedFile] = {}
        self._closing = threading.Event()

    def listen(self, path: Path) -> None:
        """Take a socket at `path`, where nothing is; its mode is what the umask leaves.

        Raises:
            OSError: the system refuses the path.
        """
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            listener.bind(os.fspath(path))
            listener.listen(limits.HANDED_FILES_MAX)
        except BaseException:
            listener.close()
            raise
        self._listeners.append(listener)

    def start(self) -> None:
        """Take files."""
        for listener in self._listeners:
            threading.Thread(
                target=self._accept, args=(listener,), name="files", daemon=True
            ).start()

    def take(self, handle: str) -> HandedFile:
        """Return the file of a handle, which is used up.

        Raises:
            InvalidArgumentError: HANDED_FILE_UNKNOWN, never given, used, or taken back.
        """
        with self._lock:
            handed = self._unused.pop(handle, None)
        if handed is None:
            raise InvalidArgumentError(
                "the handle of the handed file is not known, was used before, or its connection is "
                "closed; hand the file over again and keep the connection until the import ends",
                reason=Reason.HANDED_FILE_UNKNOWN,
                field="handed_file",
            )
        return handed

    def stop(self) -> None:
        """Take no more files; those that were handed over stay."""
        self._closing.set()
        for listener in self._listeners:
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
            listener.close()
        self._listeners.clear()

    def close(self) -> None:
        """Let all files go, used or not."""
        self.stop()
        with self._lock:
            for connection in self._connections:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)  # wakes its thread, which closes it

    def _accept(self, listener: socket.socket) -> None:
        while not self._closing.is_set():
            try:
                connection, _ = listener.accept()
            except OSError as err:
                if not self._closing.is_set():
                    _log.warning("no connection for a handed file", error=str(err))
                    self._closing.wait(0.1)
                continue
            if not self._admit(connection):
                connection.close()

    def _admit(self, connection: socket.socket) -> bool:
        """Give a connection its thread, unless there are too many."""
        thread = threading.Thread(
            target=self._serve, args=(connection,), name="handed-file", daemon=True
        )
        with self._lock:
            if self._closing.is_set() or len(self._connections) >= _CONNECTIONS_MAX:
                return False
            self._connections.add(connection)
        try:
            thread.start()
        except RuntimeError:  # the system has no thread to give
            with self._lock:
                self._connections.discard(connection)
            return False
        return True

    def _serve(self, connection: socket.socket) -> None:
        """Hold the file of one connection until that is closed."""
        try:
            with connection:
                connection.settimeout(_GREETING_S)
                try:
                    self._check()
                    with _received(connection) as handed, self._holding(handed) as handle:
                        connection.send(handover.encode(handover.Answer(handle=handle)))
                        self._wait(connection, handle)
                except VolcoreError as err:
                    refusal = handover.Answer(reason=err.reason, message=err.message)
                    connection.send(handover.encode(refusal))
        except OSError:
            pass  # the client has left, and with it whoever wanted to know
        finally:
            with self._lock:
                self._connections.discard(connection)

    @contextmanager
    def _holding(self, handed: HandedFile) -> Iterator[str]:
        """Yield the handle of a file that counts as held meanwhile."""
        handle = secrets.token_hex(_HANDLE_BYTES)
        with self._lock:
            if self._held >= limits.HANDED_FILES_MAX:
                raise ExhaustedError(
                    f"{limits.HANDED_FILES_MAX} files are being imported or wait for it already; "
                    "upload the file, or repeat this in a moment",
                    reason=Reason.TOO_MANY_REQUESTS,
                    retryable=True,
                )
            self._held += 1
            self._unused[handle] = handed
        try:
            yield handle
        finally:
            with self._lock:
                self._held -= 1
                self._unused.pop(handle, None)

    def _wait(self, connection: socket.socket, handle: str) -> None:
        """Return when the client closes the connection, or has not used the handle in time."""
        connection.settimeout(limits.HANDED_FILE_UNUSED_S_MAX)
        try:
            connection.recv(1)
        except TimeoutError:
            with self._lock:
                if self._unused.pop(handle, None) is not None:
                    return
            connection.settimeout(None)
            connection.recv(1)


@contextmanager
def _received(connection: socket.socket) -> Iterator[HandedFile]:
    """Receive and check the one descriptor of a connection; let it go in the end.

    Raises:
        InvalidArgumentError: BAD_FIELD, not one descriptor, or not of a file to read from.
    """
    room = len(handover.GREETING) + 1
    data, descriptors, flags, _ = socket.recv_fds(connection, room, 1, socket.MSG_CMSG_CLOEXEC)
    alone = len(descriptors) == 1 and not flags & socket.MSG_CTRUNC
    try:
        _check(descriptors[0] if alone and data == handover.GREETING else None)
    except BaseException:
        for descriptor in descriptors:
            os.close(descriptor)
        raise
    handed = HandedFile(descriptors[0])
    try:
        yield handed
    finally:
        handed.withdraw()


def _check(descriptor: int | None) -> None:
    if descriptor is None:
        raise _refused("send one open file with the greeting of this protocol")
    try:
        mode = os.fstat(descriptor).st_mode
    except OSError as err:
        raise _refused(f"its file system refuses it ({err.strerror}); upload it") from err
    if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
        raise _refused("it is neither a regular file nor a block device; upload it")
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    if flags & os.O_ACCMODE not in _MODES or flags & os.O_PATH:
        raise _refused("it is not open for reading; open it so")
    if flags & os.O_DIRECT:
        raise _refused("it is open for direct I/O; open it without O_DIRECT")


def _refused(problem: str) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"the file cannot be handed over: {problem}", reason=Reason.BAD_FIELD, field="handed_file"
    )
