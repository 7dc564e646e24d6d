"""A small NBD client that speaks for itself, and a writer that knows what must be on its disk.

Only what the crash tests need: one request at a time, simple replies.
"""

import copy
import random
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Self

from volcore.limits import BLOCK_SIZE_BYTES
from volcore.testing.history import PointModel, Step

_READ, _WRITE, _FLUSH, _TRIM = 0, 1, 3, 4
_FUA: Final = 1
RECONNECT_S: Final = 60.0


class NbdDisk:
    """One connection to an export on a Unix socket. Any trouble of it is an OSError."""

    def __init__(self, path: Path, export: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(30)
        self._socket.connect(str(path))
        magic, option, _ = struct.unpack(">QQH", self._receive(18))
        assert (magic, option) == (0x4E42444D41474943, 0x49484156454F5054)
        name = export.encode()
        data = struct.pack(">I", len(name)) + name + struct.pack(">H", 0)
        self._socket.sendall(struct.pack(">IQII", 3, option, 7, len(data)) + data)
        self.size_bytes = -1
        while True:
            _, _, kind, length = struct.unpack(">QIII", self._receive(20))
            body = self._receive(length)
            if kind == 3 and body[:2] == b"\0\0":
                (self.size_bytes,) = struct.unpack_from(">Q", body, 2)
            elif kind == 1:
                return
            elif kind & 0x80000000:
                raise ConnectionError(f"export {export} is refused: {body!r}")

    def _receive(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            piece = self._socket.recv(count - len(data))
            if not piece:
                raise ConnectionError("the server hung up")
            data += piece
        return data

    def _call(
        self, command: int, offset: int, length: int, data: bytes = b"", *, fua: bool = False
    ) -> bytes:
        head = struct.pack(">IHHQQI", 0x25609513, _FUA * fua, command, 1, offset, length)
        self._socket.sendall(head + data)
        _, errno, _ = struct.unpack(">IIQ", self._receive(16))
        if errno:
            raise OSError(errno, f"command {command} at {offset}")
        return self._receive(length) if command == _READ else b""

    def read(self, offset: int, length: int) -> bytes:
        """Read."""
        return self._call(_READ, offset, length)

    def write(self, offset: int, data: bytes, *, fua: bool = False) -> None:
        """Write."""
        self._call(_WRITE, offset, len(data), data, fua=fua)

    def discard(self, offset: int, length: int) -> None:
        """Trim."""
        self._call(_TRIM, offset, length)

    def flush(self) -> None:
        """Flush."""
        self._call(_FLUSH, 0, 0)

    def close(self) -> None:
        """Hang up."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Writer(threading.Thread):
    """Writes, trims and flushes at random until told to stop; connects again when cut off.

    After each reconnection it reads everything back: what was flushed is there, and what was
    answered as well if servers are only killed; the rest is old or new. `failure` says what was
    wrong, if anything.
    """

    def __init__(
        self, path: Path, export: str, seed: int, *, blocks: int = 512, only_kills: bool = False
    ) -> None:
        super().__init__(name=f"writer-{export}", daemon=True)
        self._path = path
        self._export = export
        self._blocks = blocks
        self._only_kills = only_kills
        self._dice = random.Random(seed)  # noqa: S311 - test data
        self._stopped = threading.Event()
        self.model = PointModel(blocks * BLOCK_SIZE_BYTES)
        self._busy = threading.Lock()
        """Held for each request and what the model learns of it."""
        self._lock = threading.Lock()
        """Held while the model changes."""
        self._pinned = False
        self.failure: str | None = None
        self.reconnections = -1
        self.flushes = 0

    def stop(self) -> None:
        """Stop after the current request, and wait."""
        self._stopped.set()
        self.join(RECONNECT_S)

    @contextmanager
    def quiet(self) -> Iterator[PointModel]:
        """Send nothing during the block; yields what the disk holds now, flushed or not."""
        with self._busy:
            yield self.model.frozen()

    def pin(self) -> None:
        """Forget no content that the disk may hold from now on, flushes or not."""
        with self._lock:
            self._pinned = True

    def unpin(self) -> PointModel:
        """Return what the disk may have held at any instant since `pin`."""
        with self._lock:
            self._pinned = False
            return copy.deepcopy(self.model)

    def _settle(self, offset: int = 0, length: int | None = None) -> None:
        with self._lock:
            if not self._pinned:
                self.model.settle(offset, length)

    def _answered(self, offset: int, length: int) -> None:
        if self._only_kills:
            self._settle(offset, length)

    def _put(self, offset: int, data: bytes) -> None:
        with self._lock:
            self.model.put(offset, data)

    def run(self) -> None:
        """See the class."""
        while not self._stopped.is_set() and self.failure is None:
            try:
                with self._connected() as disk:
                    self.reconnections += 1
                    self._read_back(disk)
                    while not self._stopped.is_set() and self.failure is None:
                        self._step(disk)
            except ConnectionError:
                continue
            except OSError as err:
                if not self._stopped.is_set():
                    self.failure = f"{type(err).__name__}: {err}"

    def _connected(self) -> NbdDisk:
        deadline = time.monotonic() + RECONNECT_S
        while True:
            try:
                return NbdDisk(self._path, self._export)
            except OSError:
                if time.monotonic() > deadline or self._stopped.is_set():
                    raise
            time.sleep(0.05)

    def _read_back(self, disk: NbdDisk) -> None:
        content = disk.read(0, self.model.size_bytes)
        self.failure = self.model.mismatch(content)
        if self.failure is None:
            self.model = PointModel.of(content)

    def _step(self, disk: NbdDisk) -> None:
        dice = self._dice
        block, count = dice.randrange(self._blocks - 8), dice.randrange(1, 9)
        offset, length = block * BLOCK_SIZE_BYTES, count * BLOCK_SIZE_BYTES
        if dice.random() < 0.2:
            offset, length = offset + dice.randrange(4096), dice.randrange(1, 6000)
        step = Step(kind="write", seed=dice.randrange(1 << 60), length_bytes=length)
        chance = dice.random()
        with self._busy:
            if chance < 0.06:
                disk.flush()
                self._settle()
                self.flushes += 1
            elif chance < 0.16:
                self._put(offset, bytes(length))
                disk.discard(offset, length)
                self._answered(offset, length)
            elif chance < 0.2:
                self._put(offset, step.data())
                disk.write(offset, step.data(), fua=True)
                self._settle(offset, length)
            elif chance < 0.35:
                found = disk.read(block * BLOCK_SIZE_BYTES, count * BLOCK_SIZE_BYTES)
                self.failure = self.model.newest_mismatch(found, block)
            else:
                self._put(offset, step.data())
                disk.write(offset, step.data())
                self._answered(offset, length)
