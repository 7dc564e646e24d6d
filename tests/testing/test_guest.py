"""The guest boots from the disk it is given, says so, and writes to that disk."""

import shutil
import subprocess
import time
from pathlib import Path

import pytest

from volcore.testing.cluster import CephAccess
from volcore.testing.guest import (
    BOOTED_LINE,
    DISK_SIZE_BYTES,
    WRITTEN_LINE,
    GuestError,
    GuestFiles,
    boot,
    build_guest,
)

pytestmark = pytest.mark.qemu


@pytest.fixture(scope="module")
def guest(pytestconfig: pytest.Config) -> GuestFiles:
    return build_guest(pytestconfig.rootpath / ".cache" / "guest")


def drive(path: Path) -> list[str]:
    node = f"driver=raw,node-name=disk,file.driver=file,file.filename={path}"
    return ["-blockdev", node, "-device", "virtio-blk-pci,drive=disk,serial=vol-1"]


def test_it_boots_from_the_disk_and_finds_what_it_wrote(guest: GuestFiles, tmp_path: Path) -> None:
    disk = tmp_path / "disk.raw"
    shutil.copy(guest.disk_raw, disk)
    golden = guest.disk_raw.read_bytes()
    first, second = boot(guest, drive(disk)), boot(guest, drive(disk))
    for console, boots in ((first, 0), (second, 1)):
        assert f"{BOOTED_LINE}golden" in console
        assert f"disk: serial=vol-1 size_bytes={DISK_SIZE_BYTES}" in console
        assert f"boots before this one: {boots}" in console
        assert WRITTEN_LINE in console
    assert guest.disk_raw.read_bytes() == golden


def test_it_boots_from_nbd(guest: GuestFiles, tmp_path: Path) -> None:
    disk, address = tmp_path / "disk.raw", tmp_path / "nbd"
    shutil.copy(guest.disk_raw, disk)
    with subprocess.Popen(["qemu-nbd", "-f", "raw", "-k", str(address), str(disk)]) as server:
        try:
            deadline = time.monotonic() + 5
            while not address.exists() and time.monotonic() < deadline:
                time.sleep(0.01)
            node = f"driver=nbd,node-name=disk,server.type=unix,server.path={address}"
            device = "virtio-blk-pci,drive=disk,serial=vol-nbd"
            console = boot(guest, ["-blockdev", node, "-device", device])
        finally:
            server.terminate()
    assert f"{BOOTED_LINE}golden" in console
    assert "disk: serial=vol-nbd" in console


def test_it_boots_from_rbd(guest: GuestFiles, ceph_cluster: CephAccess, ceph_pool: str) -> None:
    conf = str(ceph_cluster.conf_path)
    bring = ["rbd", "-c", conf, "--no-progress", "import", str(guest.disk_raw), f"{ceph_pool}/disk"]
    subprocess.run(bring, check=True)
    node = f"driver=rbd,node-name=disk,pool={ceph_pool},image=disk,conf={conf},user=admin"
    console = boot(guest, ["-blockdev", node, "-device", "virtio-blk-pci,drive=disk,serial=vol-r"])
    assert f"{BOOTED_LINE}golden" in console
    assert WRITTEN_LINE in console


def test_a_disk_without_file_system_says_so(guest: GuestFiles, tmp_path: Path) -> None:
    disk = tmp_path / "empty.raw"
    disk.write_bytes(bytes(1 << 20))
    console = boot(guest, drive(disk))
    assert "boot failed" in console
    assert BOOTED_LINE not in console


def test_a_guest_that_stays_on_is_ended(guest: GuestFiles, tmp_path: Path) -> None:
    disk = tmp_path / "disk.raw"
    shutil.copy(guest.disk_raw, disk)
    with pytest.raises(GuestError, match="not off after"):
        boot(guest, drive(disk), timeout_s=0.5)


def test_a_drive_that_does_not_open_is_an_error(guest: GuestFiles, tmp_path: Path) -> None:
    with pytest.raises(GuestError, match="No such file"):
        boot(guest, drive(tmp_path / "absent.raw"))


def test_a_second_build_is_the_first_one(guest: GuestFiles, pytestconfig: pytest.Config) -> None:
    before = guest.initrd.stat()
    again = build_guest(pytestconfig.rootpath / ".cache" / "guest")
    assert again == guest
    assert again.initrd.stat() == before
