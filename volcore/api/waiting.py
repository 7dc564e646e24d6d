"""Calls that wait for a pool which another server may have by now are ended.

A server that is cut off from its storage hangs in it for minutes; another one has the pool after
seconds. A caller that knows several servers (`DIRECT_KEY`) is sent on. Any other one has nobody
else to ask, and its call may still succeed: the lock is taken again if nobody came meanwhile.

What the call has begun goes on in its thread, as after a deadline that has passed: if another
server comes, this one is fenced off first, and that one settles it as after a crash; if none does,
the repeated call meets it here.
"""

import asyncio
from collections.abc import Callable, Collection
from typing import Any, Final

from volcore.errors import Reason, UnavailableError
from volcore.limits import HEALTH_TELL_PERIOD_S
from volcore.wire.channels import DIRECT_KEY

_POOLS: Final = "pools/"


class Waiting:
    """Calls under way; belongs to one event loop."""

    def __init__(self, away: Callable[[], Collection[str]]) -> None:
        """`away` returns the pools that another server may have; it must not block."""
        self._away = away
        self._calls: dict[asyncio.Task[Any], tuple[Any, Any]] = {}
        self._ended: dict[asyncio.Task[Any], str] = {}
        self._task: asyncio.Task[None] | None = None

    def add(self, task: asyncio.Task[Any], request: Any, context: Any) -> None:
        """Remember a call that begins."""
        self._calls[task] = request, context

    def drop(self, task: asyncio.Task[Any]) -> None:
        """Forget a call that has ended."""
        self._calls.pop(task, None)
        self._ended.pop(task, None)

    def refusal(self, task: asyncio.Task[Any]) -> UnavailableError | None:
        """Return what a call is told that was cancelled here, None if it was not."""
        pool = self._ended.get(task)
        if pool is None:
            return None
        return UnavailableError(
            f"this server could not renew its lock on pool {pool}, so another one may have it, and"
            " whether the call took effect is not known; repeat it, there if that one has the pool",
            reason=Reason.CLUSTER_UNREACHABLE,
            retryable=True,
            pool=pool,
        )

    def start(self) -> None:
        """Look from now on; idempotent."""
        if self._task is None:
            self._task = asyncio.create_task(self._follow())

    def stop(self) -> None:
        """Look no more; idempotent."""
        if self._task is not None:
            self._task.cancel()
            self._task = None

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(HEALTH_TELL_PERIOD_S)
            if away := self._away():
                self._end(away)

    def _end(self, away: Collection[str]) -> None:
        for task, (request, context) in list(self._calls.items()):
            pool = _pool_of(request)
            if pool in away and task not in self._ended and _knows_others(context):
                self._ended[task] = pool
                task.cancel()


def _knows_others(context: Any) -> bool:
    return any(key == DIRECT_KEY for key, _ in context.invocation_metadata() or ())


def _pool_of(request: Any) -> str:
    """Return the pool that the first name in a request lies in, empty if there is none."""
    if not hasattr(request, "ListFields"):  # a stream
        return ""
    for _, value in request.ListFields():
        name = value if isinstance(value, str) else getattr(value, "name", "")
        if isinstance(name, str) and name.startswith(_POOLS):
            return name.split("/", 2)[1]
    return ""
