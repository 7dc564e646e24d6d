"""Servers for the tests of the API."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from volcore.testing.server import RunningServer


@pytest.fixture(scope="module")
def short_directory() -> Iterator[Path]:
    """A directory with a short name: socket paths have a limit."""
    directory = Path(tempfile.mkdtemp(prefix="volcore-a-"))
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="module")
def server(short_directory) -> Iterator[RunningServer]:
    """A server with one local pool `p`."""
    with RunningServer(short_directory) as running:
        yield running
        assert running.stop() == 0, running.log()
        assert "Traceback" not in running.log()
        assert '"exception"' not in running.log()
