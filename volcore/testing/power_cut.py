"""Cuts the power at sync 1, 2, 3, ... of a history, then at each sync of the recovery.

    LD_PRELOAD=recorder.so python -m volcore.testing.power_cut --seed 7

Plays a random history on the local backend below the recorder. Before each sync returns, and at the
end, crashed stores are built from what was durable and some of the rest. Each is opened and read
whole: what was flushed is there, what was not is old or new block by block, a call that had not
returned took effect wholly or not at all, no checksum is false and no file is left over. That
opening is recorded and cut off in the same way: what was read once is still there.

`--plant` breaks the store on purpose, to prove that the sweep sees it. Prints one line of JSON;
exit code 1 when something was found.
"""

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

from volcore.backends.local import LocalBackend, LocalStore
from volcore.backends.local.durability import Durability
from volcore.backends.local.layers import Layers
from volcore.testing.background import VOLUME, BackgroundModel, BackgroundWriter
from volcore.testing.history import (
    SIZE_BYTES,
    Found,
    Player,
    PoolModel,
    Step,
    random_steps,
    read_pool,
)
from volcore.testing.plants import PLANTS
from volcore.testing.recorder import Kind, Record, Recorder, records
from volcore.testing.simulated_disk import SimulatedDisk

_SHM: Final = "/dev/shm"  # noqa: S108 - syncs cost nothing there, so more fits in the time


@dataclass
class Outcome:
    """What a sweep did and found."""

    seed: int
    syncs: int = 0
    stores: int = 0
    recoveries: int = 0
    failures: list[str] = field(default_factory=list)


class TornError(Exception):
    """A crashed store is not as it should be."""


def sector(name: str) -> int:
    """Return how much of a write is written wholly or not at all (docs/formats/local.md)."""
    return 4096 if name.startswith("layers/") else 512


def opened(directory: Path) -> LocalBackend:
    """Open the pool."""
    backend = LocalBackend(LocalStore.open(directory))
    backend.open()
    return backend


def check(
    directory: Path, models: list[PoolModel], after_reading: Callable[[], None] = lambda: None
) -> Found:
    """Open a crashed store, read all of it, close it; return what was read.

    Raises:
        TornError: it fits none, or leaves files behind.
    """
    store = LocalStore.open(directory)
    backend = LocalBackend(store)
    try:
        backend.open()
        known = {store.files.path(layer_id).name for layer_id in store.layers.layer_ids()}
        left = set(os.listdir(directory / "layers")) - known
        if left:
            raise TornError(f"files without a layer: {sorted(left)}")
        found = read_pool(backend)
        after_reading()
        backend.upkeep.finish()
        if read_pool(backend) != found:
            raise TornError("background work after the crash changed what is read")
    finally:
        backend.close()
    texts = [model.mismatch(found) for model in models]
    if None not in texts:
        raise TornError("; ".join(filter(None, texts)))
    return found


def check_empty(directory: Path) -> None:
    """Delete every volume; nothing may be left."""
    store = LocalStore.open(directory)
    backend = LocalBackend(store)
    try:
        backend.open()
        for volume in list(backend.walk()):
            backend.delete(volume)
        rows = sum(
            len(store.database.query(f"SELECT 1 FROM {table}"))  # noqa: S608 - our own names
            for table in ("layer", "volume", "snapshot", "page", "dirty")
        )
        if rows or os.listdir(directory / "layers"):
            raise TornError("rows or files are left after all volumes were deleted")
    finally:
        backend.close()


class Sweep:
    """One history, cut off everywhere."""

    def __init__(self, options: argparse.Namespace, place: Path) -> None:
        self._options = options
        self._place = place
        self._recorder = Recorder()
        self.outcome = Outcome(options.seed)

    def run(self) -> Outcome:
        """Record, cut, check."""
        steps = random_steps(random.Random(self._options.seed), self._options.steps)  # noqa: S311
        if self._options.threads:
            create = Step(kind="create", volume=VOLUME, size_bytes=SIZE_BYTES)
            steps = [create, *(step for step in steps if step.kind != "restart")]
        base, live, trace = (self._place / name for name in ("base", "live", "trace"))
        base.mkdir()
        live.mkdir()
        self._recorder.start(live, trace)
        self._play(live, steps)
        self._recorder.stop()
        inodes = layer_inodes(records(trace))
        changes = PLANTS[self._options.plant](list(records(trace)), inodes)
        trace.unlink()
        models = Models(steps)
        for number, disk in cuts(SimulatedDisk(base, sector), iter(changes), models.follow):
            self.outcome.syncs = number
            for variant in range(self._options.variants):
                self._cut(disk, f"{number}.{variant}", models.now())
                if len(self.outcome.failures) >= self._options.failures:
                    return self.outcome
        return self.outcome

    def _play(self, live: Path, steps: list[Step]) -> None:
        if self._options.plant == "no-notes":
            Layers.add_notes = lambda *_: None  # type: ignore[method-assign]
        if self._options.few_notes:
            flush = Durability.flush

            def evicting(durability: Durability, *, evict: int = 0) -> None:
                flush(durability, evict=max(evict, 1))

            Durability.flush = evicting  # type: ignore[method-assign, assignment]
        player = Player(lambda: opened(live))
        beside: list[BackgroundWriter] = []
        for number, step in enumerate(steps):
            self._recorder.mark(f"begin {number}")
            player.play(step)
            self._recorder.mark(f"end {number}")
            if step.volume == VOLUME:
                beside += self._background(player)
            for writer in beside:
                writer.let_work(2)
        for writer in beside:
            writer.stop()
        player.close()

    def _background(self, player: Player) -> list[BackgroundWriter]:
        """Start writers beside the history, each with a device of its own."""
        writers = []
        for number in range(self._options.threads):
            device = player.backend.open_device(VOLUME, read_only=False)
            writers.append(
                BackgroundWriter(device, number, self._options.seed, self._recorder.mark)
            )
        for writer in writers:
            writer.start()
        return writers

    def _cut(self, disk: SimulatedDisk, label: str, models: list[PoolModel]) -> None:
        """Build one crashed store, check it, and cut its recovery."""
        label = f"{self._options.seed}.{label}"
        if self._options.only and not f"{label}.".startswith(f"{self._options.only}."):
            return
        dice = random.Random(label)  # noqa: S311 - test data
        crashed, trace = self._place / "crashed", self._place / "trace"
        # Everything lost, everything kept, then by chance.
        chance = {"0": 0.0, "1": 1.0}.get(label.rpartition(".")[2])
        disk.cut(crashed, dice, chance)
        self.outcome.stores += 1
        try:
            if dice.random() < self._options.recoveries:
                self._cut_recovery(label, crashed, trace, models)
                check_empty(crashed)
            else:
                check(crashed, models)
        except Exception as err:  # whatever happens is a finding
            if self._options.raw:
                raise
            self.outcome.failures.append(f"{label}: {type(err).__name__}: {err}")
        finally:
            shutil.rmtree(crashed)

    def _cut_recovery(
        self, label: str, crashed: Path, trace: Path, models: list[PoolModel]
    ) -> None:
        """Check a crashed store, then cut off what that did at each of its syncs."""
        before = SimulatedDisk(crashed, sector)
        self._recorder.start(crashed, trace)
        try:
            found = check(crashed, models, lambda: self._recorder.mark("read"))
        finally:
            self._recorder.stop()
        again = self._place / "again"
        for number, disk in cuts(before, records(trace), lambda _: models.clear()):
            dice = random.Random(f"{label}.{number}")  # noqa: S311 - test data
            disk.cut(again, dice)
            self.outcome.recoveries += 1
            try:
                # What was read stays.
                check(again, models or [PoolModel.of(found)])
            except Exception as err:
                raise TornError(f"recovery cut off at sync {number}: {err}") from err
            finally:
                shutil.rmtree(again)


class Models:
    """What the pool may be as the trace goes on."""

    def __init__(self, steps: list[Step]) -> None:
        self._steps = steps
        self._model = PoolModel()
        self._background = BackgroundModel()
        self._begun: int | None = None

    def follow(self, word: str) -> None:
        """Take a mark of the trace."""
        if self._background.follow(word):
            return
        what, number = word.split()
        self._begun = int(number) if what == "begin" else None
        if what == "end":
            self._model.apply(self._steps[int(number)])

    def now(self) -> list[PoolModel]:
        """Return the models that a pool cut off now may fit."""
        if VOLUME in self._model.volumes:
            self._model.volumes[VOLUME].head = self._background.now()
        if self._begun is None:
            return [self._model]
        return [self._model, *self._model.attempted(self._steps[self._begun])]


def cuts(
    disk: SimulatedDisk, changes: Iterator[Record], follow: Callable[[str], None]
) -> Iterator[tuple[int, SimulatedDisk]]:
    """Yield (number, disk) before each sync returns, and at the end."""
    number = 0
    for record in changes:
        if record.kind == Kind.MARK:
            follow(record.data.decode())
            continue
        if record.kind in {Kind.SYNC_END, Kind.DIR_END}:
            number += 1
            yield number, disk
        disk.feed(record)
    yield number + 1, disk


def layer_inodes(changes: Iterator[Record]) -> frozenset[int]:
    """Return the inodes of layer files."""
    created = (record for record in changes if record.kind == Kind.CREATE)
    return frozenset(record.inode for record in created if record.path.startswith("layers/"))


def main() -> int:
    """Sweep one seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--variants", type=int, default=3, help="crashed stores for each sync")
    parser.add_argument(
        "--recoveries", type=float, default=0.1, help="share of stores whose recovery is cut too"
    )
    parser.add_argument("--threads", type=int, default=0, help="that write beside the history")
    parser.add_argument("--few-notes", action="store_true", help="each flush takes a note back")
    parser.add_argument("--plant", choices=PLANTS, default="none")
    parser.add_argument("--failures", type=int, default=5, help="end after so many")
    parser.add_argument("--only", help="SEED.SYNC or SEED.SYNC.VARIANT of a failure, to repeat it")
    parser.add_argument("--raw", action="store_true", help="do not catch what is found")
    options = parser.parse_args()
    place = Path(tempfile.mkdtemp(dir=_SHM if os.access(_SHM, os.W_OK) else None))
    try:
        outcome = Sweep(options, place).run()
    finally:
        shutil.rmtree(place)
    print(json.dumps(asdict(outcome)))
    return 1 if outcome.failures else 0


if __name__ == "__main__":
    sys.exit(main())
