"""Cuts the power of a real filesystem at random instants while a server works on it.

    python -m volcore.testing.power_cut_disk --filesystem ext4 --instants 200

Two clients write, trim and flush over NBD, and remember what was flushed; volumes are snapshotted
and cloned meanwhile. Each copy of the disk is mounted, the pool in it is opened and read whole:
what was flushed is there, the rest is old or new, snapshots are what they were, no file is left
over. `--plant no-sync` gives the server syncs that do nothing, to prove that this is seen. Prints
one line of JSON.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

from volcore.backends.local import LocalBackend, LocalStore
from volcore.client import Client
from volcore.testing.history import PointModel, read_pool
from volcore.testing.nbd_disk import Writer
from volcore.testing.real_disk import PausableDisk
from volcore.testing.server import RunningServer
from volcore.v1 import attachment_pb2

VOLUMES: Final = ("one", "two")
SNAPSHOTS_MAX: Final = 4
WAIT_S_MAX: Final = 0.4


@dataclass
class Outcome:
    """What was done and found."""

    filesystem: str
    instants: int = 0
    seconds: float = 0
    flushes: int = 0
    snapshots_checked: int = 0
    failures: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Expected:
    """A snapshot or clone: which one, and what it holds for ever."""

    volume: str
    point: str | None
    model: PointModel


class Snapshooter(threading.Thread):
    """Makes and deletes snapshots and their clones; `sure` are those that must be there now."""

    def __init__(self, client: Client, writers: dict[str, Writer], seed: int) -> None:
        super().__init__(name="snapshooter", daemon=True)
        self._client = client
        self._writers = writers
        self._dice = random.Random(seed)  # noqa: S311 - test data
        self._serial = 0
        self._stopped = threading.Event()
        self.sure: dict[str, Expected] = {}
        self.failure: str | None = None

    def stop(self) -> None:
        """Stop after the current call, and wait."""
        self._stopped.set()
        self.join(60)

    def run(self) -> None:
        """See the class."""
        try:
            while not self._stopped.wait(self._dice.uniform(0.0, 0.2)):
                self._step()
        except Exception as err:  # a thread's failure belongs into the outcome
            self.failure = f"snapshots: {type(err).__name__}: {err}"

    def _step(self) -> None:
        self._serial += 1
        if len(self.sure) >= SNAPSHOTS_MAX:
            name = self._dice.choice(sorted(self.sure))
            gone = self.sure.pop(name)
            if gone.point is None:
                self._client.delete_volume(name)
            else:
                self._client.delete_snapshot(name)
            return
        volume = self._dice.choice(VOLUMES)
        writer = self._writers[volume]
        if self._dice.random() < 0.6:
            name = f"pools/p/volumes/{volume}/snapshots/s{self._serial}"
            with writer.quiet() as model:
                made = self._client.create_snapshot(name)
            owner = self._client.get_volume(f"pools/p/volumes/{volume}").backend_name
            self.sure[name] = Expected(owner, made.backend_name, model)
        else:
            name = f"pools/p/volumes/c{self._serial}"
            with writer.quiet() as model:
                clone = self._client.create_volume(name, volume=f"pools/p/volumes/{volume}")
            self.sure[name] = Expected(clone.backend_name, None, model)


def check(directory: Path, heads: dict[str, PointModel], sure: list[Expected]) -> None:
    """Open the pool of a copy and judge all of it."""
    store = LocalStore.open(directory)
    backend = LocalBackend(store)
    try:
        backend.open()
        known = {store.files.path(layer_id).name for layer_id in store.layers.layer_ids()}
        left = set(os.listdir(directory / "layers")) - known
        assert not left, f"files without a layer: {left}"
        found = read_pool(backend)
    finally:
        backend.close()
    expected = [Expected(volume, None, model) for volume, model in heads.items()]
    for one in [*expected, *sure]:
        label = f"{one.volume} {one.point or 'head'}"
        assert one.point in found.get(one.volume, {}), f"{label} is missing"
        text = one.model.mismatch(found[one.volume][one.point])
        assert text is None, f"{label}: {text}"


class Run:
    """One run in one directory."""

    def __init__(self, options: argparse.Namespace, place: Path) -> None:
        self._options = options
        self._place = place
        self._dice = random.Random(options.seed)  # noqa: S311 - test data
        self.outcome = Outcome(options.filesystem)

    def run(self) -> Outcome:
        """Do all of it."""
        start_s = time.monotonic()
        with PausableDisk(self._place, self._options.filesystem) as disk:
            lines = f'backend = "local"\ndirectory = "{disk.mount}/pool"\n'
            server = RunningServer(self._place / "site", lines)
            if self._options.plant == "no-sync":
                os.environ["LD_PRELOAD"] = str(self._no_sync())
            with server, server.client() as client:
                self._load(disk, client)
        self.outcome.seconds = round(time.monotonic() - start_s, 1)
        return self.outcome

    def _no_sync(self) -> Path:
        library = self._place / "nosync.so"
        code = (
            "int fsync(int fd) { (void)fd; return 0; } int fdatasync(int fd) { return fsync(fd); }"
        )
        words = ["gcc", "-shared", "-fPIC", "-x", "c", "-", "-o", str(library)]
        subprocess.run(words, input=code, text=True, check=True)
        return library

    def _load(self, disk: PausableDisk, client: Client) -> None:
        writers, owners = {}, {}
        for number, name in enumerate(VOLUMES):
            made = client.create_volume(f"pools/p/volumes/{name}", size_bytes=2 << 20)
            nbd = client.attach_volume(
                made.name, "host", access_mode=attachment_pb2.ACCESS_MODE_READ_WRITE
            ).nbd
            owners[name] = made.backend_name
            seed = self._options.seed * 10 + number
            writers[name] = Writer(Path(nbd.socket_path), nbd.export_name, seed)
        shots = Snapshooter(client, writers, self._options.seed)
        threads: list[Writer | Snapshooter] = [*writers.values(), shots]
        for thread in threads:
            thread.start()
        try:
            for _ in range(self._options.instants):
                time.sleep(self._dice.uniform(0.0, WAIT_S_MAX))
                self._instant(disk, {owners[name]: one for name, one in writers.items()}, shots)
                if len(self.outcome.failures) > 4:
                    return
        finally:
            for thread in threads:
                thread.stop()
            self.outcome.failures += [one.failure for one in threads if one.failure]
            self.outcome.flushes = sum(one.flushes for one in writers.values())

    def _instant(self, disk: PausableDisk, writers: dict[str, Writer], shots: Snapshooter) -> None:
        target = self._place / "cut"
        before = dict(shots.sure)
        for writer in writers.values():
            writer.pin()
        disk.cut(target)
        heads = {owner: writer.unpin() for owner, writer in writers.items()}
        after = dict(shots.sure)
        # What came or went meanwhile may be there or not.
        sure = [one for name, one in before.items() if name in after]
        self.outcome.instants += 1
        self.outcome.snapshots_checked += len(sure)
        try:
            with disk.mounted(target) as mount:
                check(mount / "pool", heads, sure)
        except Exception as err:  # whatever happens is a finding
            self.outcome.failures.append(
                f"instant {self.outcome.instants}: {type(err).__name__}: {err}"
            )
            if self._options.keep is not None:
                shutil.copyfile(target, self._options.keep)
        finally:
            target.unlink()


def main() -> int:
    """Cut some times."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--filesystem", choices=("ext4", "xfs", "btrfs"), default="ext4")
    parser.add_argument("--instants", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--plant", choices=("none", "no-sync"), default="none")
    parser.add_argument("--keep", type=Path, help="file for the disk of the last failure")
    options = parser.parse_args()
    place = Path(tempfile.mkdtemp(prefix="volcore-disk-"))
    try:
        outcome = Run(options, place).run()
    finally:
        shutil.rmtree(place, ignore_errors=True)
    print(json.dumps(asdict(outcome)))
    return 1 if outcome.failures else 0


if __name__ == "__main__":
    sys.exit(main())
