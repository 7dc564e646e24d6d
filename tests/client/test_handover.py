"""Imports of files on the server's own machine: handed over where possible, else uploaded."""

import asyncio
import gzip
import io
import os
import shutil
import socket
import tempfile
import threading
from pathlib import Path

import pytest

from volcore.client import AsyncClient, Client, RetryPolicy
from volcore.client.handover import offer
from volcore.client.transfer import Upload
from volcore.errors import ConflictError, InvalidArgumentError, Reason, UnavailableError
from volcore.limits import MIB
from volcore.testing.server import RunningServer
from volcore.wire import handover

CONTENT = os.urandom(3 * MIB) + bytes(2 * MIB) + os.urandom(MIB)
SLOW = RetryPolicy(tries_max=120, delay_s=0.1, delay_s_max=0.5)


@pytest.fixture(scope="module")
def server():
    directory = Path(tempfile.mkdtemp(prefix="volcore-h-"))
    try:
        with RunningServer(directory, 'backend = "memory"\n') as running:
            yield running
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def client(server):
    with Client(server.endpoint, timeout_s=30) as client:
        yield client


@pytest.fixture
def path(tmp_path):
    made = tmp_path / "disk.raw"
    made.write_bytes(CONTENT)
    return made


@pytest.fixture
def no_upload(monkeypatch):
    """Make every upload fail."""

    def frames(self):
        raise AssertionError("uploaded")

    monkeypatch.setattr(Upload, "frames", frames)


def handed(endpoint, source):
    """Say whether a source can be handed over."""
    with offer(endpoint, Upload(source), 10) as offered:
        return bool(offered.handle)


def test_no_upload(client, server, path, no_upload):
    """Goal: paths and files are handed over, by both clients. Method: make uploads impossible."""
    seen = []
    image = client.import_image("pools/p/images/handed", path, on_progress=seen.append)
    assert image.size_bytes == len(CONTENT)
    assert seen[-1].total_bytes == len(CONTENT)
    assert client.import_image(image.name, str(path)) == image
    for buffering in (0, -1):
        with path.open("rb", buffering=buffering) as file:
            assert client.import_image(image.name, file) == image
            assert file.tell() == len(CONTENT)  # as after an upload
            assert file.read() == b""

    async def twin():
        async with AsyncClient(server.endpoint) as aio:
            assert await aio.import_image(image.name, path) == image

    asyncio.run(twin())


def test_what_is_handed_over(server, path, tmp_path):
    """Goal: only what the descriptor says completely. Method: all kinds of sources."""
    endpoint = server.endpoint
    assert handed(endpoint, path)
    assert not handed(endpoint, [CONTENT])
    assert not handed(endpoint, io.BytesIO(CONTENT))
    with path.open("rb") as file:
        file.read(10)
        assert not handed(endpoint, file)
        file.seek(0)
        assert handed(endpoint, file)
    packed = tmp_path / "disk.gz"
    packed.write_bytes(gzip.compress(CONTENT))
    with gzip.open(packed) as file:
        assert not handed(endpoint, file)
        assert not handed(endpoint, io.BufferedReader(file))
    with (tmp_path / "new").open("w+b") as file:
        file.write(CONTENT)
        file.seek(0)
        assert handed(endpoint, file)
    reading, writing = os.pipe()
    os.close(writing)
    with open(reading, "rb") as file:
        assert not handed(endpoint, file)


def test_unfinished_writes(client, tmp_path, no_upload):
    """Goal: what the caller has written is imported, though it waits in his buffer."""
    with (tmp_path / "new").open("w+b") as file:
        file.write(CONTENT)
        file.seek(0)
        file.write(CONTENT[:10])
        file.seek(0)
        assert client.import_image("pools/p/images/buffered", file).size_bytes == len(CONTENT)


def test_same_either_way(client, path):
    """Goal: the same image, the same conflict. Method: once in pieces, then as a file."""
    image = client.import_image("pools/p/images/same", [CONTENT])
    assert client.import_image(image.name, path) == image
    path.write_bytes(b"other" * 4096)
    with pytest.raises(ConflictError) as caught:
        client.import_image(image.name, path)
    assert caught.value.reason is Reason.NAME_TAKEN
    path.write_bytes(b"")
    for source in (path, [b""]):
        with pytest.raises(Exception, match="0 bytes") as caught:
            client.import_image("pools/p/images/empty", source)
        assert caught.value.reason is Reason.SIZE_NOT_ALLOWED
    with pytest.raises(InvalidArgumentError) as caught:
        client.import_image("pools/p/images/empty", path.with_name("none"))
    assert caught.value.reason is Reason.BAD_FIELD


class Answering:
    """Takes the place of the socket for files, and answers every connection with given bytes."""

    def __init__(self, path, answer):
        self._answer = answer
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(str(path))
        self._listener.listen()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                connection.recv(100)
                if self._answer is not None:
                    connection.send(self._answer)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@pytest.mark.parametrize(
    "answer",
    [
        None,
        b"nonsense",
        b"[]",
        b"\xff",
        handover.encode(handover.Answer(reason="TOO_MANY_REQUESTS", message="full")),
        "no socket",
        "nobody listens",
    ],
)
def test_falls_back(answer, client, server, path):
    """Goal: what cannot be handed over is uploaded. Method: odd things in the socket's place."""
    place = Path(handover.files_path(str(server.socket_path)))
    aside = place.with_name("aside")
    place.rename(aside)
    name = f"pools/p/images/back-{abs(hash(answer)) % 10**8}"
    try:
        if answer == "no socket":
            image = client.import_image(name, path)
        elif answer == "nobody listens":
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as unheard:
                unheard.bind(str(place))
                image = client.import_image(name, path)
        else:
            with Answering(place, answer):
                image = client.import_image(name, path)
        assert image.size_bytes == len(CONTENT)
    finally:
        aside.replace(place)


def test_a_wrong_handle_is_tried_again(client, server, path):
    """Goal: a server that was restarted after the handover gets the file again."""
    place = Path(handover.files_path(str(server.socket_path)))
    aside = place.with_name("aside")
    place.rename(aside)

    def restore():
        place.unlink()
        aside.rename(place)

    with Answering(place, handover.encode(handover.Answer(handle="0" * 32))):
        timer = threading.Timer(0.3, restore)
        timer.start()
        image = client.import_image("pools/p/images/again", path)
        timer.join()
    assert image.size_bytes == len(CONTENT)


def test_restart(tmp_path, path, no_upload):
    """Goal: an import outlives its server. Method: kill it midway, start it again."""
    directory = Path(tempfile.mkdtemp(prefix="volcore-h-"))
    with path.open("wb") as file:
        for at in range(200):
            file.write(bytes([at + 1]) * MIB)
    server = RunningServer(directory)
    starting = threading.Thread(target=server.start)

    def on_progress(operation):
        del operation  # the first one comes before the end of any import
        if starting.ident is None:
            server.kill()
            starting.start()

    try:
        with server, Client(server.endpoint, retry=SLOW) as client:
            image = client.import_image("pools/p/images/i", path, on_progress=on_progress)
            starting.join()  # it cannot be joined if it was never killed and started
            assert image.size_bytes == 200 * MIB
            assert [one.name for one in client.list_images("pools/p")] == [image.name]
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def test_no_server(path):
    with (
        Client("unix:///nowhere.sock", retry=RetryPolicy(tries_max=1)) as client,
        pytest.raises(UnavailableError),
    ):
        client.import_image("pools/p/images/i", path)
    with offer("127.0.0.1:1", Upload(path), 1) as offered:
        assert not offered.handle
    with offer("unix:///" + "x" * 200, Upload(path), 1) as offered:
        assert not offered.handle
