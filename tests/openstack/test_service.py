"""cinder-volume as a process: it lives on while volcore is silent, and needs no eventlet."""

import os
import signal
import time

import pytest

from .conftest import wait_up
from .operations import until


def test_a_silent_server_blocks_nothing(site):
    """Goal: grpc never stops the green threads. Method: freeze the server during a create.

    Reports of the service every two seconds are the proof; a blocked hub sends none.
    """
    cinder, server = site.cinder, site.servers["ours-rbd"]

    def reports():
        services = cinder.call("GET", "/os-services?binary=cinder-volume")["services"]
        return next(s["updated_at"] for s in services if s["host"] == "rig@ours-rbd")

    os.kill(server.pid, signal.SIGSTOP)
    try:
        made = cinder.create("volume", wait=False, size=1, volume_type="ours-rbd")
        time.sleep(2)
        seen = {reports()}
        until(lambda: seen.add(reports()) or len(seen) > 2, timeout_s=60)
    finally:
        os.kill(server.pid, signal.SIGCONT)
    cinder.wait("volume", made["id"])
    cinder.delete("volume", made["id"])


@pytest.mark.parametrize("backend", ["ours-rbd", "ours-local"])
def test_a_copy_blocks_nothing(site, backend, tmp_path):
    """Goal: an import and an upload leave cinder-volume to others. Method: stop both midway."""
    cinder, hold = site.cinder, site.holds[backend]
    path = tmp_path / "disk.raw"
    path.write_bytes(os.urandom(1 << 20))
    image = site.glance.upload(path, "raw")
    kept = cinder.create("volume", size=1, volume_type=backend)
    with site.disk(backend, kept) as disk:
        disk.write(0, path.read_bytes())
    with hold.at("middle", ["ImportImage", "ExportImage"]):
        made = cinder.create("volume", wait=False, size=1, volume_type=backend, imageRef=image)
        asked = {"image_name": "upload", "disk_format": "qcow2", "container_format": "bare"}
        told = cinder.act("volume", kept["id"], "os-volume_upload_image", asked)
        hold.wait(["ImportImage", "ExportImage"])
        other = cinder.create("volume", size=1, volume_type=backend)
        cinder.delete("snapshot", cinder.create("snapshot", volume_id=other["id"])["id"])
        cinder.delete("volume", other["id"])
        assert cinder.get("volume", made["id"])["status"] in ("creating", "downloading")
        assert cinder.get("volume", kept["id"])["status"] == "uploading"
    for volume in (made, kept):
        cinder.wait("volume", volume["id"])
        cinder.delete("volume", volume["id"])
    for one in (image, told["os-volume_upload_image"]["image_id"]):
        site.glance.delete(one)


def test_native_threads(site, tmp_path):
    """Goal: it works without eventlet, too. Method: start cinder-volume again that way.

    Clones, first uses of an image side by side, and an upload.
    """
    cinder, rig = site.cinder, site.rig
    content = os.urandom(1 << 20)
    path = tmp_path / "disk.raw"
    path.write_bytes(content)
    image = site.glance.upload(path, "raw")
    kept = cinder.create("volume", size=1, volume_type="ours-rbd")
    rig.stop("volume")
    rig.native = True
    since = len(rig.log("volume"))
    rig.start("volume")
    wait_up(cinder, rig, since=since)
    assert "native threading" in rig.log("volume")[since:]
    clones = [
        cinder.create("volume", wait=False, size=1, source_volid=kept["id"]) for _ in range(5)
    ]
    of_image = [
        cinder.create("volume", wait=False, size=1, volume_type=backend, imageRef=image)
        for backend in ("ours-rbd", "ours-local")
        for _ in range(3)
    ]
    for one in [*clones, *of_image]:
        cinder.wait("volume", one["id"])
    for backend, one in (("ours-rbd", of_image[0]), ("ours-local", of_image[-1])):
        with site.disk(backend, one) as disk:
            assert disk.read(0, len(content)) == content
        asked = {"image_name": "upload", "disk_format": "qcow2", "container_format": "bare"}
        told = cinder.act("volume", one["id"], "os-volume_upload_image", asked)
        cinder.wait("volume", one["id"])
        made = told["os-volume_upload_image"]["image_id"]
        assert site.glance.get(made)["status"] == "active"
        site.glance.delete(made)
    site.glance.delete(image)
    for one in [kept, *clones, *of_image]:
        cinder.delete("volume", one["id"])
