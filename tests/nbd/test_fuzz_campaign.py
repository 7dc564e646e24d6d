"""Honest and hostile clients together against a server process; see `nbd.fuzz`."""

import os
import tempfile
from pathlib import Path

import pytest

from .fuzz.campaign import run

SECONDS = float(os.environ.get("VOLCORE_FUZZ_S", "5"))


@pytest.mark.timeout(SECONDS + 240)
def test_the_server_survives() -> None:
    """Goal: no crash, no leak, no wrong byte. Method: all sessions for VOLCORE_FUZZ_S."""
    seed = int.from_bytes(os.urandom(4))
    with tempfile.TemporaryDirectory(prefix="volcore-fuzz-") as directory:  # a short path
        figures = run(Path(directory), seconds=SECONDS, seed=seed)
    print(figures)
    assert figures["honest"]
