"""Handing files over: what the server takes, refuses, holds and lets go."""

import contextlib
import gc
import os
import re
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import grpc
import pytest

from volcore import limits
from volcore.client import Client
from volcore.errors import Reason
from volcore.limits import MIB
from volcore.testing.server import RunningServer
from volcore.v1 import image_service_pb2, image_service_pb2_grpc
from volcore.wire import handover, status

CONTENT = os.urandom(3 * MIB) + bytes(2 * MIB) + os.urandom(MIB)


@pytest.fixture
def files(server):
    """Where files are handed over."""
    return handover.files_path(str(server.socket_path))


@pytest.fixture
def stub(server):
    with grpc.insecure_channel(server.endpoint) as channel:
        yield image_service_pb2_grpc.ImageServiceStub(channel)


@pytest.fixture
def client(server):
    with Client(server.endpoint, timeout_s=30) as client:
        yield client


@contextlib.contextmanager
def connected(path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.settimeout(20)
        connection.connect(path)
        yield connection


def say(connection, *descriptors, greeting=handover.GREETING):
    """Hand descriptors over; return the answer."""
    if descriptors:
        socket.send_fds(connection, [greeting], descriptors)
    else:
        connection.send(greeting)
    return handover.decode(connection.recv(handover.ANSWER_BYTES_MAX))


@contextlib.contextmanager
def handed(files, path, flags=os.O_RDONLY):
    """Hand a file over; yield the handle while the connection lasts."""
    descriptor = os.open(path, flags)
    try:
        with connected(files) as connection:
            answer = say(connection, descriptor)
            assert re.fullmatch("[0-9a-f]{32}", answer.handle), answer
            yield answer.handle
    finally:
        os.close(descriptor)


def ask(stub, handle, name="handed", **fields):
    """Import a handed file; return the image."""
    header = {"parent": "pools/p", "image_id": name, "handed_file": handle, **fields}
    request = image_service_pb2.ImportImageRequest(header=header)
    return list(stub.ImportImage(iter([request])))[-1].image


def refused(stub, handle, **fields):
    """Import a handed file, which must fail; return the error."""
    with pytest.raises(grpc.RpcError) as caught:
        ask(stub, handle, **fields)
    return status.from_rpc_error(caught.value)


def raw_file(directory, content=CONTENT):
    path = directory / "disk.raw"
    path.write_bytes(content)
    return path


def held(server):
    """How many descriptors the server has."""
    return len(os.listdir(f"/proc/{server.pid}/fd"))


def holds(server, path):
    """Whether the server has a descriptor of this file."""
    links = Path(f"/proc/{server.pid}/fd")
    found = set()
    for link in links.iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.add(link.readlink())
    return path in found


def settled(condition):
    """Wait until `condition()` is true, and say whether it is."""
    deadline = time.monotonic() + 20
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


def test_a_file_without_a_name(files, stub, client, tmp_path):
    """Goal: the descriptor is all that the server needs. Method: delete the file before."""
    path = raw_file(tmp_path)
    with handed(files, path) as handle:
        path.unlink()
        image = ask(stub, handle, "nameless")
    target = tmp_path / "out"
    client.export_image(image.name, target)
    assert target.read_bytes() == CONTENT


@pytest.mark.skipif(not shutil.which("qemu-img"), reason="needs qemu-utils")
@pytest.mark.parametrize("format_name", ["qcow2", "vmdk", "vhdx"])
def test_formats(format_name, files, stub, client, tmp_path):
    """Goal: what this service reads itself, and what a tool must read. Method: compare exports."""
    path, target = tmp_path / "disk", tmp_path / "out"
    command = ["qemu-img", "convert", "-f", "raw", "-O", format_name]
    subprocess.run([*command, raw_file(tmp_path), path], check=True)
    path.chmod(0o600)
    with handed(files, path, os.O_RDWR) as handle:
        image = ask(stub, handle, format_name)
    client.export_image(image.name, target)
    assert target.read_bytes() == CONTENT


def test_replaced_while_it_is_held(files, stub, client, tmp_path):
    """Goal: what was opened is imported, whatever has its name by now."""
    path = raw_file(tmp_path)
    with handed(files, path) as handle:
        other = tmp_path / "other"
        other.write_bytes(b"other" * 4096)
        other.replace(path)
        assert ask(stub, handle, "replaced").size_bytes == len(CONTENT)


def test_a_handle_is_good_once(server, files, stub, tmp_path):
    """Goal: used, unknown and closed handles are refused, all with one reason."""
    path = raw_file(tmp_path)
    with handed(files, path) as handle:
        ask(stub, handle, "once")
        assert refused(stub, handle).reason is Reason.HANDED_FILE_UNKNOWN
    with handed(files, path) as closed:
        assert holds(server, path)
    assert settled(lambda: not holds(server, path))
    for gone in (closed, "0" * 32, "x"):
        error = refused(stub, gone)
        assert error.reason is Reason.HANDED_FILE_UNKNOWN
        assert error.status == "INVALID_ARGUMENT"
    with handed(files, path) as handle:
        error = refused(stub, handle, server_path="/x")
        assert error.reason is Reason.BAD_FIELD


def test_not_a_file(files, tmp_path):
    """Goal: each refusal is one sentence. Method: pipe, directory, socket, odd ways of opening."""
    path = raw_file(tmp_path)
    reading, writing = os.pipe()
    with contextlib.ExitStack() as stack:
        pair = [stack.enter_context(one) for one in socket.socketpair()]
        for descriptor in (reading, writing):
            stack.callback(os.close, descriptor)
        odd = {
            "neither a regular file": [
                reading, pair[0].fileno(), os.open(tmp_path, os.O_RDONLY),
                os.open("/dev/null", os.O_RDONLY),
            ],
            "not open for reading": [os.open(path, os.O_WRONLY), os.open(path, os.O_PATH)],
        }  # fmt: skip
        with contextlib.suppress(OSError):  # tmpfs has none
            odd["direct"] = [os.open(path, os.O_RDONLY | os.O_DIRECT)]
        for words, descriptors in odd.items():
            for descriptor in descriptors:
                with connected(files) as connection:
                    answer = say(connection, descriptor)
                    assert (answer.handle, answer.reason) == ("", "BAD_FIELD")
                    assert words in answer.message
                    assert connection.recv(1) == b""
                if descriptor not in (reading, pair[0].fileno()):
                    os.close(descriptor)


def test_other_words(server, files, tmp_path):
    """Goal: nothing, several descriptors or another greeting give no handle and leave nothing."""
    descriptor = os.open(raw_file(tmp_path), os.O_RDONLY)
    before = held(server)
    with connected(files) as connection:
        assert "one open file" in say(connection).message
    with connected(files) as connection:
        assert "one open file" in say(connection, descriptor, descriptor).message
    for greeting in (b"hello", handover.GREETING + b"x", b"x" * 10_000):
        with connected(files) as connection:
            assert "one open file" in say(connection, descriptor, greeting=greeting).message
    os.close(descriptor)
    assert settled(lambda: held(server) <= before)


def test_as_many_as_allowed(server, files, tmp_path):
    """Goal: a bound. Method: one more than allowed; then room again."""
    path = raw_file(tmp_path)
    before = held(server)
    with contextlib.ExitStack() as stack:
        for _ in range(limits.HANDED_FILES_MAX):
            stack.enter_context(handed(files, path))
        descriptor = os.open(path, os.O_RDONLY)
        stack.callback(os.close, descriptor)
        with connected(files) as connection:
            answer = say(connection, descriptor)
            assert (answer.handle, answer.reason) == ("", "TOO_MANY_REQUESTS")
    assert settled(lambda: held(server) <= before)
    with handed(files, path):
        pass


def test_nothing_is_left(server, files, stub, client, tmp_path):
    """Goal: no descriptor leaks. Method: 200 handovers in four ways, count before and after."""
    path = raw_file(tmp_path)
    with handed(files, path) as handle:
        ask(stub, handle, "first")
    before = held(server)
    name = "pools/p/images/left"
    for number in range(200):
        if number % 4 == 0:
            with handed(files, path) as handle:
                ask(stub, handle, "left")
        elif number % 4 == 1:
            with handed(files, path):
                pass
        elif number % 4 == 2:
            with handed(files, path) as handle:
                assert refused(stub, handle, name="bad name").reason is Reason.BAD_NAME
        else:
            with handed(files, path) as handle:
                header = {"parent": "pools/p", "image_id": "left", "handed_file": handle}
                asked = image_service_pb2.ImportImageRequest(header=header)
                stub.ImportImage(iter([asked])).cancel()
    gc.collect()
    assert settled(lambda: held(server) <= before)
    client.delete_image(name)


def test_killed_client(server, client, tmp_path):
    """Goal: who leaves in the middle leaves nothing. Method: kill during a large import."""
    path = tmp_path / "large.raw"
    with path.open("wb") as file:
        for at in range(512):
            file.write(bytes([at % 256]) * MIB)
    code = (
        "import os, signal, sys\n"
        "from volcore.client import Client\n"
        "def on_progress(now):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "Client(sys.argv[1]).import_image('pools/p/images/killed', sys.argv[2],"
        " on_progress=on_progress)\n"
    )
    for _ in range(3):
        subprocess.run([sys.executable, "-c", code, server.endpoint, path], timeout=60)
        assert settled(lambda: all(one.phase > 2 for one in client.list_operations("pools/p")))
        assert "pools/p/images/killed" not in [one.name for one in client.list_images("pools/p")]
        assert settled(lambda: not holds(server, path))


def test_shrinks(files, stub, client, tmp_path):
    """Goal: a file that was cut after its handover is that file, as it is then, or an error."""
    path = raw_file(tmp_path)
    with handed(files, path) as handle:
        os.truncate(path, MIB)
        assert ask(stub, handle, "shrunk").size_bytes == MIB
    with handed(files, path) as handle:
        os.truncate(path, 0)
        assert refused(stub, handle).reason is Reason.SIZE_NOT_ALLOWED


def test_private(server, files):
    """Goal: who may hand over is who may call. Method: compare the two sockets."""
    call, hand = os.stat(server.socket_path), os.stat(files)
    assert stat.S_ISSOCK(hand.st_mode)
    assert hand.st_mode & 0o777 == 0o600
    assert (call.st_uid, call.st_gid) == (hand.st_uid, hand.st_gid)


def test_socket_comes_and_goes(short_directory):
    """Goal: a stop removes the socket, a start replaces that of a killed server."""
    server = RunningServer(short_directory / "life", 'backend = "memory"\n')
    files = Path(handover.files_path(str(server.socket_path)))
    with server:
        first = files.stat().st_ino
        server.kill()
        assert files.is_socket()
        server.start()
        with handed(str(files), raw_file(short_directory)):
            assert files.stat().st_ino != first or files.is_socket()
            assert server.stop() == 0
    assert not files.exists()


def test_long_path():
    """Goal: where the second path is too long for a socket, the server goes without."""
    directory = Path(tempfile.mkdtemp(prefix="volcore-"))
    length = 107 - len(str(directory / "run" / "volcore.sock")) - 1
    deep = directory / ("d" * length)
    try:
        with RunningServer(deep, 'backend = "memory"\n') as server:
            assert "files can only be uploaded" in server.log()
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("setpriv"), reason="needs root")
def test_rights_are_the_callers(tmp_path):
    """Goal: what only the caller may read is imported, by a server without any rights to it."""
    nobody = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    probe = subprocess.run([*nobody, sys.executable, "-c", "import volcore"], capture_output=True)
    if probe.returncode != 0:
        pytest.skip("nobody cannot run this Python")
    directory = Path(tempfile.mkdtemp(prefix="volcore-a-"))
    try:
        os.chown(directory, 65534, 65534)
        server = RunningServer(directory, wrapper=nobody)
        server.log_path.touch()
        with server, server.client() as client:
            path = raw_file(tmp_path)
            path.chmod(0o600)
            image = client.import_image("pools/p/images/mine", path)
            assert image.size_bytes == len(CONTENT)
            with pytest.raises(Exception, match="directories") as caught:
                client.import_image("pools/p/images/theirs", server_path=str(path))
            assert caught.value.reason is Reason.PERMISSION_DENIED
            assert server.stop() == 0
    finally:
        shutil.rmtree(directory, ignore_errors=True)
