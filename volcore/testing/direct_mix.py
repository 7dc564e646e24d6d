"""Random work on an rbd backend, by both paths, which is killed and judged from outside.

    python -m volcore.testing.direct_mix CEPH_CONF USER POOL --seed 1 --threads 4

Each thread owns its volumes. Before and after each call it prints a line of JSON, so whoever
killed this process knows what was done, and what may have been: `Journal` reads the lines and tells
which volumes must exist, with which bytes, and which one of each thread is undecided.
"""

import argparse
import json
import random
import sys
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from volcore.backends.contract import ShortPathState
from volcore.backends.rbd import Cluster, RbdBackend, clones
from volcore.backends.rbd.connection import ClusterOptions
from volcore.limits import BLOCK_SIZE_BYTES, MIB

SOURCE: Final = "gold"
SIZE_BYTES: Final = 8 * MIB
BLOCKS: Final = tuple(range(0, SIZE_BYTES, MIB))
"""Offsets that are written; a block holds one byte value, its tag."""
VOLUMES_MAX: Final = 6
BATCH: Final = 5
GOLD_TAG: Final = 7


@dataclass
class Journal:
    """What the lines of a run say."""

    volumes: dict[str, dict[int, int]] = field(default_factory=dict)
    """Volume id to (offset: tag); what is not named has the tag of `first_tag`."""
    snapshots: dict[str, dict[str, dict[int, int]]] = field(default_factory=dict)
    """Volume id to snapshot id to what `volumes` said then."""
    undecided: dict[int, dict[str, Any]] = field(default_factory=dict)
    """By thread: the call that was begun and not ended."""
    call_count: int = 0

    @classmethod
    def read(cls, lines: Iterable[str]) -> "Journal":
        """Read complete lines; the last one may be cut."""
        found = cls()
        for line in lines:
            try:
                call = json.loads(line)
            except ValueError:
                continue
            if not call["done"]:
                found.undecided[call["thread"]] = call
                continue
            found.undecided.pop(call["thread"], None)
            found.call_count += 1
            found.apply(call)
        return found

    def apply(self, call: dict[str, Any]) -> None:
        """Take a call as done."""
        for name in call["names"]:
            match call["act"]:
                case "clone":
                    self.volumes[name] = dict(self.volumes.get(call["of"], {}))
                case "create":
                    self.volumes[name] = {}
                case "delete":
                    self.volumes.pop(name, None)
                    self.snapshots.pop(name, None)
                case "snapshot":
                    taken = self.snapshots.setdefault(name, {})
                    taken[call["snapshot"]] = dict(self.volumes[name])
                case "write":
                    self.volumes[name][call["offset"]] = call["tag"]

    def in_doubt(self) -> set[str]:
        """Names that an undecided call may have made, changed or deleted."""
        return {name for call in self.undecided.values() for name in call["names"]}


def is_blank(name: str) -> bool:
    """Return whether a volume was made blank, and not as a clone."""
    return name.startswith("b")


def first_tag(name: str) -> int:
    """Return the tag of the blocks of a volume that was not written to."""
    return 0 if is_blank(name) else GOLD_TAG


def prepare(backend: RbdBackend) -> None:
    """Make the snapshot that all clones come from."""
    backend.create(SOURCE, SIZE_BYTES)
    with backend.open_device(SOURCE, read_only=False) as device:
        for offset in BLOCKS:
            device.write(offset, bytes([GOLD_TAG]) * BLOCK_SIZE_BYTES)
    backend.create_snapshot(SOURCE, "s")


class Worker(threading.Thread):
    """One thread of random work; runs until the process dies."""

    def __init__(self, backend: RbdBackend, number: int, seed: int, out: Any) -> None:
        super().__init__(daemon=True)
        self._backend = backend
        self._number = number
        self._dice = random.Random(f"{seed}-{number}")  # noqa: S311 - a history, no secret
        self._prefix = f"{seed}-{number}"
        self._out = out
        self._mine: list[str] = []
        self._count = 0

    def run(self) -> None:
        """Work for ever."""
        while True:
            choice = self._dice.random()
            if len(self._mine) < 2 or (choice < 0.5 and len(self._mine) < VOLUMES_MAX):
                self._create() if self._dice.random() < 0.3 else self._clone()
            elif choice < 0.65 and len(self._mine) > 1:
                self._delete()
            elif choice < 0.8:
                self._snapshot()
            else:
                self._write()

    def _logged(self, work: Callable[[], object], /, **call: Any) -> None:
        """Do a call between its two lines; one write of a line is whole or absent."""
        for done in (False, True):
            if done:
                work()
            line = json.dumps({"thread": self._number, "done": done, **call})
            self._out.write(line + "\n")
            self._out.flush()

    def _names(self, first: str) -> list[str]:
        count = BATCH if self._dice.random() < 0.2 else 1
        names = [f"{first}{self._prefix}-{self._count + n}" for n in range(count)]
        self._count += count
        return names

    def _create(self) -> None:
        names = self._names("b")

        def act() -> None:
            failed = self._backend.create_many(dict.fromkeys(names, SIZE_BYTES))
            assert not failed, failed

        self._logged(act, act="create", names=names)
        self._mine += names

    def _clone(self) -> None:
        names = self._names("v")
        size_bytes = SIZE_BYTES * self._dice.choice((1, 1, 3))
        direct = self._dice.random() < 0.75

        def act() -> None:
            if direct:
                failed = self._backend.clone_many(SOURCE, "s", dict.fromkeys(names, size_bytes))
                assert not failed, failed
                return
            for name in names:
                session = self._backend._session()
                clones.clone_by_librbd(session, SOURCE, "s", name, size_bytes)

        self._logged(act, act="clone", names=names, of=SOURCE, direct=direct)
        self._mine += names

    def _delete(self) -> None:
        name = self._mine.pop(self._dice.randrange(1, len(self._mine)))
        self._logged(lambda: self._backend.delete(name), act="delete", names=[name])

    def _snapshot(self) -> None:
        """Snapshot the oldest volume, which is never deleted: that would wait for the monitors."""
        name, snapshot_id = self._mine[0], f"s{self._count}"
        self._count += 1

        def act() -> None:
            self._backend.create_snapshot(name, snapshot_id)

        self._logged(act, act="snapshot", names=[name], snapshot=snapshot_id)

    def _write(self) -> None:
        name = self._dice.choice(self._mine)
        offset, tag = self._dice.choice(BLOCKS), self._dice.randrange(8, 256)

        def act() -> None:
            with self._backend.open_device(name, read_only=False) as device:
                device.write(offset, bytes([tag]) * BLOCK_SIZE_BYTES, fua=True)

        self._logged(act, act="write", names=[name], offset=offset, tag=tag)


def main() -> None:
    """Work until killed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("conf_path")
    parser.add_argument("user")
    parser.add_argument("pool")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=4)
    chosen = parser.parse_args()
    options = ClusterOptions(conf_path=chosen.conf_path, user=chosen.user)
    backend = RbdBackend(Cluster(options), chosen.pool, direct=True)
    backend.open()
    found = backend.wait_for_short_path()
    assert found.state is ShortPathState.ON, found
    backend.collect()
    workers = [Worker(backend, n, chosen.seed, sys.stdout) for n in range(chosen.threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    sys.exit(1)


if __name__ == "__main__":
    main()
