"""Arrival: uploads and files of the server."""

import contextlib
import os
from pathlib import Path

import pytest

from volcore.errors import (
    CancelledError,
    ExhaustedError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    PreconditionError,
    Reason,
    VolcoreError,
)
from volcore.images import arrival
from volcore.images.hashing import digest_device
from volcore.limits import CHUNK_SIZE_BYTES, MIB

from .conftest import make_raw, padded, qemu_img, silent


class Held:
    """A handed file; `checks_left` says after how many looks it is taken back."""

    def __init__(self, path, checks_left=1 << 30):
        self.path = path
        self.checks_left = checks_left

    @contextlib.contextmanager
    def opened(self):
        with self.path.open("rb", buffering=0) as file:
            yield file

    def check(self):
        self.checks_left -= 1
        if self.checks_left < 0:
            raise CancelledError("taken back", reason=Reason.CANCELLED)


def cut(data: bytes, step: int):
    return (data[at : at + step] for at in range(0, len(data), step))


def receive(make, tmp_path, **source):
    """Import from `source` into a blank device; return it and the digest."""
    with arrival.receive(
        arrival.Source(**source),
        directories=[tmp_path / "images"],
        spool_directory=tmp_path / "spool",
        progress=silent,
    ) as incoming:
        device = make(incoming.size_bytes)
        return device, incoming.write_into(device, silent), incoming.format_name


@pytest.fixture(autouse=True)
def _places(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "spool").mkdir()
    yield
    assert not list((tmp_path / "spool").iterdir())


@pytest.mark.parametrize("step", [1000, 65536, 3 * MIB, 20 * MIB])
@pytest.mark.parametrize("announced", [True, False])
@pytest.mark.parametrize("declared", ["raw", ""])
def test_raw_upload(step, announced, declared, memory_blank, tmp_path):
    """Goal: pieces of any size, size known or not. Method: compare with the source."""
    data = make_raw(tmp_path / "disk", 2 * CHUNK_SIZE_BYTES + 12345)
    size_bytes = len(data) if announced else 0
    device, digest, name = receive(
        memory_blank,
        tmp_path,
        chunks=cut(data, step),
        upload_size_bytes=size_bytes,
        format_name=declared,
    )
    assert device.read(0, device.size_bytes) == padded(data)
    assert digest == digest_device(device, silent)
    assert name == "raw"


@pytest.mark.parametrize("format_name", ["qcow2", "vmdk", "vhdx"])
@pytest.mark.parametrize("announced", [True, False])
def test_upload_of_other_formats(format_name, announced, blank, tmp_path):
    raw, path = tmp_path / "disk.raw", tmp_path / "disk"
    wanted = make_raw(raw, 9 * MIB)
    qemu_img("convert", "-f", "raw", "-O", format_name, raw, path)
    data = path.read_bytes()
    device, _, name = receive(
        blank,
        tmp_path,
        chunks=cut(data, 100_000),
        upload_size_bytes=len(data) if announced else 0,
    )
    assert device.read(0, len(wanted)) == wanted
    assert name == format_name


@pytest.mark.parametrize("difference", [-1, 1, -CHUNK_SIZE_BYTES, CHUNK_SIZE_BYTES])
@pytest.mark.parametrize("first", [b"raw", b"QFI\xfb"])
def test_other_size_than_announced(difference, first, memory_blank, tmp_path):
    data = first + os.urandom(2 * CHUNK_SIZE_BYTES)
    with pytest.raises(InvalidArgumentError) as caught:
        receive(
            memory_blank,
            tmp_path,
            chunks=cut(data, MIB),
            upload_size_bytes=len(data) + difference,
        )
    assert caught.value.reason is Reason.IMAGE_CORRUPT


def test_raw_that_looks_like_qcow2(memory_blank, tmp_path):
    with pytest.raises(InvalidArgumentError) as caught:
        receive(
            memory_blank,
            tmp_path,
            chunks=iter([b"Q", b"FI\xfb", bytes(4092)]),
            upload_size_bytes=4096,
            format_name="raw",
        )
    assert caught.value.reason is Reason.IMAGE_FORMAT_MISMATCH


@pytest.mark.parametrize("data", [[], [b""]])
def test_nothing_arrives(data, memory_blank, tmp_path):
    with pytest.raises(VolcoreError) as caught:
        receive(memory_blank, tmp_path, chunks=iter(data))
    assert caught.value.reason is Reason.SIZE_NOT_ALLOWED


@pytest.mark.parametrize("announced", [0, 64 * MIB])
def test_upload_breaks_off(announced, memory_blank, tmp_path):
    def chunks():
        yield bytes(20 * MIB)
        raise CancelledError("gone", reason=Reason.CANCELLED)

    with pytest.raises(CancelledError):
        receive(memory_blank, tmp_path, chunks=chunks(), upload_size_bytes=announced)


def test_no_space(memory_blank, tmp_path):
    with pytest.raises(ExhaustedError) as caught:
        receive(
            memory_blank,
            tmp_path,
            chunks=iter([b"QFI\xfb"]),
            upload_size_bytes=1 << 60,
        )
    assert caught.value.reason is Reason.POOL_FULL


def test_no_spool_directory(memory_blank, tmp_path):
    (tmp_path / "spool").rmdir()
    with pytest.raises(PreconditionError):
        receive(memory_blank, tmp_path, chunks=iter([b"QFI\xfb" + bytes(4096)]))
    (tmp_path / "spool").mkdir()


def test_both_or_none(memory_blank, tmp_path):
    for source in (
        {},
        {"server_path": "/x", "chunks": iter([b"x"])},
        {"server_path": "/x", "handed": Held(tmp_path)},
        {"handed": Held(tmp_path), "chunks": iter([b"x"])},
    ):
        with pytest.raises(InvalidArgumentError) as caught:
            receive(memory_blank, tmp_path, **source)
        assert caught.value.reason is Reason.SOURCE_MISSING


def test_server_file(memory_blank, tmp_path):
    path = tmp_path / "images" / "disk"
    data = make_raw(path, MIB)
    device, _, _ = receive(memory_blank, tmp_path, server_path=str(path))
    assert device.read(0, MIB) == data
    link = tmp_path / "images" / "link"
    link.symlink_to(path)
    receive(memory_blank, tmp_path, server_path=str(link))


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "images/disk", "IMAGES/../secret", "IMAGES/outside", "IMAGES\0", "x"]
)
def test_places_that_are_not_allowed(path, memory_blank, tmp_path):
    (tmp_path / "secret").write_bytes(bytes(4096))
    (tmp_path / "images" / "outside").symlink_to(tmp_path / "secret")
    path = path.replace("IMAGES", str(tmp_path / "images"))
    with pytest.raises(PermissionDeniedError, match="configuration allows"):
        receive(memory_blank, tmp_path, server_path=path)


def test_files_that_cannot_be_read(memory_blank, tmp_path):
    images: Path = tmp_path / "images"
    with pytest.raises(NotFoundError):
        receive(memory_blank, tmp_path, server_path=str(images / "none"))
    os.mkfifo(images / "pipe")
    for name in ("pipe", "."):
        with pytest.raises(InvalidArgumentError, match="regular file"):
            receive(memory_blank, tmp_path, server_path=str(images / name))


@pytest.mark.parametrize("format_name", ["raw", "qcow2", "vmdk", "vdi"])
def test_handed_file(format_name, blank, tmp_path):
    raw, path = tmp_path / "disk.raw", tmp_path / "disk"
    wanted = make_raw(raw, 9 * MIB)
    qemu_img("convert", "-f", "raw", "-O", format_name, raw, path)
    path.chmod(0o600)
    device, digest, name = receive(blank, tmp_path, handed=Held(path))
    assert device.read(0, len(wanted)) == wanted
    assert digest == digest_device(device, silent)
    assert name == format_name


@pytest.mark.parametrize("format_name", ["raw", "vmdk"])
@pytest.mark.parametrize("checks_left", [0, 1])
def test_handed_file_is_taken_back(format_name, checks_left, memory_blank, tmp_path):
    raw, path = tmp_path / "disk.raw", tmp_path / "disk"
    make_raw(raw, 40 * MIB, pieces=400)
    qemu_img("convert", "-f", "raw", "-O", format_name, raw, path)
    with pytest.raises(CancelledError):
        receive(memory_blank, tmp_path, handed=Held(path, checks_left))


def test_handed_file_changes_after_its_inspection(memory_blank, tmp_path):
    """Goal: a tool opens only what was inspected. Method: swap the descriptor in between."""
    path = tmp_path / "disk.vmdk"
    make_raw(tmp_path / "disk.raw", 9 * MIB)
    qemu_img("convert", "-f", "raw", "-O", "vmdk", tmp_path / "disk.raw", path)
    with arrival.receive(
        arrival.Source(handed=Held(path)),
        directories=[],
        spool_directory=tmp_path / "spool",
        progress=silent,
    ) as incoming:
        with path.open("r+b") as file:
            file.write(b'# Disk DescriptorFile\ncreateType="monolithicFlat"\n')
        device = memory_blank(incoming.size_bytes)
        incoming.write_into(device, silent)
    assert device.read(0, 9 * MIB) == (tmp_path / "disk.raw").read_bytes()


@pytest.mark.parametrize("change", ["zstd", "size"])
def test_handed_qcow2_changes_after_its_inspection(change, memory_blank, tmp_path):
    """Goal: no tool opens what its sender can still change, whatever the header says by then."""
    path = tmp_path / "disk.qcow2"
    make_raw(tmp_path / "disk.raw", 9 * MIB)
    qemu_img("convert", "-f", "raw", "-O", "qcow2", tmp_path / "disk.raw", path)
    other = tmp_path / "other.qcow2"
    words = {"zstd": ("compression_type=zstd", "9M"), "size": ("compat=1.1", "1M")}
    options, size = words[change]
    qemu_img("create", "-f", "qcow2", "-o", options, other, size)
    with arrival.receive(
        arrival.Source(handed=Held(path)),
        directories=[],
        spool_directory=tmp_path / "spool",
        progress=silent,
    ) as incoming:
        with path.open("r+b") as file:
            file.write(other.read_bytes())
        device = memory_blank(incoming.size_bytes)
        with pytest.raises(InvalidArgumentError) as caught:
            incoming.write_into(device, silent)
    assert caught.value.reason is Reason.IMAGE_CORRUPT


@pytest.mark.parametrize("left_bytes", [0, CHUNK_SIZE_BYTES, 3 * CHUNK_SIZE_BYTES - 1])
@pytest.mark.parametrize("sparse", [True, False])
def test_raw_file_shrinks(left_bytes, sparse, memory_blank, tmp_path):
    """Goal: what is cut off is never read as zeroes. Method: cut between inspection and import."""
    path = tmp_path / "images" / "disk.raw"
    path.write_bytes(b"x" * CHUNK_SIZE_BYTES)
    if sparse:
        os.truncate(path, 3 * CHUNK_SIZE_BYTES)
    else:
        path.write_bytes(b"x" * 3 * CHUNK_SIZE_BYTES)
    with arrival.receive(
        arrival.Source(server_path=str(path)),
        directories=[tmp_path / "images"],
        spool_directory=None,
        progress=silent,
    ) as incoming:
        os.truncate(path, left_bytes)
        device = memory_blank(incoming.size_bytes)
        with pytest.raises(InvalidArgumentError) as caught:
            incoming.write_into(device, silent)
    assert caught.value.reason is Reason.IMAGE_CORRUPT
