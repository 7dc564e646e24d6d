"""Which pools can be reached: looked at in the background, so that asking costs nothing.

For each part of a pool's storage that is elsewhere, a thread looks every HEALTH_LOOK_PERIOD_S. A
look that gets no answer blocks, and the silence grows: that is what counts, not how long it blocks.
A pool of this host is always reached; its errors come with the calls.
"""

import threading
import time
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Final

import structlog

from volcore.backends.contract import Look, SupportsLook
from volcore.engine.pool import Pool
from volcore.errors import PreconditionError, Reason, VolcoreError
from volcore.limits import HEALTH_LOOK_PERIOD_S

_log = structlog.get_logger("volcore.engine")


class Reach(StrEnum):
    """What a server can do with a pool."""

    HERE = "reached"
    AWAY = "out of reach"
    """For this server, or for all: that cannot be told from here."""
    LOST = "lost"
    """It serves others, but this server no more: fenced off, or its lock has gone."""


_BAD: Final = (Reach.HERE, Reach.AWAY, Reach.LOST)
"""From good to bad."""


def is_serving(seen: Mapping[str, Reach]) -> bool:
    """Say whether calls should come to this server, by what was seen of its pools.

    A pool that it has lost sends callers to a server that has it. A pool that is out of reach does
    not, as long as another one is reached: if all servers left the balance for one dead cluster,
    the others would be gone with it.
    """
    return Reach.LOST not in seen.values() and Reach.HERE in seen.values()


def summary(seen: Mapping[str, Reach]) -> str:
    """Return one line for people."""
    bad = [f"pool {name} is {reach}" for name, reach in seen.items() if reach is not Reach.HERE]
    return ", ".join(bad) or f"serving, pools reached: {', '.join(seen)}"


class Lookout:
    """Looks at the pools; any thread may ask what it has `seen`."""

    def __init__(self) -> None:
        self._closing = threading.Event()
        self._watches: dict[str, list[_Watch]] = {}
        self._elsewhere: dict[str, SupportsLook] = {}

    def add(self, pool: Pool) -> None:
        """Watch a pool that was opened just now."""
        looks: Sequence[Look] = ()
        if isinstance(pool.backend, SupportsLook):
            looks = pool.backend.looks()
            self._elsewhere[pool.name] = pool.backend
        self._watches[pool.name] = [_Watch(pool.name, look, self._closing) for look in looks]

    def seen(self) -> dict[str, Reach]:
        """Return what can be said of each pool now; no round trip."""
        return {
            name: max((watch.reach for watch in watches), default=Reach.HERE, key=_BAD.index)
            for name, watches in self._watches.items()
        }

    def away(self) -> list[str]:
        """Return the pools that another server may have by now; no round trip."""
        return [name for name, backend in self._elsewhere.items() if not backend.is_ours()]

    def close(self, timeout_s: float) -> None:
        """Look no more; waits `timeout_s` for looks that have no answer yet. Idempotent."""
        self._closing.set()
        deadline_s = time.monotonic() + timeout_s
        for watches in self._watches.values():
            for watch in watches:
                watch.join(max(0.0, deadline_s - time.monotonic()))


class _Watch:
    """A look that is taken again and again, and how it went."""

    def __init__(self, pool: str, look: Look, closing: threading.Event) -> None:
        self._pool = pool
        self._look = look
        self._closing = closing
        self._answer_s = time.monotonic()
        self._failure: Reach | None = None
        self._thread = threading.Thread(target=self._run, name=f"look-{pool}", daemon=True)
        self._thread.start()

    @property
    def reach(self) -> Reach:
        """What can be said now."""
        if self._failure is not None:
            return self._failure
        silence_s = time.monotonic() - self._answer_s
        return Reach.AWAY if silence_s > self._look.silence_s_max else Reach.HERE

    def join(self, timeout_s: float) -> None:
        """Wait for the look that is under way."""
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while not self._closing.wait(HEALTH_LOOK_PERIOD_S):
            try:
                self._look.ask()
            except VolcoreError as err:
                if err.reason is Reason.SHUTTING_DOWN:
                    return  # the pool is closed
                failure = Reach.LOST if isinstance(err, PreconditionError) else Reach.AWAY
                if failure is not self._failure:
                    _log.warning(
                        "no sign of life",
                        pool=self._pool,
                        part=self._look.part,
                        reason=err.reason,
                        message=err.message,
                    )
                self._failure = failure
            else:
                # In this order: in between it would look silent.
                self._answer_s = time.monotonic()
                self._failure = None
