"""A long day of a local pool: verified load, snapshots, clones, deletes, merges, and `kill -9`.

    python -m volcore.testing.soak --seconds 600 --kill-every 20

`fio --verify=crc32c` writes through QEMU's NBD client, which reconnects and repeats what was in
flight; it writes through (FUA), since what a cache loses nobody can repeat. Beside it a client of
our own flushes now and then, and reads all back after each kill: what was flushed is there, what
was not is old or new. Snapshots are cloned, read, and compared with what they showed before. At the
end everything is verified and deleted, and nothing may be left.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

from volcore.client import Client
from volcore.errors import VolcoreError
from volcore.limits import MIB
from volcore.testing.nbd_disk import NbdDisk, Writer
from volcore.testing.server import RunningServer
from volcore.v1 import attachment_pb2, operation_pb2

T = TypeVar("T")
POOL: Final = "pools/p/volumes"
SNAPSHOTS_MAX: Final = 6
RETRY_S: Final = 90.0
READ_WRITE: Final = attachment_pb2.ACCESS_MODE_READ_WRITE


@dataclass
class Report:
    """What happened."""

    seconds: float = 0
    kills: int = 0
    snapshots: int = 0
    clones: int = 0
    deletes: int = 0
    reconnections: int = 0
    flushes: int = 0
    written_bytes: int = 0
    failures: list[str] = field(default_factory=list)


class Chaos(threading.Thread):
    """Snapshots, clones and deletes beside the load, each call repeated until it succeeds."""

    def __init__(self, client: Client, report: Report, volumes: tuple[str, ...], seed: int) -> None:
        super().__init__(name="chaos", daemon=True)
        self._client = client
        self._report = report
        self._volumes = volumes
        self._dice = random.Random(seed)  # noqa: S311 - test data
        self._digests: dict[str, str] = {}
        self.snapshots: list[str] = []
        self._serial = 0
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Stop after the current step, and wait."""
        self._stopped.set()
        self.join(2 * RETRY_S)

    def run(self) -> None:
        """See the class."""
        try:
            while not self._stopped.is_set():
                self._step()
                self._stopped.wait(self._dice.uniform(0.0, 0.5))
        except Exception as err:  # a thread's failure belongs into the report
            self._report.failures.append(f"chaos: {type(err).__name__}: {err}")

    def _step(self) -> None:
        dice = self._dice
        self._serial += 1
        if len(self.snapshots) < 2 or (len(self.snapshots) < SNAPSHOTS_MAX and dice.random() < 0.4):
            name = f"{dice.choice(self._volumes)}/snapshots/s{self._serial}"
            repeated(lambda: self._client.create_snapshot(name))
            self.snapshots.append(name)
            self._report.snapshots += 1
        elif dice.random() < 0.5:
            name = self.snapshots.pop(dice.randrange(len(self.snapshots)))
            self._digests.pop(name, None)
            repeated(lambda: self._client.delete_snapshot(name))
            self._report.deletes += 1
        else:
            self._compare(dice.choice(self.snapshots), f"{POOL}/c{self._serial}")

    def _compare(self, snapshot: str, clone: str) -> None:
        """Clone a snapshot: it shows what it showed before."""
        repeated(lambda: self._client.create_volume(clone, snapshot=snapshot))
        digest = repeated(lambda: self._digest(clone))
        if self._digests.setdefault(snapshot, digest) != digest:
            self._report.failures.append(f"{snapshot} changed, says its clone {clone}")
        repeated(lambda: self._client.delete_volume(clone))
        self._report.clones += 1

    def _digest(self, volume: str) -> str:
        made = self._client.attach_volume(volume, "soak")
        digest = hashlib.sha256()
        with NbdDisk(Path(made.nbd.socket_path), made.nbd.export_name) as disk:
            for at in range(0, disk.size_bytes, MIB):
                digest.update(disk.read(at, min(MIB, disk.size_bytes - at)))
        self._client.detach_volume(volume, "soak")
        return digest.hexdigest()


def repeated(call: Callable[[], T]) -> T:
    """Repeat a call while the server is away."""
    deadline = time.monotonic() + RETRY_S
    while True:
        try:
            return call()
        except VolcoreError as err:
            if not err.retryable or time.monotonic() > deadline:
                raise
        except (ConnectionError, FileNotFoundError):
            if time.monotonic() > deadline:
                raise
        time.sleep(0.1)


class Soak:
    """One run in one directory."""

    def __init__(self, options: argparse.Namespace, place: Path) -> None:
        self._options = options
        self._place = place
        self._server = RunningServer(place / "site")
        self._dice = random.Random(options.seed)  # noqa: S311 - test data
        self.report = Report()

    def run(self) -> Report:
        """Do all of it."""
        start_s = time.monotonic()
        with self._server, self._server.client() as client:
            fio_disk = self._attached(client, f"{POOL}/fio", self._options.size_mib * MIB)
            loose_disk = self._attached(client, f"{POOL}/loose", 2 * MIB)
            nbd, seed = loose_disk.nbd, self._options.seed
            writer = Writer(Path(nbd.socket_path), nbd.export_name, seed, only_kills=True)
            chaos = Chaos(client, self.report, (f"{POOL}/fio", f"{POOL}/loose"), self._options.seed)
            proxy = self._proxy(fio_disk)
            try:
                fio = self._fio()
                writer.start()
                chaos.start()
                self._kill_until_end(fio)
                chaos.stop()
                writer.stop()
                self._judge_fio(fio)
                if writer.failure is not None:
                    self.report.failures.append(f"writer: {writer.failure}")
                self.report.reconnections = writer.reconnections
                self.report.flushes = writer.flushes
            finally:
                proxy.kill()
                proxy.wait()
            if not self.report.failures:
                self._finish(client, chaos.snapshots)
        self.report.seconds = round(time.monotonic() - start_s, 1)
        return self.report

    def _attached(self, client: Client, name: str, size_bytes: int) -> Any:
        client.create_volume(name, size_bytes=size_bytes)
        return client.attach_volume(name, "host", access_mode=READ_WRITE)

    def _proxy(self, disk: Any) -> subprocess.Popen[bytes]:
        path = self._place / "proxy.sock"
        image = (
            f"driver=nbd,server.type=unix,server.path={disk.nbd.socket_path},"
            f"export={disk.nbd.export_name},reconnect-delay=120"
        )
        proxy = subprocess.Popen(
            ["qemu-nbd", "-t", "-e", "8", "-x", "disk", "-k", path, "--cache=writethrough",
             "--image-opts", image]
        )  # fmt: skip
        while not path.exists():
            assert proxy.poll() is None, "qemu-nbd ended"
            time.sleep(0.02)
        return proxy

    def _fio(self) -> subprocess.Popen[str]:
        half = self._options.size_mib // 2
        words = [
            "fio", "--ioengine=nbd", f"--uri=nbd+unix:///disk?socket={self._place}/proxy.sock",
            "--verify=crc32c", "--verify_backlog=256", "--verify_fatal=1", "--verify_dump=0",
            "--time_based", f"--runtime={self._options.seconds}", "--iodepth=8",
            f"--randseed={self._options.seed}", "--output-format=json", "--group_reporting",
            f"--size={half}m",
            "--name=small", "--rw=randwrite", "--bs=4k",
            "--name=large", "--rw=randwrite", "--bs=64k", f"--offset={half}m",
        ]  # fmt: skip
        return subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=self._place
        )

    def _kill_until_end(self, fio: subprocess.Popen[str]) -> None:
        every_s = self._options.kill_every
        end_s = time.monotonic() + self._options.seconds + RETRY_S
        while True:
            try:
                fio.wait(self._dice.uniform(0.8, 1.2) * every_s)
            except subprocess.TimeoutExpired:
                if time.monotonic() > end_s:
                    self.report.failures.append("fio did not end")
                    fio.kill()
                    return
                self._server.kill()
                self._server.start()
                self.report.kills += 1
            else:
                return

    def _judge_fio(self, fio: subprocess.Popen[str]) -> None:
        assert fio.stdout is not None
        text = fio.stdout.read()
        if fio.wait():
            self.report.failures.append(f"fio: {text[-2000:]}")
            return
        jobs = json.loads(text[text.index("{") :])["jobs"]
        self.report.written_bytes = sum(job["write"]["io_bytes"] for job in jobs)

    def _finish(self, client: Client, snapshots: list[str]) -> None:
        """Verify what is left, delete it, and look for leftovers."""
        for name in ("fio", "loose"):
            started = client.verify_volume(f"{POOL}/{name}")
            done = client.wait_operation(started.name)
            if done.phase != operation_pb2.OPERATION_PHASE_SUCCEEDED or done.check.bad_block_count:
                self.report.failures.append(f"verify of {name}: {done}")
        for name in snapshots:
            client.delete_snapshot(name)
        for name in ("fio", "loose"):
            client.detach_volume(f"{POOL}/{name}", "host")
            client.delete_volume(f"{POOL}/{name}")
        layers = self._server.pool_directory / "layers"
        deadline = time.monotonic() + 30
        while os.listdir(layers):
            if time.monotonic() > deadline:
                self.report.failures.append(f"left: {sorted(os.listdir(layers))}")
                return
            time.sleep(0.1)


def main() -> int:
    """Soak; one line of JSON says how it was."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--kill-every", type=float, default=20.0, help="seconds, about")
    parser.add_argument("--size-mib", type=int, default=256, help="of the volume under fio")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="directory to work in, kept afterwards")
    options = parser.parse_args()
    place = options.keep or Path(tempfile.mkdtemp(prefix="volcore-soak-"))
    place.mkdir(exist_ok=True)
    try:
        report = Soak(options, place).run()
    finally:
        if options.keep is None:
            shutil.rmtree(place)
    print(json.dumps(asdict(report)))
    return 1 if report.failures else 0


if __name__ == "__main__":
    sys.exit(main())
