"""Generic volume groups through Cinder's REST API; rbd pools have none that are consistent."""

import random
import struct
import threading
import time

import pytest

from .cinder_api import ApiError

BLOCK = 4096
CONSISTENT = {"consistent_group_snapshot_enabled": "<is> True"}


@pytest.fixture
def backend():
    return "ours-local"


@pytest.fixture(scope="module")
def group_type(site):
    return site.cinder.make_group_type("together", **CONSISTENT)


class Writer:
    """Counts in two volumes by turns, the first one ahead by one at most."""

    def __init__(self, site, backend, volumes):
        self._opened = [site.disk(backend, volume) for volume in volumes]
        self._thread = threading.Thread(target=self._run)
        self._stop = threading.Event()
        self.count = 0

    def __enter__(self):
        self._disks = [one.__enter__() for one in self._opened]
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()
        for one in self._opened:
            one.__exit__(None, None, None)

    def _run(self):
        while not self._stop.is_set():
            self.count += 1
            block = struct.pack("<Q", self.count).ljust(BLOCK, b"\0")
            for disk in self._disks:
                disk.write(0, block)


def make_group(cinder, backend, group_type):
    """A group and its two volumes."""
    group = cinder.create("group", group_type=group_type, volume_types=[backend])
    return group, [
        cinder.create("volume", size=1, volume_type=backend, group_id=group["id"]) for _ in range(2)
    ]


def from_source(cinder, **source):
    made = cinder.call("POST", "/groups/action", {"create-from-src": source})["group"]
    return cinder.wait("group", made["id"])


def counts(site, backend, group, sources):
    """The counts in a group of clones, in the order of what they were made from."""
    found = {}
    for volume in site.cinder.volumes_of(group["id"]):
        source = volume["source_volid"]
        if not source:
            source = site.cinder.get("snapshot", volume["snapshot_id"])["volume_id"]
        with site.disk(backend, volume) as disk:
            found[source] = struct.unpack("<Q", disk.read(0, 8))[0]
    return [found[volume["id"]] for volume in sources]


def test_one_instant(site, backend, group_type):
    """Goal: copies of a group are of one instant. Method: count in its volumes meanwhile.

    Then the deletes, in each order that Cinder allows.
    """
    cinder = site.cinder
    group, volumes = make_group(cinder, backend, group_type)
    with Writer(site, backend, volumes) as writer:
        time.sleep(0.2)
        before = writer.count
        frozen = cinder.create("group_snapshot", group_id=group["id"])
        between = writer.count
        copy = from_source(cinder, source_group_id=group["id"])
        time.sleep(0.2)
    early, late = (from_source(cinder, group_snapshot_id=frozen["id"]) for _ in range(2))
    first, second = counts(site, backend, early, volumes)
    assert counts(site, backend, late, volumes) == [first, second]
    assert 0 <= first - second <= 1
    assert before <= first <= between
    first, second = counts(site, backend, copy, volumes)
    assert 0 <= first - second <= 1
    assert between <= first < writer.count

    members = cinder.call("GET", "/snapshots/detail")["snapshots"]
    member = next(one for one in members if one["group_snapshot_id"] == frozen["id"])
    with pytest.raises(ApiError, match="400"):
        cinder.delete("snapshot", member["id"])
    with pytest.raises(ApiError, match="400"):
        cinder.delete("group", group["id"])
    single = cinder.create("volume", size=2, snapshot_id=member["id"])
    with site.servers[backend].client() as client:
        (there,) = client.list_group_snapshots("pools/p")
        assert len(there.snapshots) == 2
        cinder.delete("group", early["id"])
        cinder.delete("group_snapshot", frozen["id"])
        assert not list(client.list_group_snapshots("pools/p"))
    cinder.delete("group", group["id"])
    for one in cinder.volumes_of(copy["id"]) + cinder.volumes_of(late["id"]) + [single]:
        with site.disk(backend, one) as disk:
            assert struct.unpack("<Q", disk.read(0, 8))[0] > 0
    cinder.delete("group", copy["id"])
    cinder.delete("group", late["id"])
    cinder.delete("volume", single["id"])


def test_change_members(site, backend, group_type):
    """Goal: a volume that left its group is in no later snapshot of it, and outlives it."""
    cinder = site.cinder
    group, (stays, leaves) = make_group(cinder, backend, group_type)
    joins = cinder.create("volume", size=1, volume_type=backend)
    change = {"add_volumes": joins["id"], "remove_volumes": leaves["id"]}
    cinder.call("PUT", f"/groups/{group['id']}", {"group": change})
    cinder.wait("group", group["id"])
    frozen = cinder.create("group_snapshot", group_id=group["id"])
    with site.servers[backend].client() as client:
        (there,) = client.list_group_snapshots("pools/p")
        frozen_volumes = {snapshot.name.split("/snapshots/")[0] for snapshot in there.snapshots}
    assert frozen_volumes == {site.name(stays), site.name(joins)}
    cinder.delete("group_snapshot", frozen["id"])
    cinder.delete("group", group["id"])
    cinder.delete("volume", leaves["id"])


def test_refused_on_rbd(site, group_type):
    """Goal: a pool that cannot freeze a group says so before there is a volume in it."""
    cinder = site.cinder
    group = cinder.create("group", wait=False, group_type=group_type, volume_types=["ours-rbd"])
    wait_status(cinder, "group", group, "error")
    assert "use a group type without" in site.rig.log("volume")
    site.expected.append(f"Group {group['id']}: create failed")
    cinder.delete("group", group["id"])


@pytest.mark.parametrize("backend", ["ours-rbd", "ours-local"])
def test_without_consistency(site, backend):
    """Goal: a group whose type does not ask for more is snapshot one volume after another."""
    cinder = site.cinder
    group_type = cinder.make_group_type(f"apart-{backend}", note="nothing")
    group, volumes = make_group(cinder, backend, group_type)
    frozen = cinder.create("group_snapshot", group_id=group["id"])
    copies = [
        from_source(cinder, group_snapshot_id=frozen["id"]),
        from_source(cinder, source_group_id=group["id"]),
    ]
    with site.servers[backend].client() as client:
        assert not list(client.list_group_snapshots("pools/p"))
        for volume in volumes:
            (snapshot,) = client.list_snapshots(site.name(volume))
            assert "/snapshots/snapshot-" in snapshot.name
    cinder.delete("group_snapshot", frozen["id"])
    for one in [*copies, group]:
        cinder.delete("group", one["id"])


def test_busy_volume(site, backend, group_type):
    """Goal: a group with a volume in use stays, with that volume, and can be deleted again."""
    cinder = site.cinder
    group, (busy, free) = make_group(cinder, backend, group_type)
    with site.servers[backend].client() as client:
        client.attach_volume(site.name(busy), "somebody")
        cinder.act("group", group["id"], "delete", {"delete-volumes": True})
        wait_status(cinder, "group", group, "error")
        assert cinder.get("volume", busy["id"])["status"] == "available"
        assert cinder.get("volume", free["id"])["status"] == "deleted"
        assert [volume.name for volume in client.list_volumes("pools/p")] == [site.name(busy)]
        client.detach_volume(site.name(busy), "somebody")
    cinder.delete("group", group["id"])


def test_server_dies(site, backend, group_type):
    """Goal: a kill -9 of the server costs nothing. Method: kill at random instants, count on."""
    cinder, server = site.cinder, site.servers[backend]
    seed = random.randrange(1 << 32)
    dice = random.Random(seed)
    group, volumes = make_group(cinder, backend, group_type)
    for count, volume in enumerate(volumes, 7):
        with site.disk(backend, volume) as disk:
            disk.write(0, struct.pack("<Q", count))
    frozen, copies = [], []

    def work():
        for _ in range(2):
            frozen.append(cinder.create("group_snapshot", group_id=group["id"]))
            copies.append(from_source(cinder, group_snapshot_id=frozen[-1]["id"]))
            copies.append(from_source(cinder, source_group_id=group["id"]))

    caller = threading.Thread(target=work)
    caller.start()
    for _ in range(3):
        time.sleep(dice.uniform(0.2, 1.2))
        server.kill()
        time.sleep(dice.uniform(0, 0.4))
        server.start()
    caller.join()
    assert len(copies) == 4, seed
    for copy in copies:
        assert counts(site, backend, copy, volumes) == [7, 8], seed
    for one in frozen:
        cinder.delete("group_snapshot", one["id"])
    for one in [group, *copies]:
        cinder.delete("group", one["id"])


def wait_status(cinder, kind, one, status):
    deadline = time.monotonic() + 60
    while (now := cinder.get(kind, one["id"]))["status"] != status:
        assert time.monotonic() < deadline, now
        time.sleep(0.1)
