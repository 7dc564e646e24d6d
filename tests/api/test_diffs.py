"""DiffSnapshot on the wire: messages, resuming, clients that go away."""

import asyncio

import grpc
import pytest

from volcore import limits
from volcore.client import AsyncClient
from volcore.errors import InvalidArgumentError, NotFoundError, OutOfRangeError, Reason
from volcore.limits import BLOCK_SIZE_BYTES, MIB
from volcore.testing.nbd_disk import NbdDisk
from volcore.v1.snapshot_pb2 import SnapshotExtent
from volcore.v1.snapshot_service_pb2 import DiffSnapshotRequest
from volcore.v1.snapshot_service_pb2_grpc import SnapshotServiceStub

COUNT = limits.EXTENTS_PER_MESSAGE_MAX + 10
SIZE = 64 * MIB
VOLUME = "pools/p/volumes/striped"
SNAPSHOT = f"{VOLUME}/snapshots/s"


@pytest.fixture(scope="module")
def striped(server):
    """A snapshot with more extents than one message holds: every other block is written."""
    with server.client() as client:
        client.create_volume(VOLUME, size_bytes=SIZE)
        client.create_snapshot(f"{VOLUME}/snapshots/blank")
        attachment = client.attach_volume(VOLUME, "h")
        with NbdDisk(server.directory / "run" / "nbd.sock", attachment.nbd.export_name) as disk:
            for number in range(COUNT):
                disk.write(number * 2 * BLOCK_SIZE_BYTES, b"x" * BLOCK_SIZE_BYTES)
            disk.flush()
        client.detach_volume(VOLUME, "h")
        client.create_snapshot(SNAPSHOT)
        yield client


def test_all_arrives(server, striped):
    """Goal: both clients return all, in bounded messages. Method: count, and the wire."""
    found = striped.diff_snapshot(SNAPSHOT, base_snapshot=f"{VOLUME}/snapshots/blank")
    expected = [
        SnapshotExtent(
            offset_bytes=number * 2 * BLOCK_SIZE_BYTES,
            length_bytes=BLOCK_SIZE_BYTES,
            kind=SnapshotExtent.KIND_DATA,
        )
        for number in range(COUNT)
    ]
    assert found == expected == striped.diff_snapshot(SNAPSHOT)
    start_bytes = expected[-2].offset_bytes
    assert striped.diff_snapshot(SNAPSHOT, starting_offset_bytes=start_bytes) == expected[-2:]

    async def twin():
        async with AsyncClient(server.endpoint) as client:
            return await client.diff_snapshot(SNAPSHOT)

    assert asyncio.run(twin()) == expected
    assert striped.get_pool("pools/p").capabilities.diff
    with grpc.insecure_channel(server.endpoint) as channel:
        messages = list(
            SnapshotServiceStub(channel).DiffSnapshot(DiffSnapshotRequest(name=SNAPSHOT))
        )
    assert [len(m.extents) for m in messages] == [limits.EXTENTS_PER_MESSAGE_MAX, 10]
    assert [m.size_bytes for m in messages] == [SIZE, 0]
    assert max(m.ByteSize() for m in messages) < limits.FRAME_BYTES_MAX


def test_refusals(striped):
    """Goal: one sentence and a stable reason. Method: each wrong field."""
    striped.create_volume("pools/p/volumes/other", size_bytes=MIB)
    other = striped.create_snapshot("pools/p/volumes/other/snapshots/s").name
    for base, said in ((other, "another volume"), ("nonsense", "base_snapshot")):
        with pytest.raises(InvalidArgumentError, match=said):
            striped.diff_snapshot(SNAPSHOT, base_snapshot=base)
    with pytest.raises(InvalidArgumentError, match="newer") as newer:
        striped.diff_snapshot(f"{VOLUME}/snapshots/blank", base_snapshot=SNAPSHOT)
    assert newer.value.reason is Reason.BAD_FIELD
    with pytest.raises(OutOfRangeError):
        striped.diff_snapshot(SNAPSHOT, starting_offset_bytes=SIZE + 1)
    with pytest.raises(NotFoundError):
        striped.diff_snapshot(f"{VOLUME}/snapshots/none")


def test_a_client_goes_away(server, striped):
    """Goal: no lock is left, and none is held while sending. Method: leave after one message."""
    gone = striped.create_snapshot(f"{VOLUME}/snapshots/gone").name
    with grpc.insecure_channel(server.endpoint) as channel:
        stream = SnapshotServiceStub(channel).DiffSnapshot(DiffSnapshotRequest(name=gone))
        assert next(stream).size_bytes == SIZE
        with server.client().with_options(timeout_s=10) as other:
            other.delete_snapshot(gone)
        stream.cancel()
    assert len(striped.diff_snapshot(SNAPSHOT)) == COUNT
