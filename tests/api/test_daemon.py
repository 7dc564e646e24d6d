"""The server as a process: start, signals, second servers, TLS, pools that cannot be opened."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from volcore.client import Client, ClientTls, RetryPolicy
from volcore.errors import Reason, UnavailableError, VolcoreError
from volcore.limits import MIB
from volcore.testing.certificates import Authority
from volcore.testing.server import RunningServer

ONCE = RetryPolicy(tries_max=1)


@pytest.fixture
def directory(short_directory, request):
    """A fresh short directory for this test."""
    made = short_directory / f"{abs(hash(request.node.name)) % 10**6}"
    made.mkdir()
    return made


def run(config, *flags, python=(), **environ):
    """Run `volcore serve` until it ends by itself."""
    return subprocess.run(
        [sys.executable, *python, "-m", "volcore.cli.main", "serve", "--config", config, *flags],
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=60,
    )


def ended(server):
    """Wait until a server that got its signal has ended; return its exit code."""
    code = server._process.wait(60)
    server._process = None
    return code


def refused(done, *words):
    """Check that a start was refused in clear words."""
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr, done.stderr


def test_sigterm_finishes_what_has_begun(directory):
    """Goal: a stop loses nothing. Method: SIGTERM in the middle of an upload that goes on."""
    server = RunningServer(directory)
    server.start()
    begun, result = threading.Event(), []

    def pieces():
        for at in range(20):
            yield bytes([at + 1]) * MIB
            if at == 3:
                begun.set()
            time.sleep(0.05)

    def upload():
        with Client(server.endpoint, retry=ONCE) as client:
            result.append(client.import_image("pools/p/images/i", pieces(), format=1))

    thread = threading.Thread(target=upload)
    thread.start()
    assert begun.wait(30)
    os.kill(server.pid, signal.SIGTERM)
    time.sleep(0.3)
    with Client(server.endpoint, retry=ONCE, timeout_s=5) as late, pytest.raises(UnavailableError):
        late.get_pool("pools/p")
    assert ended(server) == 0
    thread.join(30)
    assert [image.size_bytes for image in result] == [20 * MIB]
    assert not server.socket_path.exists()
    with server:
        with server.client() as client:
            assert client.get_image("pools/p/images/i") == result[0]
        assert server.stop() == 0


def test_waits_and_watches_do_not_hold_up_a_stop(directory):
    """Goal: a stop waits for work, not for watchers. Method: a health watch and open channels."""
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    with RunningServer(directory) as server, grpc.insecure_channel(server.endpoint) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        started = time.monotonic()
        os.kill(server.pid, signal.SIGTERM)
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert ended(server) == 0
        assert time.monotonic() - started < 10


def test_second_signal(directory):
    """Goal: who is in a hurry says so twice. Method: an upload that never ends."""
    server = RunningServer(directory)
    server.start()
    begun = threading.Event()

    def pieces():
        while True:
            yield bytes(MIB)
            begun.set()
            time.sleep(0.1)

    def upload():
        with Client(server.endpoint, retry=ONCE) as client, pytest.raises(VolcoreError):
            client.import_image("pools/p/images/i", pieces(), format=1)

    thread = threading.Thread(target=upload)
    thread.start()
    assert begun.wait(30)
    os.kill(server.pid, signal.SIGTERM)
    time.sleep(0.5)
    started = time.monotonic()
    assert server.stop() == 128 + signal.SIGTERM
    assert time.monotonic() - started < 5
    thread.join(30)
    with server:
        with server.client() as client:
            assert list(client.list_images("pools/p")) == []
        assert server.stop() == 0


def test_second_server(directory):
    """Goal: one server for one socket, port and directory; the first one notices nothing."""
    other = directory / "other.toml"
    with RunningServer(directory) as server:
        refused(run(directory / "volcore.toml"), "running at")
        other.write_text(
            f'[server]\nlisten = ["unix://{directory}/o.sock"]\n'
            f"[nbd]\nlisten = []\n"
            f'[pools.p]\nbackend = "local"\ndirectory = "{server.pool_directory}"\n'
        )
        refused(run(other), "pool 'p'", str(server.pid))
        with server.client() as client:
            assert client.get_pool("pools/p").backend == "local"
        assert server.stop() == 0


def test_port_in_use(directory):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        config = directory / "c.toml"
        config.write_text(
            f'[server]\nlisten = ["127.0.0.1:{taken.getsockname()[1]}"]\n'
            '[pools.p]\nbackend = "memory"\n'
        )
        refused(run(config), "taken")


def test_stale_and_foreign_sockets(directory):
    """Goal: a dead server's socket is replaced, another file never."""
    server = RunningServer(directory)
    server.start()
    server.kill()
    assert server.socket_path.is_socket()
    with server:
        assert server.stop() == 0
    server.socket_path.write_text("mine")
    refused(run(directory / "volcore.toml"), "no socket")
    assert server.socket_path.read_text() == "mine"


def test_every_pool_that_fails_is_named(directory):
    """Goal: all that is in the way is told at once. Method: two bad directories."""
    (directory / "file").write_text("x")
    config = directory / "c.toml"
    config.write_text(
        f'[server]\nlisten = ["unix://{directory}/s"]\n[nbd]\nlisten = []\n'
        f'[pools.a]\nbackend = "local"\ndirectory = "{directory}/file"\n'
        '[pools.b]\nbackend = "memory"\n'
        '[pools.c]\nbackend = "local"\ndirectory = "/proc/volcore"\n'
    )
    done = run(config)
    refused(done, "pool 'a'", "pool 'c'")
    assert "pool 'b'" not in done.stderr


def test_mistakes_are_listed(directory):
    config = directory / "c.toml"
    config.write_text('[server]\nlisten = ["0.0.0.0:1"]\ncall_thread = 1\n[log]\nlevel = 1\n')
    refused(run(config), "3 mistakes", "c.toml:2:", "c.toml:3:", "c.toml:5:")


def test_optimised_python(directory):
    """Goal: no run without assertions."""
    config = directory / "c.toml"
    config.write_text('[pools.p]\nbackend = "memory"\n')
    refused(run(config, python=("-O",)), "without -O")


@pytest.fixture
def certificates(directory):
    """An authority, and certificates of a server and a client."""

    def openssl(*words):
        subprocess.run(["openssl", *words], cwd=directory, check=True, capture_output=True)

    openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=ca",
            "-keyout", "ca.key", "-out", "ca.pem")  # fmt: skip
    (directory / "ext").write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\n")
    for name in ("server", "client"):
        openssl("req", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={name}",
                "-keyout", f"{name}.key", "-out", f"{name}.csr")  # fmt: skip
        openssl("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key",
                "-CAcreateserial", "-days", "2", "-extfile", "ext",
                "-out", f"{name}.pem")  # fmt: skip
    return directory


@pytest.mark.parametrize("mutual", [False, True])
def test_tls(certificates, mutual):
    """Goal: TLS on every address, and with an authority only for those who show a certificate."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    base = certificates
    server = RunningServer(base, 'backend = "memory"\n')
    config = base / "volcore.toml"
    text = config.read_text().replace('.sock"]', f'.sock", "0.0.0.0:{port}"]', 1)
    lines = f'tls_certificate = "{base}/server.pem"\ntls_key = "{base}/server.key"\n'
    if mutual:
        lines += f'tls_client_ca = "{base}/ca.pem"\n'
    config.write_text(text.replace("[server]\n", "[server]\n" + lines))
    endpoint = f"127.0.0.1:{port}"
    shown = ClientTls(ca=base / "ca.pem", certificate=base / "client.pem", key=base / "client.key")
    with server:
        for tls, good in (
            (shown, True),
            (ClientTls(ca=base / "ca.pem"), not mutual),
            (None, False),
            (ClientTls(), False),
        ):
            with Client(endpoint, tls=tls, retry=ONCE, timeout_s=10) as client:
                if good:
                    assert client.get_pool("pools/p").backend == "memory"
                    continue
                with pytest.raises(UnavailableError) as caught:
                    client.get_pool("pools/p")
                assert caught.value.reason is Reason.SERVER_UNREACHABLE
        assert server.stop() == 0


@pytest.mark.skipif(not shutil.which("nbdinfo"), reason="apt-get install libnbd-bin")
def test_nbd_over_tls(directory):
    """Goal: a volume for the hosts that have it attached, and no other. Method: nbdinfo as both."""
    authority = Authority.make(directory / "ca")
    tls = authority.server(names="DNS:localhost")
    server = RunningServer(directory, 'backend = "memory"\n')
    config = directory / "volcore.toml"
    lines = (
        f'\nadvertise_host = "localhost"\ntls_certificate = "{tls.certificate}"\n'
        f'tls_key = "{tls.key}"\ntls_client_ca = "{tls.client_ca}"\ntls_clients = "attached"\n'
    )
    text = re.sub(r"(\[nbd\]\nlisten = ).*", rf'\1["0.0.0.0:0"]{lines}', config.read_text())
    config.write_text(text)

    def size_seen(uri, host):
        words = ["nbdinfo", "--size", f"{uri}?tls-certificates={authority.client(host)}"]
        return subprocess.run(words, capture_output=True, text=True, timeout=30)

    with server, Client(server.endpoint) as client:
        client.create_volume("pools/p/volumes/v", size_bytes=MIB)
        nbd = client.attach_volume("pools/p/volumes/v", "host-1").nbd
        assert nbd.uri == f"nbds://localhost:{nbd.port}/p/v"
        assert (nbd.host, nbd.tls_hostname) == ("localhost", "localhost")
        assert size_seen(nbd.uri, "host-1").stdout == f"{MIB}\n"
        assert size_seen(nbd.uri, "host-2").returncode != 0
        client.detach_volume("pools/p/volumes/v", "host-1")
        client.attach_volume("pools/p/volumes/v", "host-2")
        assert size_seen(nbd.uri, "host-02").returncode != 0
        assert "is not attached to host-02" in server.log()
        assert server.stop() == 0


def test_tls_files_that_do_not_fit(certificates):
    config = certificates / "c.toml"
    config.write_text(
        f'[server]\nlisten = ["0.0.0.0:1"]\ntls_certificate = "{certificates}/server.pem"\n'
        f'tls_key = "{certificates}/client.key"\n[pools.p]\nbackend = "memory"\n'
    )
    refused(run(config), "c.toml:4:", "does not fit")
