"""Import: every format byte for byte with one digest; cancel, kill, missing tool, full pool."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from volcore.errors import (
    CancelledError,
    ExhaustedError,
    InvalidArgumentError,
    PreconditionError,
    Reason,
    UnavailableError,
)
from volcore.images import chunks, qemu, spool
from volcore.images.convert import convert_into
from volcore.images.hashing import digest_device
from volcore.images.inspect import inspect
from volcore.images.qcow2_reader import Qcow2Source
from volcore.images.raw_reader import RawSource
from volcore.limits import CHUNK_SIZE_BYTES, MIB
from volcore.model.extent import ExtentKind

from .conftest import (
    ODD_SIZE_BYTES,
    child_processes,
    import_file,
    make_raw,
    padded,
    qemu_img,
    silent,
)

FORMATS = {
    "raw": ("raw",),
    "qcow2": ("qcow2",),
    "qcow2-v2": ("qcow2", "-o", "compat=0.10"),
    "qcow2-compressed": ("qcow2", "-c"),
    "qcow2-zstd": ("qcow2", "-c", "-o", "compression_type=zstd"),
    "qcow2-512": ("qcow2", "-o", "cluster_size=512"),
    "qcow2-512-compressed": ("qcow2", "-c", "-o", "cluster_size=512"),
    "qcow2-2m": ("qcow2", "-o", "cluster_size=2M"),
    "qcow2-2m-compressed": ("qcow2", "-c", "-o", "cluster_size=2M"),
    "qcow2-full": ("qcow2", "-o", "preallocation=full"),
    "qcow2-metadata": ("qcow2", "-o", "preallocation=metadata"),
    "vmdk-sparse": ("vmdk", "-o", "subformat=monolithicSparse"),
    "vmdk-stream": ("vmdk", "-o", "subformat=streamOptimized"),
    "vdi": ("vdi",),
    "vdi-static": ("vdi", "-o", "static=on"),
    "vhdx": ("vhdx",),
    "vhdx-fixed": ("vhdx", "-o", "subformat=fixed"),
}


@pytest.mark.qemu
@pytest.mark.parametrize("name", FORMATS)
def test_formats(name, blank, tmp_path):
    """Goal: the same disk from any format. Method: convert a random one there, and import it."""
    raw = tmp_path / "disk.raw"
    wanted = padded(make_raw(raw, ODD_SIZE_BYTES))
    format_name, *options = FORMATS[name]
    path = tmp_path / "disk.image"
    qemu_img("convert", "-f", "raw", "-O", format_name, *options, raw, path)
    device, digest = import_file(path, blank)
    got = device.read(0, device.size_bytes)
    assert got[: len(wanted)] == wanted
    assert not any(got[len(wanted) :])
    assert digest == digest_device(device, silent)
    assert digest == import_file(raw, blank)[1]


@pytest.mark.parametrize("size_bytes", [1, 511, 4096, 4097, CHUNK_SIZE_BYTES - 1,
                                        CHUNK_SIZE_BYTES, CHUNK_SIZE_BYTES + 1])  # fmt: skip
@pytest.mark.parametrize("format_name", ["raw", "qcow2"])
def test_odd_sizes(size_bytes, format_name, memory_blank, tmp_path):
    """Goal: the end of the disk is right. Method: sizes around blocks and chunks, all data."""
    raw, path = tmp_path / "disk.raw", tmp_path / "disk.image"
    raw.write_bytes(os.urandom(size_bytes))
    qemu_img("convert", "-f", "raw", "-O", format_name, raw, path)
    device, _ = import_file(path, memory_blank)
    wanted = raw.read_bytes()
    assert device.read(0, size_bytes) == wanted
    assert not any(device.read(size_bytes, device.size_bytes - size_bytes))


def test_zeroes_stay_thin(blank, tmp_path):
    """Goal: zeroes take no space. Method: a file of written zeroes with 64 KiB of data."""
    path = tmp_path / "disk.raw"
    path.write_bytes(bytes(5 * MIB) + b"x" * 65536 + bytes(4 * MIB))
    device, _ = import_file(path, blank)
    data = [e for e in device.extents(0, device.size_bytes) if e.kind is ExtentKind.DATA]
    assert [(e.offset_bytes, e.length_bytes) for e in data] == [(5 * MIB, 65536)]


def test_snapshots_inside_are_skipped(memory_blank, tmp_path):
    """Goal: the active state is imported. Method: an internal snapshot, then other data."""
    path, raw = tmp_path / "disk.qcow2", tmp_path / "disk.raw"
    qemu_img("create", "-f", "qcow2", path, "8M")
    qemu_io(path, "write -P 1 0 1M")
    qemu_img("snapshot", "-c", "old", path)
    qemu_io(path, "write -P 2 512k 1M", "write -z 3M 1M", "discard 0 64k")
    qemu_img("convert", "-f", "qcow2", "-O", "raw", path, raw)
    device, _ = import_file(path, memory_blank)
    assert device.read(0, device.size_bytes) == raw.read_bytes()


def qemu_io(path, *commands):
    arguments = [word for command in commands for word in ("-c", command)]
    subprocess.run(["qemu-io", "-f", "qcow2", *arguments, path], check=True, capture_output=True)


def make(tmp_path, format_name, size_bytes=64 * MIB, *options):
    raw, path = tmp_path / "source.raw", tmp_path / f"disk.{format_name}"
    raw.write_bytes(os.urandom(size_bytes))
    qemu_img("convert", "-f", "raw", "-O", format_name, *options, raw, path)
    raw.unlink()
    return path


@pytest.mark.parametrize("format_name", ["raw", "qcow2", "vdi"])
def test_cancel(format_name, blank, tmp_path):
    """Goal: a cancel in the middle leaves no thread and no child. Method: raise after a while."""
    path = make(tmp_path, format_name)
    threads, calls = threading.active_count(), iter(range(1000))
    others = child_processes()

    def progress(done: int, total: int) -> None:
        if next(calls) == 3:
            raise CancelledError("stop", reason=Reason.CANCELLED)

    with path.open("rb") as file:
        facts = inspect(file)
        device = blank(facts.virtual_size_bytes)
        with pytest.raises(CancelledError):
            convert_into(file, facts, device, progress=progress)
    assert child_processes() <= others
    assert threading.active_count() == threads


def test_killed_child(memory_blank, tmp_path):
    """Goal: a killed converter is one sentence. Method: kill it as soon as it is seen."""
    path = make(tmp_path, "vdi")
    others = child_processes()

    def progress(done: int, total: int) -> None:
        for child in child_processes() - others:
            os.kill(child, signal.SIGKILL)

    with path.open("rb") as file:
        facts = inspect(file)
        with pytest.raises(UnavailableError, match="killed") as caught:
            convert_into(file, facts, memory_blank(facts.virtual_size_bytes), progress=progress)
    assert caught.value.retryable
    assert child_processes() <= others


def test_killed_server_takes_the_child_along(tmp_path):
    """Goal: no orphan. Method: a server process converts; SIGKILL it when its child runs."""
    path = make(tmp_path, "vdi")
    program = """
import sys, time
from volcore.backends.memory import MemoryBackend
from volcore.images.inspect import inspect
from volcore.images import qemu
backend = MemoryBackend()
with open(sys.argv[1], "rb") as file:
    facts = inspect(file)
    backend.create("v", facts.virtual_size_bytes)
    device = backend.open_device("v", read_only=False)
    device.write = lambda *a, **k: time.sleep(60)
    qemu.convert(file, "vdi", device, lambda done, total: None)
"""
    server = subprocess.Popen([sys.executable, "-c", program, path])
    try:
        until = time.monotonic() + 30
        while not (children := running_children(server.pid, "qemu-img")):
            assert time.monotonic() < until
            time.sleep(0.02)
    finally:
        server.kill()
        server.wait()
    until = time.monotonic() + 10
    while any(os.path.exists(f"/proc/{child}") for child in children):
        assert time.monotonic() < until, "the converter outlived its server"
        time.sleep(0.02)


def running_children(parent: int, name: str) -> list[int]:
    """Process ids of the children of `parent` that run the program `name`."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and (entry / "comm").read_text().strip() == name:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if int(fields[1]) == parent:
                    found.append(int(entry.name))
    return found


def test_tool_missing(memory_blank, tmp_path, monkeypatch):
    """Goal: the package is named. Method: an empty PATH; qcow2 needs no tool."""
    vdi, qcow2 = make(tmp_path, "vdi", MIB), make(tmp_path, "qcow2", MIB)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PreconditionError, match="qemu-utils") as caught:
        import_file(vdi, memory_blank)
    assert caught.value.reason is Reason.TOOL_MISSING
    import_file(qcow2, memory_blank)


@pytest.mark.parametrize("format_name", ["raw", "vdi"])
def test_pool_full(format_name, memory_blank, tmp_path):
    """Goal: the device's own error comes out, not the tool's. Method: writes fail."""
    path = make(tmp_path, format_name, 8 * MIB)

    def write(offset_bytes, data, *, fua=False):
        raise ExhaustedError("the pool is full", reason=Reason.POOL_FULL)

    with path.open("rb") as file:
        facts = inspect(file)
        device = memory_blank(facts.virtual_size_bytes)
        device.write = write
        with pytest.raises(ExhaustedError):
            convert_into(file, facts, device, progress=silent)


@pytest.mark.parametrize("format_name", ["raw", "qcow2"])
def test_file_that_shrinks(format_name, memory_blank, tmp_path):
    """Goal: no half image of a file that changes. Method: cut it when the first chunk is read."""
    path = make(tmp_path, format_name)

    def progress(done: int, total: int) -> None:
        os.truncate(path, 3 * MIB)

    with path.open("rb") as file:
        facts = inspect(file)
        device = memory_blank(facts.virtual_size_bytes)
        with pytest.raises(InvalidArgumentError) as caught:
            chunks.store(_patient(file, facts), device, progress)
    assert caught.value.reason is Reason.IMAGE_CORRUPT


def _patient(file, facts):
    """The source of a file, with chunks that wait until the file is cut."""
    kinds = {"raw": RawSource, "qcow2": Qcow2Source}
    source = kinds[facts.format_name](file, facts.file_size_bytes)
    listed = list(source.chunks())

    def one_by_one():
        for chunk in listed:
            while os.fstat(file.fileno()).st_size == facts.file_size_bytes:
                time.sleep(0.001)
            yield chunk

    source.chunks = one_by_one
    return source


def test_early_flush(memory_blank, monkeypatch, tmp_path):
    """Goal: storage works from the beginning. Method: count flushes of a small interval."""
    monkeypatch.setattr(chunks, "FLUSH_EVERY_BYTES", 8 * MIB)
    path = make(tmp_path, "raw")
    flushes = []
    with path.open("rb") as file:
        facts = inspect(file)
        device = memory_blank(facts.virtual_size_bytes)
        device.flush = lambda: flushes.append(1)
        convert_into(file, facts, device, progress=silent)
    assert 2 <= len(flushes) <= 9


def test_words_of_the_tool():
    """Goal: no names of files in messages. Method: what qemu-img writes, and worse."""
    for text in (
        'qemu-img: Could not open \'json:{"driver": "vdi"}\': bad magic',
        "qemu-img: Could not open '/dev/fd/7': bad magic",
        "warning\nqemu-img: /proc/self/fd/3: bad magic\n",
    ):
        detail = qemu._detail(text)
        assert "bad magic" in detail
        assert "json" not in detail
        assert "/fd" not in detail
    assert qemu._detail("") == "it does not say why"
    assert "\x1b" not in qemu._detail("a\x1b[31m")


def test_storage_is_written_side_by_side(memory_blank, monkeypatch):
    """Goal: latency is hidden. Method: count how many writes run at once."""
    monkeypatch.setattr(chunks, "threads_default", lambda: 4)
    device = memory_blank(64 * MIB)
    running, most, lock = 0, 0, threading.Lock()
    lengths = set()

    def write_bulk(offset_bytes, data):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
            lengths.add(len(data))
        time.sleep(0.01)
        with lock:
            running -= 1

    device.write_bulk = write_bulk
    data = os.urandom(64 * MIB)
    pieces = (data[at : at + MIB] for at in range(0, len(data), MIB))
    spool.import_raw_stream(pieces, device, upload_size_bytes=len(data), progress=silent)
    assert most > 1
    assert max(lengths) == CHUNK_SIZE_BYTES
