"""The unary calls of the API, each described once; the sync and the async client both wrap them.

A function here takes what a caller says and returns a `Call` (or a `Listing`): request, rpc, and
what of the response is wanted. Resources go by their full names (`pools/p/volumes/v`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message

from volcore import limits
from volcore.errors import OutOfRangeError, Reason, VolcoreError
from volcore.v1 import attachment_pb2 as attachment
from volcore.v1 import attachment_service_pb2 as attachments
from volcore.v1 import group_snapshot_pb2 as group_snapshot_v1
from volcore.v1 import group_snapshot_service_pb2 as group_snapshots
from volcore.v1 import image_pb2 as image_v1
from volcore.v1 import image_service_pb2 as images
from volcore.v1 import operation_pb2 as operation
from volcore.v1 import operation_service_pb2 as operations
from volcore.v1 import pool_pb2 as pool_v1
from volcore.v1 import pool_service_pb2 as pools
from volcore.v1 import snapshot_pb2 as snapshot_v1
from volcore.v1 import snapshot_service_pb2 as snapshots
from volcore.v1 import volume_pb2 as volume_v1
from volcore.v1 import volume_service_pb2 as volumes
from volcore.wire import status
from volcore.wire.names import split_child

T = TypeVar("T")
Labels = Mapping[str, str] | None
WAIT_MARGIN_S: Final = 30.0
"""How much longer a waiting call may take than the wait it asks for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call(Generic[T]):
    """One unary call; `timeout_s` overrides the client's own."""

    service: str
    rpc: str
    request: Message
    take: Callable[[Any], T]
    timeout_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing(Generic[T]):
    """A list call; its pages are fetched one after another."""

    service: str
    rpc: str
    request: Any
    items: Callable[[Any], Sequence[T]]

    def page(self, token: str) -> Call[tuple[Sequence[T], str]]:
        """Return the call for the page at `token`; it gives items and the next token."""
        request = type(self.request)()
        request.CopyFrom(self.request)
        request.page_token = token
        return Call(
            service=self.service,
            rpc=self.rpc,
            request=request,
            take=lambda response: (self.items(response), response.next_page_token),
        )


# Volumes.


def create_volume(
    name: str,
    *,
    size_bytes: int = 0,
    image: str = "",
    snapshot: str = "",
    volume: str = "",
    labels: Labels = None,
) -> Call[volume_v1.Volume]:
    """Create a volume: blank, or a thin clone of an image, a snapshot or another volume.

    `size_bytes` 0 means the size of the source. The same call again returns the same volume.
    """
    parent, volume_id = split_child(name, "volumes")
    request = volumes.CreateVolumeRequest(
        parent=parent, volume_id=volume_id, size_bytes=int64(size_bytes), labels=labels or {}
    )
    for field, source in (("image", image), ("snapshot", snapshot), ("volume", volume)):
        if source:
            setattr(request, field, source)
    return Call(
        service="VolumeService", rpc="CreateVolume", request=request, take=lambda r: r.volume
    )


def deploy_volumes(
    image: str,
    volume_ids: Sequence[str] = (),
    *,
    name_prefix: str = "",
    count: int = 0,
    size_bytes: int = 0,
    labels: Labels = None,
) -> Call[list[volume_v1.Volume | VolcoreError]]:
    """Deploy an image to many new volumes: either `volume_ids`, or a prefix and a count.

    Each volume succeeds or fails by itself: the results, in order, are volumes and errors (context
    `volume` of an error names the volume).
    """
    return Call(
        service="VolumeService",
        rpc="DeployVolumes",
        request=volumes.DeployVolumesRequest(
            image=image,
            volume_ids=volume_ids,
            name_prefix=name_prefix,
            count=int32(count, "count"),
            size_bytes=int64(size_bytes),
            labels=labels or {},
        ),
        take=_deployed,
    )


def _deployed(
    response: volumes.DeployVolumesResponse,
) -> list[volume_v1.Volume | VolcoreError]:
    results: list[volume_v1.Volume | VolcoreError] = []
    for result in response.results:
        if result.HasField("volume"):
            results.append(result.volume)
            continue
        error = status.from_status(result.error)
        error.context["volume"] = result.volume_id
        results.append(error)
    return results


def get_volume(
    name: str, *, view: volume_v1.VolumeView = volume_v1.VOLUME_VIEW_BASIC
) -> Call[volume_v1.Volume]:
    """Return one volume; `view` FULL adds allocated_bytes and depth."""
    request = volumes.GetVolumeRequest(name=name, view=view)
    return Call(service="VolumeService", rpc="GetVolume", request=request, take=lambda r: r.volume)


def list_volumes(
    parent: str,
    *,
    filter: str = "",
    view: volume_v1.VolumeView = volume_v1.VOLUME_VIEW_BASIC,
    page_size: int = 0,
    show_deleted: bool = False,
) -> Listing[volume_v1.Volume]:
    """List volumes of `pools/p`, or of all pools (`pools/-`), in the order of their names.

    With `show_deleted` also those in the trash.
    """
    return Listing(
        service="VolumeService",
        rpc="ListVolumes",
        request=volumes.ListVolumesRequest(
            parent=parent,
            filter=filter,
            view=view,
            page_size=int32(page_size, "page_size"),
            show_deleted=show_deleted,
        ),
        items=lambda r: r.volumes,
    )


def update_volume(
    name: str, labels: Mapping[str, str], *, etag: str = ""
) -> Call[volume_v1.Volume]:
    """Replace the labels of a volume; `etag`, if given, must be the current one."""
    return Call(
        service="VolumeService",
        rpc="UpdateVolume",
        request=volumes.UpdateVolumeRequest(
            volume=volume_v1.Volume(name=name, labels=labels, etag=etag),
            update_mask=FieldMask(paths=["labels"]),
        ),
        take=lambda r: r.volume,
    )


def resize_volume(name: str, size_bytes: int) -> Call[volume_v1.Volume]:
    """Grow a volume; its present size again changes nothing."""
    request = volumes.ResizeVolumeRequest(name=name, size_bytes=int64(size_bytes))
    return Call(
        service="VolumeService", rpc="ResizeVolume", request=request, take=lambda r: r.volume
    )


def revert_volume(name: str, snapshot: str) -> Call[volume_v1.Volume]:
    """Make a volume equal to one of its snapshots (full name) again, size included."""
    request = volumes.RevertVolumeRequest(name=name, snapshot=snapshot)
    return Call(
        service="VolumeService", rpc="RevertVolume", request=request, take=lambda r: r.volume
    )


def flatten_volume(name: str) -> Call[operation.Operation]:
    """Start to copy what a volume shares with its ancestors; returns the operation."""
    request = volumes.FlattenVolumeRequest(name=name)
    return Call(
        service="VolumeService", rpc="FlattenVolume", request=request, take=lambda r: r.operation
    )


# Snapshots.


def create_snapshot(name: str, *, labels: Labels = None) -> Call[snapshot_v1.Snapshot]:
    """Freeze the content of a volume; the same call again returns the same snapshot."""
    parent, snapshot_id = split_child(name, "snapshots")
    return Call(
        service="SnapshotService",
        rpc="CreateSnapshot",
        request=snapshots.CreateSnapshotRequest(
            parent=parent, snapshot_id=snapshot_id, labels=labels or {}
        ),
        take=lambda r: r.snapshot,
    )


def get_snapshot(name: str) -> Call[snapshot_v1.Snapshot]:
    """Return one snapshot."""
    request = snapshots.GetSnapshotRequest(name=name)
    return Call(
        service="SnapshotService", rpc="GetSnapshot", request=request, take=lambda r: r.snapshot
    )


def list_snapshots(parent: str, *, page_size: int = 0) -> Listing[snapshot_v1.Snapshot]:
    """List snapshots of a volume, or of all volumes of a pool (`pools/p/volumes/-`)."""
    return Listing(
        service="SnapshotService",
        rpc="ListSnapshots",
        request=snapshots.ListSnapshotsRequest(
            parent=parent, page_size=int32(page_size, "page_size")
        ),
        items=lambda r: r.snapshots,
    )


def delete_snapshot(name: str) -> Call[None]:
    """Delete a snapshot; what was made from it keeps working."""
    request = snapshots.DeleteSnapshotRequest(name=name)
    return Call(service="SnapshotService", rpc="DeleteSnapshot", request=request, take=nothing)


# Group snapshots.


def create_group_snapshot(
    name: str, volumes: Sequence[str], *, labels: Labels = None
) -> Call[group_snapshot_v1.GroupSnapshot]:
    """Freeze several volumes (full names) of one pool at one instant, all or none."""
    parent, group_snapshot_id = split_child(name, "groupSnapshots")
    return Call(
        service="GroupSnapshotService",
        rpc="CreateGroupSnapshot",
        request=group_snapshots.CreateGroupSnapshotRequest(
            parent=parent,
            group_snapshot_id=group_snapshot_id,
            volumes=volumes,
            labels=labels or {},
        ),
        take=lambda r: r.group_snapshot,
    )


def get_group_snapshot(name: str) -> Call[group_snapshot_v1.GroupSnapshot]:
    """Return one group snapshot with its snapshots."""
    return Call(
        service="GroupSnapshotService",
        rpc="GetGroupSnapshot",
        request=group_snapshots.GetGroupSnapshotRequest(name=name),
        take=lambda r: r.group_snapshot,
    )


def list_group_snapshots(
    parent: str, *, page_size: int = 0
) -> Listing[group_snapshot_v1.GroupSnapshot]:
    """List group snapshots of `pools/p`, or of all pools (`pools/-`), in the order of names."""
    return Listing(
        service="GroupSnapshotService",
        rpc="ListGroupSnapshots",
        request=group_snapshots.ListGroupSnapshotsRequest(
            parent=parent, page_size=int32(page_size, "page_size")
        ),
        items=lambda r: r.group_snapshots,
    )


def delete_group_snapshot(name: str) -> Call[None]:
    """Delete a group snapshot and its snapshots; what was made from them keeps working."""
    return Call(
        service="GroupSnapshotService",
        rpc="DeleteGroupSnapshot",
        request=group_snapshots.DeleteGroupSnapshotRequest(name=name),
        take=nothing,
    )


# Images.


def publish_image(name: str, snapshot: str, *, labels: Labels = None) -> Call[image_v1.Image]:
    """Make an image from a snapshot without copying."""
    parent, image_id = split_child(name, "images")
    return Call(
        service="ImageService",
        rpc="PublishImage",
        request=images.PublishImageRequest(
            parent=parent, image_id=image_id, snapshot=snapshot, labels=labels or {}
        ),
        take=lambda r: r.image,
    )


def get_image(name: str) -> Call[image_v1.Image]:
    """Return one image."""
    request = images.GetImageRequest(name=name)
    return Call(service="ImageService", rpc="GetImage", request=request, take=lambda r: r.image)


def list_images(parent: str, *, page_size: int = 0) -> Listing[image_v1.Image]:
    """List images of `pools/p`, or of all pools (`pools/-`), in the order of their names."""
    return Listing(
        service="ImageService",
        rpc="ListImages",
        request=images.ListImagesRequest(parent=parent, page_size=int32(page_size, "page_size")),
        items=lambda r: r.images,
    )


# Attachments.


def attach_volume(
    volume: str,
    host: str,
    *,
    access_mode: attachment.AccessMode = attachment.ACCESS_MODE_READ_WRITE,
    hand_over_from: str = "",
    client_addresses: Sequence[str] = (),
) -> Call[attachment.Attachment]:
    """Give a host the right to use a volume; the answer tells it how.

    With `hand_over_from`, the host that may write now, it is on standby until `hand_over_volume`.
    The host's addresses in Ceph's network, if given, are what `fence_host` cuts off.
    """
    return Call(
        service="AttachmentService",
        rpc="AttachVolume",
        request=attachments.AttachVolumeRequest(
            volume=volume,
            host=host,
            access_mode=access_mode,
            hand_over_from=hand_over_from,
            client_addresses=client_addresses,
        ),
        take=lambda r: r.attachment,
    )


def hand_over_volume(volume: str, host: str) -> Call[attachment.Attachment]:
    """Move the right to write to a host on standby; the host that had it is on standby then."""
    return Call(
        service="AttachmentService",
        rpc="HandOverVolume",
        request=attachments.HandOverVolumeRequest(volume=volume, host=host),
        take=lambda r: r.attachment,
    )


def get_attachment(name: str) -> Call[attachment.Attachment]:
    """Return one attachment."""
    request = attachments.GetAttachmentRequest(name=name)
    return Call(
        service="AttachmentService",
        rpc="GetAttachment",
        request=request,
        take=lambda r: r.attachment,
    )


def list_attachments(parent: str, *, page_size: int = 0) -> Listing[attachment.Attachment]:
    """List attachments of a volume, or of all volumes of a pool (`pools/p/volumes/-`)."""
    return Listing(
        service="AttachmentService",
        rpc="ListAttachments",
        request=attachments.ListAttachmentsRequest(
            parent=parent, page_size=int32(page_size, "page_size")
        ),
        items=lambda r: r.attachments,
    )


def detach_volume(volume: str, host: str) -> Call[None]:
    """End a host's right to use a volume; detaching what is not attached succeeds."""
    request = attachments.DetachVolumeRequest(volume=volume, host=host)
    return Call(service="AttachmentService", rpc="DetachVolume", request=request, take=nothing)


# Pools and operations.


def get_pool(name: str) -> Call[pool_v1.Pool]:
    """Return one pool with its figures."""
    request = pools.GetPoolRequest(name=name)
    return Call(service="PoolService", rpc="GetPool", request=request, take=lambda r: r.pool)


def list_pools(*, page_size: int = 0) -> Listing[pool_v1.Pool]:
    """List all pools in the order of their names."""
    return Listing(
        service="PoolService",
        rpc="ListPools",
        request=pools.ListPoolsRequest(page_size=int32(page_size, "page_size")),
        items=lambda r: r.pools,
    )


def get_operation(name: str) -> Call[operation.Operation]:
    """Return one operation."""
    request = operations.GetOperationRequest(name=name)
    return Call(
        service="OperationService", rpc="GetOperation", request=request, take=lambda r: r.operation
    )


def list_operations(parent: str, *, page_size: int = 0) -> Listing[operation.Operation]:
    """List operations of `pools/p`, or of all pools (`pools/-`), running and finished ones."""
    return Listing(
        service="OperationService",
        rpc="ListOperations",
        request=operations.ListOperationsRequest(
            parent=parent, page_size=int32(page_size, "page_size")
        ),
        items=lambda r: r.operations,
    )


def wait_operation(
    name: str, *, timeout_s: float = limits.WAIT_TIMEOUT_S_MAX
) -> Call[operation.Operation]:
    """Wait until an operation has ended or the timeout has passed; return it as it is then."""
    timeout = Duration(seconds=int(timeout_s), nanos=int(timeout_s % 1 * 1e9))
    return Call(
        service="OperationService",
        rpc="WaitOperation",
        request=operations.WaitOperationRequest(name=name, timeout=timeout),
        take=lambda r: r.operation,
        timeout_s=timeout_s + WAIT_MARGIN_S,
    )


def cancel_operation(name: str) -> Call[operation.Operation]:
    """Ask an operation to stop; cancelling what has ended changes nothing."""
    request = operations.CancelOperationRequest(name=name)
    return Call(
        service="OperationService",
        rpc="CancelOperation",
        request=request,
        take=lambda r: r.operation,
    )


def nothing(_response: object) -> None:
    """Take nothing of a response."""


def int64(size_bytes: int, field: str = "size_bytes") -> int:
    """Return a number that a message can hold, or raise OutOfRangeError naming the field."""
    if -(1 << 63) <= size_bytes < 1 << 63:
        return size_bytes
    raise OutOfRangeError(
        f"{field} is {size_bytes}; it must be at most {limits.VOLUME_SIZE_BYTES_MAX} bytes",
        reason=Reason.SIZE_NOT_ALLOWED,
        field=field,
    )


def int32(number: int, field: str) -> int:
    """Return a number that a message can hold, or raise OutOfRangeError naming the field."""
    if -(1 << 31) <= number < 1 << 31:
        return number
    raise OutOfRangeError(
        f"{field} is {number}; it must fit into 32 bits", reason=Reason.BAD_FIELD, field=field
    )
