"""The comparison of drivers at its smallest: that it runs, and says something about each bar."""

import json
import subprocess

import pytest

from .rig import ROOT, VENV

LINES = {"snapshot", "from", "connection", "delete", "clone", "image"}


@pytest.mark.long
def test_drivers(site, tmp_path):
    """Goal: the benchmark does not rot. Method: one round on the rig, judge no time."""
    path = tmp_path / "image.raw"
    path.write_bytes(bytes(range(256)) * 4096)
    image = site.glance.upload(path, "raw")
    words = [
        VENV / "bin" / "python",
        ROOT / "benchmarks" / "openstack" / "drivers.py",
        site.rig.conf,
        image,
        "1",
    ]
    done = subprocess.run(words, capture_output=True, text=True, cwd=site.rig.home, timeout=200)
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found.keys() == LINES
    assert all(set(times) == {"ours-rbd", "stock"} for times in found.values())
    site.glance.delete(image)
    with site.servers["ours-rbd"].client() as client:
        names = {volume.name for volume in client.list_volumes("pools/p")}
    assert names == set()
