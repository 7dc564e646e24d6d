"""Judged by clients that others wrote: qemu-img, qemu-io, nbdinfo, nbdcopy."""

import json
import random
import shutil
import subprocess
import threading
from pathlib import Path

import pytest

from volcore.backends.local import LocalBackend
from volcore.errors import IntegrityError, Reason
from volcore.limits import KIB, MIB
from volcore.nbd import NbdServer, TcpAddress, private_export

from .conftest import VOLUME_SIZE_BYTES, Place

TOOLS = ("qemu-img", "qemu-io", "nbdinfo", "nbdcopy")
pytestmark = [
    pytest.mark.qemu,
    pytest.mark.skipif(
        not all(map(shutil.which, TOOLS)), reason="apt-get install qemu-utils libnbd-bin"
    ),
]


def run(*words: str | Path, code: int = 0) -> str:
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, timeout=60)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


def qemu_io(uri: str, *commands: str, code: int = 0) -> str:
    words = [word for command in commands for word in ("-c", command)]
    return run("qemu-io", "-f", "raw", *words, uri, code=code)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A sparse disk image with data here and there."""
    path = tmp_path / "source.raw"
    dice = random.Random(7)
    with path.open("wb") as file:
        file.truncate(VOLUME_SIZE_BYTES)
        for _ in range(60):
            file.seek(dice.randrange(VOLUME_SIZE_BYTES // 4096 - 300) * 4096)
            file.write(dice.randbytes(dice.choice([4096, 12288, 65536, MIB])))
    return path


def test_qemu_img_info(place: Place) -> None:
    info = json.loads(run("qemu-img", "info", "--output=json", place.uri()))
    assert info["virtual-size"] == VOLUME_SIZE_BYTES
    assert info["format"] == "raw"


@pytest.mark.parametrize("options", [[], ["-W", "-m", "8"], ["-W", "-m", "8", "-S", "0"]])
def test_qemu_img_convert_there_and_back(
    place: Place, source: Path, tmp_path: Path, options: list[str]
) -> None:
    run("qemu-img", "convert", "-n", *options, "-f", "raw", "-O", "raw", source, place.uri())
    assert "flush" in place.device.calls
    run("qemu-img", "compare", "-f", "raw", "-F", "raw", source, place.uri())
    back = tmp_path / "back.raw"
    run("qemu-img", "convert", *options, "-f", "raw", "-O", "raw", place.uri(), back)
    assert back.read_bytes() == source.read_bytes()


def test_qemu_img_convert_overwrites_what_was_there(place: Place, source: Path) -> None:
    qemu_io(place.uri(), f"write -P 0x77 0 {VOLUME_SIZE_BYTES}")
    run("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", source, place.uri())
    run("qemu-img", "compare", "-f", "raw", "-F", "raw", source, place.uri())


def test_qemu_img_convert_from_qcow2(place: Place, source: Path, tmp_path: Path) -> None:
    qcow2 = tmp_path / "image.qcow2"
    run("qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", source, qcow2)
    with place.backend.open_device("v1", read_only=False) as device:
        with private_export(device) as path:
            target = f"nbd+unix:///?socket={path}"
            run(
                "qemu-img", "convert", "-n", "-W", "-m", "8",
                "-f", "qcow2", "-O", "raw", qcow2, target,
            )  # fmt: skip
        assert device.read(0, VOLUME_SIZE_BYTES) == source.read_bytes()


def test_qemu_img_map_sees_holes(place: Place) -> None:
    qemu_io(place.uri(), "write -P 1 1M 64k", "write -P 2 8M 4k", "discard 1M 4k")
    found = json.loads(run("qemu-img", "map", "--output=json", "-f", "raw", place.uri()))
    data = [(one["start"], one["length"]) for one in found if one["data"]]
    assert data == [(MIB + 4 * KIB, 60 * KIB), (8 * MIB, 4 * KIB)]
    assert all(one["zero"] != one["data"] for one in found)
    assert sum(one["length"] for one in found) == VOLUME_SIZE_BYTES


def test_qemu_io(place: Place) -> None:
    out = qemu_io(
        place.uri(),
        "write -P 0x11 0 1M",
        "write -f -P 0x22 1000 5000",
        "read -P 0x11 0 1000",
        "read -P 0x22 1000 5000",
        "discard 64k 64k",
        "read -P 0 64k 64k",
        "write -z 128k 100k",
        "write -z -u 256k 64k",
        "read -P 0 128k 100k",
        "read -P 0 256k 64k",
        "aio_write -P 0x33 2M 4M",
        "aio_write -P 0x44 6M 4M",
        "aio_flush",
        "flush",
        "read -P 0x33 2M 4M",
        "read -P 0x44 6M 4M",
    )
    assert "fail" not in out.lower()
    assert "write_fua" in place.device.calls
    assert "write_zeroes_no_hole" in place.device.calls
    assert "write_zeroes" in place.device.calls


def test_qemu_io_is_refused_on_a_read_only_export(place: Place) -> None:
    place.exports.publish("frozen", place.opener, read_only=True)
    qemu_io(place.uri("frozen"), "write 0 4k", code=1)
    words = ("qemu-io", "-r", "-f", "raw", "-c", "read -P 0 0 1M", place.uri("frozen"))
    assert "read 1048576" in run(*words)


def test_qemu_io_gets_an_error_for_damaged_data(place: Place) -> None:
    class Damaged(type(place.opener(True))):  # type: ignore[misc]
        def read_into(self, offset_bytes: int, buffer: bytearray | memoryview) -> None:
            raise IntegrityError("bad", reason=Reason.BAD_CHECKSUM, offset_bytes=offset_bytes)

    place.device.close()

    def opener(read_only: bool) -> Damaged:
        return Damaged(place.backend.open_device("v1", read_only=read_only))

    place.exports.publish("damaged", opener, read_only=False)
    for length in ("4k", "1M"):
        out = qemu_io(place.uri("damaged"), f"write 0 {length}", f"read 0 {length}", code=1)
        assert "read failed: Input/output error" in out


@pytest.mark.parametrize("backend", ["local"], indirect=True)
def test_a_flipped_bit_on_the_disk_is_an_error_to_qemu(place: Place) -> None:
    qemu_io(place.uri(), "write -P 0x41 0 2M", "flush")
    place.wait_closed()
    assert isinstance(place.backend, LocalBackend)
    store = place.backend._store
    point = store.layers.find_volume("v1")
    assert point is not None
    with store.files.path(point.layer_id).open("r+b") as file:
        file.seek(MIB + 77)
        file.write(b"B")
    out = qemu_io(place.uri(), "read -P 0x41 0 1M", "read 0 2M", "read 1M 4k", code=1)
    assert out.count("read failed: Input/output error") == 2
    assert "read 1048576/1048576 bytes at offset 0" in out


def test_nbdinfo(place: Place) -> None:
    place.exports.publish("pool/volume 1", place.opener, read_only=True)
    listed = json.loads(run("nbdinfo", "--list", "--json", f"nbd+unix://?socket={place.path}"))
    exports = {one["export-name"]: one for one in listed["exports"]}
    assert set(exports) == {"disk", "pool/volume 1"}
    assert exports["disk"]["export-size"] == VOLUME_SIZE_BYTES
    assert exports["disk"]["contexts"] == ["base:allocation"]
    assert exports["pool/volume 1"]["is_read_only"] is True
    for ability in ("multi-conn", "flush", "fua", "trim", "zero", "fast-zero", "df"):
        run("nbdinfo", "--can", ability, place.uri())
    run("nbdinfo", "--can", "cache", place.uri(), code=2)
    run("nbdinfo", "--is", "read-only", place.uri("pool/volume 1"))
    run("nbdinfo", "--can", "trim", place.uri("pool/volume 1"), code=2)
    assert run("nbdinfo", "--size", place.uri()).strip() == str(VOLUME_SIZE_BYTES)


def test_nbdinfo_map(place: Place) -> None:
    qemu_io(place.uri(), "write -P 1 1M 64k", "discard 1M 4k")
    found = json.loads(run("nbdinfo", "--map", "--json", place.uri()))
    assert [(one["offset"], one["length"], one["type"]) for one in found] == [
        (0, MIB + 4 * KIB, 3),
        (MIB + 4 * KIB, 60 * KIB, 0),
        (MIB + 64 * KIB, VOLUME_SIZE_BYTES - MIB - 64 * KIB, 3),
    ]


@pytest.mark.parametrize("tcp", [False, True])
def test_nbdcopy_there_and_back_over_many_connections(
    place: Place, source: Path, tmp_path: Path, tcp: bool
) -> None:
    back = tmp_path / "back.raw"
    back.touch()
    back_size = back.open("r+b")
    back_size.truncate(VOLUME_SIZE_BYTES)
    back_size.close()
    addresses = [TcpAddress("127.0.0.1", 0)] if tcp else []
    with NbdServer(*addresses, exports=place.exports) as server:
        uri = server.uris("disk")[0] if tcp else place.uri()
        run("nbdcopy", "--connections=4", "--flush", source, uri)
        run("nbdcopy", "--connections=4", uri, back)
        assert back.read_bytes() == source.read_bytes()
        place.exports.withdraw("disk", timeout_s=5)


def test_two_writers_at_once(place: Place, source: Path) -> None:
    """Two qemu-io write into the same device on their own connections; both are there after."""
    halves = [("0x51", "0"), ("0x52", "32M")]
    threads = [
        threading.Thread(
            target=qemu_io,
            args=(place.uri(), *(f"write -P {value} {at} 4M" for _ in range(8)), "flush"),
        )
        for value, at in halves
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    out = qemu_io(place.uri(), *(f"read -P {value} {at} 4M" for value, at in halves))
    assert "fail" not in out.lower()
