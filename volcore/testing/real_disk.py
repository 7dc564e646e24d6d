"""A real filesystem on a disk whose power can be cut at an instant; needs root, loop and FUSE.

A loop device with direct I/O lies on the one file of a FUSE filesystem. SIGSTOP to the process that
serves it stops the disk: the kernel waits, nothing more arrives, and the file below is what a power
cut would leave. It is copied, and the disk goes on.
"""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final, Self

from volcore.limits import MIB

_SOURCE: Final = Path(__file__).with_name("pausable_disk.c")
SIZES: Final = {"ext4": 160 * MIB, "xfs": 320 * MIB, "btrfs": 256 * MIB}
_MAKE: Final = {
    "ext4": ("mkfs.ext4", "-q", "-F", "-J", "size=8"),
    "xfs": ("mkfs.xfs", "-q", "-f"),
    "btrfs": ("mkfs.btrfs", "-q", "-f"),
}
_COPY_OPTIONS: Final = {"xfs": ",nouuid"}
"""A copy has the UUID of the filesystem that is still mounted."""
WAIT_S: Final = 10.0


def obstacle(filesystem: str) -> str | None:
    """Return why there can be no such disk here, or None."""
    if os.geteuid():
        return "mounting needs root"
    for path in ("/dev/fuse", "/dev/loop-control", "/usr/include/fuse3/fuse.h"):
        if not os.path.exists(path):
            return f"{path} is missing: apt-get install fuse3 libfuse3-dev"
    tool = _MAKE[filesystem][0]
    return None if shutil.which(tool) else f"{tool} is missing"


def _run(*words: object) -> str:
    done = subprocess.run(
        list(map(str, words)), check=False, capture_output=True, text=True, timeout=60
    )
    if done.returncode:
        raise OSError(f"{words[0]} failed: {done.stderr.strip()}")
    return done.stdout.strip()


class PausableDisk:
    """A mounted filesystem at `mount`; everything lies below `place`."""

    def __init__(self, place: Path, filesystem: str) -> None:
        self.mount = place / "mount"
        self._place = place
        self._filesystem = filesystem
        self._backing = place / "backing"
        self._stack = ExitStack()
        self._daemon: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._start(stack)
            self._stack = stack.pop_all()
        return self

    def _start(self, stack: ExitStack) -> None:
        program, below = self._place / "pausable_disk", self._place / "below"
        flags = ["-O2", "-D_FILE_OFFSET_BITS=64", "-I/usr/include/fuse3"]
        _run("gcc", *flags, "-o", program, _SOURCE, "-lfuse3")
        for path in (below, self.mount):
            path.mkdir()
        with self._backing.open("wb") as file:
            file.truncate(SIZES[self._filesystem])
        self._daemon = subprocess.Popen([program, self._backing, below, "-f"])
        stack.callback(self._end_daemon, below)
        deadline = time.monotonic() + WAIT_S
        while not (below / "disk").exists():
            if self._daemon.poll() is not None or time.monotonic() > deadline:
                raise OSError("the disk's process did not start")
            time.sleep(0.02)
        loop = _run("losetup", "--find", "--show", "--direct-io=on", below / "disk")
        stack.callback(_run, "losetup", "--detach", loop)
        _run(*_MAKE[self._filesystem], loop)
        _run("mount", "-t", self._filesystem, loop, self.mount)
        stack.callback(_run, "umount", self.mount)

    def _end_daemon(self, below: Path) -> None:
        assert self._daemon is not None
        with suppress(OSError):
            _run("fusermount3", "-u", "-z", below)
        self._daemon.terminate()
        self._daemon.wait(WAIT_S)

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def cut(self, target: Path) -> None:
        """Stop the disk at this instant, copy it to the file `target`, let it go on."""
        assert self._daemon is not None
        self._daemon.send_signal(signal.SIGSTOP)
        try:
            os.waitid(os.P_PID, self._daemon.pid, os.WSTOPPED)
            _run("cp", "--sparse=always", self._backing, target)
        finally:
            self._daemon.send_signal(signal.SIGCONT)

    @contextmanager
    def refusing(self) -> Iterator[None]:
        """Let writes of blocks that begin with the bytes `REFUSED` fail meanwhile."""
        flag = self._place / "backing.refuse"
        flag.touch()
        try:
            yield
        finally:
            flag.unlink()

    @contextmanager
    def mounted(self, copy: Path) -> Iterator[Path]:
        """Mount a copy, which recovers as after a power cut."""
        place = self._place / "copy"
        place.mkdir(exist_ok=True)
        options = "loop" + _COPY_OPTIONS.get(self._filesystem, "")
        _run("mount", "-t", self._filesystem, "-o", options, copy, place)
        try:
            yield place
        finally:
            _run("umount", place)
