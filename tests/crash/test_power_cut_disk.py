"""Power cuts of a real filesystem; `scripts/soak disk` cuts 200 times."""

import json
import subprocess
import sys
from typing import Any

import pytest

from volcore.testing.real_disk import obstacle


def cut(filesystem: str, *words: str) -> dict[str, Any]:
    if reason := obstacle(filesystem):
        pytest.skip(reason)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "volcore.testing.power_cut_disk",
            "--filesystem",
            filesystem,
            *words,
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=250,
    )
    if "losetup failed" in done.stderr or "mount failed" in done.stderr:
        pytest.skip(f"no loop mounts here: {done.stderr.splitlines()[-1]}")
    assert done.returncode in {0, 1}, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("filesystem", ["ext4", "xfs", "btrfs"])
def test_random_instants(filesystem: str) -> None:
    """Goal: INV-BE-1 on real filesystems. Method: copy the stopped disk, mount, open, read all."""
    outcome = cut(filesystem, "--instants", "5")
    assert outcome["failures"] == []
    assert outcome["instants"] == 5
    assert outcome["flushes"] > 10
    assert outcome["snapshots_checked"] > 0


def test_lost_syncs_are_seen() -> None:
    """Goal: the cuts can fail. Method: a server whose syncs do nothing."""
    assert cut("ext4", "--instants", "10", "--plant", "no-sync")["failures"]
