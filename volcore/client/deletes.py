"""The calls that delete volumes and images, described as those in `volcore.client.calls`."""

from volcore.client.calls import Call, nothing
from volcore.v1 import image_service_pb2, volume_service_pb2
from volcore.v1.volume_pb2 import Volume


def delete_volume(
    name: str, *, force: bool = False, etag: str = "", uid: str = "", purge: bool = False
) -> Call[None]:
    """Delete a volume, with `force` its snapshots too; deleting what is gone succeeds.

    It goes to the trash, where the pool has one, unless `purge`. With `uid` only the volume with
    that uid is deleted; with both, also one that is in the trash.
    """
    request = volume_service_pb2.DeleteVolumeRequest(
        name=name, force=force, etag=etag, uid=uid, purge=purge
    )
    return Call(service="VolumeService", rpc="DeleteVolume", request=request, take=nothing)


def undelete_volume(name: str, *, uid: str = "", volume_id: str = "") -> Call[Volume]:
    """Bring a volume back from the trash: the latest of this name, or that with `uid`.

    `volume_id` is its new name within the pool, by default the old one.
    """
    request = volume_service_pb2.UndeleteVolumeRequest(name=name, uid=uid, volume_id=volume_id)
    return Call(
        service="VolumeService", rpc="UndeleteVolume", request=request, take=lambda r: r.volume
    )


def delete_image(name: str) -> Call[None]:
    """Delete an image; volumes made from it keep working."""
    request = image_service_pb2.DeleteImageRequest(name=name)
    return Call(service="ImageService", rpc="DeleteImage", request=request, take=nothing)
