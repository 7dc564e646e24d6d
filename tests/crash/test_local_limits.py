"""What stands in the local backend's way: another process, rights, a full or bad disk."""

import errno
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from volcore.backends.contract import BlockDevice
from volcore.backends.local import LocalBackend, LocalStore
from volcore.backends.local import backend as backend_module
from volcore.backends.local import durability as durability_module
from volcore.backends.local.files import LayerFiles
from volcore.catalog.sqlite import SqliteCatalog
from volcore.errors import (
    BackendIOError,
    ExhaustedError,
    IntegrityError,
    NotFoundError,
    PreconditionError,
    Reason,
    VolcoreError,
)
from volcore.limits import BLOCK_SIZE_BYTES, CHUNK_SIZE_BYTES, MIB

B = BLOCK_SIZE_BYTES
SIZE = 16 * MIB


def opened(directory: Path) -> LocalBackend:
    backend = LocalBackend(LocalStore.open(directory))
    backend.open()
    return backend


@pytest.fixture
def backend(tmp_path: Path) -> Iterator[LocalBackend]:
    backend = opened(tmp_path / "pool")
    backend.create("v", SIZE)
    yield backend
    backend.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of 16 MiB."""
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m,mode=700", "none", str(place)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mounting needs root")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def damage(backend: LocalBackend, layer_id: int, offset_bytes: int) -> None:
    with backend._store.files.path(layer_id).open("r+b") as file:
        file.seek(offset_bytes)
        old = file.read(1)[0]
        file.seek(offset_bytes)
        file.write(bytes([old ^ 1]))


def test_flipped_byte_in_a_parent(backend: LocalBackend) -> None:
    """Goal: INV-BE-3 names the reader's volume. Method: flip a byte of the parent's layer."""
    with backend.open_device("v", read_only=False) as device:
        device.write(0, os.urandom(8 * B))
    backend.create_snapshot("v", "s")
    backend.clone("v", "s", "vm-1.abc", SIZE)
    damage(backend, 1, 3 * B + 5)
    with backend.open_device("vm-1.abc", read_only=False) as device:
        with pytest.raises(IntegrityError) as caught:
            device.read(0, 8 * B)
        assert str(caught.value).startswith(
            "block at offset 12288 of volume vm-1.abc fails its checksum (layer 1)"
        )
        assert caught.value.context["volume"] == "vm-1.abc"
        assert caught.value.context["offset_bytes"] == "12288"
        with pytest.raises(IntegrityError):
            device.write(3 * B + 1, b"partial: would give the damage a good checksum")
        device.write(3 * B, bytes(B))
        assert device.read(3 * B, B) == bytes(B)


def test_flatten_spreads_no_damage(backend: LocalBackend) -> None:
    """Goal: flatten copies only proven bytes. Method: flip a byte, flatten, read."""
    with backend.open_device("v", read_only=False) as device:
        device.write(0, os.urandom(8 * B))
    backend.create_snapshot("v", "s")
    backend.clone("v", "s", "c", SIZE)
    damage(backend, 1, 0)
    with pytest.raises(IntegrityError):
        backend.flatten("c", lambda done, total: None)
    with backend.open_device("c", read_only=True) as device, pytest.raises(IntegrityError):
        device.read(0, B)


@pytest.mark.parametrize("cut_bytes", [0, 2 * B, 2 * B + 7])
def test_short_file(backend: LocalBackend, cut_bytes: int) -> None:
    """Goal: missing bytes are no zeroes. Method: cut the layer's file."""
    with backend.open_device("v", read_only=False) as device:
        device.write(0, os.urandom(8 * B))
    os.truncate(backend._store.files.path(1), cut_bytes)
    device = backend.open_device("v", read_only=True)
    with device, pytest.raises(IntegrityError) as caught:
        device.read(0, 8 * B)
    assert caught.value.context["offset_bytes"] == str(cut_bytes // B * B)


def test_missing_file(backend: LocalBackend) -> None:
    """Goal: a missing file is no hole. Method: delete it behind the backend's back."""
    with backend.open_device("v", read_only=False) as device:
        device.write(0, os.urandom(B))
    backend._store.files.delete(1)
    with backend.open_device("v", read_only=True) as device, pytest.raises(IntegrityError):
        device.read(0, B)


@pytest.mark.parametrize("column", ["states", "crcs"])
def test_flipped_page(backend: LocalBackend, column: str) -> None:
    """Goal: a damaged map shows no parent's data. Method: change a byte of the row."""
    with backend.open_device("v", read_only=False) as device:
        device.write(0, os.urandom(B))
    backend._database.execute(
        f"UPDATE page SET {column} = CAST(zeroblob(1) || substr({column}, 2) AS BLOB)"
    )
    with backend.open_device("v", read_only=True) as device, pytest.raises(IntegrityError):
        device.read(0, B)


def test_second_opener(backend: LocalBackend) -> None:
    """Goal: one process has a pool. Method: open again, here and in a child."""
    directory = backend._store.directory
    with pytest.raises(PreconditionError) as caught:
        LocalStore.open(directory)
    assert caught.value.reason == Reason.POOL_LOCKED
    assert caught.value.context["pid"] == str(os.getpid())
    assert str(os.getpid()) in str(caught.value)
    code = (
        "import sys; from pathlib import Path; from volcore.backends.local import LocalStore\n"
        "from volcore.errors import PreconditionError\n"
        "try: LocalStore.open(Path(sys.argv[1]))\n"
        "except PreconditionError as err: print(err.reason)"
    )
    child = subprocess.run(
        [sys.executable, "-c", code, str(directory)], capture_output=True, text=True, check=True
    )
    assert child.stdout.strip() == "POOL_LOCKED"
    backend.close()
    LocalStore.open(directory).close()


def test_no_rights(tmp_path: Path) -> None:
    """Goal: missing rights are said so. Method: a child that is nobody opens root's pool."""
    opened(tmp_path / "pool").close()
    code = (
        "import os, sys; from pathlib import Path; from volcore.backends.local import LocalStore\n"
        "from volcore.errors import VolcoreError\n"
        "if os.geteuid() == 0: os.setgid(65534); os.setuid(65534)\n"
        "try: LocalStore.open(Path(sys.argv[1]))\n"
        "except VolcoreError as err: print(type(err).__name__, err.reason)"
    )
    if os.geteuid():
        (tmp_path / "pool").chmod(0)
    child = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "pool")],
        capture_output=True,
        text=True,
        check=False,
    )
    (tmp_path / "pool").chmod(0o700)
    assert child.stdout.split() == ["PermissionDeniedError", "PERMISSION_DENIED"], child.stderr


def test_private(tmp_path: Path) -> None:
    """Goal: nobody else reads a pool's data. Method: look at the modes."""
    backend = opened(tmp_path / "pool")
    backend.create("v", SIZE)
    with backend.open_device("v", read_only=False) as device:
        device.write(0, b"secret")
    backend.close()
    assert (tmp_path / "pool").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "pool" / "layers" / "1.data").stat().st_mode & 0o777 == 0o600


def test_no_directory(tmp_path: Path) -> None:
    """Goal: a place that cannot be a pool is refused. Method: name a file."""
    (tmp_path / "file").write_text("mine")
    with pytest.raises(PreconditionError) as caught:
        LocalStore.open(tmp_path / "file")
    assert caught.value.reason == Reason.POOL_UNUSABLE
    with pytest.raises(PreconditionError):
        LocalStore.open(tmp_path / "file" / "below")


def test_newer_format(tmp_path: Path) -> None:
    """Goal: a newer format is left alone. Method: raise the number in the database."""
    store = LocalStore.open(tmp_path)
    store.database.execute("UPDATE local_format SET version = version + 1")
    store.close()
    with pytest.raises(PreconditionError) as caught:
        LocalStore.open(tmp_path)
    assert caught.value.reason == Reason.POOL_UNUSABLE


def fill(device: BlockDevice, seed: int) -> None:
    """Write until the disk is full."""
    for step in range(1, 64):
        device.write(step * MIB + seed * 3 * B, os.urandom(MIB // 4), fua=step % 4 == 0)


def test_full_disk(small_disk: Path) -> None:
    """Goal: a full disk harms nothing flushed; a delete gives space. Method: fill tmpfs."""
    backend = opened(small_disk / "pool")
    backend.create("v", 128 * MIB)
    backend.create("w", 128 * MIB)
    kept = os.urandom(MIB)
    with backend.open_device("v", read_only=False) as device:
        device.write(0, kept, fua=True)
        with backend.open_device("w", read_only=False) as other:
            for seed in range(4):
                with pytest.raises(ExhaustedError) as caught:
                    fill(other, seed)
                assert caught.value.reason == Reason.POOL_FULL
                assert device.read(0, MIB) == kept
            with suppress(ExhaustedError):
                other.close()
        for _ in range(3):
            with suppress(ExhaustedError, NotFoundError):
                backend.delete("w")
        assert list(backend.walk()) == ["v"]
        device.write(MIB, kept, fua=True)
        backend.create_snapshot("v", "s")
    backend.close()
    backend = opened(small_disk / "pool")
    with backend.open_device("v", "s", read_only=True) as device:
        assert device.read(0, 2 * MIB) == kept * 2
    backend.close()


def test_full_disk_then_space(small_disk: Path) -> None:
    """Goal: work goes on when space returns. Method: delete another file, repeat the write."""
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(8 * MIB))
    backend = opened(small_disk / "pool")
    backend.create("v", 64 * MIB)
    kept, more = os.urandom(MIB), os.urandom(4 * MIB)
    with backend.open_device("v", read_only=False) as device:
        device.write(0, kept, fua=True)
        with pytest.raises(ExhaustedError):
            device.write(MIB // 2, more, fua=True)
        ballast.unlink()
        assert device.read(0, MIB // 2) == kept[: MIB // 2]
        device.write(MIB // 2, more, fua=True)
        assert device.read(0, MIB // 2 + 4 * MIB) == kept[: MIB // 2] + more
    backend.close()
    backend = opened(small_disk / "pool")
    with backend.open_device("v", read_only=True) as device:
        assert device.read(0, MIB // 2 + 4 * MIB) == kept[: MIB // 2] + more
    backend.close()


def test_failed_sync(backend: LocalBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: a failed sync is never forgotten. Method: fail one; go on only after closing all."""
    kept = os.urandom(4 * B)
    device = backend.open_device("v", read_only=False)
    device.write(0, kept, fua=True)
    device.write(0, b"x" * 2 * B)

    def fail(fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", fail)
        with pytest.raises(BackendIOError):
            device.flush()
    for call in (device.flush, lambda: device.write(0, b"y"), lambda: device.discard(0, B)):
        with pytest.raises(BackendIOError):
            call()
    device.close()
    with backend.open_device("v", read_only=False) as device:
        found = device.read(0, 4 * B)
        assert found[2 * B :] == kept[2 * B :]
        assert found[: 2 * B] in {kept[: 2 * B], b"x" * 2 * B}
        device.write(0, b"y", fua=True)


def test_failed_sync_of_two_flushes(backend: LocalBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: what a sync lost is acknowledged to nobody.

    Method: as the kernel does, tell one of those that sync a file at the same time, and that late.
    """
    alone = threading.Barrier(2)
    first = threading.Lock()

    def sync(fd: int) -> None:
        if first.acquire(blocking=False):
            with suppress(threading.BrokenBarrierError):
                alone.wait(1)
            time.sleep(0.2)
            raise OSError(errno.EIO, "Input/output error")
        alone.wait(1)

    outcomes: list[str] = []

    def flush(device: BlockDevice) -> None:
        try:
            device.flush()
            outcomes.append("durable")
        except BackendIOError:
            outcomes.append("lost")

    device = backend.open_device("v", read_only=False)
    device.write(0, b"x" * B)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", sync)
        threads = [threading.Thread(target=flush, args=(device,)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert outcomes == ["lost", "lost"]
    device.close()


def test_names_of_a_killed_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: a file that a killed process left is made durable by name, too.

    Method: two sets of descriptors over one directory, the first of which syncs nothing.
    """
    before = LayerFiles(tmp_path)
    before.write(7, memoryview(bytes(B)), 0)
    before.close()
    synced = []
    real = os.fsync

    def note(fd: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{fd}"))
        real(fd)

    monkeypatch.setattr(os, "fsync", note)
    files = LayerFiles(tmp_path)
    files.write(7, memoryview(bytes(B)), 0)
    files.sync(7)
    assert str(tmp_path) in synced
    files.sync(7)
    assert len(synced) == 1
    files.close()


def test_orphan_files_are_swept(tmp_path: Path) -> None:
    """Goal: INV-LOCAL-5. Method: leave files without a layer, and one that is not ours."""
    opened(tmp_path).close()
    for name in ("7.data", "123456.data", "notes.txt"):
        (tmp_path / "layers" / name).write_bytes(b"left")
    backend = opened(tmp_path)
    assert [path.name for path in (tmp_path / "layers").iterdir()] == ["notes.txt"]
    backend.close()


def test_undone_transaction(backend: LocalBackend) -> None:
    """Goal: memory follows only commits. Method: undo each change with a device open on it."""
    catalog = SqliteCatalog(backend._database)
    backend.create_snapshot("v", "s")
    with backend.open_device("v", read_only=False) as device:
        device.write(0, b"before")

        def undone() -> None:
            with catalog.transaction():
                backend.create_snapshot("v", "t")
                backend.clone("v", None, "c", SIZE)
                backend.resize("v", 2 * SIZE)
                backend.create("w", SIZE)
                backend.clone("v", "t", "d", SIZE)
                raise InterruptedError

        for _ in range(2):
            with pytest.raises(InterruptedError):
                undone()
            assert device.size_bytes == SIZE
            assert device.read(0, 6) == b"before"
            assert list(backend.walk()) == ["v"]
            assert backend.describe("v").snapshot_ids == ("s",)
        device.write(0, b"after!")
        with catalog.transaction():
            backend.create_snapshot("v", "t")
            backend.create_snapshot("v", "u")
            backend.clone("v", None, "c", SIZE)
            backend.resize("v", 2 * SIZE)
        assert device.size_bytes == 2 * SIZE
        device.write(0, b"later!")
        for volume, point, expected in (
            ("v", "t", b"after!"),
            ("v", "u", b"after!"),
            ("c", None, b"after!"),
            ("v", None, b"later!"),
        ):
            with backend.open_device(volume, point, read_only=True) as other:
                assert other.read(0, 6) == expected


def test_undone_delete(backend: LocalBackend) -> None:
    """Goal: files go after the commit only. Method: undo a delete and read."""
    with backend.open_device("v", read_only=False) as device:
        device.write(0, b"kept")
    with pytest.raises(InterruptedError):
        undo_delete(backend)
    with backend.open_device("v", read_only=True) as device:
        assert device.read(0, 4) == b"kept"


def undo_delete(backend: LocalBackend) -> None:
    with backend._database.transaction():
        backend.delete("v")
        raise InterruptedError


def test_snapshots_beside_flushes(backend: LocalBackend) -> None:
    """Goal: INV-LOCK-1. Method: snapshot in transactions while threads write and flush."""
    failures: list[BaseException] = []
    done = threading.Event()
    with backend.open_device("v", read_only=False) as device:

        def work(first: int) -> None:
            try:
                step = 0
                while not done.is_set():
                    step += 1
                    device.write((first + step % 7) * B, bytes([step % 250 + 1]) * B)
                    if step % 3 == 0:
                        device.flush()
                    assert len(set(device.read(first * B, B))) == 1
            except BaseException as err:
                failures.append(err)

        threads = [threading.Thread(target=work, args=(first,)) for first in (0, 100, 1020)]
        for thread in threads:
            thread.start()
        for step in range(20):
            with backend._database.transaction():
                backend.create_snapshot("v", f"s{step}")
                backend.clone("v", f"s{step}", f"c{step}", SIZE)
            if step == 10:
                backend.flatten("v", lambda done, total: None)
        done.set()
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive()
    assert not failures
    for step in range(20):
        with backend.open_device(f"c{step}", read_only=True) as device:
            device.read(0, SIZE)


def test_notes_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: recovery's work is bounded. Method: overwrite more chunks than may be noted."""
    monkeypatch.setattr(durability_module, "OVERWRITE_CHUNKS_MAX", 12)
    monkeypatch.setattr(durability_module, "NOTES_TOGETHER", 2)
    chunk_count = 40
    backend = opened(tmp_path)
    backend.create("v", chunk_count * CHUNK_SIZE_BYTES)
    device = backend.open_device("v", read_only=False)
    for turn in range(3):
        for chunk in range(0, chunk_count, 2):
            device.write(chunk * CHUNK_SIZE_BYTES, bytes([turn + 1]) * B)
            noted = backend._database.query("SELECT count(*) FROM dirty")[0][0]
            assert noted <= 12
        device.flush()
    assert noted
    # No close: the process is gone, as far as the directory can tell.
    backend._store.close()
    finally_check(backend._store.directory, chunk_count)


def finally_check(directory: Path, chunk_count: int) -> None:
    again = opened(directory)
    with again.open_device("v", read_only=True) as device:
        for chunk in range(0, chunk_count, 2):
            assert device.read(chunk * CHUNK_SIZE_BYTES, B) == b"\3" * B
    assert again._database.query("SELECT * FROM dirty") == []
    again.close()


def test_snapshots_have_a_limit(backend: LocalBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: limits are kept. Method: lower them and go over."""
    lowered = replace(backend.caps, snapshots_max=1, depth_max=2)
    monkeypatch.setattr(backend_module, "_CAPS", lowered)
    backend.create_snapshot("v", "s")
    with pytest.raises(ExhaustedError) as caught:
        backend.create_snapshot("v", "t")
    assert caught.value.reason == Reason.TOO_MANY_SNAPSHOTS
    backend.clone("v", "s", "c", SIZE)
    with backend.open_device("c", read_only=False) as device:
        device.write(0, b"x")
    backend.clone("c", None, "d", SIZE)
    with backend.open_device("d", read_only=False) as device:
        device.write(0, b"x")
    with pytest.raises(PreconditionError) as refused:
        backend.clone("d", None, "e", SIZE)
    assert refused.value.reason == Reason.DEPTH_LIMIT
    backend.flatten("d", lambda done, total: None)
    backend.clone("d", None, "e", SIZE)


def test_allocated_bytes_agree_with_du(backend: LocalBackend) -> None:
    """Goal: space figures are du's. Method: compare after writes, a snapshot and a trim."""
    with backend.open_device("v", read_only=False) as device:
        device.write(0, os.urandom(2 * MIB))
        backend.create_snapshot("v", "s")
        device.write(0, os.urandom(MIB))
        device.flush()
        device.discard(0, MIB // 2)
    files = sorted((backend._store.directory / "layers").iterdir())
    du = subprocess.run(["du", "-cB1", *files], capture_output=True, text=True, check=True)
    used = int(du.stdout.splitlines()[-1].split()[0])
    assert backend.describe("v").allocated_bytes == used
    assert 2 * MIB <= used <= 2 * MIB + MIB // 2 + 64 * 1024


def test_many_open_volumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: descriptors are bounded. Method: open more volumes than may be kept open."""
    monkeypatch.setattr("volcore.backends.local.files.FILES_OPEN_MAX", 5)
    backend = opened(tmp_path)
    devices = []
    for number in range(20):
        backend.create(f"v{number}", SIZE)
        devices.append(backend.open_device(f"v{number}", read_only=False))
    for number, device in enumerate(devices):
        device.write(0, bytes([number + 1]) * B)
    assert backend._store.files._open_count <= 6
    for number, device in enumerate(devices):
        assert device.read(0, B) == bytes([number + 1]) * B
        device.close()
    backend.close()


def test_closed_backend(tmp_path: Path) -> None:
    """Goal: a stopped backend answers with our errors. Method: use what is closed."""
    backend = opened(tmp_path)
    backend.create("v", SIZE)
    device = backend.open_device("v", read_only=False)
    device.write(0, b"x")
    backend.close()
    with pytest.raises(VolcoreError):
        device.flush()
    with pytest.raises(VolcoreError):
        backend.open_device("v", read_only=True)


def test_unknown_rights_of_parent(tmp_path: Path) -> None:
    """Goal: a pool may lie in a new directory of several levels. Method: open it there."""
    store = LocalStore.open(tmp_path / "a" / "b" / "c")
    store.close()
    assert (tmp_path / "a" / "b" / "c" / "volcore.db").exists()
