"""Disks over NBD: `fio` with libnbd on a clone, and on a qcow2 overlay that `qemu-nbd` serves.

Both have the same raw image of random bytes below them (ours imported, the rival's as its backing
file), both cache in memory (writeback), both get the same job, in turn. Jobs take a fixed time, or,
where they would change what they measure, a fixed amount of work. Reads are of what the image
holds; `fresh` is a new clone or overlay for every run; `written` has been filled before.

The processor time that the server takes for a request is printed as well: it says the same on a
machine that has other work.

checks off   the same jobs on a server that computes and verifies no checksum: what they cost
"""

import json
import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from benchmarks.bench_import import sync_file
from benchmarks.local.raw_import import random_bytes
from benchmarks.local.unchecked import is_possible
from benchmarks.report import Figure, Sample
from benchmarks.sampling import Context
from volcore.limits import KIB, MIB
from volcore.testing.server import RunningServer

UNCHECKED = "benchmarks.local.unchecked"
OFF = "checks off"
HOST = "bench"
JOB_S = 0.8
FIO_TIMEOUT_S = 120
ROUNDS = 7
ROUNDS_MIN = 3
ROUNDS_S = 200.0
"""After that no round begins: a busy machine gets fewer of them."""
START_S = 10.0
CLIENTS_MAX = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What fio does, and at least how much faster than the rival it has to be."""

    name: str
    rw: str
    block_bytes: int
    depth: int
    at_least: float
    disk: str
    """base: unwritten, read only; written: filled once; fresh: new for each run."""
    count: int = 0
    """Requests; 0: as many as the time allows."""
    unchecked: bool = False

    @property
    def is_read(self) -> bool:
        return "read" in self.rw


JOBS = (
    Job(name="4 KiB random read, depth 1", rw="randread", block_bytes=4 * KIB, depth=1,
        at_least=1.0, disk="base"),
    Job(name="4 KiB random read, depth 32", rw="randread", block_bytes=4 * KIB, depth=32,
        at_least=1.0, disk="base", unchecked=True),
    Job(name="4 KiB random write into a fresh clone, depth 1", rw="randwrite", depth=1,
        block_bytes=4 * KIB, at_least=3.0, disk="fresh", count=2000),
    Job(name="4 KiB random write into a fresh clone, depth 32", rw="randwrite", depth=32,
        block_bytes=4 * KIB, at_least=3.0, disk="fresh", count=4000),
    Job(name="4 KiB random write into written space, depth 1", rw="randwrite", depth=1,
        block_bytes=4 * KIB, at_least=1.0, disk="written"),
    Job(name="4 KiB random write into written space, depth 32", rw="randwrite", depth=32,
        block_bytes=4 * KIB, at_least=1.0, disk="written", unchecked=True),
    Job(name="1 MiB sequential read, depth 8", rw="read", block_bytes=MIB, depth=8,
        at_least=1.0, disk="base", unchecked=True),
    Job(name="1 MiB sequential write into written space, depth 8", rw="write", depth=8,
        block_bytes=MIB, at_least=1.0, disk="written", count=-1, unchecked=True),
    Job(name="1 MiB sequential write into a fresh clone, depth 8", rw="write", depth=8,
        block_bytes=MIB, at_least=1.0, disk="fresh", count=-1),
)  # fmt: skip
"""`count` -1: once over the disk."""


@dataclass(frozen=True, slots=True)
class Result:
    """Of one run of a job: requests or MiB a second, and processor time of the server each."""

    rate: float
    cost_us: float


class Side(Protocol):
    """A contender: gives out the URIs of disks."""

    def pid(self, kind: str) -> int:
        """Return the process that serves the disk."""

    def disk(self, kind: str, number: int) -> str:
        """Return the URI of the disk; `fresh` ones differ by number."""

    def drop(self, number: int) -> None:
        """Delete the fresh disk."""


@dataclass(slots=True)
class Volcore:
    """Clones of an image, attached."""

    server: RunningServer
    client: Any
    image: str
    made: set[str] = field(default_factory=set)

    def pid(self, kind: str) -> int:
        return self.server.pid

    def disk(self, kind: str, number: int) -> str:
        name = f"pools/p/volumes/{kind}-{number if kind == 'fresh' else 0}"
        if name not in self.made:
            self.client.create_volume(name, image=self.image)
            self.made.add(name)
        return str(self.client.attach_volume(name, HOST).nbd.uri)

    def drop(self, number: int) -> None:
        name = f"pools/p/volumes/fresh-{number}"
        self.client.detach_volume(name, HOST)
        self.client.delete_volume(name)


@dataclass(slots=True)
class QemuNbd:
    """qcow2 overlays, each behind a `qemu-nbd` of its own."""

    directory: Path
    base: Path
    stack: ExitStack
    uris: dict[str, str] = field(default_factory=dict)
    pids: dict[str, int] = field(default_factory=dict)
    fresh: ExitStack = field(default_factory=ExitStack)

    def pid(self, kind: str) -> int:
        return self.pids[kind]

    def disk(self, kind: str, number: int) -> str:
        if kind == "fresh":
            return self.fresh.enter_context(self._served(kind, f"fresh-{number}"))
        if kind not in self.uris:
            self.uris[kind] = self.stack.enter_context(self._served(kind, kind))
        return self.uris[kind]

    def drop(self, number: int) -> None:
        self.fresh.close()
        (self.directory / f"fresh-{number}.qcow2").unlink()

    @contextmanager
    def _served(self, kind: str, name: str) -> Iterator[str]:
        overlay, socket = self.directory / f"{name}.qcow2", self.directory / f"{name}.sock"
        _run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", self.base, "-F", "raw", overlay])
        command = ["qemu-nbd", "-t", "-f", "qcow2", "--cache=writeback", f"--shared={CLIENTS_MAX}"]
        with subprocess.Popen([*command, "-k", socket, overlay]) as process:
            self.pids[kind] = process.pid
            try:
                deadline = time.monotonic() + START_S
                while not socket.exists():
                    if process.poll() is not None or time.monotonic() > deadline:
                        raise RuntimeError("qemu-nbd did not start")
                    time.sleep(0.01)
                yield f"nbd+unix:///?socket={socket}"
            finally:
                process.terminate()
                process.wait(FIO_TIMEOUT_S)


def run(context: Context) -> Iterator[Figure]:
    """Measure; see the module."""
    size_mib = context.size(1024, 8)
    base = context.directory / "base.raw"
    random_bytes(base, size_mib)
    with ExitStack() as stack:
        sides: dict[str, Side] = {
            "volcore": _volcore(RunningServer(context.directory / "checked"), base, stack),
            "qemu-nbd": QemuNbd(context.place("rival"), base, stack),
        }
        if is_possible():
            server = RunningServer(context.directory / "unchecked", module=UNCHECKED)
            sides[OFF] = _volcore(server, base, stack)
        for side in sides.values():
            _fill(side.disk("written", 0), size_mib)
        results = _rounds(context, sides, size_mib)
    for job in JOBS:
        yield _figure(job, results, "qemu-nbd", job.at_least)
        yield _cost(job, results)
        if (job.name, OFF) in results:
            yield _figure(job, results, OFF, None)


def _rounds(context: Context, sides: dict[str, Side], size_mib: int) -> dict[Any, list[Result]]:
    """Return the results by (job, side)."""
    results: dict[Any, list[Result]] = {}
    enough = time.monotonic() + ROUNDS_S
    for number in range(context.size(-1, 0), context.size(ROUNDS, 1)):  # the first one warms up
        if number >= ROUNDS_MIN and time.monotonic() > enough:
            break
        for at, job in enumerate(JOBS):
            names = [name for name in sides if job.unchecked or name != OFF]
            for name in names if number % 2 else reversed(names):
                _quieten(context.directory)
                result = _measured(
                    context, sides[name], job, (number + 1) * len(JOBS) + at, size_mib
                )
                if number >= 0:
                    results.setdefault((job.name, name), []).append(result)
    return results


def _measured(context: Context, side: Side, job: Job, number: int, size_mib: int) -> Result:
    uri = side.disk(job.disk, number)
    size_bytes = size_mib * MIB
    words = [
        f"--rw={job.rw}", f"--bs={job.block_bytes}", f"--iodepth={job.depth}",
        f"--size={size_bytes}", "--randseed=7",
    ]  # fmt: skip
    if job.count > 0:
        words.append(f"--number_ios={context.size(job.count, 50)}")
    elif job.count == 0:
        runtime_s = context.size(1, 0) * JOB_S or 0.2
        words += ["--time_based", f"--runtime={int(runtime_s * 1000)}ms"]
    pid = side.pid(job.disk)
    before_us = _cpu_us(pid)
    measured = _fio(uri, words)["read" if job.is_read else "write"]
    cost_us = (_cpu_us(pid) - before_us) / measured["total_ios"]
    if job.disk == "fresh":
        side.drop(number)
    rate = measured["bw_bytes"] / MIB if job.block_bytes == MIB else measured["iops"]
    return Result(rate, cost_us)


def _cpu_us(pid: int) -> float:
    """Return the processor time of a process, threads that have ended included."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) * 1e6 / os.sysconf("SC_CLK_TCK")


def _quieten(directory: Path) -> None:
    """Let the disk have what the job before left for it, so that the next one does not pay.

    File by file: other people's data on the same disk is not ours to wait for.
    """
    for path in directory.rglob("*"):
        with suppress(FileNotFoundError):  # sockets and logs of a database come and go
            if path.is_file():
                sync_file(path)


def _figure(
    job: Job, results: dict[Any, list[Result]], rival: str, at_least: float | None
) -> Figure:
    return Figure(
        scenario="fio",
        name=job.name if at_least is not None else f"cost of checks: {job.name}",
        unit="MiB/s" if job.block_bytes == MIB else "IOPS",
        ours=Sample(tuple(result.rate for result in results[job.name, "volcore"])),
        rival=rival,
        theirs=Sample(tuple(result.rate for result in results[job.name, rival])),
        at_least=at_least,
    )


def _cost(job: Job, results: dict[Any, list[Result]]) -> Figure:
    ours, theirs = (results[job.name, name] for name in ("volcore", "qemu-nbd"))
    return Figure(
        scenario="fio",
        name=f"processor time of a request: {job.name}",
        unit="us",
        ours=Sample(tuple(result.cost_us for result in ours)),
        rival="qemu-nbd",
        theirs=Sample(tuple(result.cost_us for result in theirs)),
    )


def _volcore(server: RunningServer, base: Path, stack: ExitStack) -> Volcore:
    stack.enter_context(server)
    client = stack.enter_context(server.client())
    readable = (
        server.directory / "base.raw"
    )  # below a directory that this server may read images from
    readable.hardlink_to(base)
    image = client.import_image("pools/p/images/golden", server_path=str(readable))
    return Volcore(server, client, image.name)


def _fill(uri: str, size_mib: int) -> None:
    _fio(uri, ["--rw=write", f"--bs={MIB}", "--iodepth=8", f"--size={size_mib * MIB}"])


def _fio(uri: str, words: Sequence[str]) -> dict[str, Any]:
    """Return what fio says of its only job."""
    command = ["fio", "--name=job", "--ioengine=nbd", f"--uri={uri}", "--output-format=json"]
    said = _run([*command, *words])
    job: dict[str, Any] = json.loads(said[said.index("{") :])["jobs"][0]
    assert job["error"] == 0, job["error"]
    return job


def _run(command: Sequence[str | Path]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=FIO_TIMEOUT_S)
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed: {done.stderr.strip()[-2000:]}")
    return done.stdout
