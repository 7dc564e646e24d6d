"""The client: retries, deadlines, several endpoints, the async twin, files."""

import asyncio
import inspect
import io
import os
import shutil
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from volcore.client import (
    AsyncClient,
    Client,
    ClientTls,
    RetryPolicy,
    adoption,
    calls,
    checks,
    deletes,
)
from volcore.client.channel import Connections
from volcore.client.retry import Tries, worth_repeating
from volcore.errors import (
    BackendIOError,
    ConflictError,
    DeadlineError,
    ExhaustedError,
    InvalidArgumentError,
    NotFoundError,
    OperationPendingError,
    OutOfRangeError,
    Reason,
    UnavailableError,
    VolcoreError,
)
from volcore.limits import MIB
from volcore.testing import held_server
from volcore.testing.server import RunningServer
from volcore.v1 import image_pb2, pool_pb2, pool_service_pb2
from volcore.wire import status
from volcore.wire.channels import DIRECT_KEY

FAST = RetryPolicy(delay_s=0.01, delay_s_max=0.02)


@pytest.fixture(scope="module")
def server():
    directory = Path(tempfile.mkdtemp(prefix="volcore-c-"))
    try:
        with RunningServer(directory, 'backend = "memory"\n') as running:
            yield running
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def client(server):
    with Client(server.endpoint, timeout_s=30) as client:
        yield client


class Flaky:
    """A PoolService that fails with the given errors first; keeps the ids and deadlines it saw."""

    def __init__(self, *failures: VolcoreError) -> None:
        self.failures = list(failures)
        self.seen: list[tuple[str, float]] = []

    def __call__(self, request, context):
        request_id = dict(context.invocation_metadata())["x-request-id"]
        self.seen.append((request_id, context.time_remaining()))
        if self.failures:
            abort = status.to_abort(self.failures.pop(0), request_id=request_id)
            context.set_trailing_metadata(abort.trailing_metadata)
            context.abort(abort.code, abort.message)
        return pool_service_pb2.GetPoolResponse(pool=pool_pb2.Pool(name=request.name))


@pytest.fixture
def serve(tmp_path):
    """Start a server whose GetPool is a `Flaky`; returns its endpoint."""
    servers = []

    def start(answer):
        handler = grpc.unary_unary_rpc_method_handler(
            answer,
            request_deserializer=pool_service_pb2.GetPoolRequest.FromString,
            response_serializer=pool_service_pb2.GetPoolResponse.SerializeToString,
        )
        made = grpc.server(ThreadPoolExecutor(2))
        made.add_generic_rpc_handlers(
            [grpc.method_handlers_generic_handler("volcore.v1.PoolService", {"GetPool": handler})]
        )
        port = made.add_insecure_port("127.0.0.1:0")
        made.start()
        servers.append(made)
        return f"127.0.0.1:{port}"

    yield start
    for one in servers:
        one.stop(0)


def unavailable():
    return UnavailableError("down", reason=Reason.SHUTTING_DOWN, retryable=True)


def pending(*, retryable=True):
    return OperationPendingError("busy", reason=Reason.OPERATION_PENDING, retryable=retryable)


def test_retries_by_class(serve):
    """Goal: what may pass is tried again, with one request id. Method: fail three ways first."""
    busy = ExhaustedError("full", reason=Reason.TOO_MANY_REQUESTS, retryable=True)
    answer = Flaky(unavailable(), pending(), busy)
    with Client(serve(answer), retry=FAST) as client:
        assert client.get_pool("pools/p").name == "pools/p"
    assert len(answer.seen) == 4
    assert len({request_id for request_id, _ in answer.seen}) == 1


@pytest.mark.parametrize(
    "error",
    [
        pending(retryable=False),
        ExhaustedError("full", reason=Reason.POOL_FULL, retryable=True),
        NotFoundError("none", reason=Reason.POOL_NOT_FOUND),
        ConflictError("taken", reason=Reason.NAME_TAKEN),
        DeadlineError("late", reason=Reason.DEADLINE_PASSED),
        BackendIOError("bad disk", reason=Reason.BACKEND_IO),
    ],
    ids=lambda error: type(error).__name__,
)
def test_no_retry(serve, error):
    answer = Flaky(error, error)
    with Client(serve(answer), retry=FAST) as client, pytest.raises(type(error)) as caught:
        client.get_pool("pools/p")
    assert len(answer.seen) == 1
    assert caught.value.reason is error.reason
    assert caught.value.context["request_id"] == answer.seen[0][0]
    assert not worth_repeating(error)


def test_tries_end(serve):
    """Goal: a dead server is given up. Method: count the tries; then a short deadline."""
    answer = Flaky(*[unavailable()] * 100)
    with Client(serve(answer), retry=FAST) as client, pytest.raises(UnavailableError):
        client.get_pool("pools/p")
    assert len(answer.seen) == FAST.tries_max
    slow = RetryPolicy(delay_s=10, delay_s_max=10)
    started = time.monotonic()
    with (
        Client(serve(answer), retry=slow, timeout_s=0.5) as client,
        pytest.raises(UnavailableError),
    ):
        client.get_pool("pools/p")
    assert time.monotonic() - started < 3


def test_deadline_covers_all_tries(serve):
    answer = Flaky(unavailable(), unavailable())
    with Client(serve(answer), timeout_s=5, retry=FAST) as client:
        client.get_pool("pools/p")
    left = [seconds for _, seconds in answer.seen]
    assert len(left) == 3
    assert max(left) <= 5.1  # on the wire it is rounded up


def test_pauses_grow():
    """Goal: back-off with jitter, bounded. Method: look at the pauses of one call."""
    tries = Tries(RetryPolicy(tries_max=8, delay_s=0.1, delay_s_max=1.0), None)
    pauses = [tries.pause_after(unavailable()) for _ in range(8)]
    assert pauses[-1] is None
    for at, pause in enumerate(pauses[:-1]):
        bound = min(1.0, 0.1 * 2**at)
        assert bound / 2 <= pause <= bound


def test_next_endpoint(serve):
    """Goal: with several servers, a dead one is passed over. Method: the first does not exist."""
    live = serve(Flaky())
    with Client(f"unix:///nowhere.sock,{live}", retry=FAST) as client:
        assert client.get_pool("pools/p").name == "pools/p"
        assert client.get_pool("pools/q").name == "pools/q"


def test_a_frozen_server_is_given_up(server, serve):
    """Goal: the call ends at another one within seconds. Method: SIGSTOP behind some calls.

    The kernel still takes what is sent to it: only a ping that is not answered tells.
    """
    other = Flaky()
    with Client(f"{server.endpoint},{serve(other)}", timeout_s=60) as client:
        for _ in range(30):
            client.get_pool("pools/p")
            time.sleep(0.05)  # so that gRPC measures the line with the last ones, too
        server.freeze()
        try:
            began_s = time.monotonic()
            client.get_pool("pools/p")
            assert time.monotonic() - began_s < 25
            assert len(other.seen) == 1
        finally:
            server.thaw()


def test_every_endpoint_is_tried_before_a_pause():
    """Goal: a dead server costs no wait, and both dead no storm. Method: look at the pauses."""
    policy = RetryPolicy(tries_max=1, failover_s=60)
    tries = Tries(policy, None, endpoint_count=3)
    pauses = [tries.pause_after(unavailable()) for _ in range(30)]
    assert [pause == 0 for pause in pauses] == [True, True, False] * 10
    assert 0.05 <= pauses[2] <= 0.1
    assert all(policy.failover_delay_s_max / 2 <= pause <= 0.25 for pause in pauses[8::3])
    assert tries.pause_after(ConflictError("no", reason=Reason.NAME_TAKEN)) is None
    over = Tries(RetryPolicy(failover_s=0), None, endpoint_count=2)
    assert over.pause_after(unavailable()) is None


def test_a_caller_asks_all_before_it_is_forwarded():
    """Goal: no second hop where it is not needed. Method: what the tries of a call tell servers."""
    tries = Tries(RetryPolicy(failover_s=60), None, endpoint_count=2)
    told = []
    for _ in range(4):
        told.append(tries.metadata)
        tries.pause_after(unavailable())
    assert told == [((DIRECT_KEY, "1"),)] * 2 + [()] * 2
    assert Tries(RetryPolicy(), None).metadata == ()


def test_failover_outlasts_the_tries(serve):
    """Goal: a take-over of some seconds fails no call. Method: two servers, down for long."""
    one, other = Flaky(*[unavailable()] * 9), Flaky(*[unavailable()] * 20)
    policy = RetryPolicy(tries_max=2, failover_delay_s_max=0.02)
    with Client(f"{serve(one)},{serve(other)}", retry=policy) as client:
        assert client.get_pool("pools/p").name == "pools/p"
    assert (len(one.seen), len(other.seen)) == (10, 9)
    assert len({request_id for request_id, _ in one.seen + other.seen}) == 1


def test_callers_turn_together():
    """Goal: nobody turns back to the dead one. Method: many that failed at the same endpoint."""
    connections = Connections(("a", "b"), lambda target: grpc.insecure_channel(f"unix:/{target}"))
    at, _ = connections.method("PoolService", "GetPool")
    for _ in range(16):
        connections.turn_from(at)
    assert connections.target == "b"
    for channel in connections.drain():
        channel.close()


def test_no_server():
    with (
        Client("unix:///nowhere.sock", retry=FAST) as client,
        pytest.raises(UnavailableError) as caught,
    ):
        client.get_pool("pools/p")
    assert caught.value.reason is Reason.SERVER_UNREACHABLE
    assert "No such file" in caught.value.message
    assert caught.value.context["request_id"]


def test_deadline(serve):
    def slow(request, context):
        time.sleep(1)
        return pool_service_pb2.GetPoolResponse()

    with Client(serve(slow), timeout_s=0.2) as client, pytest.raises(DeadlineError) as caught:
        client.get_pool("pools/p")
    assert caught.value.reason is Reason.DEADLINE_PASSED


def test_values_that_cannot_be_sent(client):
    """Goal: no exception of protobuf or gRPC gets out."""
    with pytest.raises(OutOfRangeError):
        client.create_volume("pools/p/volumes/v", size_bytes=2**63)
    with pytest.raises(OutOfRangeError):
        client.deploy_volumes("pools/p/images/i", name_prefix="a", count=2**40)
    with pytest.raises(InvalidArgumentError):
        client.get_volume("pools/p/volumes/\ud800")
    with pytest.raises(InvalidArgumentError):
        client.create_volume("nonsense", size_bytes=MIB)
    with pytest.raises(InvalidArgumentError):
        client.import_image("pools/p/images/i")
    with pytest.raises(InvalidArgumentError):
        client.import_image("pools/p/images/i", "/nowhere/at/all")
    with pytest.raises(InvalidArgumentError):
        ClientTls(ca=Path("/nowhere")).credentials()


def test_both_clients_have_all_calls():
    """Goal: sync and async are twins. Method: compare names and signatures."""
    names = {
        name
        for module in (adoption, calls, checks, deletes)
        for name, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == module.__name__ and name[0] != "_"
    } - {"int32", "int64", "nothing"}
    assert len(names) == 42
    for name in names | {"import_image", "export_image", "diff_snapshot", "with_options"}:
        sync, twin = getattr(Client, name), getattr(AsyncClient, name)
        assert list(inspect.signature(sync).parameters) == list(
            inspect.signature(twin).parameters
        ), name
        assert sync.__doc__


CONTENT = os.urandom(3 * MIB) + bytes(2 * MIB) + os.urandom(MIB)


@pytest.mark.parametrize("kind", ["path", "file", "bytes", "one piece"])
def test_sources(client, tmp_path, kind):
    """Goal: a path, a file and an iterator all do. Method: the same content from each."""
    path = tmp_path / "in.raw"
    path.write_bytes(CONTENT)
    name = f"pools/p/images/{kind.replace(' ', '')}"
    with path.open("rb") as file:
        source = {
            "path": path,
            "file": file,
            "bytes": io.BytesIO(CONTENT),
            "one piece": [CONTENT],
        }[kind]
        image = client.import_image(name, source, format=image_pb2.IMAGE_FORMAT_RAW)
    assert image.size_bytes == len(CONTENT)
    target = tmp_path / "out.raw"
    seen = []
    client.export_image(name, target, on_bytes=lambda done, total: seen.append((done, total)))
    assert target.read_bytes() == CONTENT
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert list(tmp_path.iterdir()) == [path, target] or set(tmp_path.iterdir()) == {path, target}
    with pytest.raises(ConflictError):
        client.import_image(name, [b"other" * 1024], format=image_pb2.IMAGE_FORMAT_RAW)


def test_export_into_a_pipe(client):
    """Goal: holes become zeroes where nothing can seek."""
    client.import_image("pools/p/images/pipe", [CONTENT], format=image_pb2.IMAGE_FORMAT_RAW)
    read_end, write_end = os.pipe()
    with ThreadPoolExecutor(1) as threads, open(read_end, "rb") as reading:
        got = threads.submit(reading.read)
        with open(write_end, "wb") as writing:
            client.export_image("pools/p/images/pipe", writing)
        assert got.result() == CONTENT


def test_export_is_begun_again():
    """Goal: a file is right though the server dies amid an export. Method: kill it after a piece.

    What the file had before its position stays.
    """
    with (
        tempfile.TemporaryDirectory(prefix="volcore-c-") as place,
        RunningServer(Path(place), module=held_server.MODULE) as server,
        ThreadPoolExecutor(1) as threads,
        Client(server.endpoint, retry=RetryPolicy(tries_max=100)) as client,
        tempfile.TemporaryFile() as file,
    ):
        client.import_image("pools/p/images/i", [CONTENT], format=image_pb2.IMAGE_FORMAT_RAW)
        file.write(b"before")
        hold = held_server.Hold(server.directory)
        with hold.at("middle", ["ExportImage"]):
            export = threads.submit(client.export_image, "pools/p/images/i", file)
            hold.wait(["ExportImage"])
            server.kill()
        server.start()
        export.result()
        file.seek(0)
        assert file.read() == b"before" + CONTENT


def test_export_leaves_no_half_file(client, tmp_path):
    target = tmp_path / "out.raw"
    with pytest.raises(NotFoundError):
        client.export_image("pools/p/images/none", target)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(BackendIOError):
        client.export_image("pools/p/images/none", tmp_path / "no" / "such" / "place")


def test_async_twin(server, tmp_path):
    """Goal: the async client does the same. Method: the main job, many calls at once."""

    async def pieces():
        for at in range(0, len(CONTENT), MIB):
            yield CONTENT[at : at + MIB]

    async def job():
        async with AsyncClient(server.endpoint, timeout_s=30) as client:
            image = await client.import_image(
                "pools/p/images/async", pieces(), format=image_pb2.IMAGE_FORMAT_RAW
            )
            path = tmp_path / "in.raw"
            path.write_bytes(CONTENT)
            assert image == await client.import_image(image.name, path)
            made = await asyncio.gather(
                *(client.create_volume(f"pools/p/volumes/a{at:03}", image=image.name)
                  for at in range(50))
            )  # fmt: skip
            assert len({volume.uid for volume in made}) == 50
            listed = [volume.name async for volume in client.list_volumes("pools/p", page_size=7)]
            assert listed == [volume.name for volume in made]
            with pytest.raises(NotFoundError) as caught:
                await client.with_options(request_id="a1").get_volume("pools/p/volumes/none")
            assert caught.value.context["request_id"] == "a1"
            await client.export_image(image.name, tmp_path / "out.raw")
            assert (tmp_path / "out.raw").read_bytes() == CONTENT
            for volume in made:
                await client.delete_volume(volume.name)

    asyncio.run(job())
