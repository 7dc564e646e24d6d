"""Every example of the pages runs, against a real server with one local pool."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from cli.server import make_golden, running_server

ROOT = Path(__file__).resolve().parents[2]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
DEFAULT_ENDPOINT = "unix:///run/volcore/volcore.sock"

pytestmark = [
    pytest.mark.qemu,
    pytest.mark.skipif(not shutil.which("qemu-img"), reason="needs qemu-utils"),
]


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A fresh server; the working directory holds what the examples read."""
    monkeypatch.chdir(tmp_path)
    make_golden(tmp_path / "golden.qcow2")
    with running_server() as running:
        yield running


def blocks(page, language):
    """(line, code) of every fenced block in `language`."""
    text = (ROOT / page).read_text()
    for found in FENCE.finditer(text):
        if found[1] == language:
            yield text.count("\n", 0, found.start(2)) + 1, found[2]


def run_python(page, server):
    """Run a page's blocks in one namespace, with the page's own line numbers in tracebacks."""
    names = {}
    count = 0
    for line, code in blocks(page, "python"):
        code = code.replace(DEFAULT_ENDPOINT, server.endpoint)
        code = code.replace("Client()", f"Client({server.endpoint!r})")
        exec(compile("\n" * (line - 1) + code, ROOT / page, "exec"), names)
        count += 1
    return count


def test_grpc_page(server):
    """Goal: docs/grpc.md tells the truth. Method: run all its Python, in order."""
    assert run_python("docs/grpc.md", server) > 10


def test_readme(server):
    """Goal: the first Python that anybody sees works. Method: run it."""
    assert run_python("README.md", server) == 1


def test_cli_page(server):
    """Goal: docs/cli.md tells the truth. Method: give its shell blocks to a shell, in order."""
    count = 0
    for line, code in blocks("docs/cli.md", "sh"):
        done = subprocess.run(
            ["sh", "-eux"], input=code, env=server.environment, cwd=os.getcwd(),
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, f"docs/cli.md:{line}\n{done.stdout}\n{done.stderr}"
        count += 1
    assert count == 3
