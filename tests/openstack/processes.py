"""Processes of a rig: started with a log each, ended by their process groups and no others."""

import contextlib
import os
import random
import signal
import socket
import subprocess
import time
from pathlib import Path

START_S = 90.0
_COLUMNS = "pgid=,pid=,stat=,args="


def free_port() -> int:
    """Return a port below the kernel's ephemeral range on which nobody listens."""
    while True:
        port = random.randrange(20000, 32000)
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port


def run(words, **options) -> str:
    """Run a tool to its end; return what it says."""
    done = subprocess.run(
        [str(word) for word in words],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, errors="replace", **options,
    )  # fmt: skip
    assert done.returncode == 0, f"{words}:\n{done.stdout[-6000:]}"
    return done.stdout


class Processes:
    """Processes that run below `home`, their logs in `home`/log; programs come from `venv`."""

    def __init__(self, home: Path, venv: Path):
        self.home = home
        self.processes: dict[str, subprocess.Popen] = {}
        self._environment = {
            "PATH": f"{home}/bin:{venv}/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": str(home),
            "LC_ALL": "C.UTF-8",
            "PYTHONNOUSERSITE": "1",
        }
        (home / "log").mkdir(parents=True)

    def __exit__(self, *_):
        for name in reversed(list(self.processes)):
            self.stop(name, hard=True)  # nobody needs what is left; Nova would take a minute

    def stop(self, name: str, *, hard: bool = False) -> None:
        """End one process with all that it started."""
        process = self.processes.pop(name)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL if hard or name == "rabbit" else signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(20)

    def kill(self, name: str) -> None:
        """Kill the processes of one of Cinder's services; what they have started ends by itself."""
        process = self.processes.pop(name)
        for pid in self._members(process.pid, f"cinder-{name.partition('-')[0]}"):
            os.kill(pid, signal.SIGKILL)
        process.wait(20)
        deadline = time.monotonic() + START_S
        while left := self._members(process.pid):
            assert time.monotonic() < deadline, f"of {name} lives on: {left}"
            time.sleep(0.1)

    def _members(self, group: int, word: str = "") -> dict[int, str]:
        """The processes of a group, and their command lines; those with a word in it."""
        rows = (line.split(None, 3) for line in run(["ps", "-wweo", _COLUMNS]).splitlines())
        return {
            int(pid): command
            for of, pid, state, command in rows
            if int(of) == group and not state.startswith("Z") and word in command
        }

    def log(self, name: str) -> str:
        """Return what a process has said."""
        return (self.home / "log" / f"{name}.log").read_text(errors="replace")

    def _run(self, *words, **environment):
        return run(words, cwd=self.home, env={**self._environment, **environment})

    def _spawn(self, name, command, environment=None):
        with (self.home / "log" / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [str(word) for word in command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.home,
                start_new_session=True,
                env={**self._environment, **(environment or {})},
            )

    def _wait_port(self, name, port):
        def answers():
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port), 1).close()
                return True
            return False

        self._wait(name, answers)

    def _wait(self, name, is_done):
        deadline = time.monotonic() + START_S
        while not is_done():
            process = self.processes[name]
            assert process.poll() is None, f"{name} ended:\n{self.log(name)[-3000:]}"
            assert time.monotonic() < deadline, f"{name} is silent:\n{self.log(name)[-3000:]}"
            time.sleep(0.1)
