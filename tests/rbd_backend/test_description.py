"""Describing volumes: right whatever happened to them, in as few rounds as promised."""

import random
from contextlib import suppress

import pytest

from rbd_backend.pools import client_counters, least_cost, opened, options, raw_pool
from volcore.backends.rbd import Cluster, RbdBackend
from volcore.backends.rbd.description import TOGETHER
from volcore.backends.rbd.opening import settled
from volcore.errors import NotFoundError
from volcore.limits import CHUNK_SIZE_BYTES, MIB, TIB
from volcore.testing.device_contract import put

SIZE = 16 * MIB


def no_progress(done_bytes, total_bytes):
    assert 0 <= done_bytes <= total_bytes


def told_by_librbd(ioctx, volume_id):
    """(size, chunks stored, ancestors) as librbd says, which opens everything."""
    import rbd

    with settled(rbd.Image(ioctx, volume_id, read_only=True)) as image:
        stored, before = [], None
        for point in [snap["name"] for snap in image.list_snaps()] + [None]:
            image.set_snap(point)
            image.diff_iterate(
                0, image.size(), before, lambda at, _, has: stored.append((at, has)), False, True
            )
            before = point
        image.set_snap(None)
        depth, at = 0, volume_id
        while True:
            try:
                parent = settled(rbd.Image(ioctx, at, read_only=True))
            except rbd.ImageNotFound:
                break
            with parent:
                try:
                    _, at, _ = parent.parent_info()
                except rbd.ImageNotFound:
                    break
            depth += 1
        return image.size(), sum(has for _, has in stored), depth


def test_as_librbd_says(backend, ceph_cluster, ceph_pool):
    """Goal: figures are librbd's. Method: random histories of writes, snapshots, clones, resizes;
    one at a time and all together, known and met for the first time."""
    draw = random.Random(4)
    backend.create("v0", SIZE)
    names, snapshots = ["v0"], {"v0": []}
    for step in range(60):
        name = draw.choice(names)
        match draw.choice(["write", "write", "snapshot", "clone", "resize", "flatten"]):
            case "write":
                size_bytes = backend.describe(name).size_bytes
                put(backend, name, draw.randrange(size_bytes - 4), b"data")
            case "snapshot":
                backend.create_snapshot(name, f"s{step}")
                snapshots[name].append(f"s{step}")
            case "clone" if snapshots[name] and len(names) < 8:
                size_bytes = backend.describe(name).size_bytes
                backend.clone(name, draw.choice(snapshots[name]), f"v{step}", size_bytes)
                names.append(f"v{step}")
                snapshots[f"v{step}"] = []
            case "resize":
                backend.resize(name, backend.describe(name).size_bytes + CHUNK_SIZE_BYTES)
            case "flatten" if step % 3 == 0:
                backend.flatten(name, no_progress)
    together = backend.describe_many([*names, "nobody"])
    with opened(ceph_cluster, ceph_pool, lock=False) as other:
        assert other.describe_many(names) == together
    assert sorted(together) == sorted(names)
    with raw_pool(ceph_cluster, ceph_pool) as ioctx:
        for name in names:
            facts = backend.describe(name)
            assert facts == together[name]
            size_bytes, stored, depth = told_by_librbd(ioctx, name)
            assert facts.size_bytes == size_bytes
            assert facts.depth == depth
            assert facts.allocated_bytes == stored * CHUNK_SIZE_BYTES
            assert facts.snapshot_ids == tuple(snapshots[name])


def test_one_round(ceph_cluster, ceph_pool, tmp_path):
    """Goal: one round for a clone that is known, whatever its size and depth, and no image opened.

    Method: count waves, and requests by librados' own counters.
    """
    at = tmp_path / "client.asok"
    conf = tmp_path / "ceph.conf"
    conf.write_text(ceph_cluster.conf_path.read_text() + f"\n[client]\nadmin socket = {at}\n")
    backend = RbdBackend(Cluster(options(ceph_cluster, conf_path=str(conf))), ceph_pool)
    backend.open()
    backend.create("root", TIB)
    backend.create_snapshot("root", "s")
    backend.clone("root", "s", "middle", TIB)
    backend.create_snapshot("middle", "s")
    backend.clone("middle", "s", "leaf", TIB)
    first = backend.describe("leaf")
    assert (first.depth, first.parent_volume_id, first.parent_snapshot_id) == (2, "middle", "s")
    descriptions = backend._session().descriptions
    watches = []

    def describe(_attempt):
        waves, before = descriptions.wave_count, client_counters(at)["linger_send"]
        assert backend.describe("leaf") == first
        assert descriptions.wave_count - waves == 1
        watches.append(client_counters(at)["linger_send"] - before)

    assert least_cost(at, describe) == (3, 0), "row of the directory, header, object map"
    assert min(watches) == 0, "an open image is watched"
    backend.describe("middle")
    waves = descriptions.wave_count
    assert backend.describe("middle").snapshot_ids == ("s",)
    assert descriptions.wave_count - waves == 2
    backend.close()


def test_many_in_few_rounds(backend):
    """Goal: a page of volumes costs a few rounds, not one for each. Method: count waves."""
    names = [f"v{number:02}" for number in range(TOGETHER // 2)]
    for name in names:
        backend.create(name, SIZE)
    descriptions = backend._session().descriptions
    for rounds in (2, 1):
        waves = descriptions.wave_count
        assert list(backend.describe_many([*names, "nobody"])) == names
        assert descriptions.wave_count - waves == rounds


def test_another_server_changes_things(backend, ceph_cluster, ceph_pool):
    """Goal: what is remembered never shows what is not. Method: change it behind the memory."""
    backend.create("v", SIZE)
    put(backend, "v", 0, b"data")
    assert backend.describe("v").allocated_bytes == CHUNK_SIZE_BYTES
    with opened(ceph_cluster, ceph_pool, lock=False) as other:
        other.delete("v")
        with pytest.raises(NotFoundError):
            backend.describe("v")
        other.create("v", 2 * SIZE)
        assert backend.describe("v").size_bytes == 2 * SIZE
        other.delete("v")
    assert backend.describe_many(["v"]) == {}
    with suppress(NotFoundError):
        backend.delete("v")
