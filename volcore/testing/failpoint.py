"""Lets a server die by SIGKILL at a chosen step of what it does: a library that is preloaded.

A step is a change of a file of a local pool, or a request to Ceph that may change something. Both
are seen below everything of ours, SQLite's and librbd's own, so no new code can be forgotten; see
`failpoints.cc`. Compile with `build`; a `Failpoints` shares some memory with each server.
"""

import json
import mmap
import os
import re
import select
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

from volcore.testing.server import RunningServer

_SOURCE: Final = Path(__file__).with_name("failpoints.cc")
_BYTES: Final = 1 << 22
_NUMBERS: Final = struct.Struct("<qqqq")
_PREFIX_BYTES: Final = 1024
_WATCH: Final = -1
_POLL_S: Final = 0.005
_REQUEST: Final = re.compile(
    r"osd_op\(\S+ \S+ [^:]*:[^:]*:[^:]*:[^:]*:(?P<name>[^:]*):\S* \[(?P<acts>.*)\] snapc"
)
_ARGUMENTS: Final = re.compile(r" (in|out)=[^\s,]*| \d+~\d+| \(\d+\)| cookie \d+| ver \d+| v\d+")


def build(directory: Path) -> Path:
    """Compile the library into `directory`."""
    library = directory / "failpoints.so"
    words = ["g++", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o"]
    subprocess.run([*words, library, _SOURCE, "-ldl", "-lpthread"], check=True)
    return library


class Failpoints:
    """What one server counts, and where it dies; this side of the shared memory."""

    def __init__(self, path: Path, files_below: Path | None) -> None:
        """Make the memory at `path`; changes of files below a directory are steps, if given."""
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w+b") as file:
            file.truncate(_BYTES)
            self._memory = mmap.mmap(file.fileno(), _BYTES)
        prefix = b"" if files_below is None else str(files_below.resolve()).encode()
        self._memory[_NUMBERS.size : _NUMBERS.size + len(prefix)] = prefix

    def arm(self, number: int, *, after: bool = False) -> None:
        """Begin to count, and let the server die before or after this step."""
        _NUMBERS.pack_into(self._memory, 0, 0, 0, 0, 0)
        _NUMBERS.pack_into(self._memory, 0, number, int(after), 0, 0)

    def watch(self) -> None:
        """Begin to count, and let nobody die."""
        self.arm(_WATCH)

    def disarm(self) -> None:
        """Count no more."""
        _NUMBERS.pack_into(self._memory, 0, 0, 0, self.passed, self._text_length)

    @property
    def passed(self) -> int:
        """How many steps were passed since counting began."""
        return int(_NUMBERS.unpack_from(self._memory)[2])

    @property
    def _text_length(self) -> int:
        return int(_NUMBERS.unpack_from(self._memory)[3])

    def steps(self) -> list[str]:
        """Return what was passed, in order, without names, numbers and sizes of this run."""
        start = _NUMBERS.size + _PREFIX_BYTES
        text = self._memory[start : start + self._text_length].decode(errors="replace")
        return [step_name(line) for line in text.splitlines()]

    def wait_quiet(self, quiet_s: float, *, timeout_s: float = 60.0) -> None:
        """Return when no step was passed for a while.

        Raises:
            TimeoutError: that does not happen.
        """
        end_s = time.monotonic() + timeout_s
        last, since_s = self.passed, time.monotonic()
        while time.monotonic() < since_s + quiet_s:
            time.sleep(_POLL_S)
            if self.passed != last:
                last, since_s = self.passed, time.monotonic()
            if time.monotonic() > end_s:
                raise TimeoutError(f"steps without end, the last are {self.steps()[-5:]}")


class FailingServer(RunningServer):
    """A `RunningServer` with failpoints, forked off a process that has imported all it needs.

    A start costs a tenth of what it does otherwise, and there are thousands of them.
    """

    def __init__(
        self, directory: Path, library: Path, pool_lines: str, *, files_below: Path | None = None
    ) -> None:
        """See `RunningServer`, and `Failpoints` for `files_below`."""
        super().__init__(directory, pool_lines)
        self.failpoints = Failpoints(directory / "failpoints", files_below)
        self._library = library
        self._parent: subprocess.Popen[str] | None = None

    def spawn(self) -> Any:
        """See `RunningServer.spawn`; what it returns has what a `Popen` has."""
        assert self._process is None
        if self._parent is None:
            preload = (f"LD_PRELOAD={self._library}", f"VOLCORE_FAILPOINTS={self.failpoints.path}")
            self._parent = subprocess.Popen(
                ["env", *preload, sys.executable, "-m", "volcore.testing.failpoint_server"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        assert self._parent.stdin is not None
        assert self._parent.stdout is not None
        self.socket_path.unlink(missing_ok=True)  # who waits for it does not try the dead one
        self.log_path.touch()
        self._log_start = self.log_path.stat().st_size
        self._parent.stdin.write(f"{json.dumps([str(self._config_path), str(self.log_path)])}\n")
        self._parent.stdin.flush()
        self._process = _Forked(int(self._parent.stdout.readline()))  # type: ignore[assignment]
        return self._process

    @property
    def is_dead(self) -> bool:
        """Whether it has ended."""
        return self._process is None or self._process.poll() is not None

    def close(self) -> None:
        """Kill it, and end the process that it is forked off; idempotent."""
        self.kill()
        if self._parent is not None:
            self._parent.communicate()
            self._parent = None


class _Forked:
    """A process that somebody else started, as a `Popen` of its own would be."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._fd = os.pidfd_open(pid)

    def poll(self) -> int | None:
        """Return None while it runs."""
        return self._ended(0)

    def wait(self, timeout_s: float | None = None) -> int:
        """Return when it has ended."""
        if (code := self._ended(timeout_s)) is None:
            raise subprocess.TimeoutExpired("server", timeout_s or 0)
        return code

    def kill(self) -> None:
        """End it with SIGKILL."""
        if self.poll() is None:
            signal.pidfd_send_signal(self._fd, signal.SIGKILL)

    def _ended(self, timeout_s: float | None) -> int | None:
        return -signal.SIGKILL if select.select([self._fd], [], [], timeout_s)[0] else None

    def __del__(self) -> None:
        os.close(self._fd)


def step_name(text: str) -> str:
    """Return the name of a step that is the same in each run.

    `write volcore.db-wal`, `rbd_header: call rbd.set_features`.
    """
    if (request := _REQUEST.match(text)) is not None:
        name = request["name"].partition(".")[0]
        acts = _ARGUMENTS.sub("", request["acts"])
        return f"{re.sub(r'[0-9a-f]{8,}', 'N', name)}: {acts}"
    if text.startswith(("osd_op(", "pool_op(", "poolop(", "mon_command(")):
        kind = text.partition("(")[0]
        found = re.search(r'"prefix": ?"([^"]*)"', text)
        return f"monitor: {found[1] if found else kind}"
    return re.sub(r"\d+", "N", text)
