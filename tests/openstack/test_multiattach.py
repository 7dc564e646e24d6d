"""Volumes that several hosts write at a time, through Cinder and librbd."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from volcore.v1 import attachment_pb2

from .cinder_api import ApiError

BLOCKS = 400


@pytest.fixture(scope="module")
def volume_type(site):
    site.cinder.make_type("shared", "ours-rbd", multiattach="<is> True")
    return "shared"


class Guest:
    """A client in a process of its own; see shared_writer.py."""

    def __init__(self, site, image, number):
        script = Path(__file__).with_name("shared_writer.py")
        self._process = subprocess.Popen(
            [sys.executable, script, site.conf_path, *image.split("/"), str(number)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.answer() == "open"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.stdin.close()
        if self._process.wait(60):
            raise AssertionError(f"the client ended with {self._process.returncode}")

    def start(self, *words):
        self._process.stdin.write(" ".join(map(str, words)) + "\n")
        self._process.stdin.flush()

    def answer(self):
        return self._process.stdout.readline().strip()

    def do(self, *words):
        self.start(*words)
        return self.answer()


def test_two_hosts_write(site, volume_type):
    """Goal: no write of either is lost, and each reads what the other one wrote.

    Method: two clients by turns on one block, then side by side on neighbouring ones, while Cinder
    makes a snapshot. The object map is right afterwards.
    """
    cinder = site.cinder
    volume = cinder.create("volume", size=1, volume_type=volume_type)
    assert volume["multiattach"] is True
    attached = [cinder.attach(volume["id"], host) for host in ("compute-1", "compute-2")]
    images = {one["connection_info"]["name"] for one in attached}
    (image,) = images
    with site.servers["ours-rbd"].client() as client:
        there = list(client.list_attachments(site.name(volume)))
    shared = attachment_pb2.ACCESS_MODE_READ_WRITE_SHARED
    assert [(one.host, one.access_mode) for one in there] == [
        ("compute-1", shared),
        ("compute-2", shared),
    ]
    with Guest(site, image, 1) as one, Guest(site, image, 2) as two:
        for turn in range(1, 21):
            for writer, reader, number in ((one, two, turn), (two, one, 100 + turn)):
                assert writer.do("put", 0, number) == "done"
                assert reader.do("get", 0) == str(number)
        for first, guest in enumerate((one, two)):
            guest.start("fill", first, 2, BLOCKS)
        snapshot = cinder.create("snapshot", volume_id=volume["id"], force=True)
        assert [one.answer(), two.answer()] == ["done", "done"]
    for attachment in attached:
        cinder.detach(attachment["id"])
    cinder.wait("volume", volume["id"])
    with site.disk("ours-rbd", volume) as disk:
        found = disk.read(0, 2 * BLOCKS * 4096)
    wanted = b"".join(bytes([1 + block % 2]) * 4096 for block in range(2 * BLOCKS))
    assert found == wanted
    rbd = ["rbd", "--conf", site.conf_path, "--id", "admin"]
    done = subprocess.run(
        [*rbd, "object-map", "check", image], check=True, capture_output=True, text=True
    )
    assert "invalid" not in done.stdout + done.stderr
    done = subprocess.run(
        [*rbd, "info", "--format", "json", image], check=True, capture_output=True, text=True
    )
    info = json.loads(done.stdout)
    assert {"exclusive-lock", "object-map", "fast-diff"} <= set(info["features"])
    assert info["flags"] == []
    cinder.delete("snapshot", snapshot["id"])
    cinder.delete("volume", volume["id"])


def test_two_guests_of_one_host(site, volume_type):
    """Goal: the host keeps the volume as long as one of its guests does."""
    cinder = site.cinder
    volume = cinder.create("volume", size=1, volume_type=volume_type)
    attached = [cinder.attach(volume["id"], host) for host in ("compute-1", "compute-1", "b")]
    with site.servers["ours-rbd"].client() as client:
        for attachment, hosts in zip(attached, (["b", "compute-1"], ["b"], []), strict=True):
            cinder.detach(attachment["id"])
            assert [one.host for one in client.list_attachments(site.name(volume))] == hosts
        cinder.wait("volume", volume["id"])
        # As two detaches at the same time leave it.
        client.attach_volume(
            site.name(volume), "b", access_mode=attachment_pb2.ACCESS_MODE_READ_WRITE_SHARED
        )
    cinder.delete("volume", volume["id"])


def test_one_host_without_the_type(site):
    """Goal: a volume of an ordinary type is attached once, and can become one of many hosts."""
    cinder = site.cinder
    volume = cinder.create("volume", size=1, volume_type="ours-rbd")
    attachment = cinder.attach(volume["id"], "compute-1")
    with pytest.raises(ApiError, match="400"):
        cinder.attach(volume["id"], "compute-2")
    cinder.detach(attachment["id"])
    cinder.wait("volume", volume["id"])
    change = {"new_type": "shared", "migration_policy": "never"}
    cinder.act("volume", volume["id"], "os-retype", change)
    deadline = time.monotonic() + 60
    while not (now := cinder.wait("volume", volume["id"]))["multiattach"]:
        assert time.monotonic() < deadline, now
    attached = [cinder.attach(volume["id"], host) for host in ("compute-1", "compute-2")]
    for attachment in attached:
        cinder.detach(attachment["id"])
    cinder.delete("volume", volume["id"])
