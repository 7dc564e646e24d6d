"""Background work of the local backend: cut off anywhere, beside everything, on a full disk."""

import hashlib
import os
import random
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from volcore.backends.local import LocalBackend, LocalStore
from volcore.backends.local import merge as merge_module
from volcore.backends.local import pruning as pruning_module
from volcore.backends.local import upkeep as upkeep_module
from volcore.backends.verifying import Damage, VerifyRequest
from volcore.errors import IntegrityError, VolcoreError
from volcore.limits import BLOCK_SIZE_BYTES, CHUNK_SIZE_BYTES, MIB
from volcore.testing.crash import Crash, CrashSwitch

from .test_local_limits import damage, small_disk

__all__ = ["small_disk"]

B, C = BLOCK_SIZE_BYTES, CHUNK_SIZE_BYTES
SIZE = C + 16 * B


def opened(directory: Path, **settings: Any) -> LocalBackend:
    backend = LocalBackend(LocalStore.open(directory), **settings)
    backend.open()
    return backend


@pytest.fixture
def backend(tmp_path: Path) -> Iterator[LocalBackend]:
    backend = opened(tmp_path / "pool")
    yield backend
    backend.close()


def put(backend: LocalBackend, volume: str, block: int, count: int, seed: int) -> None:
    with backend.open_device(volume, read_only=False) as device:
        device.write(block * B, random.Random(seed).randbytes(count * B))


def trim(backend: LocalBackend, volume: str, block: int, count: int) -> None:
    with backend.open_device(volume, read_only=False) as device:
        device.discard(block * B, count * B)


def digests(backend: LocalBackend) -> dict[tuple[str, str | None], str]:
    found: dict[tuple[str, str | None], str] = {}
    for volume in sorted(backend.walk()):
        for point in (None, *backend.describe(volume).snapshot_ids):
            with backend.open_device(volume, point, read_only=True) as device:
                content = device.read(0, device.size_bytes)
                found[volume, point] = hashlib.sha256(content).hexdigest()
    return found


def layers(backend: LocalBackend) -> int:
    return len(backend._store.layers.layer_ids())


def build(backend: LocalBackend) -> None:
    """Layers to merge down, up, below a top, below clones; blank ones; dead ones."""
    backend.create("v", SIZE)
    put(backend, "v", 0, 40, 1)
    backend.create_snapshot("v", "s1")
    put(backend, "v", 10, 3, 2)
    trim(backend, "v", 20, 5)
    backend.create_snapshot("v", "s2")
    put(backend, "v", 11, 30, 3)
    put(backend, "v", 1030, 4, 4)
    backend.create_snapshot("v", "s3")
    backend.clone("v", "s3", "c", SIZE)
    put(backend, "c", 1031, 2, 5)
    backend.create_snapshot("v", "s4")
    put(backend, "v", 2, 2, 6)
    backend.create_snapshot("v", "s5")
    backend.clone("c", None, "d", SIZE + C)
    put(backend, "d", 1039, 3, 7)
    for point in ("s1", "s2", "s4", "s5"):
        backend.delete_snapshot("v", point)
    backend.delete("c")


class CrashFiles:
    """Steps of the files that a crash may come before or after."""

    def __init__(self, inner: Any, switch: CrashSwitch) -> None:
        self._inner, self._switch = inner, switch

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if name not in {"write", "sync", "punch", "delete"}:
            return found
        return stepped(found, self._switch)


class CrashConnection:
    """A connection on which a crash may come before or after each commit."""

    def __init__(self, inner: Any, switch: CrashSwitch) -> None:
        self._inner, self._switch = inner, switch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def execute(self, sql: str, *rest: Any) -> Any:
        if sql == "COMMIT":
            return stepped(self._inner.execute, self._switch)(sql)
        return self._inner.execute(sql, *rest)


def stepped(call: Callable[..., Any], switch: CrashSwitch) -> Callable[..., Any]:
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        switch.step()
        result = call(*args, **kwargs)
        switch.step()
        return result

    return wrapped


@pytest.fixture
def quick_place() -> Iterator[Path]:
    """In memory where there is some: syncs cost nothing there."""
    place = Path(tempfile.mkdtemp(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))
    yield place
    shutil.rmtree(place)


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """One chunk, one page and one child at a time, so that there is more to cut off."""
    monkeypatch.setattr(merge_module, "STEP_CHUNKS", 1)
    monkeypatch.setattr(upkeep_module, "PAGES_PER_STEP", 1)
    monkeypatch.setattr(pruning_module, "REFERRERS_MAX", 1)


@pytest.mark.parametrize("is_open", [False, True])
def test_crash_at_every_step(quick_place: Path, small_steps: None, is_open: bool) -> None:
    """Goal: INV-MERGE-1, 2. Method: die before and after each write, sync, commit, unlink."""
    backend = opened(quick_place / "made")
    build(backend)
    expected = digests(backend)
    backend.close()
    at, crashed = 0, True
    while crashed:
        at += 1
        crashed = die_at(quick_place, at, expected, is_open=is_open)
    assert at > 60


def die_at(parent: Path, at: int, expected: dict[Any, str], *, is_open: bool) -> bool:
    """Run the background work until step `at`, look at what is left; return whether it died."""
    place = parent / "pool"
    shutil.copytree(parent / "made", place)
    backend = opened(place)
    store, switch = backend._store, CrashSwitch(at)
    devices = []
    if is_open:
        devices = [backend.open_device(*key, read_only=key[1] is not None) for key in expected]
        for device in devices:  # maps that know the layers of before
            device.read(0, SIZE)
    store.files = CrashFiles(store.files, switch)
    store.database._connection = CrashConnection(store.database._connection, switch)
    with suppress(Crash):
        backend.upkeep.finish()
    for device, key in zip(devices, expected, strict=False):
        content = device.read(0, device.size_bytes)
        assert hashlib.sha256(content).hexdigest() == expected[key]
    store.close()
    backend = opened(place)
    assert digests(backend) == expected
    check_all(backend)
    backend.upkeep.finish()
    check_all(backend)
    assert digests(backend) == expected
    assert backend._store.scanner.database.query("SELECT 1 FROM layer WHERE owner = ''") == []
    assert backend.upkeep._rows.pairs() == []
    assert backend.upkeep._rows.blanks() == []
    backend.close()
    shutil.rmtree(place)
    return switch.crashed


def check_all(backend: LocalBackend) -> None:
    """Scrub: a merge looks like damage at no time."""
    watcher = Watcher()
    backend.verify(VerifyRequest(), watcher)
    assert watcher.damages == []


class Watcher:
    def __init__(self) -> None:
        self.damages: list[Damage] = []

    def progress(
        self, done_bytes: int, total_bytes: int, *, checked_bytes: int, cursor: str
    ) -> None:
        pass

    def found(self, damage: Damage) -> None:
        self.damages.append(damage)


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (1, 3, 0, 2)])
@pytest.mark.parametrize("is_open", [False, True])
def test_space_comes_back(backend: LocalBackend, order: tuple[int, ...], is_open: bool) -> None:
    """Goal: deletes in any order leave what is needed. Method: overwrite under snapshots."""
    backend.create("v", SIZE)
    for step in range(4):
        put(backend, "v", 0, 256, step)
        backend.create_snapshot("v", f"s{step}")
    put(backend, "v", 128, 256, 9)
    device = backend.open_device("v", read_only=False) if is_open else None
    for step in order:
        backend.delete_snapshot("v", f"s{step}")
        backend.upkeep.finish()
    assert layers(backend) == 1
    assert backend._store.files.total_bytes() == (128 + 256) * B
    assert backend.describe("v").depth == 0
    with backend.open_device("v", read_only=False) as other:
        assert other.read(0, 128 * B) == random.Random(3).randbytes(256 * B)[: 128 * B]
        assert other.read(128 * B, 256 * B) == random.Random(9).randbytes(256 * B)
        other.write(0, b"top again", fua=True)
    if device is not None:
        assert device.read(0, 9) == b"top again"
        device.close()


def test_many_children(backend: LocalBackend) -> None:
    """Goal: a merge moves more children than one transaction takes. Method: clone, delete."""
    backend.create("base", SIZE)
    put(backend, "base", 0, 8, 1)
    backend.create_snapshot("base", "below")
    put(backend, "base", 4, 1, 2)
    backend.create_snapshot("base", "s")
    for number in range(pruning_module.REFERRERS_MAX + 50):
        backend.clone("base", "s", f"c{number}", SIZE)
    put(backend, "c7", 5, 1, 3)
    backend.delete("base")
    expected = {key: value for key, value in digests(backend).items() if key[0] in {"c1", "c7"}}
    backend.upkeep.finish()
    assert layers(backend) == pruning_module.REFERRERS_MAX + 51
    found = digests(backend)
    assert all(found[key] == value for key, value in expected.items())


def test_damage_is_left_alone(backend: LocalBackend) -> None:
    """Goal: a merge spreads no damage. Method: flip a byte below, merge, read."""
    backend.create("v", SIZE)
    put(backend, "v", 0, 8, 1)
    backend.create_snapshot("v", "s")
    put(backend, "v", 4, 8, 2)
    backend.delete_snapshot("v", "s")
    damage(backend, 1, 2 * B)
    damage(backend, 2, 9 * B)
    backend.upkeep.finish()
    with backend.open_device("v", read_only=True) as device:
        for block in range(12):
            if block in {2, 9}:
                with pytest.raises(IntegrityError):
                    device.read(block * B, B)
            else:
                device.read(block * B, B)


def test_full_disk(small_disk: Path) -> None:
    """Goal: no space, no harm; later it goes on. Method: fill a disk, merge, empty it, merge."""
    backend = opened(small_disk / "pool")
    backend.create("v", SIZE)
    put(backend, "v", 0, 256, 1)
    backend.create_snapshot("v", "s")
    put(backend, "v", 512, 250, 2)
    put(backend, "v", 3, 2, 3)
    expected = digests(backend)
    backend.delete_snapshot("v", "s")
    with suppress(OSError), (small_disk / "ballast").open("wb", buffering=0) as ballast:
        while True:
            ballast.write(bytes(64 * 1024))
    for _ in range(3):
        with suppress(VolcoreError):
            backend.upkeep.finish()
        assert digests(backend)["v", None] == expected["v", None]
    (small_disk / "ballast").unlink()
    backend.upkeep.finish()
    assert digests(backend)["v", None] == expected["v", None]
    assert layers(backend) == 1
    assert backend._store.files.total_bytes() == (256 + 250) * B
    backend.close()


def test_beside_everything(tmp_path: Path) -> None:
    """Goal: I/O never stops, nothing is lost. Method: write and read while all kinds of work run.

    Each writer owns a range of a volume and knows what is in it; the main thread snapshots, clones,
    reverts and deletes.
    """
    backend = opened(tmp_path / "pool", merge_bytes_per_s=1 << 40)
    failures: list[BaseException] = []
    done = threading.Event()
    longest_s = [0.0]

    def work(volume: str, first: int) -> None:
        dice = random.Random(first)
        known: dict[int, bytes] = {}
        try:
            with backend.open_device(volume, read_only=False) as device:
                while not done.is_set():
                    block = first + dice.randrange(60)
                    started_s = time.monotonic()
                    if dice.random() < 0.5:
                        known[block] = dice.randbytes(8) * 512
                        device.write(block * B, known[block])
                    elif dice.random() < 0.1:
                        known[block] = bytes(B)
                        device.discard(block * B, B)
                    assert device.read(block * B, B) == known.get(block, bytes(B))
                    longest_s[0] = max(longest_s[0], time.monotonic() - started_s)
                for block, content in known.items():
                    assert device.read(block * B, B) == content
        except BaseException as err:
            failures.append(err)

    for volume in ("a", "b"):
        backend.create(volume, 2 * C)
    places = [("a", 0), ("a", 1000), ("b", 990)]
    threads = [threading.Thread(target=work, args=place) for place in places]
    for thread in threads:
        thread.start()
    dice = random.Random(1)
    fixed: dict[tuple[str, str], str] = {}
    end_s = time.monotonic() + 8
    serial = 0
    while time.monotonic() < end_s and not failures:
        serial += 1
        volume = dice.choice("ab")
        if dice.random() < 0.6 or not fixed:
            backend.create_snapshot(volume, f"s{serial}")
            fixed[volume, f"s{serial}"] = content_of(backend, volume, f"s{serial}")
        else:
            key = dice.choice(sorted(fixed))
            clone = f"c{serial}"
            backend.clone(key[0], key[1], clone, 2 * C)
            assert content_of(backend, clone, None) == fixed[key]
            put(backend, clone, 1010, 5, serial)
            backend.create_snapshot(clone, "x")
            backend.revert(clone, "x")
            backend.delete_snapshot(*key)
            del fixed[key]
            backend.delete(clone)
        time.sleep(0.02)
    done.set()
    for thread in threads:
        thread.join()
    assert not failures, failures
    for key, digest in fixed.items():
        assert content_of(backend, *key) == digest
    for volume in list(backend.walk()):
        backend.delete(volume)
    backend.close()
    backend = opened(tmp_path / "pool")
    assert os.listdir(tmp_path / "pool" / "layers") == []
    backend.close()
    print(f"longest request {longest_s[0] * 1000:.1f} ms")


def content_of(backend: LocalBackend, volume: str, point: str | None) -> str:
    with backend.open_device(volume, point, read_only=True) as device:
        return hashlib.sha256(device.read(0, 2 * MIB) + device.read(C - MIB, 2 * MIB)).hexdigest()


@pytest.mark.parametrize("dirty", [False, True])
def test_resize_before_an_open_volume_followed(backend: LocalBackend, dirty: bool) -> None:
    """Goal: a resize between a change of the rows and the volume's turn to follow takes no harm.

    Method: every step of the background work, a resize after each.
    """
    build(backend)
    with backend.open_device("v", read_only=False) as device:
        wanted = bytearray(device.read(0, device.size_bytes))
        for number in range(1000):
            if not backend.upkeep.step():
                break
            if dirty:
                data = random.Random(number).randbytes(B)
                wanted[:B] = data
                device.write(0, data)
            wanted += bytes(B)
            backend.resize("v", len(wanted))
            assert device.size_bytes == len(wanted)
            assert device.read(0, len(wanted)) == wanted
        device.flush()
    with backend.open_device("v", read_only=True) as device:
        assert device.read(0, len(wanted)) == wanted
    assert number > 3
