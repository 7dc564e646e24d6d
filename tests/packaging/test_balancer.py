"""The load balancer of docs/availability.md, in front of two servers."""

import re
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from volcore.client import Client, ClientTls
from volcore.errors import VolcoreError
from volcore.testing.certificates import Authority
from volcore.testing.server import RunningServer

from .tools import ROOT, need

WITHIN_S = 30
MEMORY = 'backend = "memory"\n'


@pytest.fixture
def place():
    """A directory whose path is short enough for sockets."""
    path = Path(tempfile.mkdtemp(prefix="volcore-b-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


def free_ports(count):
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def test_balancer_follows_health(place):
    """Goal: the page's balancer works. Method: run it over two servers; freeze one, stop it."""
    need("haproxy")
    front, *ports = free_ports(3)
    authority = Authority.make(place / "ca")
    tls = authority.server()
    shown = authority.client("balancer")
    pem = place / "balancer.pem"
    pem.write_text((shown / "client-cert.pem").read_text() + (shown / "client-key.pem").read_text())
    servers = [RunningServer(place / f"s{port}", MEMORY) for port in ports]
    for server, port in zip(servers, ports, strict=True):
        path = server.directory / "volcore.toml"
        text = path.read_text().replace('.sock"]', f'.sock", "127.0.0.1:{port}"]', 1)
        lines = (
            f'tls_certificate = "{tls.certificate}"\ntls_key = "{tls.key}"\n'
            f'tls_client_ca = "{tls.client_ca}"\n'
        )
        path.write_text(text.replace("[server]\n", "[server]\n" + lines))
    page = (ROOT / "docs" / "availability.md").read_text()
    text = re.search(r"^```haproxy\n(.*?)^```", page, re.MULTILINE | re.DOTALL)[1]
    text = text.replace("/etc/volcore/ca.pem", str(authority.certificate))
    text = text.replace("/etc/volcore/balancer.pem", str(pem)).replace("inter 2s", "inter 1s")
    text = text.replace("192.0.2.10:7443", f"127.0.0.1:{front}")
    text = re.sub(r" +server three .*\n", "", text)
    for number, port in enumerate(ports, 1):
        text = text.replace(f"192.0.2.{number}:7443", f"127.0.0.1:{port}")
    (place / "haproxy.cfg").write_text(text)
    with servers[0] as one, servers[1] as two, (place / "log").open("wb") as log:
        words = ["haproxy", "-db", "-f", place / "haproxy.cfg"]
        balancer = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            credentials = ClientTls(
                ca=authority.certificate,
                certificate=shown / "client-cert.pem",
                key=shown / "client-key.pem",
            )
            with Client(f"localhost:{front}", tls=credentials, timeout_s=2) as client:
                assert served(client, place / "log") < WITHIN_S
                one.freeze()
                seconds = served(client, place / "log")
                print(f"\nfrozen server: served again after {seconds:.1f} s")
                one.kill()
                one.start()
                down(place / "log", "one")
                time.sleep(1)  # for one good check
                assert two.stop() == 0
                served(client, place / "log")
            assert balancer.poll() is None, (place / "log").read_text()
        finally:
            balancer.terminate()
            balancer.wait(10)


def served(client, log):
    """Wait until three calls in a row succeed; return the seconds."""
    begin_s, good = time.monotonic(), 0
    while good < 3:
        assert time.monotonic() - begin_s < WITHIN_S, log.read_text()
        try:
            client.get_pool("pools/p")
            good += 1
        except VolcoreError:
            good = 0
    return time.monotonic() - begin_s


def down(log, server):
    """Check that the balancer has said that a server is down."""
    assert re.search(rf"Server controllers/{server} is DOWN", log.read_text()), log.read_text()
