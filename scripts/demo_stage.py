"""What the demo stands on: the server process, storage of either kind, and the printed table."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, Self

from blake3 import blake3
from rich.console import Console
from rich.text import Text

from volcore.cli.units import format_bytes, format_duration
from volcore.client import Client
from volcore.errors import VolcoreError
from volcore.testing.cluster import CephCluster

BIN = Path(sys.executable).parent
POOL = "demo"
START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 40.0
CHUNK_SIZE_BYTES = 4 << 20
OBJECT_PREFIXES = ("rbd_id.", "rbd_header.", "rbd_object_map.", "rbd_data.")
"""Beginnings of the names of what an rbd image consists of."""
ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)


class ProofError(Exception):
    """Something that the demo set out to show is not so."""


class Table:
    """Prints each step with its time as it happens, and counts what was proven."""

    NAME_WIDTH = 46
    TIME_WIDTH = 10

    def __init__(self) -> None:
        self.proof_count = 0

    def head(self, text: str) -> None:
        """Print the title of a group of steps."""
        console.print(f"\n[bold]{text}[/bold]")

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[list[str]]:
        """Time a block; what it appends to the list is printed behind the time."""
        notes: list[str] = []
        start_s = time.perf_counter()
        yield notes
        self.row(name, format_duration(time.perf_counter() - start_s), ", ".join(notes))

    def row(self, name: str, middle: str, note: str = "", *, style: str = "") -> None:
        """Print one aligned line."""
        line = Text("  ")
        line.append(f"{name:<{self.NAME_WIDTH}}", style=style)
        line.append(f"{middle:>{self.TIME_WIDTH}}", style=style if style else "cyan")
        if note:
            line.append(f"   {note}", style="dim")
        console.print(line, soft_wrap=True)

    def prove(self, claim: str, holds: bool, note: str = "") -> None:
        """Print a claim with its verdict.

        Raises:
            ProofError: it does not hold.
        """
        if not holds:
            self.row(claim, "NO", note, style="bold red")
            raise ProofError(f"{claim}: this is not so ({note or 'no details'})")
        self.proof_count += 1
        self.row(claim, "yes", note, style="green")

    def quote(self, text: str) -> None:
        """Print what somebody else said."""
        for line in text.splitlines():
            console.print(Text(f"      | {line}", style="bold yellow"), soft_wrap=True)


class Server:
    """`volcore serve` in a process of its own; a context manager that never leaves it running."""

    def __init__(self, config: Path, socket: Path, log: Path) -> None:
        self._config, self._log = config, log
        self.endpoint = f"unix://{socket}"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        # A session of its own, so that Ctrl-C reaches us first; and the kernel ends the server if
        # this process is killed outright.
        guard = ["setpriv", "--pdeathsig", "TERM", "--"] if shutil.which("setpriv") else []
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [*guard, str(BIN / "volcore"), "serve", "--config", str(self._config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            self._wait_ready()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _wait_ready(self) -> None:
        assert self._process is not None
        deadline_s = time.monotonic() + START_TIMEOUT_S
        with Client(self.endpoint, timeout_s=1) as client:
            while True:
                try:
                    list(client.list_pools())
                except VolcoreError as err:
                    if self._process.poll() is not None or time.monotonic() > deadline_s:
                        raise ProofError(f"the server did not start: {self.log_tail()}") from err
                    time.sleep(0.02)
                else:
                    return

    def stop(self) -> int:
        """Ask it to stop with SIGTERM and return its exit code."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(STOP_TIMEOUT_S)

    def __exit__(self, *_: object) -> None:
        if self._process is None:
            return
        if self._process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.stop()
        # What it may have started, a converter say, is in its group.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def log_tail(self) -> str:
        """Return the end of its log."""
        return self._log.read_text(errors="replace")[-2000:].strip() or "it said nothing"


class LocalStage:
    """Storage in a directory."""

    title = "the embedded backend (one directory)"

    def __init__(self, work: Path) -> None:
        self.store = work / "pool"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def pool_config(self) -> str:
        """Return the pool's part of the configuration."""
        return f'backend = "local"\ndirectory = "{self.store}"\n'

    def space_used(self) -> str:
        """Return what `du` says, which counts what the files really occupy."""
        return f"du {self.store.name}: {format_bytes(used_bytes(self.store))}"

    def leftovers(self) -> list[str]:
        """Return what is still there of volumes that were deleted."""
        files = [path for path in self.store.rglob("*") if path.is_file()]
        own = {"lock", "volcore.db", "volcore.db-wal", "volcore.db-shm", "witness"}
        return [str(path.relative_to(self.store)) for path in files if path.name not in own]


class RbdStage:
    """A real Ceph cluster of one node, for this demo only."""

    title = "a real single-node Ceph, started for this demo"

    def __init__(self, work: Path) -> None:
        self._cluster = CephCluster(work / "ceph")

    def __enter__(self) -> Self:
        self._cluster.start()
        try:
            self._cluster.create_pool(POOL)
        except BaseException:
            self._cluster.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._cluster.stop()

    def pool_config(self) -> str:
        """Return the pool's part of the configuration."""
        return (
            f'backend = "rbd"\npool = "{POOL}"\nuser = "volcore"\n'
            f'ceph_conf = "{self._cluster.conf_path}"\n'
        )

    def space_used(self) -> str:
        """Return what Ceph says that the pool occupies."""
        pools = json.loads(self._ask("ceph", "df", "--format", "json"))["pools"]
        # Ceph counts every second or so: a fresh pool is not there yet.
        stored = sum(pool["stats"]["stored"] for pool in pools if pool["name"] == POOL)
        return f"ceph df, pool {POOL}: {format_bytes(stored)}"

    def leftovers(self) -> list[str]:
        """Return the rbd images that are still there, in the trash too, and lost objects."""
        found = json.loads(self._ask("rbd", "ls", "--pool", POOL, "--format", "json"))
        trash = json.loads(
            self._ask("rbd", "trash", "ls", "--all", "--pool", POOL, "--format", "json")
        )
        objects = self._ask("rados", "--pool", POOL, "ls").split()
        lost = [name for name in objects if name.startswith(OBJECT_PREFIXES) and self._is(name)]
        return [str(one) for one in [*found, *trash, *lost]]

    def _is(self, name: str) -> bool:
        """Say whether an object exists, not only what its deleted snapshots have left."""
        try:
            self._ask("rados", "--pool", POOL, "stat", name)
        except ProofError:
            return False
        return True

    def _ask(self, program: str, *words: str) -> str:
        return run([program, "-c", str(self._cluster.conf_path), *words])


def run(command: Sequence[str], *, timeout_s: float = 120) -> str:
    """Run a program and return what it prints.

    Raises:
        ProofError: it failed; the text holds what it said.
    """
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s)
    if done.returncode != 0:
        raise ProofError(f"{Path(command[0]).name} failed: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def volcore(endpoint: str, *words: str) -> Any:
    """Run the `volcore` command, its progress on our stderr, and return its JSON."""
    done = subprocess.run(
        [BIN / "volcore", "--endpoint", endpoint, *words, "--output", "json"],
        stdout=subprocess.PIPE,
        text=True,
    )
    if done.returncode != 0:
        raise ProofError(f"'volcore {' '.join(words[:2])}' ended with {done.returncode}")
    return json.loads(done.stdout)


def used_bytes(directory: Path) -> int:
    """Return what the files below a directory really occupy."""
    return sum(path.stat().st_blocks * 512 for path in directory.rglob("*") if path.is_file())


def content_digest(raw: Path) -> str:
    """Return the digest of a raw disk, computed from its definition in `image.proto`."""
    outer = blake3()
    with raw.open("rb") as file:
        while chunk := file.read(CHUNK_SIZE_BYTES):
            outer.update(blake3(chunk.ljust(CHUNK_SIZE_BYTES, b"\0")).digest())
    outer.update(raw.stat().st_size.to_bytes(8, "little"))
    return f"blake3-4m:{outer.hexdigest()}"


def processes_of(work: Path) -> list[str]:
    """Return the processes whose command line names the demo's own directory."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
            if entry.name.isdigit() and any(str(work) in word for word in words):
                found.append(f"{Path(words[0]).name} ({entry.name})")
    return found


def stop_by_signal(number: int, _frame: object) -> NoReturn:
    """Turn a signal into an exception, so that everything is taken down in order, once."""
    for ending in ENDING_SIGNALS:
        signal.signal(ending, signal.SIG_IGN)
    raise KeyboardInterrupt(signal.Signals(number).name)
