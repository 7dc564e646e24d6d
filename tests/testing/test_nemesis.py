"""A short piece of what `scripts/soak nemesis` does for long, and what that stands on."""

import json
import os
import subprocess
import sys

import pytest

from volcore.errors import Reason
from volcore.testing import linear
from volcore.testing.nemesis_log import Log, gathered
from volcore.testing.volume_model import Answer, Ask, NameModel

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")
KINDS = (
    "server killed", "server cut from half the clients", "server cut from Ceph", "mon killed",
    "osd frozen", "nbd killed",
)  # fmt: skip

_CUT = """
import socket, subprocess, sys
from volcore.testing.network import HERE, Network

SERVER = "import socket; s = socket.create_server(('', 7000)); print(flush=True)\\n" \\
    "while c := s.accept()[0]: c.sendall(b'here')"

with Network(["one", "two"]) as network:
    words = [*network.on("one"), sys.executable, "-c", SERVER]
    server = subprocess.Popen(words, stdout=subprocess.PIPE)
    server.stdout.readline()

    def reached(host):
        asking = "import socket, sys\\ns = socket.create_connection((sys.argv[1], 7000), 0.5)\\n" \\
            "assert s.recv(4) == b'here'"
        words = [*network.on(host), sys.executable, "-c", asking, network.address("one")]
        return subprocess.run(words, stderr=subprocess.DEVNULL).returncode == 0

    seen = [reached("two"), reached(HERE)]
    network.cut("one", "two")
    seen += [reached("two"), reached(HERE)]
    network.cut(HERE, "one")
    network.heal("two", "one")
    seen += [reached("two"), reached(HERE)]
    network.heal("one", HERE)
    seen += [reached(HERE)]
    server.kill()
    server.wait()
print(seen)
"""


def test_what_is_written_down_is_judged(tmp_path):
    """Goal: a stale read is found from the files of two processes. Method: write them."""
    logs = [tmp_path / "a", tmp_path / "b"]
    first, second = (Log(path) for path in logs)
    create = Ask(kind="create", params="blank:1", label="x")
    shown = Answer(uid="u", params="blank:1", label="x")
    first.end(first.begin("c1", [("n", create)]), [shown])
    second.begin("c2", [("n", Ask(kind="update", label="y"))])  # its process was killed
    second.end(second.begin("c2", [("n", Ask(kind="delete"))]), [])  # nothing was done
    first.end(first.begin("c1", [("n", Ask(kind="get")), ("m", create)]), [shown, shown])
    calls = gathered(logs)[1]
    assert {name: len(found) for name, found in calls.items()} == {"n": 3, "m": 1}
    assert all(linear.check(found, NameModel()) is None for found in calls.values())
    second.end(
        second.begin("c2", [("n", Ask(kind="get"))]), [Answer(refused=Reason.VOLUME_NOT_FOUND)]
    )
    assert linear.check(gathered(logs)[1]["n"], NameModel()) is not None


@needs_root
def test_a_cut_loses_what_it_cuts():
    """Goal: exactly the pair that is cut. Method: connect between hosts before, during, after."""
    words = ["unshare", "--net", sys.executable, "-c", _CUT]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "[True, True, False, True, True, False, True]\n", done.stderr


@needs_root
@pytest.mark.timeout(400)
@pytest.mark.usefixtures("ceph_programs")
def test_servers_monitors_osds_and_network_fail():
    """Goal: every answer was true, nothing is lost or left. Method: the nemesis, seeded."""
    words = [sys.executable, "-m", "volcore.testing.nemesis", "--seconds", "10", "--short"]
    words += ["--seed", "3", "--kinds", *KINDS]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-4000:]
    report = json.loads(done.stdout)
    assert report["failures"] == []
    assert report["faults"] >= 2
    assert report["calls"] > 100
    assert report["names"] > 10
    assert report["guests"]["librbd"]["blocks"] > 0
    assert report["guests"]["nbd"]["blocks"] > 0
