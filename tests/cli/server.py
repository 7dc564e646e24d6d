"""A real server on a local pool, and the command as a script would run it."""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from volcore.testing.server import RunningServer

BIN = Path(sys.executable).parent
COMMAND_TIMEOUT_S = 120


@dataclass
class Site:
    """A running server, and the environment of a user who wants to talk to it."""

    server: RunningServer
    environment: dict

    @property
    def endpoint(self) -> str:
        return self.server.endpoint

    def volcore(self, *words: str) -> subprocess.CompletedProcess:
        """Run one command; there is no terminal anywhere."""
        return subprocess.run(
            [BIN / "volcore", *words],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_TIMEOUT_S,
        )


@contextlib.contextmanager
def running_server() -> Iterator[Site]:
    """Start a server with one local pool; end it, and look that it ended well."""
    directory = Path(tempfile.mkdtemp(prefix="volcore-t-"))  # short: socket paths have a limit
    try:
        with RunningServer(directory) as server:
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
