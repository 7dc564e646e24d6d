"""GroupSnapshotService."""

# ruff: noqa: D102, N802 - names and contracts of the methods are those of the .proto

from typing import Any

from volcore.api.listing import read_page
from volcore.api.services import Services
from volcore.api.views import group_snapshot_message
from volcore.engine.views import GroupSnapshotView
from volcore.errors import InvalidArgumentError, Reason
from volcore.v1 import group_snapshot_service_pb2 as pb
from volcore.v1.group_snapshot_service_pb2_grpc import GroupSnapshotServiceServicer
from volcore.wire import names


class GroupSnapshotServicer(GroupSnapshotServiceServicer):
    """Group snapshots."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._groups = services.engine.group_snapshots
        self._run = services.calls.run

    async def CreateGroupSnapshot(
        self, request: pb.CreateGroupSnapshotRequest, context: Any
    ) -> pb.CreateGroupSnapshotResponse:
        """See group_snapshot_service.proto, here and below."""
        pool = names.parse_pool(request.parent, field="parent").pool
        view = await self._run(
            self._groups.create,
            pool,
            request.group_snapshot_id,
            [_volume(pool, name) for name in request.volumes],
            labels=dict(request.labels),
        )
        return pb.CreateGroupSnapshotResponse(group_snapshot=group_snapshot_message(pool, view))

    async def GetGroupSnapshot(
        self, request: pb.GetGroupSnapshotRequest, context: Any
    ) -> pb.GetGroupSnapshotResponse:
        name = names.parse_group_snapshot(request.name, field="name")
        view = await self._run(self._groups.get, *name)
        return pb.GetGroupSnapshotResponse(group_snapshot=group_snapshot_message(name.pool, view))

    async def ListGroupSnapshots(
        self, request: pb.ListGroupSnapshotsRequest, context: Any
    ) -> pb.ListGroupSnapshotsResponse:
        def fetch(pool: str, after: str, limit: int) -> list[GroupSnapshotView]:
            return self._groups.list(pool, after=after, limit=limit)

        found, token = await self._run(
            read_page,
            request,
            self._services.pools(request.parent),
            fetch=fetch,
            key=lambda view: view.record.key,
            message=group_snapshot_message,
        )
        return pb.ListGroupSnapshotsResponse(group_snapshots=found, next_page_token=token)

    async def DeleteGroupSnapshot(
        self, request: pb.DeleteGroupSnapshotRequest, context: Any
    ) -> pb.DeleteGroupSnapshotResponse:
        name = names.parse_group_snapshot(request.name, field="name")
        await self._run(self._groups.delete, *name)
        return pb.DeleteGroupSnapshotResponse()


def _volume(pool: str, name: str) -> str:
    """Return the volume's name within `pool`."""
    found = names.parse_volume(name, field="volumes")
    if found.pool != pool:
        raise InvalidArgumentError(
            f"volume {name!r} is in another pool than {pool!r}; a group has volumes of one pool",
            reason=Reason.SOURCE_IN_OTHER_POOL,
            field="volumes",
        )
    return found.volume
