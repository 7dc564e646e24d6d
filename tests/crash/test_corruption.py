"""Corruptions of every file of a pool: each is found or harmless, none is served as data.

`scripts/soak corruption` plants 2,000.
"""

import json
import subprocess
import sys

import pytest

COUNT = 100


@pytest.mark.parametrize("first", [0, COUNT])
def test_corruptions(first: int) -> None:
    """Goal: INV-BE-3, INV-LOCAL-11. Method: damage copies of a pool, read everything, use it."""
    done = subprocess.run(
        [
            sys.executable, "-m", "volcore.testing.corruption",
            "--first", str(first), "--count", str(COUNT),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )  # fmt: skip
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, f"ended by {lines[-1:]}: {done.stderr[-4000:]}"
    verdicts = {line["seed"]: line for line in lines if "verdict" in line}
    assert len(verdicts) == COUNT
    bad = [line for line in verdicts.values() if line["verdict"] not in {"found", "harmless"}]
    assert bad == []
    assert sum(line["verdict"] == "found" for line in verdicts.values()) > COUNT // 2
