"""Random histories, judged by nbdinfo, nbdcopy and qemu-img beside the oracle."""

import json
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from volcore.backends.contract import VolumeBackend
from volcore.backends.local import LocalBackend, LocalStore
from volcore.limits import BLOCK_SIZE_BYTES
from volcore.nbd import private_export
from volcore.testing.history import Player, PointModel, PoolModel, random_steps

TOOLS = ("qemu-img", "nbdinfo", "nbdcopy")
pytestmark = [
    pytest.mark.qemu,
    pytest.mark.skipif(
        not all(map(shutil.which, TOOLS)), reason="apt-get install qemu-utils libnbd-bin"
    ),
]
B = BLOCK_SIZE_BYTES
Extents = list[tuple[int, int, bool]]
"""(offset, length, whether it may hold data)."""


def run(*words: str | Path) -> str:
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(params=range(3))
def played(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Player, PoolModel]]:
    """A backend after a random history, nothing flushed that the history did not flush."""

    def opened() -> LocalBackend:
        backend = LocalBackend(LocalStore.open(tmp_path / "pool"))
        backend.open()
        return backend

    player, model = Player(opened), PoolModel()
    for step in random_steps(random.Random(1000 + request.param), 100):
        player.play(step)
        model.apply(step)
    yield player, model
    player.close()


def points(model: PoolModel) -> Iterator[tuple[str, str | None, PointModel]]:
    for name, volume in model.volumes.items():
        yield name, None, volume.head
        for point, one in volume.points.items():
            yield name, point, one


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return tmp_path / "oracle.raw"


def uri(path: Path) -> str:
    return f"nbd+unix:///?socket={path}"


def map_of_nbdinfo(target: str) -> Extents:
    found = json.loads(run("nbdinfo", "--map", "--json", target))
    return [(one["offset"], one["length"], one["type"] & 2 == 0) for one in found]


def map_of_qemu(target: str) -> Extents:
    found = json.loads(run("qemu-img", "map", "--output=json", "-f", "raw", target))
    return [(one["start"], one["length"], not one["zero"]) for one in found]


def check_map(extents: Extents, content: bytes) -> None:
    """The map has no gap, and what it calls zero is zero."""
    end = 0
    for offset, length, data in extents:
        assert offset == end
        end += length
        assert data or not any(content[offset:end]), f"data at {offset} is called zero"
    assert end == len(content)


def test_reading(played: tuple[Player, PoolModel], raw: Path) -> None:
    """Goal: all tools see the oracle's bytes and true maps. Method: export every point."""
    player, model = played
    for name, point, expected in points(model):
        raw.write_bytes(expected.newest())
        with (
            player.backend.open_device(name, point, read_only=True) as device,
            private_export(device) as path,
        ):
            run("qemu-img", "compare", "-f", "raw", "-F", "raw", raw, uri(path))
            back = raw.with_name("back.raw")
            back.unlink(missing_ok=True)
            run("nbdcopy", uri(path), back)
            assert back.read_bytes() == expected.newest()
            for extents in (map_of_nbdinfo(uri(path)), map_of_qemu(uri(path))):
                check_map(extents, expected.newest())


def test_map_is_exact(played: tuple[Player, PoolModel]) -> None:
    """Goal: data extents are what was written. Method: compare the tools' with the device's own."""
    player, model = played
    for name, point, expected in points(model):
        with (
            player.backend.open_device(name, point, read_only=True) as device,
            private_export(device) as path,
        ):
            own: set[int] = set()
            for one in device.extents(0, expected.size_bytes):
                if one.kind.name == "DATA":
                    own.update(range(one.offset_bytes // B, one.end_bytes // B))
            for extents in (map_of_nbdinfo(uri(path)), map_of_qemu(uri(path))):
                shown: set[int] = set()
                for offset, length, data in extents:
                    if data:
                        shown.update(range(offset // B, (offset + length) // B))
                assert shown == own


def test_writing(played: tuple[Player, PoolModel], raw: Path) -> None:
    """Goal: what nbdcopy writes is there, holes as holes. Method: copy every head over a volume."""
    player, model = played
    for number, (name, volume) in enumerate(sorted(model.volumes.items())):
        raw.write_bytes(volume.head.newest())
        target = f"target-{number}"
        player.backend.create(target, volume.head.size_bytes)
        with player.backend.open_device(target, read_only=False) as device:
            if number % 2:
                device.write(0, b"\xff" * volume.head.size_bytes)
            with private_export(device) as path:
                blank = [] if number % 2 else ["--destination-is-zero"]
                run("nbdcopy", "--flush", *blank, raw, uri(path))
            assert device.read(0, volume.head.size_bytes) == volume.head.newest(), name
        check_allocated(player.backend, target, volume.head)


def check_allocated(backend: VolumeBackend, target: str, model: PointModel) -> None:
    """Space is taken for little more than the blocks that hold something."""
    used = sum(any(allowed[-1]) for allowed in model.blocks.values()) * B
    # nbdcopy looks for zeroes in pieces of its own size, not ours.
    assert backend.describe(target).allocated_bytes <= 2 * used + 1024 * 1024
