"""Guests of the nemesis: a process that writes a sequence of blocks which prove themselves.

Through librbd, where no server of volcore is in the path, or through NBD, where it connects again
when it is cut off and, as QEMU does, repeats only what was not answered: the server is killed and
frozen, so what was answered is there, flushed or not (docs/formats/local.md, "Not flushed"). It
reads back what it wrote, and notes when it had to wait. At SIGTERM it reads everything and prints a
line of JSON.
"""

import argparse
import json
import random
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

from volcore.testing.nbd_disk import NbdDisk
from volcore.testing.sequence import BLOCK_BYTES, block

SLOTS: Final = 1024
"""Blocks on the disk; the sequence goes round."""
FLUSH_EVERY: Final = 8
PAUSE_S: Final = 0.01
STALL_S: Final = 0.25
"""A shorter wait is not noted."""
RECONNECT_S: Final = 0.05


class Disk(Protocol):
    """What a guest does to its disk."""

    def read(self, offset: int, length: int) -> bytes:
        """Read."""

    def write(self, offset: int, data: bytes) -> None:
        """Write."""

    def flush(self) -> None:
        """Make durable what was written."""

    def close(self) -> None:
        """Let go."""


@dataclass
class Report:
    """What a guest saw; stalls are from and to, of the monotonic clock in seconds."""

    written: int = 0
    reconnections: int = 0
    stalls: list[tuple[float, float]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


class RbdDisk:
    """An rbd image through librbd, with a connection of its own."""

    def __init__(self, conf_path: Path, pool: str, image: str) -> None:
        import rados
        import rbd

        self._cluster: Any = rados.Rados(conffile=str(conf_path), rados_id="admin")
        self._cluster.connect(timeout=60)
        self._ioctx = self._cluster.open_ioctx(pool)
        self._image: Any = rbd.Image(self._ioctx, image)

    def read(self, offset: int, length: int) -> bytes:
        """See `Disk`."""
        return bytes(self._image.read(offset, length))

    def write(self, offset: int, data: bytes) -> None:
        """See `Disk`."""
        self._image.write(data, offset)

    def flush(self) -> None:
        """See `Disk`."""
        self._image.flush()

    def close(self) -> None:
        """See `Disk`."""
        self._image.close()
        self._ioctx.close()
        self._cluster.shutdown()


class Guest:
    """Writes until told to stop."""

    def __init__(self, connect: Callable[[], Disk], stopped: threading.Event) -> None:
        self._connect, self._stopped = connect, stopped
        self._dice = random.Random(1)  # noqa: S311 - repeatable on purpose
        self.report = Report()

    def run(self) -> Report:
        """Return what it saw."""
        disk = self._connected()
        since_s = time.monotonic()
        while not self._stopped.is_set() and not self.report.wrong:
            try:
                self._step(disk)
            except ConnectionError:
                disk = self._connected()
                self.report.reconnections += 1
                continue
            now_s = time.monotonic()
            if now_s - since_s > STALL_S:
                self.report.stalls.append((since_s, now_s))
            time.sleep(PAUSE_S)
            since_s = time.monotonic()
        self._finish(disk)
        return self.report

    def _step(self, disk: Disk) -> None:
        number = self.report.written
        disk.write(number % SLOTS * BLOCK_BYTES, block(number))
        self.report.written = number + 1
        if self.report.written % FLUSH_EVERY == 0:
            disk.flush()
        self._verify(disk, self._dice.randrange(max(number + 1 - SLOTS, 0), number + 1))

    def _verify(self, disk: Disk, number: int) -> None:
        if disk.read(number % SLOTS * BLOCK_BYTES, BLOCK_BYTES) != block(number):
            self.report.wrong.append(f"block {number} of {self.report.written} is not what it was")

    def _finish(self, disk: Disk) -> None:
        """Read everything through another connection."""
        disk.flush()
        disk.close()
        disk = self._connected()
        for number in range(max(self.report.written - SLOTS, 0), self.report.written):
            self._verify(disk, number)
        disk.close()

    def _connected(self) -> Disk:
        while True:
            try:
                return self._connect()
            except OSError:
                time.sleep(RECONNECT_S)


def main() -> None:
    """Be a guest of one disk until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nbd", nargs=2, metavar=("SOCKET", "EXPORT"))
    parser.add_argument("--rbd", nargs=3, metavar=("CONF", "POOL", "IMAGE"))
    options = parser.parse_args()
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())

    def connect() -> Disk:
        if options.nbd:
            return NbdDisk(Path(options.nbd[0]), options.nbd[1])
        return RbdDisk(Path(options.rbd[0]), *options.rbd[1:])

    print(json.dumps(asdict(Guest(connect, stopped).run())), flush=True)


if __name__ == "__main__":
    main()
