"""One server for all tests of this directory; each test takes names of its own."""

import shutil

import pytest

from .server import make_golden, running_server


@pytest.fixture(scope="session")
def server():
    with running_server() as running:
        yield running


@pytest.fixture(scope="session")
def golden_file(tmp_path_factory):
    """A small qcow2."""
    if not shutil.which("qemu-img"):
        pytest.skip("needs qemu-utils")
    path = tmp_path_factory.mktemp("images") / "golden.qcow2"
    make_golden(path)
    return path


@pytest.fixture(scope="session")
def golden(server, golden_file):
    """The name of an image that has been imported."""
    done = server.volcore("image", "import", str(golden_file), "golden", "--label", "os=none")
    assert done.returncode == 0, done.stderr
    return "golden"
