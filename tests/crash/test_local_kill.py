"""Kill -9 at random instants: what was flushed is there, and no checksum is false."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from volcore.backends.local import LocalBackend, LocalStore
from volcore.limits import BLOCK_SIZE_BYTES

BLOCKS = 40
SIZE = 2048 * BLOCK_SIZE_BYTES
CHILD = """
import random, sys
from pathlib import Path
from volcore.backends.local import LocalBackend, LocalStore

directory, seed = Path(sys.argv[1]), int(sys.argv[2])
backend = LocalBackend(LocalStore.open(directory))
backend.open()
dice = random.Random(seed)
device = backend.open_device("v", read_only=False)
number = int.from_bytes(device.read(0, 4096)[:8], "little")
print("start", flush=True)
while True:
    pending = {}
    for _ in range(dice.randrange(1, 12)):
        number += 1
        block = dice.randrange(1, 40) + dice.choice((0, 1000))
        if dice.random() < 0.2:
            print("trim", block, flush=True)
            device.discard(block * 4096, 4096)
        else:
            print("write", block, number, flush=True)
            device.write(block * 4096, number.to_bytes(8, "little") * 512)
        if dice.random() < 0.05:
            print("snapshot", flush=True)
            backend.create_snapshot("v", f"s{seed}-{number}")
            print("flushed", flush=True)
    device.write(0, number.to_bytes(8, "little") * 512)
    device.flush()
    print("flushed", flush=True)
"""


def opened(directory: Path) -> LocalBackend:
    backend = LocalBackend(LocalStore.open(directory))
    backend.open()
    return backend


def files(directory: Path) -> list[Path]:
    """Return the files in shared memory with what a pool had not flushed."""
    places = Path(f"/dev/shm/volcore-{os.geteuid()}").glob("*/pool")
    found = [path for path in places if path.read_text() == f"{directory.resolve()}\n"]
    return [path for place in found for path in place.parent.iterdir() if path.name != "pool"]


def value(block: bytes) -> int:
    """Return the number that the whole block repeats: a mix of two would be torn."""
    assert block == block[:8] * 512
    return int.from_bytes(block[:8], "little")


@pytest.mark.parametrize("seed", range(5))
def test_kill(tmp_path: Path, seed: int) -> None:
    """Goal: INV-BE-1, INV-BE-3, INV-LOCAL-12. Method: kill a writing child, read all, repeat."""
    dice = random.Random(seed)
    backend = opened(tmp_path)
    backend.create("v", SIZE)
    backend.close()
    latest: dict[int, int] = {}
    for round_number in range(3):
        log = run_child(tmp_path, seed * 10 + round_number, dice.uniform(0.05, 0.25))
        under_way: dict[int, int] = {}
        for line in log:
            word, *numbers = line.split()
            latest |= under_way  # it was answered, for the child went on
            under_way = {}
            if word in {"write", "trim"}:
                under_way = {int(numbers[0]): int(numbers[1]) if word == "write" else 0}
        if round_number:  # the pool goes to another host, which has not the memory of this one
            settle(tmp_path) if round_number == 1 else opened(tmp_path).close()
            assert files(tmp_path) == []
        backend = opened(tmp_path)
        with backend.open_device("v", read_only=True) as device:
            for block in range(1, 1040):
                found = value(device.read(block * BLOCK_SIZE_BYTES, BLOCK_SIZE_BYTES))
                answered = latest.get(block, 0)
                allowed = {answered, under_way.get(block, answered)}
                assert found in allowed, f"block {block} in round {round_number}"
                latest[block] = found
        for snapshot_id in backend.describe("v").snapshot_ids:
            with backend.open_device("v", snapshot_id, read_only=True) as device:
                device.read(0, SIZE)
        backend.close()


def settle(directory: Path) -> None:
    """Run the command for that."""
    config = directory / "volcore.toml"
    gone = directory / "not-mounted"
    config.write_text(
        f'[pools.p]\nbackend = "local"\ndirectory = "{directory}"\n'
        f'[pools.q]\nbackend = "local"\ndirectory = "{gone}"\n'
    )
    command = [sys.executable, "-m", "volcore.cli.main", "settle", "--config", str(config)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not gone.exists()


def test_not_settled_is_said(tmp_path: Path) -> None:
    """Goal: nobody moves a pool that has something left. Method: damage it; a second pool."""
    broken, good = tmp_path / "broken", tmp_path / "good"
    for directory in (broken, good):
        backend = opened(directory)
        backend.create("v", SIZE)
        backend.open_device("v", read_only=False).write(0, b"\1" * BLOCK_SIZE_BYTES)
        backend._store.close()
    (left,) = files(broken)
    raw = bytearray(left.read_bytes())
    (slot,) = [each for each in range(256) if raw[4096 + 16 * each + 8]]  # docs/formats/local.md
    raw[8192 + 1024 * slot] = 9  # no state
    left.write_bytes(raw)
    config = tmp_path / "volcore.toml"
    config.write_text(
        f'[pools.a]\nbackend = "local"\ndirectory = "{broken}"\n'
        f'[pools.b]\nbackend = "local"\ndirectory = "{good}"\n'
    )
    command = [sys.executable, "-m", "volcore.cli.main", "settle", "--config", str(config)]
    for _ in range(2):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode != 0
        assert "pool 'a': what a volume had not flushed" in done.stderr
        assert (files(broken), files(good)) == ([left], [])
    left.unlink()
    assert subprocess.run(command, capture_output=True).returncode == 0


def run_child(directory: Path, seed: int, after_s: float) -> list[str]:
    """Return what the child said before it was killed, some time after it began."""
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, str(directory), str(seed)],
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdout is not None
        first = child.stdout.readline()
        time.sleep(after_s)
        os.kill(child.pid, signal.SIGKILL)
        rest = child.stdout.read()
    lines = (first + rest).split("\n")
    assert lines[0] == "start"
    return lines[:-1]


def test_overwrite_then_kill(tmp_path: Path) -> None:
    """Goal: INV-LOCAL-2. Method: overwrite flushed blocks, forget the process, read."""
    backend = opened(tmp_path)
    backend.create("v", SIZE)
    device = backend.open_device("v", read_only=False)
    device.write(0, b"\1" * 8 * BLOCK_SIZE_BYTES, fua=True)
    device.write(BLOCK_SIZE_BYTES, b"\2" * BLOCK_SIZE_BYTES)
    device.discard(3 * BLOCK_SIZE_BYTES, 2 * BLOCK_SIZE_BYTES)
    device.write(4 * BLOCK_SIZE_BYTES, b"\3" * BLOCK_SIZE_BYTES)
    backend._store.close()
    for _ in range(2):
        backend = opened(tmp_path)
        with backend.open_device("v", read_only=True) as device:
            found = device.read(0, 8 * BLOCK_SIZE_BYTES)[::BLOCK_SIZE_BYTES]
        assert found == b"\1\2\1\0\3\1\1\1"
        backend._store.close()


def test_recovery_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: recovery starts again. Method: end it before its commit, open again."""
    backend = opened(tmp_path)
    backend.create("v", SIZE)
    device = backend.open_device("v", read_only=False)
    device.write(0, b"\1" * BLOCK_SIZE_BYTES, fua=True)
    device.write(0, b"\2" * BLOCK_SIZE_BYTES)
    backend._store.close()
    backend = opened(tmp_path)

    def cut(layer_id: int) -> None:
        raise InterruptedError

    monkeypatch.setattr(backend._store.layers, "clear_notes", cut)
    with pytest.raises(InterruptedError):
        backend.open_device("v", read_only=True)
    backend._store.close()
    backend = opened(tmp_path)
    backend.create_snapshot("v", "s")
    with backend.open_device("v", "s", read_only=True) as device:
        assert device.read(0, BLOCK_SIZE_BYTES) == b"\2" * BLOCK_SIZE_BYTES
    backend.close()


def test_trim_then_kill(tmp_path: Path) -> None:
    """Goal: INV-LOCAL-3. Method: trim without a flush, lose it, read the old bytes."""
    backend = opened(tmp_path)
    backend.create("v", SIZE)
    device = backend.open_device("v", read_only=False)
    device.write(0, b"\1" * 64 * BLOCK_SIZE_BYTES, fua=True)
    device.discard(0, 32 * BLOCK_SIZE_BYTES)
    backend._store.close()
    for path in files(tmp_path):
        path.unlink()  # as after a power cut
    backend = opened(tmp_path)
    with backend.open_device("v", read_only=False) as device:
        assert device.read(0, 64 * BLOCK_SIZE_BYTES) == b"\1" * 64 * BLOCK_SIZE_BYTES
        used = backend.describe("v").allocated_bytes
        device.discard(0, 32 * BLOCK_SIZE_BYTES)
        device.flush()
        assert backend.describe("v").allocated_bytes <= used - 31 * BLOCK_SIZE_BYTES
    backend.close()
