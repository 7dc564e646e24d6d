"""The standard health service: tells what was seen in the background, so a call costs nothing.

The whole server (the empty name) and each of volcore's services are SERVING while calls should come
here (`volcore.engine.reach.is_serving`); `pools/NAME` while that pool is reached. All are
NOT_SERVING from the start of the server to `open`, and from `stop` on.
"""

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Final

import structlog
from grpc_health.v1 import health, health_pb2

from volcore.engine.reach import Reach, is_serving
from volcore.limits import HEALTH_TELL_PERIOD_S
from volcore.wire.names import PoolName

_STATUS: Final = {
    True: health_pb2.HealthCheckResponse.SERVING,
    False: health_pb2.HealthCheckResponse.NOT_SERVING,
}
_log = structlog.get_logger("volcore.api")


class HealthReporter:
    """Keeps `servicer` true; belongs to one event loop."""

    def __init__(self, services: tuple[str, ...], see: Callable[[], Mapping[str, Reach]]) -> None:
        self.servicer = health.aio.HealthServicer()
        self._services = ("", *services)
        self._see = see
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Answer NOT_SERVING."""
        await self._tell(dict.fromkeys(self._services, False))

    async def open(self) -> None:
        """Tell what is seen, from now on."""
        seen = dict(self._see())
        await self._tell(self._told(seen))
        self._task = asyncio.create_task(self._follow(seen))

    async def stop(self) -> None:
        """Answer NOT_SERVING for good."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        await self.servicer.enter_graceful_shutdown()

    async def _follow(self, before: dict[str, Reach]) -> None:
        while True:
            await asyncio.sleep(HEALTH_TELL_PERIOD_S)
            seen = dict(self._see())
            if seen == before:
                continue
            for pool, reach in seen.items():
                if reach is not before.get(pool):
                    _log.warning("health", pool=pool, state=reach, serving=is_serving(seen))
            before = seen
            await self._tell(self._told(seen))

    def _told(self, seen: Mapping[str, Reach]) -> dict[str, bool]:
        told = dict.fromkeys(self._services, is_serving(seen))
        return told | {str(PoolName(pool)): reach is Reach.HERE for pool, reach in seen.items()}

    async def _tell(self, serving: Mapping[str, bool]) -> None:
        for service, good in serving.items():
            await self.servicer.set(service, _STATUS[good])
