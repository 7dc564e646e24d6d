"""The OCF resource agent, run as the cluster runs it."""

import os
import shutil
import signal
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

import pytest
from crash.test_local_kill import files as unflushed

from volcore.backends.local import LocalBackend, LocalStore
from volcore.client import Client
from volcore.limits import MIB
from volcore.testing.nbd_disk import NbdDisk

from .tools import SHARE, need, run

AGENT = SHARE / "ocf" / "volcore"
COMMAND = Path(sys.executable).parent / "volcore"
SCHEMAS = Path("/usr/share/resource-agents")
OK, GENERIC, UNIMPLEMENTED, INSTALLED, NOT_RUNNING = 0, 1, 3, 5, 7


class Agent:
    """A resource of the agent in a directory of its own."""

    def __init__(self, place, name, pool_directory):
        self.place = place / name
        self.place.mkdir()
        self.pool_directory = pool_directory
        self.pid_path = self.place / "pid"
        (self.place / "volcore.toml").write_text(
            f'[server]\nlisten = ["unix://{self.place}/run/volcore.sock"]\n'
            f'[nbd]\nlisten = ["unix://{self.place}/run/nbd.sock"]\n'
            f'[pools.p]\nbackend = "local"\ndirectory = "{pool_directory}"\n'
        )
        self.parameters = {
            "binary": COMMAND, "config": self.place / "volcore.toml", "user": "root",
            "socket": self.place / "run" / "volcore.sock", "log_file": self.place / "log",
            "pid_file": self.pid_path,
        }  # fmt: skip

    @property
    def pid(self):
        return int(self.pid_path.read_text())

    def __call__(self, action, *, code=OK, level=0, timeout_s=60, **parameters):
        environ = {
            **os.environ, "OCF_ROOT": "/usr/lib/ocf", "OCF_RESOURCE_INSTANCE": "v",
            "OCF_CHECK_LEVEL": str(level), "OCF_RESKEY_CRM_meta_timeout": str(timeout_s * 1000),
            "OCF_RESKEY_CRM_meta_interval": "10000", "HA_LOGFACILITY": "none",
            **{f"OCF_RESKEY_{k}": str(v) for k, v in (self.parameters | parameters).items()},
        }  # fmt: skip
        return run(AGENT, action, code=code, env=environ)


@pytest.fixture
def place():
    """A directory whose path is short enough for sockets."""
    need("ocf-tester", "curl", "xmllint")
    path = Path(tempfile.mkdtemp(prefix="volcore-o-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def agents(place):
    """Two resources on one pool directory, stopped at the end."""
    two = [Agent(place, name, place / "pool") for name in ("a", "b")]
    yield two
    for agent in two:
        agent("stop")


def test_tester(place):
    """Goal: a well-behaved agent. Method: ocf-tester, which tries actions in every order."""
    agent = Agent(place, "a", place / "pool")
    words = [word for k, v in agent.parameters.items() for word in ("-o", f"{k}={v}")]
    assert "passed all tests" in run("ocf-tester", "-n", "v", *words, AGENT).stdout


def test_meta_data(place):
    """Goal: every tool reads it. Method: the DTD and the schema that the distribution has."""
    (place / "meta.xml").write_text(Agent(place, "a", place)("meta-data").stdout)
    run("xmllint", "--noout", "--dtdvalid", SCHEMAS / "ra-api-1.dtd", "--nonet", place / "meta.xml",
        cwd=SCHEMAS)  # fmt: skip
    run("xmllint", "--noout", "--relaxng", SCHEMAS / "metadata.rng", "--nonet", place / "meta.xml")


def test_double_start_is_refused(agents):
    """Goal: active/passive: one server a pool. Method: start a second one; kill -9 the first."""
    first, second = agents
    first("start")
    done = second("start", code=GENERIC)
    assert "POOL_LOCKED" in done.stderr
    second("monitor", code=NOT_RUNNING)
    first("monitor", level=10)
    os.kill(first.pid, signal.SIGKILL)
    first("monitor", code=NOT_RUNNING)
    second("start")
    second("monitor", level=10)
    first("start", code=GENERIC)


def test_killed_and_moved(agents):
    """Goal: what a guest was answered goes with the pool. Method: write, kill -9, stop; look."""
    agent, _ = agents
    agent("start")
    with Client(f"unix://{agent.parameters['socket']}") as client:
        volume = client.create_volume("pools/p/volumes/v", size_bytes=MIB)
        nbd = client.attach_volume("pools/p/volumes/v", "h").nbd
    with NbdDisk(Path(nbd.socket_path), nbd.export_name) as disk:
        disk.write(0, b"answered")
        os.kill(agent.pid, signal.SIGKILL)
    assert unflushed(agent.pool_directory)
    agent("stop")
    assert unflushed(agent.pool_directory) == []
    backend = LocalBackend(LocalStore.open(agent.pool_directory))
    with closing(backend), backend.open_device(volume.backend_name, read_only=True) as device:
        assert device.read(0, 8) == b"answered"


def test_monitor(agents):
    """Goal: it sees what is wrong, fast. Method: ask for a pool that is not; freeze; stop that."""
    agent, _ = agents
    agent("start")
    times_s = []
    for _ in range(5):
        begin_s = time.monotonic()
        agent("monitor", level=10, health_service="pools/p")
        times_s.append(time.monotonic() - begin_s)
    print(f"\nmonitor: {sorted(times_s)[2] * 1000:.0f} ms")
    assert min(times_s) < 1
    done = agent("monitor", code=GENERIC, health_service="pools/q")
    assert "does not answer" in done.stderr
    os.kill(agent.pid, signal.SIGSTOP)
    agent("monitor", code=GENERIC)
    agent("stop", timeout_s=6)
    agent("monitor", code=NOT_RUNNING)


def test_process_id_of_another(agents):
    """Goal: nobody else is taken for the server, or ended. Method: a pid file with our own id."""
    agent, _ = agents
    agent.pid_path.write_text(f"{os.getpid()}\n")
    agent("monitor", code=NOT_RUNNING)
    agent("stop")
    assert not agent.pid_path.exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"binary": "/nonexistent"}, "/nonexistent"),
        ({"config": "/nonexistent"}, "cannot be read"),
        ({"user": "nonexistent"}, "systemd-sysusers"),
    ],
)
def test_what_is_missing(agents, change, words):
    """Goal: one sentence, and this node is out. Method: take one thing away."""
    agent, _ = agents
    for action in ("validate-all", "start"):
        assert words in agent(action, code=INSTALLED, **change).stderr


def test_mistake_in_the_configuration(agents):
    """Goal: told from what may heal: no other try on this node. Method: a key that is none."""
    agent, _ = agents
    agent.parameters["config"].write_text("[server]\ncolour = 1\n")
    assert "exit code 3" in agent("start", code=INSTALLED).stderr
    agent("dance", code=UNIMPLEMENTED)
