"""`volcore serve`: flags, and the ways in which it refuses to start."""

import contextlib
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from volcore.client import Client
from volcore.errors import VolcoreError

from .server import BIN, volcore

START_TIMEOUT_S = 60


@pytest.fixture
def place():
    """A directory whose path is short enough for sockets."""
    path = Path(tempfile.mkdtemp(prefix="volcore-t-"))
    yield path
    shutil.rmtree(path)


@contextlib.contextmanager
def served(place, *words):
    """Run `volcore serve` on a socket in `place` until the block ends."""
    socket = f"unix://{place / 'api.sock'}"
    nbd = f"unix://{place / 'nbd.sock'}"
    with (place / "log").open("wb") as log:
        process = subprocess.Popen(
            [BIN / "volcore", "serve", "--listen", socket, "--nbd-listen", nbd, *words],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=place,
        )  # fmt: skip
    try:
        deadline_s = time.monotonic() + START_TIMEOUT_S
        with Client(socket, timeout_s=2) as client:
            while True:
                try:
                    pools = list(client.list_pools())
                    break
                except VolcoreError:
                    assert process.poll() is None, (place / "log").read_text()
                    assert time.monotonic() < deadline_s
            yield process, pools
    finally:
        process.terminate()
        try:
            process.wait(60)
        finally:
            process.kill()


def start(*words):
    """Run a server that should refuse to start."""
    done = subprocess.run(
        [BIN / "volcore", "serve", *words],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=START_TIMEOUT_S,
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    return done


def test_quick_start(place):
    """Goal: one flag is a whole service. Method: start, look, stop, start again."""
    for _ in range(2):
        with served(place, "--pool-directory", "pool") as (process, pools):
            assert [(pool.name, pool.backend) for pool in pools] == [("pools/default", "local")]
            assert (place / "pool" / "volcore.db").exists()
        assert process.returncode == 0
        assert not (place / "api.sock").exists()


def test_second_server_of_a_pool(place):
    """Goal: two servers never share a local pool. Method: start a second one on it."""
    with served(place, "--pool-directory", str(place / "pool")):
        done = start(
            "--pool-directory", str(place / "pool"), "--listen", f"unix://{place}/2.sock",
            "--nbd-listen", f"unix://{place}/3.sock",
        )  # fmt: skip
        assert done.returncode == 7
        assert "POOL_LOCKED" in done.stderr


def test_every_mistake_is_listed(place):
    """Goal: one round of corrections. Method: a configuration with three mistakes."""
    config = place / "volcore.toml"
    config.write_text(
        '[server]\nlisten = ["0.0.0.0:7070"]\ncall_threads = "many"\n\n[pools.p]\nbackend = "zfs"\n'
    )
    done = start("--config", str(config))
    assert done.returncode == 3
    assert "CONFIG_INVALID" in done.stderr
    assert f"{config}:2: " in done.stderr
    assert f"{config}:3: " in done.stderr
    assert f"{config}:6: " in done.stderr


@pytest.mark.parametrize(
    ("words", "needle"),
    [
        (["--listen", "0.0.0.0:7070"], "tls_certificate"),
        (["--listen", "nonsense"], "unix:///PATH or ADDRESS:PORT"),
        (["--nbd-listen", "0.0.0.0:10809"], "loopback"),
        (["--log-level", "loud"], "debug, info"),
        (["--config", "/nonexistent/volcore.toml"], "cannot be read"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_flags(place, words, needle):
    """Goal: flags are checked like the file. Method: one bad flag each."""
    done = start("--pool-directory", str(place / "pool"), *words)
    assert done.returncode == 3
    assert needle in done.stderr
    assert not (place / "pool").exists()


def test_unusable_directory(place):
    """Goal: a directory that is none is told in one sentence. Method: a file in its place."""
    (place / "pool").write_text("")
    done = start(
        "--pool-directory", str(place / "pool"), "--listen", f"unix://{place}/1.sock",
        "--nbd-listen", f"unix://{place}/2.sock",
    )  # fmt: skip
    assert done.returncode == 7
    assert "POOL_UNUSABLE" in done.stderr


def test_tcp_on_loopback(place):
    """Goal: a TCP endpoint where it is asked for. Method: talk to it through the command."""
    with served(place, "--pool-directory", str(place / "pool"), "--listen", "127.0.0.1:0"):
        log = (place / "log").read_text()
    port = next(word for word in log.replace('"', " ").replace(",", " ").split()
                if word.startswith("127.0.0.1:"))  # fmt: skip
    assert int(port.rpartition(":")[2]) > 0
    assert volcore("pool", "list", "--endpoint", port, "--timeout", "1").returncode == 10
