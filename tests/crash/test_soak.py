"""A short piece of what `scripts/soak load` does for ten minutes."""

import json
import shutil
import subprocess
import sys

import pytest

pytestmark = [
    pytest.mark.qemu,
    pytest.mark.skipif(
        not all(map(shutil.which, ("fio", "qemu-nbd"))), reason="apt-get install fio qemu-utils"
    ),
]


def test_load_and_kills() -> None:
    """Goal: INV-BE-1, INV-BE-2. Method: verified load, snapshots and clones; kill -9 twice."""
    done = subprocess.run(
        [
            sys.executable, "-m", "volcore.testing.soak",
            "--seconds", "18", "--kill-every", "6", "--size-mib", "32",
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=250,
    )  # fmt: skip
    assert done.returncode in {0, 1}, done.stderr[-4000:]
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["failures"] == []
    assert report["kills"] >= 2
    assert report["reconnections"] >= 2
    assert report["snapshots"] > 2
    assert report["flushes"] > 10
