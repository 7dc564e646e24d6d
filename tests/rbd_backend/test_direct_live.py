"""Clones of volumes as they are, by the short path: whole or gone after any cut, nothing hidden."""

import pytest

from rbd_backend.pools import leftovers, raw_pool
from rbd_backend.test_direct import links
from rbd_backend.test_direct_snapshots import CHUNK, check_cleared, only, waves_of
from volcore.errors import ConflictError, NotFoundError, OutOfRangeError, UnavailableError
from volcore.testing.device_contract import fetch, put

SIZE = 2 * CHUNK
WRITES = 12
"""Row, list; number, map's copy, snapshot, map; header, map, link, name; trash; row."""
HEADER, MAP = 6, 7
CUTS = [tuple(range(count)) for count in range(WRITES + 1)]
"""Sets within a wave: `test_direct.py` has all of them."""


@pytest.fixture
def source(direct):
    """The backend with a volume `v` that has the bytes `live`."""
    direct.create("v", SIZE)
    put(direct, "v", 0, b"live")
    assert direct._session().direct._stock.wait(20, 30)
    return direct


def snaps_of(backend):
    headers = backend._session().headers
    return headers.snaps(headers.image_id("v"))


def test_a_clone(source, ceph_cluster, ceph_pool):
    """Goal: an independent volume, larger if wanted. Method: write both, delete in any order."""
    clean = leftovers(ceph_cluster, ceph_pool)
    assert waves_of(source, lambda: source.clone("v", None, "c", SIZE)) == 6
    source.clone("v", None, "larger", 3 * SIZE)
    put(source, "v", 0, b"then")
    put(source, "c", 4, b"mine")
    assert fetch(source, "c", 0, 8) == b"livemine"
    assert fetch(source, "larger", 0, 4) == b"live"
    assert source.describe("v").snapshot_ids == ()
    assert source.describe("c").parent_volume_id == "v"
    assert source.describe("c").parent_snapshot_id is None
    assert len(snaps_of(source)) == 2
    source.delete("c")
    assert len(snaps_of(source)) == 1
    source.delete("v")
    assert fetch(source, "larger", 0, 4) == b"live"
    source.delete("larger")
    check_cleared(source)
    assert leftovers(ceph_cluster, ceph_pool) <= clean


def test_cut_anywhere(source, ceph_cluster, ceph_pool, monkeypatch):
    """Goal: whole or gone. Method: each set of writes that a crash may leave, then recovery."""
    clean = leftovers(ceph_cluster, ceph_pool)
    for cut in CUTS:
        assert source._session().direct._stock.wait(1, 30, above=max(snaps_of(source), default=0))
        with only(monkeypatch, source, cut):
            try:
                source.clone("v", None, "c", SIZE)
            except UnavailableError:
                assert len(cut) < WRITES
            source._session().direct.flush()
        source.collect()
        exists = "c" in source.walk()
        assert exists == ({HEADER, MAP} <= set(cut)), repr(cut)
        assert source.describe("v").snapshot_ids == (), cut
        check_cleared(source)
        if exists:
            assert fetch(source, "c", 0, 4) == b"live"
            assert len(snaps_of(source)) == 1
            source.delete("c")
        else:
            with pytest.raises(NotFoundError):
                source.delete("c")
        assert snaps_of(source) == [], cut
        assert links(ceph_cluster, ceph_pool, source) == set(), cut
        assert leftovers(ceph_cluster, ceph_pool) == clean, cut


def test_together(source):
    """Goal: one snapshot for all, each independent. Method: count, then write to each."""
    targets = {"a": SIZE, "b": 2 * SIZE, "c": SIZE, "small": CHUNK}

    def act():
        failed = source.clone_many("v", None, targets)
        assert {key: type(err) for key, err in failed.items()} == {"small": OutOfRangeError}

    assert waves_of(source, act) == 6
    assert len(snaps_of(source)) == 1
    put(source, "v", 0, b"then")
    for name in "abc":
        put(source, name, 4, name.encode())
    assert [fetch(source, name, 0, 5) for name in "abc"] == [b"livea", b"liveb", b"livec"]
    assert source.describe("v").snapshot_ids == ()


def test_together_cut_anywhere(source, ceph_cluster, ceph_pool, monkeypatch):
    """Goal: each whole or gone, whatever became of the other. Method: as above, two at once."""
    clean = leftovers(ceph_cluster, ceph_pool)
    second = {HEADER + 4, MAP + 4}
    for count in range(HEADER, WRITES + 5):
        cut = set(range(count))
        assert source._session().direct._stock.wait(1, 30, above=max(snaps_of(source), default=0))
        with only(monkeypatch, source, cut):
            try:
                source.clone_many("v", None, {"c": SIZE, "d": SIZE})
            except UnavailableError:
                assert count < WRITES + 4
            source._session().direct.flush()
        source.collect()
        found = {"c": {HEADER, MAP} <= cut, "d": second <= cut}
        assert {name: name in source.walk() for name in found} == found, count
        assert source.describe("v").snapshot_ids == (), count
        check_cleared(source)
        for name, exists in found.items():
            if exists:
                assert fetch(source, name, 0, 4) == b"live"
                source.delete(name)
        assert snaps_of(source) == [], count
        assert links(ceph_cluster, ceph_pool, source) == set(), count
        assert leftovers(ceph_cluster, ceph_pool) == clean, count


def test_one_of_them_is_taken(source, ceph_cluster, ceph_pool):
    """Goal: the others are made, and nothing is left of it. Method: a name of others."""
    import rbd

    with raw_pool(ceph_cluster, ceph_pool) as ioctx:
        rbd.RBD().create(ioctx, "foreign", SIZE, old_format=False, features=61)
        clean = leftovers(ceph_cluster, ceph_pool)
        for names in (("foreign", "a", "b"), ("a", "foreign", "b"), ("foreign", "gold")):
            failed = source.clone_many("v", None, dict.fromkeys(names, SIZE))
            taken = {"foreign", "gold"} & set(names)
            assert {key: type(err) for key, err in failed.items()} == dict.fromkeys(
                taken, ConflictError
            )
            for name in set(names) - taken:
                assert fetch(source, name, 0, 4) == b"live"
                source.delete(name)
            assert snaps_of(source) == []
            check_cleared(source)
            assert leftovers(ceph_cluster, ceph_pool) == clean
        assert "foreign" in rbd.RBD().list(ioctx)


def test_what_is_refused(source, ceph_cluster, ceph_pool):
    """Goal: nothing is left of what was refused. Method: taken names, a small size, no source."""
    import rbd

    with raw_pool(ceph_cluster, ceph_pool) as ioctx:
        rbd.RBD().create(ioctx, "foreign", SIZE, old_format=False, features=61)
        clean = leftovers(ceph_cluster, ceph_pool)
        for name in ("foreign", "gold", "v"):
            with pytest.raises(ConflictError):
                source.clone("v", None, name, SIZE)
        with pytest.raises(OutOfRangeError):
            source.clone("v", None, "small", CHUNK)
        with pytest.raises(NotFoundError):
            source.clone("gone", None, "c", SIZE)
        assert sorted(rbd.RBD().list(ioctx)) == ["foreign", "gold", "v"]
    assert snaps_of(source) == []
    check_cleared(source)
    assert leftovers(ceph_cluster, ceph_pool) == clean


def test_a_source_in_use(source, ceph_cluster, ceph_pool):
    """Goal: librbd clones what somebody writes to. Method: a device, a foreign client."""
    import rbd

    with source.open_device("v", read_only=False) as device:
        device.write(0, b"here")
        assert waves_of(source, lambda: source.clone("v", None, "a", SIZE)) == 0
        device.write(0, b"then")
    with raw_pool(ceph_cluster, ceph_pool) as ioctx, rbd.Image(ioctx, "v") as image:
        image.write(b"elsewhere", 0)
        source.clone("v", None, "b", SIZE)
        image.write(b"and later", 0)
    assert fetch(source, "a", 0, 4) == b"here"
    assert fetch(source, "b", 0, 9) == b"elsewhere"
    assert source.describe("v").snapshot_ids == ()
    check_cleared(source)
