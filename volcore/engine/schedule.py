"""The scheduled scrub: each pool is read once in every interval, gently.

The clock is in the pool: the end of its last complete scrub, whoever asked for that, or the moment
when the pool was first seen. A scrub that the server's stop cuts off goes on at the next start.
"""

import threading
from dataclasses import dataclass
from typing import Final

import structlog

from volcore.backends.verifying import SupportsVerify
from volcore.engine.checks import Checks, health_of
from volcore.engine.pool import now_ns
from volcore.engine.pools import Pools
from volcore.errors import VolcoreError
from volcore.limits import SCRUB_INTERVAL_H_DEFAULT, SCRUB_RATE_BYTES_DEFAULT

LOOK_INTERVAL_S: Final = 60.0
_log = structlog.get_logger("volcore.engine")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScrubSettings:
    """When and how pools are scrubbed by themselves."""

    interval_s: float = SCRUB_INTERVAL_H_DEFAULT * 3600.0
    """From the end of one scrub to the start of the next; 0: never."""
    bytes_per_s_max: int = SCRUB_RATE_BYTES_DEFAULT
    """0: as fast as it goes."""
    heal: bool = True


class Schedule:
    """Starts the scrubs that are due."""

    def __init__(self, pools: Pools, checks: Checks, settings: ScrubSettings) -> None:
        self._pools = pools
        self._checks = checks
        self._settings = settings
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="schedule", daemon=True)

    def start(self) -> None:
        """Look after the pools from now on; once."""
        if self._settings.interval_s:
            self._thread.start()

    def close(self) -> None:
        """Start no more scrubs; idempotent."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join()

    def look(self, time_ns: int) -> list[str]:
        """Start the scrubs that are due at `time_ns`; return the names of their pools.

        A pool whose scrub is running already is left alone.
        """
        due = []
        for name in self._pools.names():
            pool = self._pools.open(name)
            if not isinstance(pool.backend, SupportsVerify):
                continue
            try:
                health = health_of(pool)
                since_ns = max(health.first_time_ns, health.scrub_end_ns)
                if time_ns - since_ns >= self._settings.interval_s * 1e9:
                    self._checks.scrub(
                        name,
                        heal=self._settings.heal,
                        bytes_per_s_max=self._settings.bytes_per_s_max,
                    )
                    due.append(name)
            except VolcoreError as err:
                _log.warning("scrub not started", pool=name, reason=err.reason, message=err.message)
        return due

    def _run(self) -> None:
        while not self._closing.is_set():
            self.look(now_ns())
            self._closing.wait(LOOK_INTERVAL_S)
