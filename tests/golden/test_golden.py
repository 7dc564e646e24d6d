"""Goal: a store written once is readable for ever. Method: open what others left."""

import json
import tarfile
from pathlib import Path

import pytest

from volcore.backends.local import LocalBackend, LocalStore

from .make import digests

HERE = Path(__file__).parent
STORES = sorted(path.name.removesuffix(".tar.xz") for path in HERE.glob("*.tar.xz"))
ARCHIVE_BYTES_MAX = 200_000


@pytest.fixture(params=STORES)
def golden(request, tmp_path):
    """(pool directory as a killed server left it, what it must read as)."""
    with tarfile.open(HERE / f"{request.param}.tar.xz") as tar:
        tar.extractall(tmp_path)
    return tmp_path, json.loads((HERE / f"{request.param}.json").read_text())


def opened(directory):
    backend = LocalBackend(LocalStore.open(directory))
    backend.open()
    return backend


def test_every_byte(golden):
    """Each volume and snapshot reads as recorded, on the first start and after a clean stop."""
    directory, expected = golden
    for _ in range(2):
        backend = opened(directory)
        assert digests(backend) == expected
        backend.close()


def test_goes_on(golden):
    """An old store is worked on: written, snapshotted, cloned, emptied; nothing is left."""
    directory, expected = golden
    backend = opened(directory)
    for volume in list(backend.walk()):
        backend.create_snapshot(volume, "now")
        backend.clone(volume, "now", f"new-{volume}", 16 << 20)
        with backend.open_device(volume, read_only=False) as device:
            device.write(4096, b"changed")
    found = digests(backend)
    assert {key: found[key] for key in expected if "@" in key} == {
        key: value for key, value in expected.items() if "@" in key
    }
    assert all(found[f"{key}@now"] == expected[key] for key in expected if "@" not in key)
    for volume in list(backend.walk()):
        backend.delete(volume)
    backend.close()
    opened(directory).close()
    assert list((directory / "layers").iterdir()) == []


def test_small():
    """The archives stay small enough for the repository."""
    assert STORES
    assert all((HERE / f"{name}.tar.xz").stat().st_size < ARCHIVE_BYTES_MAX for name in STORES)
