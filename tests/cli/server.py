"""A real server in a process of its own, on a local pool: for the command and the pages."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from volcore.client import Client
from volcore.errors import VolcoreError

BIN = Path(sys.executable).parent
START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 40.0


@dataclass
class RunningServer:
    """Where the server is, and how to run `volcore` against it."""

    directory: Path
    process: subprocess.Popen
    environment: dict = field(default_factory=dict)

    @property
    def endpoint(self) -> str:
        return f"unix://{self.directory / 'volcore.sock'}"

    def volcore(self, *words, **options) -> subprocess.CompletedProcess:
        """Run one command as a user's script would: no terminal anywhere."""
        return subprocess.run(
            [BIN / "volcore", *words],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            **options,
        )

    def client(self) -> Client:
        return Client(self.endpoint)


@contextlib.contextmanager
def running_server() -> Iterator[RunningServer]:
    """Start a server with one local pool; end it, and look that it ended well."""
    directory = Path(tempfile.mkdtemp(prefix="volcore-t-"))  # short: socket paths have a limit
    environment = {
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "HOME": str(directory),
        "LC_ALL": "C.UTF-8",
        "TERM": "dumb",
    }
    log = (directory / "log").open("wb")
    process = subprocess.Popen(
        [BIN / "volcore", "serve", "--pool-directory", directory / "pool",
         "--listen", f"unix://{directory / 'volcore.sock'}"],
        env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
    )  # fmt: skip
    environment = environment | {"VOLCORE_ENDPOINT": f"unix://{directory / 'volcore.sock'}"}
    server = RunningServer(directory, process, environment)
    try:
        _wait_ready(server)
        yield server
        process.send_signal(signal.SIGTERM)
        assert process.wait(STOP_TIMEOUT_S) == 0, (directory / "log").read_text()
    finally:
        process.kill()
        process.wait()
        log.close()
        shutil.rmtree(directory, ignore_errors=True)


def _wait_ready(server: RunningServer) -> None:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    with Client(server.endpoint, timeout_s=1) as client:
        while True:
            try:
                list(client.list_pools())
            except VolcoreError:
                said = (server.directory / "log").read_text()
                assert server.process.poll() is None, said
                assert time.monotonic() < deadline_s, said
                time.sleep(0.02)
            else:
                return


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
