"""Damages copies of a small pool and judges what the backend makes of it.

    python -m volcore.testing.corruption --first 1 --count 100

Each case plants one to three faults: flipped bits, zeroed ranges, misplaced and old pages or
blocks, files cut, grown, swapped, deleted or replaced by older ones, rows changed, lost or put back
as they were. The pool must refuse to open or say DATA_LOSS, or every byte it serves must be right;
it may lose no volume without a word, no diff may leave out what changed, and no error but ours may
come out. Each case prints a line before and one after it, so that whoever started this knows which
one ended the process.
"""

import argparse
import faulthandler
import itertools
import json
import os
import random
import shutil
import sqlite3
import sys
import tempfile
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from volcore.backends.contract import BlockDevice, VolumeBackend
from volcore.backends.local import LocalBackend, LocalStore
from volcore.errors import ExhaustedError, UnavailableError, VolcoreError
from volcore.limits import BLOCK_SIZE_BYTES, KIB
from volcore.observability.logs import set_up_logs
from volcore.testing.faults_on_disk import FAULTS, Damage, plant
from volcore.testing.history import Player, PointModel, PoolModel, random_steps
from volcore.testing.simulated_disk import FileImage

PIECE_BYTES: Final = 256 * KIB
HISTORY_SEED: Final = 5
HISTORY_STEPS: Final = 130
OLD_COPIES: Final = (40, 90, 120)
"""Steps after which an old copy of the store is kept."""


@dataclass(frozen=True)
class Stores:
    """A pool stopped cleanly, the same pool killed, and copies from earlier in its life."""

    clean: dict[str, FileImage]
    killed: dict[str, FileImage]
    older: tuple[Path, ...]
    noted: frozenset[str]
    """Layer files of the killed one that have notes."""
    model: PoolModel
    """What the killed one may hold; the clean one holds the newest of it."""


class WrongError(Exception):
    """The backend served what it may not, or lost something without a word."""


def opened(directory: Path) -> LocalBackend:
    """Open the pool."""
    backend = LocalBackend(LocalStore.open(directory))
    try:
        backend.open()
    except BaseException:
        backend.close()
        raise
    return backend


def make_stores(place: Path) -> Stores:
    """Play one history and keep copies."""
    live = place / "live"
    steps = random_steps(random.Random(HISTORY_SEED), HISTORY_STEPS)  # noqa: S311 - test data
    model = PoolModel()
    player = Player(lambda: opened(live))
    older = []
    for number, step in enumerate(steps):
        player.play(step)
        model.apply(step)
        if number in OLD_COPIES:
            older.append(place / f"old-{number}")
            shutil.copytree(live, older[-1])
    shutil.copytree(live, place / "noted")
    killed = _load(live)
    player.close()
    with closing(sqlite3.connect(place / "noted" / "volcore.db")) as database:
        rows = database.execute("SELECT DISTINCT layer_id FROM dirty").fetchall()
    noted = frozenset(f"{row[0]}.data" for row in rows)
    return Stores(_load(live), killed, tuple(older), noted, model)


def _load(directory: Path) -> dict[str, FileImage]:
    paths = [path for path in directory.rglob("*") if path.is_file()]
    return {str(path.relative_to(directory)): FileImage.load(path) for path in paths}


def _save(images: dict[str, FileImage], target: Path) -> None:
    (target / "layers").mkdir(parents=True)
    for name, image in images.items():
        image.save(target / name)


def judge(directory: Path, model: PoolModel) -> str:
    """Return "found" or "harmless".

    Raises:
        WrongError: neither.
    """
    try:
        backend = opened(directory)
    except VolcoreError as err:
        return _refused(err)
    found = False
    try:
        try:
            names = sorted(backend.walk())
        except VolcoreError as err:
            return _refused(err)
        if names != sorted(model.volumes):
            raise WrongError(f"volumes {names}, not {sorted(model.volumes)}")
        for name, volume in model.volumes.items():
            points: dict[str | None, PointModel] = {None: volume.head}
            points.update(volume.points)
            found |= _judge_volume(backend, name, points)
    finally:
        try:
            backend.close()
        except VolcoreError as err:
            found = bool(_refused(err))
    return "found" if found else "harmless"


def _refused(err: VolcoreError) -> str:
    if isinstance(err, ExhaustedError | UnavailableError):
        raise WrongError(f"damage was called {err.reason}: {err}") from err
    return "found"


def _judge_volume(backend: LocalBackend, name: str, points: dict[str | None, PointModel]) -> bool:
    found = False
    try:
        shown = backend.describe(name).snapshot_ids
        if {*shown} != {point for point in points if point is not None}:
            raise WrongError(f"{name} has snapshots {shown}, not {[*points]}")
    except VolcoreError as err:
        found = bool(_refused(err))
    for point, model in points.items():
        try:
            with backend.open_device(name, point, read_only=True) as device:
                found |= _judge_bytes(device, model, f"{name} {point or 'head'}")
        except VolcoreError as err:
            found = bool(_refused(err))
    snapshots = [point for point in points if point is not None]
    for source, target in itertools.pairwise([None, *snapshots, None]):
        found |= _judge_diff(backend, name, source, target)
    try:
        _use(backend, name)
    except VolcoreError as err:
        found = bool(_refused(err))
    return found


def _judge_bytes(device: BlockDevice, model: PointModel, label: str) -> bool:
    if device.size_bytes != model.size_bytes:
        raise WrongError(f"{label} has {device.size_bytes} bytes, not {model.size_bytes}")
    found = False
    for at in range(0, model.size_bytes, PIECE_BYTES):
        length = min(PIECE_BYTES, model.size_bytes - at)
        try:
            text = model.mismatch(device.read(at, length), at)
        except VolcoreError as err:
            found = bool(_refused(err))
        else:
            if text is not None:
                raise WrongError(f"{label}: {text}")
    return found


def _judge_diff(backend: LocalBackend, name: str, source: str | None, target: str | None) -> bool:
    """Compare what a diff (without `source`, from zeroes) leaves out, as far as it can be read."""
    try:
        extents = backend.diff(name, source, target)
        with backend.open_device(name, target, read_only=True) as device:
            new = _readable(device)
        old = dict.fromkeys(new, bytes(PIECE_BYTES))
        if source is not None:
            with backend.open_device(name, source, read_only=True) as device:
                old = _readable(device)
    except VolcoreError as err:
        return bool(_refused(err))
    told = set[int]()
    for extent in extents:
        told.update(range(extent.offset_bytes, extent.end_bytes, BLOCK_SIZE_BYTES))
    for at, data in new.items():
        for block in range(0, len(data), BLOCK_SIZE_BYTES):
            changed = data[block : block + BLOCK_SIZE_BYTES]
            before = old.get(at, data)[block : block + BLOCK_SIZE_BYTES] or bytes(BLOCK_SIZE_BYTES)
            if at + block not in told and changed != before:
                raise WrongError(f"the diff of {name} {source} {target} leaves out {at + block}")
    return False


def _readable(device: BlockDevice) -> dict[int, bytes]:
    """Return what can be read of a device, piece by piece."""
    found = {}
    for at in range(0, device.size_bytes, PIECE_BYTES):
        with suppress(VolcoreError):
            found[at] = device.read(at, min(PIECE_BYTES, device.size_bytes - at))
    return found


def _use(backend: VolumeBackend, name: str) -> None:
    """Write to a damaged volume: it may refuse, not fall over."""
    with backend.open_device(name, read_only=False) as device:
        device.write(4097, b"x" * 4096)
        device.discard(0, 8192)
        device.flush()
        backend.create_snapshot(name, "after")


def case(stores: Stores, place: Path, seed: int) -> tuple[str, list[str]]:
    """Damage a copy and judge it; return the verdict and what was done."""
    dice = random.Random(seed)  # noqa: S311 - test data
    clean = dice.random() < 0.6
    target = place / "target"
    _save(stores.clean if clean else stores.killed, target)
    words: list[str] = ["clean" if clean else "killed"]
    try:
        for _ in range(dice.choice((1, 1, 1, 2, 3))):
            kind = dice.choice(sorted(FAULTS))
            noted = frozenset() if clean else stores.noted
            damage = Damage(dice, target, stores.older, noted)
            words.append(f"{kind}: {plant(kind, damage)}")
        try:
            return judge(target, stores.model), words
        except WrongError as err:
            return f"WRONG: {err}", words
        except Exception as err:  # everything but our own errors is a finding
            if os.environ.get("VOLCORE_TEST_RAW"):
                raise
            return f"LEAKED: {type(err).__name__}: {err}", words
    finally:
        shutil.rmtree(target)


def main() -> int:
    """Run some cases; the verdict of each is a line of JSON."""
    faulthandler.enable()
    set_up_logs(format="console")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--first", type=int, default=0, help="seed of the first case")
    parser.add_argument("--count", type=int, default=1)
    options = parser.parse_args()
    shm = "/dev/shm"  # noqa: S108 - syncs cost nothing there
    place = Path(tempfile.mkdtemp(dir=shm if os.access(shm, os.W_OK) else None))
    try:
        stores = make_stores(place)
        for seed in range(options.first, options.first + options.count):
            print(json.dumps({"seed": seed}), flush=True)
            verdict, words = case(stores, place, seed)
            print(json.dumps({"seed": seed, "verdict": verdict, "faults": words}), flush=True)
    finally:
        shutil.rmtree(place)
    return 0


if __name__ == "__main__":
    sys.exit(main())
