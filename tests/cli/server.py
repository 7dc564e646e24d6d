"""A real server on a local pool, and the command as a script would run it."""

import contextlib
import io
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from volcore.cli.main import main
from volcore.testing.server import RunningServer

BIN = Path(sys.executable).parent


@dataclass
class Site:
    """A running server, and the environment of a user who wants to talk to it."""

    server: RunningServer
    environment: dict

    @property
    def endpoint(self) -> str:
        return self.server.endpoint

    def volcore(self, *words: str) -> subprocess.CompletedProcess:
        """Run one command as a script would, without a terminal."""
        return volcore(*words, environment=self.environment)


@contextlib.contextmanager
def running_server(pool_lines: str = "") -> Iterator[Site]:
    """Start a server with one pool, a local one by default; end it, and look that it ended well."""
    directory = Path(tempfile.mkdtemp(prefix="volcore-t-"))  # short: socket paths have a limit
    try:
        with RunningServer(directory, pool_lines) as server:
            yield Site(
                server,
                {
                    "PATH": f"{BIN}:{os.environ['PATH']}",
                    "HOME": str(directory),
                    "LC_ALL": "C.UTF-8",
                    "VOLCORE_ENDPOINT": server.endpoint,
                },
            )
            assert server.stop() == 0, server.log()
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def volcore(*words: str, environment: dict | None = None) -> subprocess.CompletedProcess:
    """Run one command in this process, which saves the start of an interpreter each time."""
    stdout, stderr = io.StringIO(), io.StringIO()
    code: object = 0
    with (
        mock.patch.dict(os.environ, environment or {}),
        mock.patch("sys.stdin", io.StringIO()),
        contextlib.redirect_stdout(stdout),
        contextlib.redirect_stderr(stderr),
    ):
        try:
            main(words)
        except SystemExit as end:
            code = end.code
    return subprocess.CompletedProcess(words, int(code or 0), stdout.getvalue(), stderr.getvalue())


def make_golden(path: Path) -> None:
    """Write a small qcow2 with some content."""
    raw = path.with_suffix(".raw")
    with raw.open("wb") as file:
        file.truncate(16 << 20)
        file.seek(1 << 20)
        file.write(b"golden" * 10_000)
    subprocess.run(
        ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, path], check=True, timeout=60
    )
