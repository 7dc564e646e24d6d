"""HostService."""

# ruff: noqa: D102, N802 - names and contracts of the methods are those of the .proto

from typing import Any

from volcore.api.listing import read_page
from volcore.api.services import Services
from volcore.api.views import fence_plan_message, fenced_host_message
from volcore.v1 import host_service_pb2 as pb
from volcore.v1.host_service_pb2_grpc import HostServiceServicer
from volcore.wire import names


class HostServicer(HostServiceServicer):
    """Fenced hosts."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._fences = services.engine.fences
        self._run = services.calls.run

    async def FenceHost(self, request: pb.FenceHostRequest, context: Any) -> pb.FenceHostResponse:
        """See host_service.proto, here and below."""
        pool = names.parse_pool(request.parent, field="parent").pool
        what = (pool, request.host, request.client_addresses)
        if request.validate_only:
            found, plan = await self._run(self._fences.plan, *what)
            host = None if found is None else fenced_host_message(pool, found)
            return pb.FenceHostResponse(fenced_host=host, plan=fence_plan_message(pool, plan))
        found = await self._run(
            self._fences.fence, *what, etag=request.etag, host_is_off=request.host_is_off
        )
        return pb.FenceHostResponse(fenced_host=fenced_host_message(pool, found))

    async def UnfenceHost(
        self, request: pb.UnfenceHostRequest, context: Any
    ) -> pb.UnfenceHostResponse:
        name = names.parse_fenced_host(request.name, field="name")
        await self._run(self._fences.unfence, *name)
        return pb.UnfenceHostResponse()

    async def GetFencedHost(
        self, request: pb.GetFencedHostRequest, context: Any
    ) -> pb.GetFencedHostResponse:
        name = names.parse_fenced_host(request.name, field="name")
        found = await self._run(self._fences.get, *name)
        return pb.GetFencedHostResponse(fenced_host=fenced_host_message(name.pool, found))

    async def ListFencedHosts(
        self, request: pb.ListFencedHostsRequest, context: Any
    ) -> pb.ListFencedHostsResponse:
        found, token = await self._run(
            read_page,
            request,
            self._services.pools(request.parent),
            fetch=lambda pool, after, limit: self._fences.list(pool, after=after, limit=limit),
            key=lambda record: record.key,
            message=fenced_host_message,
        )
        return pb.ListFencedHostsResponse(fenced_hosts=found, next_page_token=token)
