"""What users do through Cinder's REST API, on both of our backends; contents are compared."""

import os
import time

import pytest

from .cinder_api import ApiError

MIB = 1 << 20
GIB = 1 << 30


@pytest.fixture(params=["ours-rbd", "ours-local"])
def backend(request):
    return request.param


def test_sources_go_first(site, backend):
    """Goal: clones keep their bytes. Method: delete snapshot and source before the clones."""
    cinder = site.cinder
    old, new = os.urandom(MIB), os.urandom(MIB)
    source = cinder.create("volume", size=1, volume_type=backend)
    with site.disk(backend, source) as disk:
        disk.write(0, old)
        disk.write(GIB - MIB, old)
    snapshot = cinder.create("snapshot", volume_id=source["id"])
    with site.disk(backend, source) as disk:
        disk.write(0, new)
    larger = cinder.create("volume", size=2, snapshot_id=snapshot["id"])
    clone = cinder.create("volume", size=2, source_volid=source["id"])
    cinder.delete("snapshot", snapshot["id"])
    cinder.delete("volume", source["id"])
    for volume, head in ((larger, old), (clone, new)):
        with site.disk(backend, volume) as disk:
            assert disk.read(0, MIB) == head
            assert disk.read(GIB - MIB, MIB) == old
            assert disk.read(2 * GIB - MIB, MIB) == bytes(MIB)
    cinder.delete("volume", larger["id"])
    cinder.delete("volume", clone["id"], force=True)


def test_extend_and_revert(site, backend):
    """Goal: grown volumes are as large as Cinder says; a revert brings the bytes back."""
    cinder = site.cinder
    old, new = os.urandom(MIB), os.urandom(MIB)
    volume = cinder.create("volume", size=1, volume_type=backend)
    cinder.act("volume", volume["id"], "os-extend", {"new_size": 2})
    assert cinder.wait("volume", volume["id"])["size"] == 2
    with site.disk(backend, volume) as disk:
        disk.write(2 * GIB - MIB, old)
    snapshot = cinder.create("snapshot", volume_id=volume["id"])
    with site.disk(backend, volume) as disk:
        disk.write(2 * GIB - MIB, new)
        disk.write(0, new)
    cinder.act("volume", volume["id"], "revert", {"snapshot_id": snapshot["id"]})
    cinder.wait("volume", volume["id"])
    cinder.wait("snapshot", snapshot["id"])
    with site.disk(backend, volume) as disk:
        assert disk.read(2 * GIB - MIB, MIB) == old
        assert disk.read(0, MIB) == bytes(MIB)
    cinder.delete("snapshot", snapshot["id"])
    cinder.delete("volume", volume["id"])


def test_delete_with_snapshots(site, backend):
    """Goal: a cascading delete takes the snapshots along."""
    cinder = site.cinder
    volume = cinder.create("volume", size=1, volume_type=backend)
    for _ in range(2):
        cinder.create("snapshot", volume_id=volume["id"])
    with pytest.raises(ApiError, match="400"):
        cinder.delete("volume", volume["id"])
    cinder.call("DELETE", f"/volumes/{volume['id']}?cascade=true")
    deadline = time.monotonic() + 60
    while any(one["id"] == volume["id"] for one in cinder.call("GET", "/volumes")["volumes"]):
        assert time.monotonic() < deadline, "the volume is still there"
        time.sleep(0.2)


def test_retype_on_the_pool(site, backend):
    """Goal: another type of the same pool costs nothing. Method: the volume keeps its name."""
    cinder = site.cinder
    other = f"{backend}-other"
    cinder.make_type(other, backend)
    volume = cinder.create("volume", size=1, volume_type=backend)
    cinder.act(
        "volume", volume["id"], "os-retype", {"new_type": other, "migration_policy": "never"}
    )
    while (now := cinder.wait("volume", volume["id"]))["volume_type"] != other:
        assert now["status"] == "available"
    assert now["os-vol-mig-status-attr:name_id"] is None
    cinder.delete("volume", volume["id"])


def test_gone_and_busy(site, backend):
    """Goal: what is gone deletes well, what is in use comes back as available."""
    cinder = site.cinder
    gone, busy = (cinder.create("volume", size=1, volume_type=backend) for _ in range(2))
    snapshot = cinder.create("snapshot", volume_id=gone["id"])
    with site.servers[backend].client() as client:
        client.delete_volume(site.name(gone), force=True)
        client.attach_volume(site.name(busy), "somebody")
        cinder.delete("snapshot", snapshot["id"])
        cinder.delete("volume", gone["id"])
        cinder.call("DELETE", f"/volumes/{busy['id']}")
        cinder.wait("volume", busy["id"])
        client.detach_volume(site.name(busy), "somebody")
    cinder.delete("volume", busy["id"])


def test_many_at_once(site, backend):
    """Goal: requests side by side all succeed."""
    cinder = site.cinder
    source = cinder.create("volume", size=1, volume_type=backend)
    made = [
        cinder.create("volume", wait=False, size=1, source_volid=source["id"]) for _ in range(10)
    ]
    for one in made:
        cinder.wait("volume", one["id"])
    for one in [*made, source]:
        cinder.delete("volume", one["id"])


def test_figures(site, backend):
    """Goal: the scheduler sees what the pool has; provisioned counts sizes, not bytes used."""
    cinder = site.cinder
    volume = cinder.create("volume", size=3, volume_type=backend)
    with site.servers[backend].client() as client:
        pool = client.get_pool("pools/p")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        pools = cinder.call("GET", "/scheduler-stats/get_pools?detail=true")["pools"]
        told = next(p for p in pools if p["name"].endswith(f"#{backend}"))["capabilities"]
        if told["provisioned_capacity_gb"] == 3:
            break
        time.sleep(0.2)
    assert told["provisioned_capacity_gb"] == 3
    assert told["backend_state"] == "up"
    assert abs(told["total_capacity_gb"] - pool.capacity_bytes / GIB) < 1
    assert abs(told["free_capacity_gb"] - pool.available_bytes / GIB) < 1
    assert told["thin_provisioning_support"] is True
    assert told["multiattach"] is (backend == "ours-rbd")
    cinder.delete("volume", volume["id"])
