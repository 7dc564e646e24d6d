"""The main job through a real server: image in, clones out, judged by QEMU's own tools."""

import json
import subprocess

import pytest

from volcore.cli.connection import blockdev
from volcore.limits import MIB
from volcore.v1 import attachment_pb2 as attachment
from volcore.v1 import image_pb2, volume_pb2

READ_ONLY = attachment.ACCESS_MODE_READ_ONLY
READ_WRITE = attachment.ACCESS_MODE_READ_WRITE
FORMATS = {"raw": image_pb2.IMAGE_FORMAT_RAW, "qcow2": image_pb2.IMAGE_FORMAT_QCOW2}


def qemu_img(*words: object) -> str:
    done = subprocess.run(["qemu-img", *map(str, words)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def attached(client, volume: str, host: str, mode: int = READ_ONLY) -> str:
    """Attach and return the volume as a QEMU file name."""
    made = client.attach_volume(f"pools/p/volumes/{volume}", host, access_mode=mode)
    return "json:" + json.dumps({"driver": "raw", "file": blockdev(made)})


def test_untouched_clone_is_identical(site, golden, golden_qcow2):
    """qemu-img compare says so of the source and a clone, while a sibling is being written."""
    with site.server.client() as client:
        image = client.import_image("pools/p/images/gold", golden_qcow2)
        again = client.import_image("pools/p/images/gold", golden)
        assert again.uid == image.uid
        results = client.deploy_volumes(image.name, ["a", "b"])
        assert all(isinstance(result, volume_pb2.Volume) for result in results)
        written = attached(client, "b", "h1", READ_WRITE)
        subprocess.run(
            [
                "qemu-io",
                "-c",
                "write -P 0x5a 1M 8M",
                "-c",
                "discard 20M 1M",
                "-c",
                "flush",
                written,
            ],
            check=True,
            capture_output=True,
        )
        untouched = attached(client, "a", "h1")
        assert "identical" in qemu_img("compare", "-f", "raw", "-F", "raw", golden, untouched)
        client.detach_volume("pools/p/volumes/b", "h1")
        client.detach_volume("pools/p/volumes/a", "h1")
        client.delete_image(image.name)
        client.delete_volume("pools/p/volumes/b")
        untouched = attached(client, "a", "h2")
        assert "identical" in qemu_img("compare", "-f", "raw", "-F", "raw", golden, untouched)
        client.detach_volume("pools/p/volumes/a", "h2")
        client.delete_volume("pools/p/volumes/a")
    site.wait_deleted()
    assert site.objects() == set()
    site.wait_clean()


@pytest.mark.parametrize("form", ["raw", "qcow2"])
def test_export_is_what_went_in(site, golden, golden_qcow2, tmp_path, form):
    """An image that is exported compares identical to its source."""
    target = tmp_path / f"out.{form}"
    with site.server.client() as client:
        image = client.import_image("pools/p/images/gold", golden_qcow2)
        client.export_image(image.name, target, format=FORMATS[form])
    assert "identical" in qemu_img("compare", "-f", "raw", "-F", form, golden, target)
    if form == "qcow2":
        qemu_img("check", target)


def test_snapshot_revert_and_growth(site, golden_qcow2):
    """Write, snapshot, write, revert: the first write is back; a larger clone ends in zeroes."""
    with site.server.client() as client:
        image = client.import_image("pools/p/images/gold", golden_qcow2)
        client.create_volume("pools/p/volumes/v", image=image.name, size_bytes=96 * MIB)
        for pattern, snapshot in (("0x11", True), ("0x22", False)):
            disk = attached(client, "v", "h", READ_WRITE)
            write = f"write -P {pattern} 64k 128k"
            subprocess.run(["qemu-io", "-c", write, disk], check=True, capture_output=True)
            if snapshot:
                client.create_snapshot("pools/p/volumes/v/snapshots/s")
            client.detach_volume("pools/p/volumes/v", "h")
        client.revert_volume("pools/p/volumes/v", "pools/p/volumes/v/snapshots/s")
        disk = attached(client, "v", "h")
        check = ["-c", "read -P 0x11 64k 128k", "-c", "read -P 0 64M 32M"]
        done = subprocess.run(["qemu-io", "-r", *check, disk], capture_output=True, text=True)
        assert "Pattern verification failed" not in done.stdout, done.stdout
        assert done.returncode == 0, done.stderr
