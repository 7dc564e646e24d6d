"""Pages of list calls, by their bytes."""

import pytest

from volcore import limits
from volcore.api.listing import read_page
from volcore.v1 import group_snapshot_pb2, snapshot_pb2
from volcore.v1 import group_snapshot_service_pb2 as service

LABELS = {f"{number:063}": "v" * 128 for number in range(limits.LABELS_MAX)}


def large(name: str, volumes: int) -> group_snapshot_pb2.GroupSnapshot:
    """Return a group snapshot with as many labels as may be."""
    members = [snapshot_pb2.Snapshot(name=name, labels=LABELS)] * volumes
    return group_snapshot_pb2.GroupSnapshot(name=name, labels=LABELS, snapshots=members)


@pytest.mark.parametrize("volumes", [1, 60, limits.GROUP_VOLUMES_MAX])
@pytest.mark.parametrize("count", [1, 5, 11])
def test_pages_fit_into_messages(count: int, volumes: int) -> None:
    """Goal: whatever is stored can be listed. Method: large items, followed to the end."""
    names = [f"g{number:02}" for number in range(count)]
    request = service.ListGroupSnapshotsRequest(parent="pools/p")
    seen: list[str] = []
    while True:
        found, token = read_page(
            request,
            ["p"],
            fetch=lambda _, after, limit: [name for name in names if name > after][:limit],
            key=str,
            message=lambda _, name: large(name, volumes),
        )
        page = service.ListGroupSnapshotsResponse(group_snapshots=found, next_page_token=token)
        assert page.ByteSize() <= limits.MESSAGE_BYTES_MAX
        seen += [item.name for item in found]
        if not token:
            break
        request.page_token = token
    assert seen == names
