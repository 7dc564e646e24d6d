"""The server on the wire: ids, health, reflection, deadlines, odd requests."""

import asyncio
import subprocess
import sys
import threading
import time

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from volcore import limits
from volcore.client import AsyncClient, Client, RetryPolicy
from volcore.errors import InvalidArgumentError, Reason
from volcore.limits import MIB
from volcore.v1 import (
    image_pb2,
    image_service_pb2,
    image_service_pb2_grpc,
    operation_pb2,
)
from volcore.v1 import volume_service_pb2 as volumes
from volcore.v1.volume_service_pb2_grpc import VolumeServiceStub
from volcore.wire import paging

LARGE = ("grpc.max_send_message_length", -1)


@pytest.fixture
def channel(server):
    with grpc.insecure_channel(server.endpoint, options=[LARGE]) as channel:
        yield channel


@pytest.fixture
def client(server):
    with Client(server.endpoint, timeout_s=30) as client:
        yield client


def details(error):
    """ErrorInfo and the other details of a failed call."""
    metadata = dict(error.trailing_metadata())
    status = status_pb2.Status.FromString(metadata["grpc-status-details-bin"])
    info, request = error_details_pb2.ErrorInfo(), error_details_pb2.RequestInfo()
    assert status.details[0].Unpack(info)
    assert status.details[1].Unpack(request)
    assert status.message == error.details()
    return info, request


def refused(channel, path, body):
    """Send raw bytes to a method and return the error."""
    call = channel.unary_unary(path)
    with pytest.raises(grpc.RpcError) as caught:
        call(body)
    return caught.value


@pytest.mark.parametrize("given", ["", "req-7", "x" * 65, "sp ace"])
def test_request_ids(channel, given):
    """Goal: a well-formed id is kept, another is replaced; both sides of the answer have it."""
    metadata = (("x-request-id", given),) if given else ()
    request = volumes.GetVolumeRequest(name="pools/p/volumes/none")
    with pytest.raises(grpc.RpcError) as caught:
        VolumeServiceStub(channel).GetVolume(request, metadata=metadata)
    info, request_info = details(caught.value)
    answered = dict(caught.value.trailing_metadata())["x-request-id"]
    assert answered == request_info.request_id == info.metadata["request_id"]
    assert (answered == given) is (given == "req-7")
    _, call = VolumeServiceStub(channel).ListVolumes.with_call(
        volumes.ListVolumesRequest(parent="pools/p"), metadata=metadata
    )
    answered = dict(call.trailing_metadata())["x-request-id"]
    assert (answered == given) is (given == "req-7")
    assert (info.domain, info.reason) == ("volcore", "VOLUME_NOT_FOUND")


def test_access_log(server, channel):
    """Goal: the log has one line for each call, with the id that the client knows."""
    with pytest.raises(grpc.RpcError):
        VolumeServiceStub(channel).GetVolume(
            volumes.GetVolumeRequest(name="bad"), metadata=(("x-request-id", "log-me"),)
        )
    deadline = time.monotonic() + 10
    lines = []
    while not lines and time.monotonic() < deadline:
        lines = [line for line in server.log().splitlines() if "log-me" in line]
    assert len(lines) == 1
    assert '"method": "VolumeService/GetVolume"' in lines[0]
    assert '"reason": "BAD_NAME"' in lines[0]
    assert '"duration_ms"' in lines[0]


def test_health(channel):
    """Goal: health for the whole and for each service."""
    stub = health_pb2_grpc.HealthStub(channel)
    for service in ("", "volcore.v1.VolumeService", "volcore.v1.OperationService"):
        answer = stub.Check(health_pb2.HealthCheckRequest(service=service))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    with pytest.raises(grpc.RpcError) as caught:
        stub.Check(health_pb2.HealthCheckRequest(service="none"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_reflection(channel):
    """Goal: grpcurl works. Method: list the services and find one file."""
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    asked = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="volcore.v1.VolumeService"),
    ]
    listed, file = list(stub.ServerReflectionInfo(iter(asked)))
    names = {one.name for one in listed.list_services_response.service}
    assert {"volcore.v1.VolumeService", "grpc.health.v1.Health"} <= names
    assert len(names) == 10
    assert file.file_descriptor_response.file_descriptor_proto


def test_malformed(channel):
    """Goal: bytes that are no message are INVALID_ARGUMENT, and nothing is ever UNKNOWN."""
    error = refused(channel, "/volcore.v1.VolumeService/GetVolume", b"\xff\xff\xff")
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert details(error)[0].reason == "BAD_FIELD"
    bad_text = volumes.GetVolumeRequest(name="x").SerializeToString().replace(b"x", b"\xff")
    error = refused(channel, "/volcore.v1.VolumeService/GetVolume", bad_text)
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    error = refused(channel, "/volcore.v1.VolumeService/NoSuchCall", b"")
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED


def test_100_mib(server, channel):
    """Goal: a request of 100 MiB ends as RESOURCE_EXHAUSTED, and the server goes on."""
    error = refused(channel, "/volcore.v1.VolumeService/GetVolume", bytes(100 * MIB))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert VolumeServiceStub(channel).ListVolumes(volumes.ListVolumesRequest(parent="pools/p"))


@pytest.mark.parametrize(
    ("method", "request_message", "reason"),
    [
        ("GetVolume", volumes.GetVolumeRequest(name="pools/p/volumes/v", view=9), "BAD_FIELD"),
        (
            "UpdateVolume",
            volumes.UpdateVolumeRequest(
                volume={"name": "pools/p/volumes/v"}, update_mask={"paths": ["size_bytes"]}
            ),
            "BAD_FIELD",
        ),
        (
            "RevertVolume",
            volumes.RevertVolumeRequest(
                name="pools/p/volumes/v", snapshot="pools/p/volumes/w/snapshots/s"
            ),
            "BAD_FIELD",
        ),
        (
            "DeployVolumes",
            volumes.DeployVolumesRequest(image="pools/p/images/i", volume_ids=["a"], count=1),
            "BAD_FIELD",
        ),
        (
            "DeployVolumes",
            volumes.DeployVolumesRequest(
                image="pools/p/images/i",
                name_prefix="a",
                count=1000,
                labels={f"k{at}": "v" * 128 for at in range(64)},
            ),
            "MESSAGE_TOO_LARGE",
        ),
    ],
)
def test_odd_requests(channel, method, request_message, reason):
    with pytest.raises(grpc.RpcError) as caught:
        getattr(VolumeServiceStub(channel), method)(request_message)
    assert details(caught.value)[0].reason == reason


def test_page_tokens(server, channel, client):
    """Goal: a token that is old or of another call is refused."""
    request = volumes.ListVolumesRequest(parent="pools/p", page_size=1)
    old_s = time.time() - limits.PAGE_TOKEN_AGE_S_MAX - 5
    request.page_token = paging.encode_token(request, paging.Position("p", "a"), now_s=old_s)
    with pytest.raises(grpc.RpcError) as caught:
        VolumeServiceStub(channel).ListVolumes(request)
    info, _ = details(caught.value)
    assert info.reason == "BAD_PAGE_TOKEN"
    assert "expired" in caught.value.details()


def test_large_pages_are_cut(client):
    """Goal: a page never outgrows a message. Method: 600 volumes with 11 KiB of labels each."""
    labels = {f"k{at:02}{'x' * 50}": "v" * 128 for at in range(60)}
    client.create_volume("pools/p/volumes/big", size_bytes=MIB)
    client.publish_image(
        "pools/p/images/big", client.create_snapshot("pools/p/volumes/big/snapshots/s").name
    )
    names = []
    for part in range(4):
        made = client.deploy_volumes(
            "pools/p/images/big", name_prefix=f"large{part}", count=150, labels=labels
        )
        names += [volume.name for volume in made]
    listed = client.list_volumes("pools/p", filter="labels.k00" + "x" * 50 + ":*", page_size=1000)
    assert [volume.name for volume in listed] == sorted(names)
    for name in names:
        client.delete_volume(name)
    client.delete_image("pools/p/images/big")
    client.delete_volume("pools/p/volumes/big", force=True)


def test_deadlines(channel, client):
    """Goal: a deadline ends the wait, not the server. Method: delete what a stalled call holds."""
    gate = threading.Event()
    header = image_service_pb2.ImportHeader(parent="pools/p", image_id="stalled")

    def stalled():
        yield image_service_pb2.ImportImageRequest(header=header)
        gate.wait(60)

    stream = image_service_pb2_grpc.ImageServiceStub(channel).ImportImage(stalled())
    operation = next(stream).progress.name
    delete = image_service_pb2.DeleteImageRequest(name="pools/p/images/stalled")
    started = time.monotonic()
    with pytest.raises(grpc.RpcError) as caught:
        image_service_pb2_grpc.ImageServiceStub(channel).DeleteImage(delete, timeout=0.3)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert time.monotonic() - started < 5
    stream.cancel()
    gate.set()
    ended = client.wait_operation(operation)
    assert ended.phase == operation_pb2.OPERATION_PHASE_CANCELLED


def test_import_protocol(channel):
    """Goal: an import that breaks the order of messages is refused, and leaves nothing."""
    stub = image_service_pb2_grpc.ImageServiceStub(channel)
    ask = image_service_pb2.ImportImageRequest

    def header(**fields):
        return ask(header={"parent": "pools/p", "image_id": "odd", **fields})

    for messages in (
        [],
        [ask(data=b"x")],
        [header(), header()],
        [header(), ask(data=bytes(MIB + 1))],
        [header(upload_size_bytes=-1)],
        [header(upload_size_bytes=10), ask(data=b"x" * 11)],
        [header(upload_size_bytes=10), ask(data=b"x" * 9)],
        [header(format=77), ask(data=b"x")],
    ):
        with pytest.raises(grpc.RpcError) as caught:
            list(stub.ImportImage(iter(messages)))
        assert details(caught.value)[0].reason == "BAD_FIELD"
    with pytest.raises(grpc.RpcError):
        stub.GetImage(image_service_pb2.GetImageRequest(name="pools/p/images/odd"))


def test_import_of_a_killed_client(server, client, tmp_path):
    """Goal: half an upload is never an image. Method: kill the sender midway, ten times."""
    code = (
        "import os, signal, sys, time\n"
        "from volcore.client import Client\n"
        "def pieces():\n"
        "    yield bytes(1 << 20)\n"
        "    yield b'x' * (1 << 20)\n"
        "    time.sleep(float(sys.argv[2]))\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "Client(sys.argv[1]).import_image('pools/p/images/half', pieces(), format=1)\n"
    )

    for round_ in range(10):
        subprocess.run([sys.executable, "-c", code, server.endpoint, str(round_ * 0.02)])
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            running = [one for one in client.list_operations("pools/p") if one.phase in {1, 2}]
            if not running:
                break
        assert not running
        assert "pools/p/images/half" not in [one.name for one in client.list_images("pools/p")]


def test_export_stops_with_its_client(server, client, tmp_path):
    """Goal: an export that is dropped lets go of its image. Method: break off, then delete."""
    image = client.import_image(
        "pools/p/images/drop",
        [bytes([at + 1]) * MIB for at in range(24)],
        format=image_pb2.IMAGE_FORMAT_RAW,
    )
    with grpc.insecure_channel(server.endpoint) as channel:
        stub = image_service_pb2_grpc.ImageServiceStub(channel)
        stream = stub.ExportImage(image_service_pb2.ExportImageRequest(name=image.name))
        assert next(stream).file_size_bytes == image.size_bytes
        assert len(next(stream).data) <= limits.FRAME_BYTES_MAX
        stream.cancel()
    client.delete_image(image.name)


def test_wait_holds_no_thread(client):
    """Goal: waiting is free. Method: what has ended returns at once; bad times are refused."""
    ended = next(iter(client.list_operations("pools/p")))
    assert client.wait_operation(ended.name, timeout_s=600).name == ended.name
    for bad in (-1, 3601):
        with pytest.raises(Exception, match="timeout") as caught:
            client.wait_operation(ended.name, timeout_s=bad)
        assert caught.value.reason is Reason.BAD_FIELD


def test_private_socket(server):
    """Goal: only the owner gets in."""
    assert server.socket_path.stat().st_mode & 0o777 == 0o600
    assert server.socket_path.parent.stat().st_mode & 0o777 == 0o700


def test_endpoints():
    for bad in ("nowhere", "unix:", "h:0", "h:99999", "h:x", ",", "a:1,b"):
        with pytest.raises(InvalidArgumentError):
            Client(bad)


def test_a_burst_waits_its_turn(server, client):
    """Goal: more calls than the server takes at once wait, none is dropped. Method: 3000."""
    client.create_volume("pools/p/volumes/burst", size_bytes=MIB)

    async def burst():
        async with AsyncClient(server.endpoint, retry=RetryPolicy(tries_max=1)) as many:
            await many.get_volume("pools/p/volumes/burst")
            calls = (many.get_volume("pools/p/volumes/burst") for _ in range(3000))
            return await asyncio.gather(*calls)

    assert len({volume.uid for volume in asyncio.run(burst())}) == 1
    client.delete_volume("pools/p/volumes/burst")
