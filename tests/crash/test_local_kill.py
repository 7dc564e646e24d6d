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


def value(block: bytes) -> int:
    """Return the number that the whole block repeats: a mix of two would be torn."""
    assert block == block[:8] * 512
    return int.from_bytes(block[:8], "little")


@pytest.mark.parametrize("seed", range(5))
def test_kill(tmp_path: Path, seed: int) -> None:
    """Goal: INV-BE-1 and INV-BE-3. Method: kill a writing child, read all, again and again."""
    dice = random.Random(seed)
    backend = opened(tmp_path)
    backend.create("v", SIZE)
    backend.close()
    allowed: dict[int, set[int]] = {}
    latest: dict[int, int] = {}
    for round_number in range(3):
        log = run_child(tmp_path, seed * 10 + round_number, dice.uniform(0.05, 0.25))
        for line in log:
            word, *numbers = line.split()
            if word in {"write", "trim"}:
                block, number = int(numbers[0]), int(numbers[1]) if word == "write" else 0
                allowed.setdefault(block, {0}).add(number)
                latest[block] = number
            elif word == "flushed":
                for block, number in latest.items():
                    allowed[block] = {number}
            elif word == "start":
                latest = {}
        backend = opened(tmp_path)
        with backend.open_device("v", read_only=True) as device:
            for block in range(1, 1040):
                found = value(device.read(block * BLOCK_SIZE_BYTES, BLOCK_SIZE_BYTES))
                assert found in allowed.get(block, {0}), f"block {block} in round {round_number}"
                allowed[block] = {found}
        for snapshot_id in backend.describe("v").snapshot_ids:
            with backend.open_device("v", snapshot_id, read_only=True) as device:
                device.read(0, SIZE)
        backend.close()


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
