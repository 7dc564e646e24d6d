"""The calls that check stored blocks, described as those in `volcore.client.calls`."""

from volcore.client.calls import Call, int64
from volcore.v1 import (
    image_service_pb2,
    pool_service_pb2,
    snapshot_service_pb2,
    volume_service_pb2,
)
from volcore.v1.operation_pb2 import Operation


def verify_volume(name: str, *, heal: bool = False) -> Call[Operation]:
    """Start to verify what a volume shows, and with `heal` to repair it; returns the operation."""
    request = volume_service_pb2.VerifyVolumeRequest(name=name, heal=heal)
    return Call(
        service="VolumeService", rpc="VerifyVolume", request=request, take=lambda r: r.operation
    )


def verify_snapshot(name: str, *, heal: bool = False) -> Call[Operation]:
    """Start to verify a snapshot, and with `heal` to repair it; returns the operation."""
    request = snapshot_service_pb2.VerifySnapshotRequest(name=name, heal=heal)
    return Call(
        service="SnapshotService", rpc="VerifySnapshot", request=request, take=lambda r: r.operation
    )


def verify_image(name: str, *, heal: bool = False) -> Call[Operation]:
    """Start to verify an image, and with `heal` to repair it; returns the operation."""
    request = image_service_pb2.VerifyImageRequest(name=name, heal=heal)
    return Call(
        service="ImageService", rpc="VerifyImage", request=request, take=lambda r: r.operation
    )


def scrub_pool(name: str, *, heal: bool = False, max_rate_bytes: int = 0) -> Call[Operation]:
    """Start to verify everything in a pool; returns the operation.

    `max_rate_bytes` is read in a second at most; 0: as fast as it goes.
    """
    request = pool_service_pb2.ScrubPoolRequest(
        name=name, heal=heal, max_rate_bytes=int64(max_rate_bytes, "max_rate_bytes")
    )
    return Call(service="PoolService", rpc="ScrubPool", request=request, take=lambda r: r.operation)
