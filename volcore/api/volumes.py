"""VolumeService."""

# ruff: noqa: D102, N802 - names and contracts of the methods are those of the .proto

from collections.abc import Sequence
from typing import Any, Final

from volcore import limits
from volcore.api.calls import request_id
from volcore.api.listing import read_page
from volcore.api.services import Services
from volcore.api.views import adoptable_message, operation_message
from volcore.backends.contract import VolumeFacts
from volcore.engine.views import CreateVolume, SourceRef
from volcore.errors import (
    InvalidArgumentError,
    OutOfRangeError,
    Reason,
    VolcoreError,
)
from volcore.model import records
from volcore.model.names import check_name
from volcore.v1 import volume_pb2
from volcore.v1 import volume_service_pb2 as pb
from volcore.v1.volume_service_pb2_grpc import VolumeServiceServicer
from volcore.wire import convert, filter, names, status

AnyVolume = records.Volume | records.TrashedVolume
_UPDATABLE: Final = {"labels"}
_ANSWER_BYTES_MAX: Final = limits.MESSAGE_BYTES_MAX // 2
"""What labels may take in the answer of one deployment; the other half is for the rest."""


class VolumeServicer(VolumeServiceServicer):
    """Volumes."""

    def __init__(self, services: Services) -> None:
        self._engine = services.engine
        self._services = services
        self._run = services.calls.run

    async def CreateVolume(
        self, request: pb.CreateVolumeRequest, context: Any
    ) -> pb.CreateVolumeResponse:
        """See volume_service.proto, here and below."""
        pool = names.parse_pool(request.parent, field="parent").pool
        wanted = CreateVolume(
            name=request.volume_id,
            source=_source(pool, request),
            size_bytes=request.size_bytes,
            labels=dict(request.labels),
        )
        volume = await self._run(self._engine.volumes.create, pool, wanted)
        return pb.CreateVolumeResponse(volume=convert.volume_message(pool, volume))

    async def DeployVolumes(
        self, request: pb.DeployVolumesRequest, context: Any
    ) -> pb.DeployVolumesResponse:
        image = names.parse_image(request.image, field="image")
        volume_names = _deploy_names(request)
        results = await self._run(
            self._engine.volumes.deploy,
            image.pool,
            image.image,
            volume_names,
            size_bytes=request.size_bytes,
            labels=dict(request.labels),
        )
        response = pb.DeployVolumesResponse()
        for name, result in zip(volume_names, results, strict=True):
            if isinstance(result, VolcoreError):
                error = status.to_status(result, request_id=request_id())
                response.results.add(volume_id=name, error=error)
            else:
                volume = convert.volume_message(image.pool, result)
                response.results.add(volume_id=name, volume=volume)
        return response

    async def GetVolume(self, request: pb.GetVolumeRequest, context: Any) -> pb.GetVolumeResponse:
        name = names.parse_volume(request.name, field="name")
        full = _is_full(request.view)

        def get() -> volume_pb2.Volume:
            record = self._engine.volumes.get(name.pool, name.volume)
            facts = self._engine.volumes.facts(name.pool, record) if full else None
            return _message(name.pool, record, facts)

        return pb.GetVolumeResponse(volume=await self._run(get))

    async def ListVolumes(
        self, request: pb.ListVolumesRequest, context: Any
    ) -> pb.ListVolumesResponse:
        wanted = filter.parse_filter(request.filter)
        full = _is_full(request.view)
        facts: dict[str, VolumeFacts] = {}

        volumes = self._engine.volumes
        records_of = volumes.list_with_deleted if request.show_deleted else volumes.list

        def fetch(pool: str, after: str, limit: int) -> Sequence[AnyVolume]:
            chosen = None if wanted is None else lambda volume: wanted(pool, volume)
            found = records_of(pool, after=after, limit=limit, wanted=chosen)
            if full:
                facts.update(volumes.facts_of(pool, [_volume(record) for record in found]))
            return found

        def message(pool: str, record: AnyVolume) -> volume_pb2.Volume | None:
            known = facts.get(_volume(record).backend_id)
            return None if full and known is None else _message(pool, record, known)

        found, token = await self._run(
            read_page,
            request,
            self._services.pools(request.parent),
            fetch=fetch,
            key=lambda record: record.key,
            message=message,
        )
        return pb.ListVolumesResponse(volumes=found, next_page_token=token)

    async def UpdateVolume(
        self, request: pb.UpdateVolumeRequest, context: Any
    ) -> pb.UpdateVolumeResponse:
        name = names.parse_volume(request.volume.name, field="volume.name")
        if other := set(request.update_mask.paths) - _UPDATABLE:
            raise InvalidArgumentError(
                f"update_mask names {min(other)[:40]!a}; only labels can be updated",
                reason=Reason.BAD_FIELD,
                field="update_mask",
            )
        volume = await self._run(
            self._engine.volumes.update_labels,
            name.pool,
            name.volume,
            dict(request.volume.labels),
            etag=request.volume.etag,
        )
        return pb.UpdateVolumeResponse(volume=convert.volume_message(name.pool, volume))

    async def ResizeVolume(
        self, request: pb.ResizeVolumeRequest, context: Any
    ) -> pb.ResizeVolumeResponse:
        name = names.parse_volume(request.name, field="name")
        volume = await self._run(
            self._engine.volumes.resize, name.pool, name.volume, request.size_bytes
        )
        return pb.ResizeVolumeResponse(volume=convert.volume_message(name.pool, volume))

    async def RevertVolume(
        self, request: pb.RevertVolumeRequest, context: Any
    ) -> pb.RevertVolumeResponse:
        name = names.parse_volume(request.name, field="name")
        snapshot = names.parse_snapshot(request.snapshot, field="snapshot")
        if (snapshot.pool, snapshot.volume) != name:
            raise InvalidArgumentError(
                f"snapshot {snapshot.snapshot!r} is of another volume than {name.volume!r}; name "
                "one of its own",
                reason=Reason.BAD_FIELD,
                field="snapshot",
            )
        volume = await self._run(
            self._engine.volumes.revert, name.pool, name.volume, snapshot.snapshot
        )
        return pb.RevertVolumeResponse(volume=convert.volume_message(name.pool, volume))

    async def FlattenVolume(
        self, request: pb.FlattenVolumeRequest, context: Any
    ) -> pb.FlattenVolumeResponse:
        name = names.parse_volume(request.name, field="name")
        operation = await self._run(self._engine.volumes.flatten, name.pool, name.volume)
        return pb.FlattenVolumeResponse(operation=operation_message(name.pool, operation))

    async def VerifyVolume(
        self, request: pb.VerifyVolumeRequest, context: Any
    ) -> pb.VerifyVolumeResponse:
        name = names.parse_volume(request.name, field="name")
        verify = self._engine.checks.verify_volume
        operation = await self._run(verify, *name, heal=request.heal)
        return pb.VerifyVolumeResponse(operation=operation_message(name.pool, operation))

    async def DeleteVolume(
        self, request: pb.DeleteVolumeRequest, context: Any
    ) -> pb.DeleteVolumeResponse:
        name = names.parse_volume(request.name, field="name")
        await self._run(
            self._engine.volumes.delete,
            name.pool,
            name.volume,
            force=request.force,
            etag=request.etag,
            uid=request.uid,
            purge=request.purge,
        )
        return pb.DeleteVolumeResponse()

    async def UndeleteVolume(
        self, request: pb.UndeleteVolumeRequest, context: Any
    ) -> pb.UndeleteVolumeResponse:
        name = names.parse_volume(request.name, field="name")
        volume = await self._run(
            self._engine.trash.undelete,
            name.pool,
            name.volume,
            uid=request.uid,
            new_name=request.volume_id,
        )
        return pb.UndeleteVolumeResponse(volume=convert.volume_message(name.pool, volume))

    async def ListAdoptableImages(
        self, request: pb.ListAdoptableImagesRequest, context: Any
    ) -> pb.ListAdoptableImagesResponse:
        pool = names.parse_pool(request.parent, field="parent").pool
        adoption = self._engine.adoption
        found, token = await self._run(
            read_page,
            request,
            [pool],
            fetch=lambda pool, after, limit: adoption.list(
                pool, after=after, limit=limit, name=request.backend_name
            ),
            key=lambda image: image.name,
            message=lambda _, image: adoptable_message(image),
        )
        return pb.ListAdoptableImagesResponse(adoptable_images=found, next_page_token=token)

    async def AdoptVolume(
        self, request: pb.AdoptVolumeRequest, context: Any
    ) -> pb.AdoptVolumeResponse:
        pool = names.parse_pool(request.parent, field="parent").pool
        volume = await self._run(
            self._engine.adoption.adopt,
            pool,
            request.volume_id,
            request.backend_name,
            labels=dict(request.labels),
        )
        return pb.AdoptVolumeResponse(volume=convert.volume_message(pool, volume))

    async def ReleaseVolume(
        self, request: pb.ReleaseVolumeRequest, context: Any
    ) -> pb.ReleaseVolumeResponse:
        name = names.parse_volume(request.name, field="name")
        left = await self._run(
            self._engine.adoption.release, name.pool, name.volume, request.backend_name
        )
        return pb.ReleaseVolumeResponse(backend_name=left)


def _volume(record: AnyVolume) -> records.Volume:
    return record.volume if isinstance(record, records.TrashedVolume) else record


def _message(pool: str, record: AnyVolume, facts: VolumeFacts | None) -> volume_pb2.Volume:
    """Return the message of a volume, with what the storage says of it."""
    if facts is None:
        return convert.volume_message(pool, record)
    return convert.volume_message(
        pool,
        record,
        allocated_bytes=facts.allocated_bytes,
        exclusive_bytes=facts.exclusive_bytes,
        depth=facts.depth,
    )


def _source(pool: str, request: pb.CreateVolumeRequest) -> SourceRef | None:
    """Return what to clone; sources are keys within the pool, so another pool ends here."""
    kind = request.WhichOneof("source")
    if kind is None:
        return None
    if kind == "image":
        image = names.parse_image(request.image, field="image")
        check_same_pool(pool, image.pool, field="image")
        return SourceRef(kind=records.SourceKind.IMAGE, key=image.image)
    if kind == "snapshot":
        snapshot = names.parse_snapshot(request.snapshot, field="snapshot")
        check_same_pool(pool, snapshot.pool, field="snapshot")
        key = f"{snapshot.volume}/{snapshot.snapshot}"
        return SourceRef(kind=records.SourceKind.SNAPSHOT, key=key)
    volume = names.parse_volume(request.volume, field="volume")
    check_same_pool(pool, volume.pool, field="volume")
    return SourceRef(kind=records.SourceKind.VOLUME, key=volume.volume)


def check_same_pool(pool: str, source_pool: str, *, field: str) -> None:
    """Refuse a source of another pool.

    Raises:
        InvalidArgumentError: SOURCE_IN_OTHER_POOL.
    """
    if source_pool != pool:
        raise InvalidArgumentError(
            f"the {field} is in pool {source_pool!r}, the target in {pool!r}; import or create it "
            f"in {pool!r} first",
            reason=Reason.SOURCE_IN_OTHER_POOL,
            field=field,
        )


def _deploy_names(request: pb.DeployVolumesRequest) -> list[str]:
    """Return the names of the new volumes."""
    by_prefix = bool(request.name_prefix) or request.count != 0
    if by_prefix == bool(request.volume_ids):
        raise InvalidArgumentError(
            "give either volume_ids, or name_prefix and count",
            reason=Reason.BAD_FIELD,
            field="volume_ids",
        )
    count = request.count if by_prefix else len(request.volume_ids)
    if not 1 <= count <= limits.DEPLOY_VOLUMES_MAX:
        raise OutOfRangeError(
            f"{count} volumes are asked for; one call deploys 1 to {limits.DEPLOY_VOLUMES_MAX}",
            reason=Reason.BAD_FIELD,
            field="count" if by_prefix else "volume_ids",
        )
    labels_bytes = sum(len(f"{k}{v}".encode()) for k, v in request.labels.items())
    if count * labels_bytes > _ANSWER_BYTES_MAX:
        raise OutOfRangeError(
            f"{count} volumes with {labels_bytes} bytes of labels each do not fit into one "
            "answer; deploy fewer at once",
            reason=Reason.MESSAGE_TOO_LARGE,
        )
    wanted = (
        [f"{request.name_prefix}-{number:04}" for number in range(1, count + 1)]
        if by_prefix
        else request.volume_ids
    )
    field = "name_prefix" if by_prefix else "volume_ids"
    return [check_name(name, field=field) for name in wanted]


def _is_full(view: int) -> bool:
    if view not in volume_pb2.VolumeView.values():
        raise InvalidArgumentError(
            f"view is {view}; use BASIC or FULL", reason=Reason.BAD_FIELD, field="view"
        )
    return view == volume_pb2.VOLUME_VIEW_FULL
