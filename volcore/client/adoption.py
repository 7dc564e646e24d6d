"""The calls that adopt, release and rename, described as those in `volcore.client.calls`."""

from volcore.client.calls import Call, Labels, Listing, int32
from volcore.v1 import volume_service_pb2 as volumes
from volcore.v1.adoptable_image_pb2 import AdoptableImage
from volcore.v1.image_pb2 import Image
from volcore.v1.image_service_pb2 import AdoptImageRequest, RbdSnapshot
from volcore.v1.snapshot_pb2 import Snapshot
from volcore.v1.snapshot_service_pb2 import RenameSnapshotRequest
from volcore.v1.volume_pb2 import Volume
from volcore.wire.names import split_child


def list_adoptable_images(
    parent: str, *, backend_name: str = "", page_size: int = 0
) -> Listing[AdoptableImage]:
    """List the rbd images of one pool that are no volumes, by name; or only `backend_name`."""
    return Listing(
        service="VolumeService",
        rpc="ListAdoptableImages",
        request=volumes.ListAdoptableImagesRequest(
            parent=parent,
            page_size=int32(page_size, "page_size"),
            backend_name=backend_name,
        ),
        items=lambda r: r.adoptable_images,
    )


def adopt_volume(name: str, backend_name: str, *, labels: Labels = None) -> Call[Volume]:
    """Make the rbd image `backend_name` the volume `name`, in place, with its snapshots."""
    parent, volume_id = split_child(name, "volumes")
    request = volumes.AdoptVolumeRequest(
        parent=parent, volume_id=volume_id, backend_name=backend_name, labels=labels or {}
    )
    return Call(
        service="VolumeService", rpc="AdoptVolume", request=request, take=lambda r: r.volume
    )


def adopt_image(name: str, source: RbdSnapshot, *, labels: Labels = None) -> Call[Image]:
    """Make an image of a snapshot of an rbd image that others made, without copying."""
    parent, image_id = split_child(name, "images")
    request = AdoptImageRequest(
        parent=parent, image_id=image_id, source=source, labels=labels or {}
    )
    return Call(service="ImageService", rpc="AdoptImage", request=request, take=lambda r: r.image)


def release_volume(name: str, *, backend_name: str = "") -> Call[str]:
    """Forget a volume and leave its rbd image to others, called `backend_name` or as it is.

    Returns the name of the rbd image; empty if there was no such volume.
    """
    request = volumes.ReleaseVolumeRequest(name=name, backend_name=backend_name)
    return Call(
        service="VolumeService", rpc="ReleaseVolume", request=request, take=lambda r: r.backend_name
    )


def rename_snapshot(name: str, snapshot_id: str) -> Call[Snapshot]:
    """Give a snapshot another name within its volume."""
    request = RenameSnapshotRequest(name=name, snapshot_id=snapshot_id)
    return Call(
        service="SnapshotService", rpc="RenameSnapshot", request=request, take=lambda r: r.snapshot
    )
