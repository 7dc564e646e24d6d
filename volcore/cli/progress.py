"""Progress of long work on stderr: a bar on a terminal, else a plain line now and then."""

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from volcore.cli.units import format_bytes, format_duration

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

PLAIN_INTERVAL_S: Final = 5.0
"""Between two plain lines: a log should tell, not flood."""


class ByteProgress:
    """Shows how many bytes of how many are done; a context manager.

    A total of 0 means that it is not known yet.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._start_s = self._said_s = time.monotonic()
        self._done_bytes = self._total_bytes = 0

    def __enter__(self) -> Self:
        self._start_s = self._said_s = time.monotonic()
        if sys.stderr.isatty():
            self._bar = _new_bar()
            self._task = self._bar.add_task(self._what, total=None)
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:  # the last word of the work need not have come
            self.update(max(self._done_bytes, self._total_bytes), self._total_bytes)
        if self._bar is not None:
            self._bar.stop()
        elif kind is None:
            self._say_plain(end=True)

    def update(self, done_bytes: int, total_bytes: int) -> None:
        """Take note of how far the work is."""
        self._done_bytes, self._total_bytes = done_bytes, total_bytes
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done_bytes, total=total_bytes or None)
        elif time.monotonic() - self._said_s >= PLAIN_INTERVAL_S:
            self._say_plain(end=False)

    def _say_plain(self, *, end: bool) -> None:
        now_s = time.monotonic()
        self._said_s = now_s
        spent_s = max(now_s - self._start_s, 1e-6)
        rate = self._done_bytes / spent_s
        text = f"{self._what}: {format_bytes(self._done_bytes)}"
        if self._total_bytes and not end:
            text += f" of {format_bytes(self._total_bytes)}"
            text += f" ({100 * self._done_bytes // self._total_bytes} %)"
        text += f", {format_bytes(int(rate))}/s"
        if end:
            text += f", done in {format_duration(spent_s)}"
        elif self._total_bytes and rate > 0:
            left_s = (self._total_bytes - self._done_bytes) / rate
            text += f", {format_duration(max(left_s, 0))} left"
        sys.stderr.write(text + "\n")


def _new_bar() -> "Progress":
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
        console=Console(stderr=True),
    )
