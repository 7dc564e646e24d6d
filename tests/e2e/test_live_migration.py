"""A guest that writes all the while moves between two hosts; nobody writes twice.

A short piece of what `scripts/soak migrations` does for long.
"""

import json
import os
import subprocess
import sys

import pytest

from volcore.testing.guest import missing_packages
from volcore.testing.migration_sites import BACKENDS
from volcore.testing.migrations import BLOCKS

MOVES = 2
pytestmark = [
    pytest.mark.qemu,
    pytest.mark.skipif(bool(missing_packages()), reason="needs QEMU and tools to build a guest"),
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("backend", BACKENDS)
def test_live_migration(pytestconfig, request, backend):
    """Goal: no lost, wrong or second-hand byte. Method: there, and back with the server killed."""
    if backend == "rbd":
        request.getfixturevalue("ceph_programs")
    words = [sys.executable, "-m", "volcore.testing.migrations", "--backend", backend]
    words += ["--moves", str(MOVES), "--seed", "1"]
    words += ["--cache", str(pytestconfig.rootpath / ".cache" / "guest")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-8000:]
    report = json.loads(done.stdout)
    assert report["failures"] == []
    assert [bool(move["kill"]) for move in report["moves"]] == [False, True]
    assert report["blocks"] >= (MOVES + 1) * BLOCKS
