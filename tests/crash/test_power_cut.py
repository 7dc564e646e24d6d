"""Power cuts on a simulated disk that loses, tears and reorders what was not synced.

`scripts/soak power-cut` runs many more seeds.
"""

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from volcore.testing import recorder
from volcore.testing.plants import PLANTS
from volcore.testing.simulated_disk import SimulatedDisk


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return recorder.build(tmp_path_factory.mktemp("recorder"))


def sweep(library: Path, *words: object) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "volcore.testing.power_cut", *map(str, words)],
        env=recorder.environment(library),
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    assert done.returncode in {0, 1}, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    "words",
    [
        ("--seed", 1, "--steps", 50),
        ("--seed", 2, "--steps", 40, "--few-notes"),
        ("--seed", 3, "--steps", 8, "--threads", 3, "--variants", 2),
    ],
    ids=["plain", "few notes", "threads"],
)
def test_every_sync(library: Path, words: tuple[object, ...]) -> None:
    """Goal: INV-BE-1, INV-BE-3. Method: cut at each sync, then at each sync of some recoveries."""
    outcome = sweep(library, "--recoveries", 0.04, *words)
    assert outcome["failures"] == []
    assert outcome["syncs"] > 40
    assert outcome["recoveries"] > 10


@pytest.mark.parametrize("plant", [plant for plant in PLANTS if plant != "none"])
def test_plants_are_found(library: Path, plant: str) -> None:
    """Goal: the sweep can fail. Method: break the order of writes in ways that bugs would."""
    seed = 5 if plant == "early-punch" else 1  # few histories have such a hole at a cut
    outcome = sweep(
        library, "--seed", seed, "--plant", plant, "--variants", 4, "--recoveries", 0,
        "--failures", 1, "--steps", 90,
    )  # fmt: skip
    assert outcome["failures"], f"{plant} was not seen"


def test_recorder_sees_everything(library: Path, tmp_path: Path) -> None:
    """Goal: nothing escapes. Method: change files in all ways, rebuild them from the trace."""
    code = """
import ctypes, os, sys
from pathlib import Path
from volcore.testing.recorder import Recorder
place, trace = Path(sys.argv[1]), Path(sys.argv[2])
recorder = Recorder()
recorder.start(place, trace)
os.mkdir(place / "d")
fd = os.open(place / "d" / "f", os.O_RDWR | os.O_CREAT)
os.pwrite(fd, b"a" * 10000, 5)
os.pwritev(fd, [b"b" * 5000, b"c" * 7], 9000)
os.pwritev(fd, [b"sure"], 20000, os.RWF_DSYNC)
os.write(fd, b"start")
ctypes.CDLL(None).fallocate(fd, 3, ctypes.c_int64(4096), ctypes.c_int64(4096))
ctypes.CDLL(None).fallocate(fd, 0, ctypes.c_int64(0), ctypes.c_int64(30000))
os.ftruncate(fd, 25001)
os.chdir(place)
os.close(os.open("gone", os.O_WRONLY | os.O_CREAT))
os.unlink("gone")
with open("moved", "wb") as file: file.write(b"x" * 70000)
os.rename("moved", "there")
recorder.stop()
"""
    place = tmp_path / "place"
    place.mkdir()
    trace = tmp_path / "trace"
    subprocess.run(
        [sys.executable, "-c", code, place, trace],
        env=recorder.environment(library),
        check=True,
    )
    check_rebuilt(place, trace, tmp_path)


def check_rebuilt(place: Path, trace: Path, tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    disk = SimulatedDisk(tmp_path / "base", lambda name: 512)
    for record in recorder.records(trace):
        disk.feed(record)
    disk.cut(tmp_path / "kept", random.Random(0), 1.0)
    for name in ("d/f", "there"):
        assert (tmp_path / "kept" / name).read_bytes() == (place / name).read_bytes()
    assert sorted(os.listdir(tmp_path / "kept")) == ["d", "there"]
    disk.cut(tmp_path / "lost", random.Random(0), 0.0)
    assert os.listdir(tmp_path / "lost") == []
