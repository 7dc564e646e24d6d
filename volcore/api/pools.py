"""PoolService."""

# ruff: noqa: D102, N802 - names and contracts of the methods are those of the .proto

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from volcore import limits
from volcore.api.interceptor import is_malformed, malformed
from volcore.api.listing import read_page
from volcore.api.services import Services
from volcore.api.views import fault_message, operation_message, pool_message
from volcore.engine.audit import Looked
from volcore.engine.exports import check_size, frames
from volcore.engine.rebuild import Rebuilt
from volcore.engine.views import PoolView
from volcore.errors import InvalidArgumentError, Reason
from volcore.v1 import pool_service_pb2 as pb
from volcore.v1.pool_service_pb2_grpc import PoolServiceServicer
from volcore.wire import names


class PoolServicer(PoolServiceServicer):
    """Pools."""

    def __init__(self, services: Services) -> None:
        self._pools = services.engine.pools
        self._checks = services.engine.checks
        self._audit = services.engine.audit
        self._rebuild = services.engine.rebuild
        self._exports = services.engine.exports
        self._importing = asyncio.Lock()
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
            self._pools.all_names(),
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

    async def RebuildCatalog(
        self, request: pb.RebuildCatalogRequest, context: Any
    ) -> AsyncIterator[pb.RebuildCatalogResponse]:
        name = names.parse_pool(request.name, field="name")
        found = self._rebuild.run(name.pool)
        while (one := await self._stream(next, found, None)) is not None:
            if isinstance(one, Rebuilt):
                end = pb.RebuildCatalogEnd(
                    record_count=one.record_count, stored_count=one.volume_count
                )
                yield pb.RebuildCatalogResponse(end=end)
            else:
                yield pb.RebuildCatalogResponse(fault=fault_message(one))

    async def ExportCatalog(
        self, request: pb.ExportCatalogRequest, context: Any
    ) -> AsyncIterator[pb.ExportCatalogResponse]:
        name = names.parse_pool(request.name, field="name")
        pieces = frames(self._exports.lines(name.pool), limits.FRAME_BYTES_MAX)
        while (data := await self._stream(next, pieces, None)) is not None:
            yield pb.ExportCatalogResponse(data=data)

    async def ImportCatalog(self, request_iterator: Any, context: Any) -> pb.ImportCatalogResponse:
        pool, data = "", bytearray()
        async with self._importing:  # one at a time: each is held in memory
            async for request in request_iterator:
                if is_malformed(request):
                    raise malformed()
                pool = pool or names.parse_pool(request.name, field="name").pool
                data += request.data
                check_size(len(data))
            if not pool:
                raise InvalidArgumentError(
                    "no message came; send the name of the pool and the bytes of an export",
                    reason=Reason.BAD_FIELD,
                    field="name",
                )
            count = await self._stream(self._exports.put, pool, bytes(data))
        return pb.ImportCatalogResponse(record_count=count)
