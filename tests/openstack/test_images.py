"""Images of Glance become volumes through Cinder's REST API, on both of our backends."""

import hashlib
import os
import random
import subprocess
import time

import pytest

from .conftest import GLANCE_POOL

MIB = 1 << 20
GIB = 1 << 30
DISK_BYTES = 64 * MIB


@pytest.fixture(params=["ours-rbd", "ours-local"])
def backend(request):
    return request.param


@pytest.fixture(scope="module")
def content():
    return random.Random(5).randbytes(3 * MIB)


@pytest.fixture(scope="module")
def raw(tmp_path_factory, content):
    """A disk of 64 MiB, the content at its beginning and at its end."""
    path = tmp_path_factory.mktemp("images") / "disk.raw"
    with path.open("wb") as file:
        file.truncate(DISK_BYTES)
        file.write(content)
        file.seek(DISK_BYTES - len(content))
        file.write(content)
    return path


def convert(source, target, *words):
    subprocess.run(
        ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", *words, source, target], check=True
    )
    return target


@pytest.fixture(scope="module")
def qcow2(raw):
    return convert(raw, raw.with_suffix(".qcow2"), "-c")


def same(site, backend, volume, content):
    """Compare a volume with the disk that `raw` is."""
    with site.disk(backend, volume) as disk:
        assert disk.read(0, len(content)) == content
        assert disk.read(len(content), MIB) == bytes(MIB)
        assert disk.read(DISK_BYTES - len(content), len(content)) == content
        assert disk.read(GIB - MIB, MIB) == bytes(MIB)


def imports(site, backend):
    """The count of imports that the server has begun."""
    with site.servers[backend].client() as client:
        return sum(one.action == "import" for one in client.list_operations("pools/p"))


def refused(site, backend, image, text):
    """Ask for a volume that cannot be; nothing of it stays behind."""
    cinder, known, since = site.cinder, site.images(backend), len(site.rig.log("volume"))
    made = cinder.create("volume", wait=False, size=1, volume_type=backend, imageRef=image)
    deadline = time.monotonic() + 60
    while cinder.get("volume", made["id"])["status"] != "error":
        assert time.monotonic() < deadline, cinder.get("volume", made["id"])
        time.sleep(0.1)
    with site.servers[backend].client() as client:
        assert [v for v in client.list_volumes("pools/p") if v.name == site.name(made)] == []
    assert site.images(backend) == known
    assert text in site.rig.log("volume")[since:]
    site.expected.append(f"Volume {made['id']}: create failed")
    cinder.call("DELETE", f"/volumes/{made['id']}")
    while any(one["id"] == made["id"] for one in cinder.call("GET", "/volumes")["volumes"]):
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.parametrize("disk_format", ["raw", "qcow2"])
def test_image_to_volume(site, backend, disk_format, content, request):
    """Goal: the bytes are the image's. Method: the second use, larger, imports nothing."""
    cinder, glance = site.cinder, site.glance
    image = glance.upload(request.getfixturevalue(disk_format), disk_format)
    first = cinder.create("volume", size=1, volume_type=backend, imageRef=image)
    assert sum(image in name for name in site.images(backend)) == 1
    done = imports(site, backend)
    second = cinder.create("volume", size=2, volume_type=backend, imageRef=image)
    assert imports(site, backend) == done
    assert second["bootable"] == "true"
    for volume in (first, second):
        same(site, backend, volume, content)
    with site.disk(backend, second) as disk:
        assert disk.read(2 * GIB - MIB, MIB) == bytes(MIB)
    for volume in (first, second):
        cinder.delete("volume", volume["id"])
    glance.delete(image)


def test_image_in_the_cluster(site, raw, qcow2, content):
    """Goal: an image in Glance's rbd store is adopted: no import, no data of ours.

    Method: first uses side by side; the contents when Glance has deleted its image. A qcow2 file in
    that store is imported as before.
    """
    cinder, glance = site.cinder, site.glance
    image, packed = (
        glance.upload(raw, "raw", store="ceph"),
        glance.upload(qcow2, "qcow2", store="ceph"),
    )
    place = glance.get(image)["direct_url"]
    assert place.endswith(f"/{GLANCE_POOL}/{image}/snap")
    before, known = imports(site, "ours-rbd"), site.data_objects()
    made = [
        cinder.create("volume", wait=False, size=1, volume_type="ours-rbd", imageRef=image)
        for _ in range(4)
    ]
    made = [cinder.wait("volume", one["id"]) for one in made]
    assert imports(site, "ours-rbd") == before
    assert site.data_objects() == known
    with site.servers["ours-rbd"].client() as client:
        (ours,) = [i for i in client.list_images("pools/p") if image in i.name]
    assert ours.adopted_from == place
    glance.delete(image)
    for volume in made:
        same(site, "ours-rbd", volume, content)
    with site.disk("ours-rbd", made[0]) as disk:
        disk.write(4 * MIB, content)
        assert disk.read(4 * MIB, len(content)) == content
    same(site, "ours-rbd", made[1], content)
    made.append(cinder.create("volume", size=1, volume_type="ours-rbd", imageRef=packed))
    assert imports(site, "ours-rbd") == before + 1
    same(site, "ours-rbd", made[-1], content)
    for volume in made:
        cinder.delete("volume", volume["id"])
    glance.delete(packed)


def test_image_in_the_cluster_for_a_local_pool(site, raw, content):
    """Goal: what cannot be adopted is imported, and one line says why."""
    cinder, glance, since = site.cinder, site.glance, len(site.rig.log("volume"))
    image = glance.upload(raw, "raw", store="ceph")
    before = imports(site, "ours-local")
    volume = cinder.create("volume", size=1, volume_type="ours-local", imageRef=image)
    assert imports(site, "ours-local") == before + 1
    same(site, "ours-local", volume, content)
    assert f"Image {image} is imported: " in site.rig.log("volume")[since:]
    cinder.delete("volume", volume["id"])
    glance.delete(image)


def test_first_uses_side_by_side(site, backend, content, qcow2):
    """Goal: many first uses at once import once."""
    cinder = site.cinder
    image = site.glance.upload(qcow2, "qcow2")
    before = imports(site, backend)
    made = [
        cinder.create("volume", wait=False, size=1, volume_type=backend, imageRef=image)
        for _ in range(5)
    ]
    for volume in made:
        same(site, backend, cinder.wait("volume", volume["id"]), content)
    assert imports(site, backend) == before + 1
    for volume in made:
        cinder.delete("volume", volume["id"])
    site.glance.delete(image)


def test_hostile_file(site, backend, tmp_path):
    """Goal: an image that names another file is refused, and says why."""
    hostile = tmp_path / "hostile.qcow2"
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-u", "-F", "raw", "-b", "/etc/passwd",
         hostile, "1M"],
        check=True,
    )  # fmt: skip
    data, blank = hostile.read_bytes(), tmp_path / "blank"
    blank.write_bytes(bytes(len(data)))
    image = site.glance.upload(blank, "raw")  # a new Glance refuses it, an old one has it
    (site.rig.home / "glance" / "images" / image).write_bytes(data)
    md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()
    site.rig.sql(
        "glance",
        f"update images set disk_format = 'qcow2', checksum = '{md5}', "
        f"os_hash_value = '{hashlib.sha512(data).hexdigest()}' where id = '{image}'",
    )
    refused(site, backend, image, "backing file")
    site.glance.delete(image)


def test_too_large(site, backend, tmp_path):
    """Goal: a disk that does not fit is refused, though Glance does not know its size."""
    small = tmp_path / "large.raw"
    with small.open("wb") as file:
        file.truncate(2 * GIB)
    image = site.glance.upload(convert(small, tmp_path / "large.qcow2"), "qcow2")
    site.rig.sql("glance", f"update images set virtual_size = null where id = '{image}'")
    refused(site, backend, image, "is unacceptable: ")
    site.glance.delete(image)


def test_changed_behind_glance(site, backend, tmp_path):
    """Goal: bytes other than those that were uploaded make no volume."""
    path = tmp_path / "disk.raw"
    path.write_bytes(os.urandom(4 * MIB))
    image = site.glance.upload(path, "raw")
    stored = site.rig.home / "glance" / "images" / image
    with stored.open("r+b") as file:
        file.seek(MIB)
        file.write(bytes(16))
    refused(site, backend, image, "did not arrive whole from Glance")
    site.glance.delete(image)


@pytest.mark.parametrize("disk_format", ["raw", "qcow2"])
def test_volume_to_image(site, backend, disk_format, content, qcow2, tmp_path):
    """Goal: the upload is the volume, byte for byte, and nothing else of it stays."""
    cinder, glance = site.cinder, site.glance
    image = glance.upload(qcow2, "qcow2")
    volume = cinder.create("volume", size=1, volume_type=backend, imageRef=image)
    with site.disk(backend, volume) as disk:
        disk.write(500 * MIB, content)
    made = upload(site, volume, disk_format)
    assert glance.get(made)["disk_format"] == disk_format
    plain = tmp_path / "plain"
    glance.download(made, plain)
    if disk_format == "qcow2":
        qcow2 = plain.replace(tmp_path / "download")
        subprocess.run(
            ["qemu-img", "convert", "-f", "qcow2", "-O", "raw", qcow2, plain], check=True
        )
    assert plain.stat().st_size == GIB
    with site.disk(backend, volume) as disk, plain.open("rb") as file:
        for offset in range(0, GIB, 16 * MIB):
            assert disk.read(offset, 16 * MIB) == file.read(16 * MIB)
    assert not any("upload-" in name for name in site.images(backend))
    assert not any((site.rig.home / "state" / "conversion").glob("volcore_*"))
    cinder.delete("volume", volume["id"])
    glance.delete(image)
    glance.delete(made)


def test_upload_of_another_format(site, backend):
    """Goal: what cannot be made is refused, and the volume stays as it was."""
    cinder = site.cinder
    volume = cinder.create("volume", size=1, volume_type=backend)
    since = len(site.rig.log("volume"))
    upload(site, volume, "vmdk", status="")
    assert "volcore uploads raw and qcow2" in site.rig.log("volume")[since:]
    cinder.delete("volume", volume["id"])


def test_left_by_a_killed_upload(site, backend):
    """Goal: what a killed cinder-volume leaves is in nobody's way. Method: leave the same."""
    cinder = site.cinder
    volume = cinder.create("volume", size=1, volume_type=backend)
    name = site.name(volume)
    own = f"upload-{name.rpartition('/')[2]}"
    with site.servers[backend].client() as client:
        client.create_snapshot(f"{name}/snapshots/{own}")
        client.publish_image(f"pools/p/images/{own}", f"{name}/snapshots/{own}")
    cinder.delete("volume", volume["id"])
    assert not any(own in one for one in site.images(backend))


def upload(site, volume, disk_format, *, status="active"):
    """Upload a volume; return the image's id once it has the status, "": once it is gone."""
    asked = {"image_name": "upload", "disk_format": disk_format, "container_format": "bare"}
    told = site.cinder.act("volume", volume["id"], "os-volume_upload_image", asked)
    one = told["os-volume_upload_image"]["image_id"]
    site.cinder.wait("volume", volume["id"])
    known = {image["id"]: image["status"] for image in site.glance.list()}
    assert known.get(one, "") == status
    return one


def test_cache(site, backend, tmp_path):
    """Goal: the least recently used go, none that serves. Method: 2 GiB over the bound."""
    cinder, glance = site.cinder, site.glance
    site.forget_images(backend)
    empty = tmp_path / "empty.raw"
    with empty.open("wb") as file:
        file.truncate(GIB)
    convert(empty, tmp_path / "empty.qcow2")
    ids, kept = [], None
    for _ in range(6):
        ids.append(glance.upload(tmp_path / "empty.qcow2", "qcow2"))
        volume = cinder.create("volume", size=1, volume_type=backend, imageRef=ids[-1])
        if kept is None:
            kept = volume
        else:
            cinder.delete("volume", volume["id"])
    deadline = time.monotonic() + 30
    wanted = [ids[0], *ids[3:]]
    while len(left := site.images(backend)) > len(wanted):
        assert time.monotonic() < deadline, left
        time.sleep(0.1)
    assert all(any(one in name for name in left) for one in wanted)
    cinder.delete("volume", kept["id"])
    for one in ids:
        glance.delete(one)
