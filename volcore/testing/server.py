"""A real server in a process of its own, for tests and benchmarks: start, kill, start again."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Self

from volcore.client import Client
from volcore.errors import VolcoreError
from volcore.v1.pool_pb2 import PoolShortPath

SERVER_MODULE: Final = "volcore.cli.main"
START_S: Final = 60.0
STOP_S: Final = 60.0
PROOF_S: Final = 60.0


class ServerError(RuntimeError):
    """The server did not start or stop as it should; the message ends with its log."""


class RunningServer:
    """`volcore serve` over one pool, with everything it keeps below one directory.

    Args:
        directory: for its socket, log, configuration and, in a local pool, its data.
        pool_lines: the lines of the TOML table `[pools.p]`; a local pool in `directory` if empty.
        wrapper: words before the command, such as those that make it run as another user.
        module: what to run instead of `volcore` itself, with the same arguments.
        server_lines: more lines of the TOML table `[server]`.
        listen: further addresses to listen on.
        nbd_lines: the lines of the TOML table `[nbd]`; a unix socket in `directory` if empty.
    """

    def __init__(
        self,
        directory: Path,
        pool_lines: str = "",
        *,
        wrapper: Sequence[str] = (),
        module: str = SERVER_MODULE,
        listen: Sequence[str] = (),
        server_lines: str = "",
        nbd_lines: str = "",
    ) -> None:
        self._command = [*wrapper, sys.executable, "-m", module, "serve", "--config"]
        self.directory = directory
        self.pool_directory = directory / "pool"
        self.socket_path = directory / "run" / "volcore.sock"
        self.log_path = directory / "server.log"
        self._config_path = directory / "volcore.toml"
        self._process: subprocess.Popen[bytes] | None = None
        self._log_start = 0
        directory.mkdir(parents=True, exist_ok=True)
        pool_lines = pool_lines or f'backend = "local"\ndirectory = "{self.pool_directory}"\n'
        nbd_lines = nbd_lines or f'listen = ["unix://{directory}/run/nbd.sock"]'
        addresses = json.dumps([f"unix://{self.socket_path}", *listen])
        self._config_path.write_text(
            f"""[server]
listen = {addresses}
image_directories = ["{directory}"]
spool_directory = "{directory}"
{server_lines}

[log]
format = "json"

[nbd]
{nbd_lines}

[pools.p]
{pool_lines}"""
        )

    @property
    def endpoint(self) -> str:
        """Endpoint for clients."""
        return f"unix://{self.socket_path}"

    @property
    def pid(self) -> int:
        """Process id of the running server."""
        assert self._process is not None
        return self._process.pid

    def client(self) -> Client:
        """Return a new client."""
        return Client(self.endpoint)

    def start(self, *, standby: bool = False) -> None:
        """Start it and wait until it answers; with `standby` until it says that it stands by.

        Raises:
            ServerError: it ended, or does not answer in time.
        """
        process = self.spawn()
        deadline = time.monotonic() + START_S
        while not (self._stands_by() if standby else self._answers()):
            if process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise ServerError(f"the server did not start:\n{self.log()[-4000:]}")
            time.sleep(0.05)

    def wait_for_short_path(self) -> None:
        """Wait until clones take the short path, and the scratch images of its proof are gone."""
        deadline = time.monotonic() + PROOF_S
        with self.client() as client:
            while True:
                found = client.get_pool("pools/p").short_path
                if found.state != PoolShortPath.STATE_PROVING:
                    break
                assert time.monotonic() < deadline, "the short path is not decided"
                time.sleep(0.1)
        assert found.state == PoolShortPath.STATE_ON, found.detail

    def spawn(self) -> "subprocess.Popen[bytes]":
        """Start it and wait for nothing."""
        assert self._process is None
        self._log_start = self.log_path.stat().st_size if self.log_path.exists() else 0
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [*self._command, self._config_path],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        return self._process

    def _stands_by(self) -> bool:
        return '"standby": true' in self.log()[self._log_start :]

    def _answers(self) -> bool:
        if not self.socket_path.exists():
            return False
        try:
            with Client(self.endpoint, timeout_s=5) as client:
                client.get_pool("pools/p")
        except VolcoreError:
            return False
        return True

    def kill(self) -> None:
        """End it with SIGKILL, as a crash does; idempotent."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        """Stop its execution until it is killed or thawed."""
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        os.kill(self.pid, signal.SIGCONT)

    def wait(self, timeout_s: float | None = STOP_S) -> int:
        """Return its exit code when it has ended by itself; None waits for ever.

        Raises:
            ServerError: it does not end in time.
        """
        assert self._process is not None
        try:
            code = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired as err:
            raise ServerError(f"the server does not end:\n{self.log()[-4000:]}") from err
        self._process = None
        return code

    def stop(self) -> int:
        """End it with SIGTERM and return its exit code.

        Raises:
            ServerError: it does not end in time.
        """
        assert self._process is not None
        self._process.terminate()
        try:
            code = self._process.wait(STOP_S)
        except subprocess.TimeoutExpired as err:
            self.kill()
            raise ServerError(f"the server did not stop:\n{self.log()[-4000:]}") from err
        self._process = None
        return code

    def log(self) -> str:
        """Return what it has logged so far."""
        return self.log_path.read_text(errors="replace")

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
