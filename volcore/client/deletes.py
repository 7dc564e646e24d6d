"""The calls that delete volumes and images, described as those in `volcore.client.calls`."""

from volcore.client.calls import Call, nothing
from volcore.v1 import image_service_pb2, volume_service_pb2


def delete_volume(name: str, *, force: bool = False, etag: str = "") -> Call[None]:
    """Delete a volume, with `force` its snapshots too; deleting what is gone succeeds."""
    request = volume_service_pb2.DeleteVolumeRequest(name=name, force=force, etag=etag)
    return Call(service="VolumeService", rpc="DeleteVolume", request=request, take=nothing)


def delete_image(name: str) -> Call[None]:
    """Delete an image; volumes made from it keep working."""
    request = image_service_pb2.DeleteImageRequest(name=name)
    return Call(service="ImageService", rpc="DeleteImage", request=request, take=nothing)
