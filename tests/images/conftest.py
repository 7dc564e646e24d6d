"""Image files made by qemu-img from random sparse disks, and blank devices to import them into."""

import os
import random
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from volcore.backends.contract import BlockDevice, VolumeBackend
from volcore.backends.local import LocalBackend, LocalStore
from volcore.backends.memory import MemoryBackend
from volcore.images.convert import convert_into
from volcore.images.inspect import inspect
from volcore.limits import MIB

ODD_SIZE_BYTES = 13 * MIB + 3 * 512


def silent(done: int, total: int) -> None:
    assert 0 <= done <= total


def make_raw(path: Path, size_bytes: int, seed: int = 1, pieces: int = 25) -> bytes:
    """A sparse file with random data at random places; return its bytes."""
    generator = random.Random(seed)
    with path.open("wb") as file:
        for _ in range(pieces):
            length = min(size_bytes, generator.randrange(1, 200_000))
            file.seek(generator.randrange(size_bytes - length + 1))
            file.write(generator.randbytes(length))
        file.truncate(size_bytes)
    return path.read_bytes()


def qemu_img(*arguments: object) -> str:
    done = subprocess.run(
        ["qemu-img", *map(str, arguments)], check=True, capture_output=True, text=True
    )
    return done.stdout


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4096)


def child_processes() -> set[int]:
    """Process ids of all children of this process, zombies included."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(fields[1]) == os.getpid():
                found.add(int(entry.name))
    return found


@pytest.fixture(params=["memory", "local"])
def backend(request, tmp_path) -> Iterator[VolumeBackend]:
    made: VolumeBackend
    if request.param == "memory":
        made = MemoryBackend()
    else:
        made = LocalBackend(LocalStore.open(tmp_path / "pool"))
    made.open()
    yield made
    made.close()


@pytest.fixture
def blank(backend) -> Callable[[int], BlockDevice]:
    """Makes a blank device of a size; the backend closes it."""
    count = iter(range(100))

    def make(size_bytes: int) -> BlockDevice:
        name = f"volume-{next(count)}"
        backend.create(name, size_bytes)
        return backend.open_device(name, read_only=False)

    return make


@pytest.fixture
def memory_blank() -> Iterator[Callable[[int], BlockDevice]]:
    made = MemoryBackend()
    count = iter(range(100))

    def make(size_bytes: int) -> BlockDevice:
        name = f"volume-{next(count)}"
        made.create(name, size_bytes)
        return made.open_device(name, read_only=False)

    yield make
    made.close()


def import_file(path: Path, make: Callable[[int], BlockDevice]) -> tuple[BlockDevice, str]:
    with path.open("rb") as file:
        facts = inspect(file)
        device = make(facts.virtual_size_bytes)
        return device, convert_into(file, facts, device, progress=silent)
