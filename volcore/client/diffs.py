"""What the sync and the async client share for diffs."""

from volcore.client.calls import int64
from volcore.v1.snapshot_pb2 import SnapshotExtent
from volcore.v1.snapshot_service_pb2 import DiffSnapshotRequest


def diff_request(name: str, base_snapshot: str, starting_offset_bytes: int) -> DiffSnapshotRequest:
    """Return the request."""
    return DiffSnapshotRequest(
        name=name,
        base_snapshot=base_snapshot,
        starting_offset_bytes=int64(starting_offset_bytes, "starting_offset_bytes"),
    )


def resume(request: DiffSnapshotRequest, found: list[SnapshotExtent]) -> None:
    """Make the request ask for what comes after the extents that have arrived."""
    if found:
        request.starting_offset_bytes = found[-1].offset_bytes + found[-1].length_bytes
