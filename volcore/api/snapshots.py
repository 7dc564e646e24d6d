"""SnapshotService."""

# ruff: noqa: D102, N802 - names and contracts of the methods are those of the .proto

from typing import Any

from volcore.api.listing import read_page
from volcore.api.services import Services
from volcore.api.views import operation_message
from volcore.model import records
from volcore.v1 import snapshot_service_pb2 as pb
from volcore.v1.snapshot_service_pb2_grpc import SnapshotServiceServicer
from volcore.wire import convert, names


class SnapshotServicer(SnapshotServiceServicer):
    """Snapshots."""

    def __init__(self, services: Services) -> None:
        self._snapshots = services.engine.snapshots
        self._checks = services.engine.checks
        self._run = services.calls.run
        self._wait = services.snapshots.run

    async def CreateSnapshot(
        self, request: pb.CreateSnapshotRequest, context: Any
    ) -> pb.CreateSnapshotResponse:
        """See snapshot_service.proto, here and below."""
        pool, volume = names.parse_volume(request.parent, field="parent")
        snapshot = await self._wait(
            self._snapshots.create, pool, volume, request.snapshot_id, labels=dict(request.labels)
        )
        return pb.CreateSnapshotResponse(snapshot=convert.snapshot_message(pool, snapshot))

    async def GetSnapshot(
        self, request: pb.GetSnapshotRequest, context: Any
    ) -> pb.GetSnapshotResponse:
        name = names.parse_snapshot(request.name, field="name")
        snapshot = await self._run(self._snapshots.get, *name)
        return pb.GetSnapshotResponse(snapshot=convert.snapshot_message(name.pool, snapshot))

    async def ListSnapshots(
        self, request: pb.ListSnapshotsRequest, context: Any
    ) -> pb.ListSnapshotsResponse:
        pool, volume = names.parse_volumes(request.parent, field="parent")

        def fetch(pool: str, after: str, limit: int) -> list[records.Snapshot]:
            return self._snapshots.list(pool, volume, after=after, limit=limit)

        found, token = await self._run(
            read_page,
            request,
            [pool],
            fetch=fetch,
            key=lambda record: record.key,
            message=convert.snapshot_message,
        )
        return pb.ListSnapshotsResponse(snapshots=found, next_page_token=token)

    async def VerifySnapshot(
        self, request: pb.VerifySnapshotRequest, context: Any
    ) -> pb.VerifySnapshotResponse:
        name = names.parse_snapshot(request.name, field="name")
        operation = await self._run(self._checks.verify_snapshot, *name, heal=request.heal)
        return pb.VerifySnapshotResponse(operation=operation_message(name.pool, operation))

    async def DeleteSnapshot(
        self, request: pb.DeleteSnapshotRequest, context: Any
    ) -> pb.DeleteSnapshotResponse:
        name = names.parse_snapshot(request.name, field="name")
        await self._wait(self._snapshots.delete, *name)
        return pb.DeleteSnapshotResponse()
