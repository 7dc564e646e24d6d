"""What was answered and not flushed, after a kill -9: all of it, or nothing that may be wrong."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from crash.test_local_kill import files, opened
from volcore.backends.local import LocalBackend, shared_memory
from volcore.backends.local.device import LocalDevice
from volcore.errors import BackendIOError, ExhaustedError, IntegrityError, Reason
from volcore.limits import BLOCK_SIZE_BYTES, CHUNK_SIZE_BYTES, MIB
from volcore.model.extent import Extent, ExtentKind

SIZE = 600 * CHUNK_SIZE_BYTES
FAR = SIZE - CHUNK_SIZE_BYTES
AT = (0, 1, 2, 3, 4)
FLUSHED = b"\1\1\1\0\0"
ANSWERED = b"\1\2\0\3\0"


def block(number: int) -> bytes:
    return bytes([number]) * BLOCK_SIZE_BYTES


def content(device: LocalDevice) -> bytes:
    """Return the first byte of each block that the tests use; all of it is proven."""
    return device.read(0, 5 * BLOCK_SIZE_BYTES)[::BLOCK_SIZE_BYTES]


def head(backend: LocalBackend, volume: str = "v") -> bytes:
    with backend.open_device(volume, read_only=True) as device:
        return content(device)


def killed(directory: Path) -> None:
    """Leave a pool with a flushed volume that was overwritten, trimmed and written elsewhere."""
    backend = opened(directory)
    backend.create("v", SIZE)
    device = backend.open_device("v", read_only=False)
    device.write(0, block(1) * 3, fua=True)
    change(device)
    die(backend)


def change(device: LocalDevice) -> None:
    device.write(BLOCK_SIZE_BYTES, block(2))
    device.discard(2 * BLOCK_SIZE_BYTES, BLOCK_SIZE_BYTES)
    device.write(3 * BLOCK_SIZE_BYTES, block(3))


def die(backend: LocalBackend) -> None:
    """Let go of the pool as a process does that is killed."""
    backend._store.close()


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Path]:
    killed(tmp_path / "pool")
    assert len(files(tmp_path / "pool")) == 1
    yield tmp_path / "pool"
    assert files(tmp_path / "pool") == []


def test_opened(pool: Path) -> None:
    """Goal: INV-LOCAL-12. Method: open what was killed; kill it before anything else; again."""
    for _ in range(2):
        backend = opened(pool)
        assert head(backend) == ANSWERED
        die(backend)
    backend = opened(pool)
    assert head(backend) == ANSWERED
    backend.close()


def test_settled_twice(pool: Path) -> None:
    """Goal: recovery that is cut off repeats. Method: put the file back after it was used."""
    (path,) = files(pool)
    kept = path.read_bytes()
    for _ in range(2):
        backend = opened(pool)
        assert head(backend) == ANSWERED
        die(backend)
        path.write_bytes(kept)
    backend = opened(pool)
    assert head(backend) == ANSWERED
    backend.close()


def test_not_opened_first(pool: Path) -> None:
    """Goal: whoever comes first sees it. Method: snapshot, clone, compare what was not opened."""
    backend = opened(pool)
    backend.create_snapshot("v", "s")
    backend.clone("v", "s", "c", SIZE)
    assert head(backend, "c") == ANSWERED
    device = backend.open_device("v", read_only=False)
    device.write(4 * BLOCK_SIZE_BYTES, block(4))
    die(backend)
    backend = opened(pool)
    changed = Extent(4 * BLOCK_SIZE_BYTES, BLOCK_SIZE_BYTES, ExtentKind.DATA)
    assert list(backend.diff("v", "s", None)) == [changed]
    assert head(backend, "c") == ANSWERED
    backend.close()


def test_layers_change(tmp_path: Path) -> None:
    """Goal: states belong to one layer. Method: snapshots under an open volume, then a kill."""
    backend = opened(tmp_path)
    backend.create("v", SIZE)
    device = backend.open_device("v", read_only=False)
    device.write(0, block(1) * 3)
    backend.create_snapshot("v", "s")
    change(device)
    for chunk in range(0, 600, 2):  # more than one page of entries
        device.write(FAR - chunk * CHUNK_SIZE_BYTES, block(5))
    die(backend)
    backend = opened(tmp_path)
    assert head(backend) == ANSWERED
    with backend.open_device("v", "s", read_only=True) as snapshot:
        assert content(snapshot) == FLUSHED
    with backend.open_device("v", read_only=True) as device:
        for chunk in range(0, 600, 2):
            assert device.read(FAR - chunk * CHUNK_SIZE_BYTES, BLOCK_SIZE_BYTES) == block(5)
    backend.delete_snapshot("v", "s")
    backend.upkeep.finish()
    assert head(backend) == ANSWERED
    backend.close()


def test_reverted_or_deleted(tmp_path: Path) -> None:
    """Goal: what is given up does not come back. Method: revert and delete after a kill."""
    backend = opened(tmp_path)
    for name in ("v", "w"):
        backend.create(name, SIZE)
        device = backend.open_device(name, read_only=False)
        device.write(0, block(1) * 3)
        backend.create_snapshot(name, "s")
        change(device)
    die(backend)
    backend = opened(tmp_path)
    backend.revert("v", "s")
    backend.delete("w")
    backend.create("w", SIZE)
    assert (head(backend), head(backend, "w")) == (FLUSHED, bytes(5))
    backend.close()
    assert files(tmp_path) == []


def test_older_server(pool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: no state from before what is newer. Method: a server that knows no memory writes."""
    with monkeypatch.context() as patch:
        patch.setattr(shared_memory, "_PLACE", pool)
        backend = opened(pool)
        with backend.open_device("v", read_only=False) as device:
            device.discard(0, BLOCK_SIZE_BYTES)
            device.write(2 * BLOCK_SIZE_BYTES, block(7))
        backend.close()
    backend = opened(pool)
    assert head(backend)[::2] == b"\0\7\0"
    backend.close()


def test_killed_around_a_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: INV-LOCAL-12. Method: change while a flush commits, die before and after the commit."""
    for is_before in (True, False):
        place = tmp_path / str(is_before)
        backend = opened(place)
        backend.create("v", SIZE)
        device = backend.open_device("v", read_only=False)
        device.write(0, block(1) * 3, fua=True)
        device.write(3 * BLOCK_SIZE_BYTES, block(9))
        durability, store = device.chunks.durability, backend._store

        def cut(*_: object) -> int:
            raise InterruptedError

        with monkeypatch.context() as patch:
            patch.setattr(durability, "_sync", lambda layers, d=device: change(d))
            if is_before:
                patch.setattr(store.layers, "page_sum", cut)
            else:
                patch.setattr(device.chunks.unflushed, "arrive", cut)
            with pytest.raises(InterruptedError):
                device.flush()
        die(backend)
        backend = opened(place)
        assert head(backend) == ANSWERED
        backend.close()
        assert files(place) == []


def test_copy(pool: Path, tmp_path: Path) -> None:
    """Goal: a copy is another pool. Method: open both, the copy first."""
    copy = tmp_path / "copy"
    shutil.copytree(pool, copy)
    backend = opened(copy)
    found = head(backend)
    assert found[0:1] + found[2:] == b"\1\1\0\0"  # block 1 was changed in place
    backend.close()
    backend = opened(pool)
    assert head(backend) == ANSWERED
    backend.close()


@pytest.mark.parametrize(
    "make", [("mkfs.ext4", "-q"), ("mkfs.xfs", "-q"), ("mkfs.btrfs", "-q")], ids=lambda m: m[0][5:]
)
def test_mounted_again(tmp_path: Path, make: tuple[str, ...]) -> None:
    """Goal: what the page cache held may be gone. Method: unmount and mount between the two."""
    image, place = tmp_path / "image", tmp_path / "mount"
    image.touch()
    subprocess.run(["truncate", "-s", "320M", image], check=True)
    subprocess.run([*make, image], check=True, capture_output=True)
    place.mkdir()
    for killing in (True, False):
        subprocess.run(["mount", "-o", "loop", image, place], check=True)
        try:
            if killing:
                killed(place / "pool")
                backend = opened(place / "pool")
                assert head(backend) == ANSWERED
                device = backend.open_device("v", read_only=False)
                device.write(4 * BLOCK_SIZE_BYTES, block(4))
                die(backend)
            else:
                backend = opened(place / "pool")
                assert head(backend) == ANSWERED
                backend.close()
        finally:
            subprocess.run(["umount", place], check=True)


def test_damaged(pool: Path) -> None:
    """Goal: no state that makes no sense counts. Method: overwrite one, then do as one is told."""
    (path,) = files(pool)
    kept = path.read_bytes()
    at = kept.index(b"\1\1\0\1")  # DATA, DATA, trimmed, DATA
    path.write_bytes(kept[:at] + b"\7" + kept[at + 1 :])
    backend = opened(pool)
    with pytest.raises(IntegrityError, match=str(path)) as caught:
        backend.open_device("v", read_only=True)
    assert caught.value.reason is Reason.BAD_RECORD
    path.unlink()  # the server need not be started again
    assert head(backend)[3:] == bytes(2)
    backend.close()


def test_no_shared_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: a pool does not depend on it. Method: name a place that is not there, or another's."""
    other = tmp_path / "volcore-0"
    other.mkdir(mode=0o755)
    monkeypatch.setattr(shared_memory.os, "geteuid", lambda: 0)
    for place in (tmp_path / "missing", tmp_path):
        monkeypatch.setattr(shared_memory, "_PLACE", place)
        with capture_logs() as logs:
            backend = opened(tmp_path / "pool")
        assert [entry["event"] for entry in logs] == [
            "what guests have not flushed is lost if this server is killed"
        ]
        if place == tmp_path:
            assert head(backend) == FLUSHED
        else:
            backend.create("v", SIZE)
            device = backend.open_device("v", read_only=False)
            device.write(0, block(1) * 3, fua=True)
            device.write(3 * BLOCK_SIZE_BYTES, block(3))
        die(backend)


def test_closing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: a full disk at the end loses nothing. Method: let the last commit fail, open again."""
    backend = opened(tmp_path)
    backend.create("v", SIZE)
    device = backend.open_device("v", read_only=False)
    device.write(0, block(1) * 3, fua=True)
    change(device)
    full = ExhaustedError("the disk is full", reason=Reason.POOL_FULL)
    with monkeypatch.context() as patch:

        def refuse(pages: object) -> None:
            raise full

        patch.setattr(backend._store.layers, "put_pages", refuse)
        with pytest.raises(ExhaustedError):
            device.close()
    assert head(backend) == ANSWERED
    backend.close()
    assert files(tmp_path) == []


def test_failed_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: what may not be on the disk does not count. Method: let a sync fail, die, read."""
    backend = opened(tmp_path)
    backend.create("v", SIZE)
    device = backend.open_device("v", read_only=False)
    device.write(0, block(1) * 3, fua=True)
    device.write(3 * BLOCK_SIZE_BYTES, block(3))

    def fail(layer_id: int) -> None:
        raise BackendIOError("the disk failed", reason=Reason.BACKEND_IO)

    with monkeypatch.context() as patch:
        patch.setattr(backend._store.files, "sync", fail)
        with pytest.raises(BackendIOError):
            device.flush()
    assert files(tmp_path) == []
    die(backend)
    backend = opened(tmp_path)
    assert head(backend) == FLUSHED
    backend.close()


def test_memory_is_bounded(tmp_path: Path) -> None:
    """Goal: places come back. Method: write all over a volume, again and again."""
    backend = opened(tmp_path)
    backend.create("v", SIZE)
    with backend.open_device("v", read_only=False) as device:
        for _ in range(4):
            for chunk in range(600):
                device.write(chunk * CHUNK_SIZE_BYTES, block(6))
        (path,) = files(tmp_path)
        assert path.stat().st_size < 2 * MIB
    backend.close()
