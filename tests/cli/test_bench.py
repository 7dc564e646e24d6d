"""`volcore bench`: it tells how fast, touches nothing else, and leaves nothing."""

import json
import signal
import subprocess
import time

import pytest

from .server import BIN


def names(server):
    done = server.volcore("volume", "list", "--output", "json")
    return {one["name"].rpartition("/")[2] for one in json.loads(done.stdout)["items"]}


def started(server, image):
    """A run that goes on for a while, when its first volumes are there.

    It takes SIGINT also where the tests run in the background of a shell, which ignores that.
    """
    before = names(server)
    words = ["bench", "deploy", image, "--count", "100000", "--callers", "2"]
    process = subprocess.Popen(
        ["env", "--default-signal=INT", BIN / "volcore", *words], env=server.environment,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    end_s = time.monotonic() + 60
    while names(server) <= before:
        assert process.poll() is None
        assert time.monotonic() < end_s
        time.sleep(0.02)
    return process


@pytest.mark.parametrize("batch", [1, 4])
def test_deploy(server, golden, batch):
    """Goal: figures, and no volume left. Method: run it, both forms."""
    before = names(server)
    words = ["bench", "deploy", golden, "--count", "10", "--callers", "3", "--batch", str(batch)]
    done = server.volcore(*words)
    assert done.returncode == 0, done.stderr
    assert "10 of golden" in done.stdout
    assert "volumes/s" in done.stdout
    found = json.loads(server.volcore(*words, "--output", "json").stdout)
    assert found["kind"] == "DeployBenchmark"
    assert found["failures"] == 0
    assert found["volume_count"] == 10
    assert 0 < found["p50_ms"] <= found["p95_ms"] <= found["p99_ms"] <= found["max_ms"]
    assert names(server) == before


def test_no_such_image(server):
    """Goal: one clear error. Method: an image that is not there."""
    done = server.volcore("bench", "deploy", "nothing", "--count", "3")
    assert done.returncode == 5, done.stderr
    assert done.stdout == ""
    assert "IMAGE_NOT_FOUND" in done.stderr


def test_interrupted(server, golden):
    """Goal: Ctrl-C deletes everything, too. Method: SIGINT in the middle."""
    before = names(server)
    process = started(server, golden)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert names(server) == before


def test_killed_and_cleaned(server, golden):
    """Goal: what a kill leaves is found, and nothing else. Method: SIGKILL, then `clean`."""
    server.volcore("volume", "create", "bench-mine", "--size", "1MiB")
    before = names(server)
    process = started(server, golden)
    process.kill()
    process.communicate()
    assert names(server) > before
    assert server.volcore("bench", "clean").returncode != 0  # nobody said yes
    done = server.volcore("bench", "clean", "--yes")
    assert done.returncode == 0, done.stderr
    assert "volumes deleted" in done.stderr
    assert names(server) == before
    server.volcore("volume", "delete", "bench-mine", "--yes")
