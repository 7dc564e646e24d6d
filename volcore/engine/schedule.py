"""What is done by the clock: each pool is scrubbed in every interval, old operations are forgotten.

The clock of the scrub is in the pool: the end of its last complete one, whoever asked for that, or
the moment when the pool was first seen. A scrub that the server's stop cuts off goes on at the next
start; after one that was cancelled or failed there is a rest.
"""

import threading
import time
from dataclasses import dataclass
from typing import Final

import structlog

from volcore.backends.verifying import SupportsVerify
from volcore.engine.checks import SCRUB, Checks, health_of
from volcore.engine.operations import Operations
from volcore.engine.pool import Pool, now_ns
from volcore.engine.pools import Pools
from volcore.errors import VolcoreError
from volcore.limits import SCRUB_INTERVAL_H_DEFAULT, SCRUB_RATE_BYTES_DEFAULT
from volcore.model.records import Operation, Phase

LOOK_INTERVAL_S: Final = 60.0
REST_S: Final = 3600.0
"""After a scrub that was cancelled or failed: time to do what it was cancelled for."""
TIDY_INTERVAL_S: Final = 3600.0
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
    """Starts the scrubs that are due, and tidies up."""

    def __init__(
        self, pools: Pools, operations: Operations, checks: Checks, settings: ScrubSettings
    ) -> None:
        self._pools = pools
        self._operations = operations
        self._checks = checks
        self._settings = settings
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="schedule", daemon=True)

    def start(self) -> None:
        """Look after the pools from now on; once."""
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
        due: list[str] = []
        if not self._settings.interval_s:
            return due
        for name in self._pools.names():
            pool = self._pools.open(name)
            if not isinstance(pool.backend, SupportsVerify):
                continue
            try:
                health = health_of(pool)
                since_ns = max(health.first_time_ns, health.scrub_end_ns)
                is_due = time_ns - since_ns >= self._settings.interval_s * 1e9
                if is_due and not self._rests(pool, time_ns):
                    self._checks.scrub(
                        name,
                        heal=self._settings.heal,
                        bytes_per_s_max=self._settings.bytes_per_s_max,
                    )
                    due.append(name)
            except VolcoreError as err:
                _log.warning("scrub not started", pool=name, reason=err.reason, message=err.message)
        return due

    def tidy(self, time_ns: int) -> None:
        """Forget what ended long before `time_ns`."""
        for name in self._pools.names():
            try:
                self._operations.forget(self._pools.open(name), time_ns)
            except VolcoreError as err:
                _log.warning("not tidied", pool=name, reason=err.reason, message=err.message)

    def _rests(self, pool: Pool, time_ns: int) -> bool:
        """Tell whether a scrub of the pool was cancelled or failed a short while ago."""
        ended = (
            operation.end_time_ns
            for operation in pool.list(
                Operation, wanted=lambda o: o.action == SCRUB, leave_newer=True
            )
            if operation.phase in (Phase.CANCELLED, Phase.FAILED)
        )
        rest_s = min(REST_S, self._settings.interval_s)
        return time_ns - max(ended, default=0) < rest_s * 1e9

    def _run(self) -> None:
        tidied_s = time.monotonic()
        while not self._closing.is_set():
            self.look(now_ns())
            if time.monotonic() - tidied_s >= TIDY_INTERVAL_S:
                tidied_s = time.monotonic()
                self.tidy(now_ns())
            self._closing.wait(LOOK_INTERVAL_S)
