"""Taking over a pool of rbd images with one command, and giving it back."""

import json
import subprocess
import time

import pytest

from .server import running_server

pytestmark = pytest.mark.ceph


@pytest.fixture
def rbd(ceph_cluster, ceph_pool):
    """Run the `rbd` command on the pool."""

    def run(*words):
        return subprocess.run(
            ["rbd", "-c", ceph_cluster.conf_path, "--pool", ceph_pool, *words],
            check=True, capture_output=True, text=True,
        ).stdout  # fmt: skip

    return run


@pytest.fixture
def server(ceph_cluster, ceph_pool):
    lines = (
        f'backend = "rbd"\npool = "{ceph_pool}"\nceph_conf = "{ceph_cluster.conf_path}"\n'
        'user = "admin"\ndirect_clone = false\n'
    )
    with running_server(lines) as site:
        yield site


def test_an_image(server, rbd, ceph_pool):
    """Goal: an image without a copy. Method: both ways to name a source, and a bad one."""
    rbd("create", "--size", "8M", "--image-feature", "layering", "theirs")
    rbd("snap", "create", "theirs@snap")
    made = server.volcore("image", "adopt", "golden", f"{ceph_pool}/theirs@snap", "-o", "json")
    image = json.loads(made.stdout)
    assert (image["size_bytes"], image.get("digest", "")) == (8 << 20, "")
    again = server.volcore("image", "adopt", "golden", image["adopted_from"], "-o", "json")
    assert json.loads(again.stdout) == image
    assert rbd("children", "theirs@snap").split() == [f"{ceph_pool}/{image['backend_name']}"]
    table = server.volcore("image", "list").stdout.splitlines()[-1].split()
    assert table[:4] == ["golden", "8", "MiB", "rbd"]
    assert server.volcore("image", "adopt", "other", "theirs").returncode == 3
    assert server.volcore("image", "adopt", "other", f"{ceph_pool}/none@snap").returncode == 5
    assert server.volcore("image", "delete", "golden", "--yes").returncode == 0
    deadline = time.monotonic() + 30
    while rbd("children", "theirs@snap"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert rbd("ls").split() == ["theirs"]


def test_a_pool_and_back(server, rbd):
    """Goal: one command each way. Method: four images, one of them with an obstacle."""
    for name in ("volume-1", "volume-2", "volume-1.deleted", "other"):
        rbd("create", "--size", "8M", name)
    rbd("create", "--size", "8M", "--object-size", "1M", "volume-odd")
    rbd("snap", "create", "volume-1@snapshot-1")
    names = server.volcore("volume", "adoptable", "-o", "name").stdout.split()
    assert names == ["other", "volume-1", "volume-1.deleted", "volume-2", "volume-odd"]
    found = json.loads(server.volcore("volume", "adoptable", "-o", "json").stdout)["items"]
    assert [one["obstacle"] for one in found] == ["", "", "", "", "OBJECT_SIZE"]
    dry = server.volcore("pool", "adopt", "--dry-run")
    assert (dry.returncode, dry.stdout) == (1, "volume-1\nvolume-2\n")
    assert "volume-odd: not adopted (OBJECT_SIZE): " in dry.stderr
    assert server.volcore("volume", "list", "-o", "name").stdout == ""
    assert server.volcore("pool", "adopt").returncode == 3  # nobody to ask
    done = server.volcore("pool", "adopt", "--yes")
    assert (done.returncode, done.stdout) == (1, "volume-1\nvolume-2\n")
    again = server.volcore("pool", "adopt", "--yes")
    assert (again.returncode, again.stdout) == (1, "")
    assert server.volcore("volume", "adopt", "other", "--as", "mine").returncode == 0
    assert server.volcore("volume", "adopt", "volume-odd").returncode == 7
    shown = server.volcore("snapshot", "list", "volume-1", "-o", "name").stdout
    assert shown == "pools/p/volumes/volume-1/snapshots/snapshot-1\n"
    server.volcore("volume", "create", "volume-3", "--volume", "volume-1")
    server.volcore("attachment", "attach", "volume-2", "host")
    back = server.volcore("pool", "release", "--yes")
    assert (back.returncode, back.stdout) == (7, "volume-1\nvolume-3\n")
    assert "volume-2:" in back.stderr
    server.volcore("attachment", "detach", "volume-2", "host", "--yes")
    assert server.volcore("pool", "release", "--yes").stdout == "volume-2\n"
    assert server.volcore("volume", "release", "mine", "--yes").stdout == "other\n"
    assert server.volcore("volume", "release", "mine", "--yes").stdout == ""
    assert rbd("ls").split() == sorted([*names, "volume-3"])
    assert rbd("image-meta", "list", "volume-1").strip() in {
        "",
        "There are 0 metadata on this image.",
    }
