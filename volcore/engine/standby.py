"""Pools that another server has, and taking them over when it is gone; one thread.

The pools of a server are taken in the order of its configuration, and the next one only when the
one before is there: servers with the same configuration thus never share them out among each other,
and a call about all pools has one server that can answer it.

What is begun in another server's pool is settled by opening it: the server that was there is fenced
off first (`volcore.backends.rbd.lease`), then `engine.recover` does what it does at every start.
"""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Final, Protocol

import structlog

from volcore.engine.pools import Pools
from volcore.errors import Reason, VolcoreError
from volcore.limits import STANDBY_LOOK_S, STANDBY_RETRY_S

_NOBODY: Final = "none yet, look at the log of this one"
_log = structlog.get_logger("volcore.engine")


class Watch(Protocol):
    """Sees who has a pool."""

    endpoint: str
    """Where the last `holder` is reached; empty: not known, or not from here."""

    def holder(self) -> str:
        """Return the server that has it, empty if nobody that lives does.

        Raises:
            VolcoreError: that cannot be told now.
        """

    def close(self) -> None:
        """End what it needs to look, until the next look; idempotent."""


class Standby:
    """Waits for pools and takes them over."""

    def __init__(
        self,
        pools: Pools,
        waiting: Sequence[str],
        *,
        watch: Callable[[str], Watch],
        take: Callable[[str], None],
        on_all_taken: Callable[[], None],
    ) -> None:
        """Start to wait.

        Args:
            pools: told who has the pools.
            waiting: names of pools, in the order in which they are taken.
            watch: returns how to look at a pool.
            take: opens a pool and adds it to `pools`; POOL_LOCKED when somebody else was first.
            on_all_taken: called by the thread, once.
        """
        self._pools = pools
        self._waiting = list(waiting)
        self._watch = watch
        self._take = take
        self._on_all_taken = on_all_taken
        self._stop = threading.Event()
        pools.stand_by(self._waiting, _NOBODY)
        self._thread = threading.Thread(target=self._run, name="standby", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Take over nothing more; waits for what has begun."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while self._waiting and not self._stop.is_set():
            name = self._waiting[0]
            watch = self._watch(name)
            try:
                taken = self._await(name, watch)
            finally:
                watch.close()
            if taken:
                self._waiting.pop(0)
        if not self._waiting:
            self._on_all_taken()

    def _await(self, name: str, watch: Watch) -> bool:
        """Return True when the pool is open here, False when this is to end."""
        seen = None
        pause_s = 0.0
        while not self._stop.wait(pause_s):
            try:
                holder = watch.holder()
                if holder == "":
                    started_s = time.monotonic()
                    self._pools.stand_by(self._waiting, "")
                    self._take(name)
                    _log.info(
                        "pool taken over",
                        pool=name,
                        from_server=seen or "",
                        duration_ms=round((time.monotonic() - started_s) * 1000),
                    )
                    return True
            except VolcoreError as err:
                # Callers wait: whoever has it is to be told them anew, also if it is who had it.
                pause_s, seen = STANDBY_LOOK_S, None
                if err.reason is not Reason.POOL_LOCKED:
                    _log.warning(
                        "pool not taken over", pool=name, reason=err.reason, message=err.message
                    )
                    pause_s = STANDBY_RETRY_S
                    self._pools.stand_by(self._waiting, _NOBODY)
                    watch.close()  # who is fenced off in the middle of it needs a new connection
                continue
            except Exception:  # a bug: callers wait for the pool, and another try may do better
                _log.exception("pool not taken over", pool=name)
                pause_s, seen = STANDBY_RETRY_S, None
                self._pools.stand_by(self._waiting, _NOBODY)
                continue
            pause_s = STANDBY_LOOK_S
            if holder != seen:
                _log.info("standing by", pool=name, server=holder)
                seen = holder
                self._pools.stand_by(self._waiting, holder, watch.endpoint)
        return False
