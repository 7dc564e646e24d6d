"""`make bench-local` at its smallest: that every scenario runs and says something about each bar.

No `__init__.py` here: this directory's name is that of what it tests.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BARS = {
    "clone": 4,
    "scaling": 4,
    "listing": 2,
    "fio": 9,
    "memory": 3,
    "diff": 2,
    "import": 2,
    "kernels": 2,
}
"""How many figures have a bar; awscrt, which gives kernels a third, need not be installed."""


def bench(*words):
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.local", *words],
        cwd=ROOT, capture_output=True, text=True, timeout=200,
    )  # fmt: skip


@pytest.mark.qemu
@pytest.mark.parametrize("word", BARS)
def test_scenario(word, tmp_path):
    """Goal: the benchmarks do not rot. Method: run each in its smallest form, judge no time."""
    if word == "fio" and shutil.which("fio") is None:
        pytest.skip("fio is not installed: apt-get install fio")
    found, page = tmp_path / "found.json", tmp_path / "page.md"
    with tempfile.TemporaryDirectory(prefix="bench-") as place:  # short: sockets go below it
        done = bench(word, "--tiny", "--directory", place, "--json", found, "--page", page)
        assert done.returncode == 0, done.stderr
        assert not list(Path(place).iterdir()), "it cleans up"
    figures = json.loads(found.read_text())["figures"]
    assert {figure["scenario"] for figure in figures} == {word}
    assert sum(figure["ok"] is not None for figure in figures) >= BARS[word]
    rows = page.read_text().splitlines()
    assert all(any(figure["name"] in row for row in rows) for figure in figures)


def test_unknown_word():
    """Goal: a slip of the pen is told. Method: ask for a scenario that there is not."""
    done = bench("clones")
    assert done.returncode == 2
    assert "there are: clone, scaling" in done.stderr
