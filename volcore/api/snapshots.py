"""SnapshotService."""

# ruff: noqa: D102, N802 - names and contracts of the methods are those of the .proto

from collections.abc import AsyncIterator
from typing import Any, Final

from volcore import limits
from volcore.api.listing import read_page
from volcore.api.services import Services
from volcore.api.views import operation_message
from volcore.errors import InvalidArgumentError, Reason
from volcore.model import records
from volcore.model.extent import ExtentKind
from volcore.v1 import snapshot_service_pb2 as pb
from volcore.v1.snapshot_pb2 import SnapshotExtent
from volcore.v1.snapshot_service_pb2_grpc import SnapshotServiceServicer
from volcore.wire import convert, names

_KINDS: Final = {
    ExtentKind.DATA: SnapshotExtent.KIND_DATA,
    ExtentKind.ZERO: SnapshotExtent.KIND_ZERO,
}


class SnapshotServicer(SnapshotServiceServicer):
    """Snapshots."""

    def __init__(self, services: Services) -> None:
        self._snapshots = services.engine.snapshots
        self._checks = services.engine.checks
        self._diffs = services.engine.diffs
        self._run = services.calls.run
        self._stream = services.streams.run
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

    async def RenameSnapshot(
        self, request: pb.RenameSnapshotRequest, context: Any
    ) -> pb.RenameSnapshotResponse:
        name = names.parse_snapshot(request.name, field="name")
        snapshot = await self._run(self._snapshots.rename, *name, request.snapshot_id)
        return pb.RenameSnapshotResponse(snapshot=convert.snapshot_message(name.pool, snapshot))

    async def VerifySnapshot(
        self, request: pb.VerifySnapshotRequest, context: Any
    ) -> pb.VerifySnapshotResponse:
        name = names.parse_snapshot(request.name, field="name")
        operation = await self._run(self._checks.verify_snapshot, *name, heal=request.heal)
        return pb.VerifySnapshotResponse(operation=operation_message(name.pool, operation))

    async def DiffSnapshot(
        self, request: pb.DiffSnapshotRequest, context: Any
    ) -> AsyncIterator[pb.DiffSnapshotResponse]:
        name = names.parse_snapshot(request.name, field="name")
        diff = await self._stream(
            self._diffs.diff_snapshot,
            *name,
            base=_base(name, request.base_snapshot),
            start_bytes=request.starting_offset_bytes,
        )
        step, size_bytes = limits.EXTENTS_PER_MESSAGE_MAX, diff.size_bytes
        for first in range(0, len(diff.extents) or 1, step):
            extents = [
                SnapshotExtent(offset_bytes=offset, length_bytes=length, kind=_KINDS[kind])
                for offset, length, kind in diff.extents[first : first + step]
            ]
            yield pb.DiffSnapshotResponse(size_bytes=size_bytes, extents=extents)
            size_bytes = 0

    async def DeleteSnapshot(
        self, request: pb.DeleteSnapshotRequest, context: Any
    ) -> pb.DeleteSnapshotResponse:
        name = names.parse_snapshot(request.name, field="name")
        await self._wait(self._snapshots.delete, *name)
        return pb.DeleteSnapshotResponse()


def _base(name: names.SnapshotName, base: str) -> str | None:
    """Return the last part of the base's name; it must be of the same volume."""
    if not base:
        return None
    parsed = names.parse_snapshot(base, field="base_snapshot")
    if (parsed.pool, parsed.volume) != (name.pool, name.volume):
        raise InvalidArgumentError(
            f"base_snapshot {base!r} is of another volume than {str(name)!r}; name a snapshot of "
            "the same volume",
            reason=Reason.BAD_FIELD,
            field="base_snapshot",
        )
    return parsed.snapshot
