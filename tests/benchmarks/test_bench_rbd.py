"""`make bench` at its smallest: that every scenario runs and says something about each bar.

No `__init__.py` here: this directory's name is that of what it tests.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from volcore.testing.cluster import missing_packages

ROOT = Path(__file__).resolve().parents[2]
BARS = {
    "clone": 2,
    "warm": 1,
    "scaling": 5,
    "burst": 3,
    "snapshot": 3,
    "delete": 1,
    "look": 2,
    "diff": 1,
}
"""How many figures have a bar."""


def bench(*words, timeout=280):
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *words],
        cwd=ROOT, capture_output=True, text=True, timeout=timeout,
    )  # fmt: skip


@pytest.mark.ceph
@pytest.mark.qemu
@pytest.mark.timeout(300)
def test_scenarios(tmp_path):
    """Goal: the benchmarks do not rot. Method: all of them, smallest form, judge no time."""
    if missing := missing_packages():
        pytest.skip(f"apt-get install {' '.join(missing)}")
    found, pages = tmp_path / "found.json", tmp_path / "pages"
    with tempfile.TemporaryDirectory(prefix="bench-") as place:  # short: sockets go below it
        words = ["--tiny", "--store", "memstore", "--directory", place, "--json", found]
        done = bench(*words, "--pages", pages)
        assert done.returncode == 0, done.stderr
        assert not list(Path(place).iterdir()), "it cleans up"
    said = json.loads(found.read_text())
    for scenario, count in BARS.items():
        barred = [f for f in said["figures"] if f["scenario"] == scenario and f["ok"] is not None]
        assert len(barred) == count, scenario
    assert {one["scenario"].partition(":")[0] for one in said["contenders"]} >= {"clone", "delete"}
    rival = next(one for one in said["contenders"] if one["name"] == "rbd.clone")
    assert rival["requests"]["reads"] > 20
    ours = next(one for one in said["contenders"] if one["name"] == "volcore")
    assert ours["requests"]["reads"] + ours["requests"]["writes"] < 20
    page = (pages / "rbd.md").read_text()
    assert all(figure["name"] in page for figure in said["figures"])
    missed = sum(figure["ok"] is False for figure in said["figures"])
    assert page.count("**MISSED**") == missed


def test_unknown_word():
    """Goal: a slip of the pen is told. Method: ask for a scenario that there is not."""
    done = bench("clones")
    assert done.returncode == 2
    assert "there are: clone, " in done.stderr
    assert "kernels" in done.stderr
