"""What every servicer has: the engine, the threads that call it, and files handed over."""

from dataclasses import dataclass

from volcore.api.calls import CallPool
from volcore.api.handover import HandedFiles
from volcore.engine.engine import Engine
from volcore.errors import UnavailableError
from volcore.wire import names


@dataclass(frozen=True, slots=True)
class Services:
    """Passed to every servicer.

    `calls` runs what ends soon; `snapshots` what waits side by side, mostly for others; `streams`
    what moves bytes for long, so that none can starve the others.
    """

    engine: Engine
    calls: CallPool
    snapshots: CallPool
    streams: CallPool
    files: HandedFiles

    async def here(self, pool: str, *, names_file: bool) -> None:
        """Return if this server has the pool, before a stream to it is read.

        Raises:
            NotFoundError: POOL_NOT_FOUND.
            UnavailableError: POOL_ELSEWHERE, without an endpoint if a file of this host is named.
        """
        try:
            await self.calls.run(self.engine.pools.open, pool)
        except UnavailableError as err:
            if names_file:
                err.context.pop("endpoint", None)
            raise

    def pools(self, parent: str) -> list[str]:
        """Return the pools that a list call's parent means.

        Raises:
            UnavailableError: POOL_ELSEWHERE, it means pools that this server does not have now.
        """
        pool = names.parse_pools(parent, field="parent")
        return self.engine.pools.all_names() if pool is None else [pool]
