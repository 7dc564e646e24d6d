"""verify and scrub: what they print and return, with sound and with damaged disks."""

import json
import os
from pathlib import Path

import pytest

from volcore import limits

from .server import running_server

B, C = limits.BLOCK_SIZE_BYTES, limits.CHUNK_SIZE_BYTES


@pytest.fixture
def site(tmp_path):
    """A server of its own, with an image from a file on it, a clone and a snapshot."""
    with running_server() as site:
        source = site.server.directory / "golden.raw"
        source.write_bytes(os.urandom(C))
        for words in (
            ("image", "import", "--on-server", str(source), "golden"),
            ("volume", "create", "vm-1", "--image", "golden"),
            ("snapshot", "create", "vm-1", "s"),
        ):
            done = site.volcore(*words)
            assert done.returncode == 0, done.stderr
        yield site


def flip(site, block):
    (path,) = (site.server.pool_directory / "layers").glob("*.data")
    with path.open("r+b") as file:
        old = os.pread(file.fileno(), 1, block * B)[0]
        os.pwrite(file.fileno(), bytes([old ^ 1]), block * B)


CHECKS = (
    ("volume", "verify", "vm-1"),
    ("snapshot", "verify", "vm-1", "s"),
    ("image", "verify", "golden"),
    ("pool", "scrub"),
)


def test_sound(site):
    """Goal: silence and 0. Method: each check of a sound pool, in both forms."""
    for words in CHECKS:
        done = site.volcore(*words)
        assert (done.returncode, done.stdout) == (0, ""), done.stderr
        assert "4 MiB compared: no damage" in done.stderr
        document = json.loads(site.volcore(*words, "-o", "json").stdout)
        assert (document["kind"], document["phase"]) == ("Operation", "SUCCEEDED")
        assert document["check"]["checked_bytes"] == C
        assert document["check"]["damage"] == []
    lines = site.volcore("operation", "list").stdout.splitlines()
    targets = {line.split()[2] for line in lines if " scrub " in line}
    assert targets == {"pools/p"}


def test_damaged_and_healed(site):
    """Goal: place and readers on stdout, 1 while damage remains. Method: flip, check, heal."""
    for words in CHECKS:
        flip(site, 3)
        done = site.volcore(*words)
        assert done.returncode == 1, done.stderr
        head, row = done.stdout.splitlines()
        assert head.split()[:3] == ["KIND", "OFFSET", "LENGTH"]
        assert row.split()[:3] == ["checksum", str(3 * B), str(B)]
        assert "image golden, volume vm-1, snapshot vm-1/s" in row
        assert "1 bad block, 0 healed; --heal repairs" in done.stderr
        assert "damaged blocks     1\n" in site.volcore("pool", "get").stdout
        done = site.volcore(*words, "--heal")
        assert done.returncode == 0, done.stderr
        assert "1 bad block, 1 healed" in done.stderr
        assert "damaged blocks     0\n" in site.volcore("pool", "get").stdout
    pool = json.loads(site.volcore("pool", "get", "-o", "json").stdout)
    assert pool["health"]["last_scrub_checked_bytes"] == C
    assert "healed" not in site.volcore("operation", "list", "-o", "json").stdout.replace(
        "healed_block_count", ""
    )
    log = [json.loads(line) for line in Path(site.server.log_path).read_text().splitlines()]
    found = [line for line in log if line["event"] == "damage found"]
    assert found[0]["offset_bytes"] == 3 * B
    assert "pools/p/volumes/vm-1" in found[0]["names"]


def test_no_wait_rate_and_kill(site):
    """Goal: a scrub outlives its server. Method: a slow scrub, kill -9, start, wait."""
    flip(site, 0)
    done = site.volcore("pool", "scrub", "--rate", "2MiB", "--no-wait", "-o", "json")
    operation = json.loads(done.stdout)
    assert (done.returncode, operation["phase"]) == (0, "RUNNING")
    site.server.kill()
    site.server.start()
    done = site.volcore("operation", "wait", operation["name"], "-o", "json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["check"]["bad_block_count"] == 1


def test_refusals(site):
    """Goal: errors as ever. Method: what is not there, a rate without a unit."""
    assert site.volcore("volume", "verify", "nobody").returncode == 5
    assert site.volcore("snapshot", "verify", "vm-1", "nobody").returncode == 5
    assert site.volcore("image", "verify", "nobody").returncode == 5
    assert site.volcore("pool", "scrub", "nobody").returncode == 5
    assert site.volcore("pool", "scrub", "--rate", "100").returncode == 3
