"""PoolService."""

# ruff: noqa: D102, N802 - names and contracts of the methods are those of the .proto

from collections.abc import AsyncIterator
from typing import Any

from volcore.api.listing import read_page
from volcore.api.services import Services
from volcore.api.views import fault_message, operation_message, pool_message
from volcore.engine.audit import Looked
from volcore.engine.views import PoolView
from volcore.v1 import pool_service_pb2 as pb
from volcore.v1.pool_service_pb2_grpc import PoolServiceServicer
from volcore.wire import names


class PoolServicer(PoolServiceServicer):
    """Pools."""

    def __init__(self, services: Services) -> None:
        self._pools = services.engine.pools
        self._checks = services.engine.checks
        self._audit = services.engine.audit
        self._run = services.calls.run
        self._stream = services.streams.run

    async def GetPool(self, request: pb.GetPoolRequest, context: Any) -> pb.GetPoolResponse:
        """See pool_service.proto, here and below."""
        name = names.parse_pool(request.name, field="name")
        view = await self._run(self._pools.get, name.pool)
        return pb.GetPoolResponse(pool=pool_message(view))

    async def ListPools(self, request: pb.ListPoolsRequest, context: Any) -> pb.ListPoolsResponse:
        def fetch(pool: str, after: str, limit: int) -> list[PoolView]:
            return [] if after or not limit else [self._pools.get(pool)]

        found, token = await self._run(
            read_page,
            request,
            self._pools.names(),
            fetch=fetch,
            key=lambda view: view.name,
            message=lambda _pool, view: pool_message(view),
        )
        return pb.ListPoolsResponse(pools=found, next_page_token=token)

    async def ScrubPool(self, request: pb.ScrubPoolRequest, context: Any) -> pb.ScrubPoolResponse:
        name = names.parse_pool(request.name, field="name")
        operation = await self._run(
            self._checks.scrub,
            name.pool,
            heal=request.heal,
            bytes_per_s_max=request.max_rate_bytes,
        )
        return pb.ScrubPoolResponse(operation=operation_message(name.pool, operation))

    async def CheckPool(
        self, request: pb.CheckPoolRequest, context: Any
    ) -> AsyncIterator[pb.CheckPoolResponse]:
        name = names.parse_pool(request.name, field="name")
        found = self._audit.run(name.pool, repair=request.repair, objects=request.objects)
        # A caller who leaves ends it after the fault at hand.
        while (one := await self._stream(next, found, None)) is not None:
            if isinstance(one, Looked):
                end = pb.CheckPoolEnd(
                    record_count=one.record_count,
                    stored_count=one.volume_count,
                    truncated=one.is_cut,
                )
                yield pb.CheckPoolResponse(end=end)
            else:
                yield pb.CheckPoolResponse(fault=fault_message(one))
