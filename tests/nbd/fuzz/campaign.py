"""One run: start the target, attack it from several threads, look at what is left of it."""

import json
import os
import subprocess
import sys
import threading
import time
import traceback
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Self

from volcore.limits import MIB

from ..client import RawClient
from . import honest, hostile
from .honest import Region
from .target import EXPORTS, SIZE_BYTES

THREADS = 8
REGION_BYTES = SIZE_BYTES // THREADS
HONEST_SHARE = 0.35
START_S = 60.0
STOP_S = 60.0
QUIET_S = 40.0
"""How long threads and descriptors get to go: the server drains for 30 s, workers idle for 5 s."""
FIRST_S = 20.0
"""A warm server counts as the start of its growth."""
WARM_S = 0.5
GROWTH_BYTES_MAX = 160 * MIB
"""Over what a warm server holds: its pools of buffers (96 MiB) may fill up late."""
TESTS = Path(__file__).parents[2]


@dataclass(frozen=True)
class Usage:
    """What a process holds; the pool's own files come and go with what is in its cache."""

    descriptors: tuple[str, ...]
    threads: int
    resident_bytes: int

    @classmethod
    def of(cls, pid: int) -> Self:
        proc = Path(f"/proc/{pid}")
        status = dict(line.split(":", 1) for line in (proc / "status").read_text().splitlines())
        resident_bytes = int(status["VmRSS"].split()[0]) * 1024
        return cls(_descriptors(proc / "fd"), int(status["Threads"]), resident_bytes)


@dataclass
class Target:
    """The process under attack."""

    directory: Path
    process: subprocess.Popen = field(init=False)

    @property
    def path(self) -> Path:
        return self.directory / "nbd.sock"

    @property
    def log(self) -> str:
        return (self.directory / "log").read_text(errors="replace")

    def start(self) -> None:
        self.directory.chmod(0o700)
        with (self.directory / "log").open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "nbd.fuzz.target", self.directory],
                cwd=TESTS, stdin=subprocess.PIPE, stdout=log, stderr=log,
            )  # fmt: skip
        end_s = time.monotonic() + START_S
        while "ready" not in self.log:
            assert self.process.poll() is None, self.log
            assert time.monotonic() < end_s, "the target did not start"
            time.sleep(0.05)

    def stop(self) -> int:
        """Let it end by itself; its exit code says whether everything was closed well."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self.process.wait(STOP_S)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdin is not None
        self.process.stdin.close()


class Campaign:
    """Attacks until the time is over or something is wrong."""

    def __init__(self, target: Target, *, seed: int, only: str = "") -> None:
        self._target = target
        self._seed = seed
        self._only = only
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._failures: list[str] = []
        self._last: dict[int, list[str]] = {index: [] for index in range(THREADS)}
        self._idle = Usage((), 0, 0)
        self._regions = [Region(index * REGION_BYTES, REGION_BYTES) for index in range(THREADS)]

    def run(self, seconds: float) -> dict[str, object]:
        """Return figures of the run.

        Raises:
            AssertionError: what the server did wrong, and the sessions that were on then.
        """
        target = self._target
        self._warm_up()
        first = min(seconds / 3, FIRST_S)
        self._attack(first)
        calm = self._wait_for_calm()
        self._attack(seconds - first)
        after = self._wait_for_calm()
        honest.check_all(target.path, self._regions)
        growth_bytes = after.resident_bytes - calm.resident_bytes
        allowed = GROWTH_BYTES_MAX * (4 if "ASAN_OPTIONS" in os.environ else 1)
        assert growth_bytes < allowed, f"{growth_bytes} more bytes: {calm} {after}"
        return {"seed": self._seed, "growth_bytes": growth_bytes, **self._counts}

    def _warm_up(self) -> None:
        """Open every export once: the store keeps some files open from then on."""
        path = self._target.path
        honest.prepare(Random(self._seed), path, self._regions)
        for name in EXPORTS:
            with RawClient(path).go(name) as client:
                client.read(0, 10)
        time.sleep(WARM_S)
        self._idle = Usage.of(self._target.process.pid)

    def _attack(self, seconds: float) -> None:
        self._stop.clear()
        threads = [threading.Thread(target=self._work, args=(index,)) for index in range(THREADS)]
        for thread in threads:
            thread.start()
        self._stop.wait(seconds)
        self._stop.set()
        for thread in threads:
            thread.join()
        code = self._target.process.poll()
        recent = json.dumps(self._last, indent=1)
        assert code is None, f"the server ended ({code}); last sessions {recent}\n{self._tail()}"
        assert not self._failures, "\n".join([*self._failures, self._tail()])
        assert "nbd connection failed" not in self._target.log, self._tail()

    def _work(self, index: int) -> None:
        number = sum(self._counts.values())
        while not self._stop.is_set():
            number += 1
            name = f"{self._seed}:{index}:{number}"
            self._session(index, name, Random(name))

    def _session(self, index: int, name: str, dice: Random) -> None:
        path = self._target.path
        attack = dice.choice(hostile.SESSIONS)
        kind = "honest" if dice.random() < HONEST_SHARE else attack.__name__
        if self._only:
            kind = self._only
            attack = getattr(hostile, kind, attack)
        self._last[index] = [*self._last[index][-4:], f"{name} {kind}"]
        with self._lock:
            self._counts[kind] += 1
        try:
            if kind == "honest":
                honest.session(dice, path, self._regions[index])
            else:
                attack(dice, path)
        except hostile.ANY_ERROR:
            if kind == "honest":
                self._failures.append(f"session {name} {kind}\n{traceback.format_exc()}")
                self._stop.set()
        except BaseException:
            self._failures.append(f"session {name} {kind}\n{traceback.format_exc()}")
            self._stop.set()
            raise

    def _wait_for_calm(self) -> Usage:
        """Wait until threads and descriptors are those of the server before the first client."""
        end_s = time.monotonic() + QUIET_S
        while True:
            now = Usage.of(self._target.process.pid)
            if now.threads <= self._idle.threads and now.descriptors == self._idle.descriptors:
                return now
            assert time.monotonic() < end_s, f"left behind: {self._idle} {now}\n{self._tail()}"
            time.sleep(0.1)

    def _tail(self) -> str:
        return self._target.log[-6000:]


def _descriptors(directory: Path) -> tuple[str, ...]:
    """Return what a process has open besides files: `socket`, `pipe` and such."""
    found = []
    for name in os.listdir(directory):
        with suppress(OSError):  # it was closed meanwhile
            found.append(os.readlink(directory / name))
    return tuple(sorted(one.split(":")[0] for one in found if not one.startswith("/")))


def run(directory: Path, *, seconds: float, seed: int, only: str = "") -> dict[str, object]:
    """Start a target in `directory`, attack it, stop it; see `Campaign.run`."""
    target = Target(directory)
    target.start()
    try:
        campaign = Campaign(target, seed=seed, only=only)
        figures = campaign.run(seconds)
        assert target.stop() == 0, target.log[-6000:]
        return figures
    finally:
        target.kill()
