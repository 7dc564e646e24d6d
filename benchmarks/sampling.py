"""Taking turns: contenders run round by round, so that what disturbs one disturbs all."""

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.report import Sample

Act = Callable[[int], Any]
"""Called with the number of the round."""
FLOOR_BYTES = 4096
FLOOR_FILE_BYTES = 16 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """Where a scenario works, and whether it only shows that it runs."""

    directory: Path
    tiny: bool = False

    def size(self, full: int, tiny: int) -> int:
        return tiny if self.tiny else full

    def place(self, name: str) -> Path:
        """A new directory."""
        path = self.directory / name
        path.mkdir()
        return path


@dataclass(slots=True)
class Turns:
    """Times in seconds, by contender."""

    times_s: dict[str, list[float]] = field(default_factory=dict)

    def run(
        self,
        contenders: Mapping[str, Act],
        *,
        rounds: int,
        warm_up: int = 0,
        before: Callable[[str, int], None] | None = None,
        every: Mapping[str, int] | None = None,
    ) -> "Turns":
        """Time each contender once a round; every other round in reverse order.

        `every`: slow contenders take part in each so-many-th round only.
        """
        names = list(contenders)
        for name in names:
            self.times_s.setdefault(name, [])
        for number in range(-warm_up, rounds):
            for name in names if number % 2 else reversed(names):
                if every is not None and number % every.get(name, 1):
                    continue
                if before is not None:
                    before(name, number)
                start = time.perf_counter()
                contenders[name](number)
                spent = time.perf_counter() - start
                if number >= 0:
                    self.times_s[name].append(spent)
        return self

    def us(self, name: str) -> Sample:
        return self.s(name).scaled(1e6)

    def s(self, name: str) -> Sample:
        return Sample(tuple(self.times_s[name]))


class Floor:
    """The least that a durable change costs here: one 4 KiB write over old bytes, and a sync."""

    def __init__(self, directory: Path) -> None:
        self._fd = os.open(directory / "floor", os.O_RDWR | os.O_CREAT, 0o600)
        os.pwrite(self._fd, os.urandom(FLOOR_FILE_BYTES), 0)
        os.fsync(self._fd)
        self._block = os.urandom(FLOOR_BYTES)

    def __call__(self, number: int) -> None:
        at = number * FLOOR_BYTES % FLOOR_FILE_BYTES
        os.pwrite(self._fd, self._block, at)
        os.fdatasync(self._fd)

    def close(self) -> None:
        os.close(self._fd)
