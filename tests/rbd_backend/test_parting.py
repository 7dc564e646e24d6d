"""Deleting clones of live volumes: their source is not held, and a cut anywhere leaves nothing."""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from rbd_backend.pools import leftovers, opened, raw_pool
from rbd_backend.test_direct import links
from rbd_backend.test_direct_live import SIZE, snaps_of
from rbd_backend.test_direct_snapshots import check_cleared, waves_of
from volcore.backends.rbd.handles import Handles
from volcore.backends.rbd.header import Headers
from volcore.backends.rbd.links import Links
from volcore.backends.rbd.parting import Parting
from volcore.backends.rbd.reaper import Reaper
from volcore.backends.rbd.watchers import Watchers
from volcore.errors import Reason, UnavailableError
from volcore.testing.device_contract import fetch, put

STEPS = [
    (Headers, "forget_child"),
    (Parting, "_give_back"),
    (Parting, "_delete_snapshot"),
    (Links, "cut"),
    (Reaper, "_remove"),
]


@pytest.fixture
def source(direct):
    """The backend with a volume `v` that has the bytes `live`, and its clone `c`."""
    direct.create("v", SIZE)
    put(direct, "v", 0, b"live")
    assert direct._session().direct._stock.wait(20, 30)
    direct.clone("v", None, "c", SIZE)
    return direct


@contextmanager
def failing(monkeypatch, backend, owner, name, *, after):
    """Let one step fail, before or after it has its effect."""
    at = backend._session().reaper._parting if name == "_give_back" else owner
    step = getattr(at, name)

    def cut(*args):
        if after:
            step(*args)
        raise UnavailableError("cut", reason=Reason.CLUSTER_UNREACHABLE)

    with monkeypatch.context() as patch:
        patch.setattr(at, name, cut)
        yield


@pytest.mark.parametrize("restart", [False, True])
def test_cut_anywhere(source, ceph_cluster, ceph_pool, monkeypatch, restart):
    """Goal: nothing is left. Method: fail before each step, collect; after each, a new server."""
    source.delete("c")
    clean = leftovers(ceph_cluster, ceph_pool)
    for owner, name in STEPS:
        source.clone("v", None, "c", SIZE)
        with failing(monkeypatch, source, owner, name, after=restart):
            source.delete("c")
        assert list(source.walk()) == ["gold", "v"]
        if restart:
            source.close()
            with opened(ceph_cluster, ceph_pool) as other:
                other.collect()
            source.open()
            source.wait_for_short_path()
        else:
            assert leftovers(ceph_cluster, ceph_pool) != clean
            source.collect()
        assert snaps_of(source) == [], name
        assert links(ceph_cluster, ceph_pool, source) == set(), name
        check_cleared(source)
        assert leftovers(ceph_cluster, ceph_pool) == clean, name
    assert fetch(source, "v", 0, 4) == b"live"


def test_the_source_is_free_meanwhile(source, monkeypatch):
    """Goal: a direct snapshot while the monitors are asked. Method: hold their answer up."""
    parting = source._session().reaper._parting
    asked, go = threading.Event(), threading.Event()
    give_back = parting._give_back

    def slow(snap):
        asked.set()
        assert go.wait(30)
        give_back(snap)

    monkeypatch.setattr(parting, "_give_back", slow)
    with ThreadPoolExecutor(1) as pool:
        deleting = pool.submit(source.delete, "c")
        assert asked.wait(30)
        assert waves_of(source, lambda: source.create_snapshot("v", "s")) == 3
        go.set()
        deleting.result()
    assert source.describe("v").snapshot_ids == ("s",)
    assert len(snaps_of(source)) == 1


def test_who_comes_while_it_is_held(source, monkeypatch):
    """Goal: a wait, no refusal. Method: a snapshot while librbd has the source open for us."""
    held, go = threading.Event(), threading.Event()
    briefly = Handles.briefly

    @contextmanager
    def slow(self, volume_id, image_id):
        with briefly(self, volume_id, image_id) as image:
            held.set()
            assert go.wait(30)
            yield image

    monkeypatch.setattr(Handles, "briefly", slow)
    with ThreadPoolExecutor(2) as pool:
        deleting = pool.submit(source.delete, "c")
        assert held.wait(30)
        making = pool.submit(waves_of, source, lambda: source.create_snapshot("v", "s"))
        slot = source._session().handles._slots["v"]
        while slot.users < 2:
            assert not making.done()
        go.set()
        deleting.result()
        assert making.result() == 3
    with source.open_device("v", read_only=False) as device:
        device.write(0, b"open")
        source.clone("v", None, "d", SIZE)
        source.delete("d")
        device.write(0, b"then")
    assert fetch(source, "v", 0, 4) == b"then"
    assert len(snaps_of(source)) == 1


def test_two_that_share_a_snapshot(source):
    """Goal: the last of them takes it along. Method: delete one, then both others at once."""
    assert source.clone_many("v", None, dict.fromkeys(("d", "e", "f"), SIZE)) == {}
    source.delete("c")
    assert len(snaps_of(source)) == 1
    source.delete("d")
    assert len(snaps_of(source)) == 1
    assert fetch(source, "e", 0, 4) == b"live"
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(source.delete, ("e", "f")))
    assert snaps_of(source) == []


def test_a_client_that_came_late(source, ceph_cluster, ceph_pool, monkeypatch):
    """Goal: nothing is freed that somebody reads. Method: one who opens it while it is deleted."""
    import rbd

    clean = leftovers(ceph_cluster, ceph_pool)
    with raw_pool(ceph_cluster, ceph_pool) as ioctx, rbd.Image(ioctx, "c") as image:
        with monkeypatch.context() as patch:
            patch.setattr(Watchers, "refuse_if_in_use", lambda *_: None)
            source.delete("c")
        assert len(snaps_of(source)) == 1
        put(source, "v", 0, b"then")
        assert image.read(0, 4) == b"live"
    source.collect()
    assert snaps_of(source) == []
    assert leftovers(ceph_cluster, ceph_pool) < clean


def test_a_retired_parent(source, ceph_cluster, ceph_pool):
    """Goal: the whole line goes. Method: delete the source first, then its clone's clone, last."""
    source.clone("c", None, "d", SIZE)
    for name in ("v", "c"):
        source.delete(name)
    assert fetch(source, "d", 0, 4) == b"live"
    source.delete("d")
    assert not any("gold" not in name for name in source.walk())
    image_id = source._session().headers.image_id("gold")
    left = leftovers(ceph_cluster, ceph_pool)
    assert {name for name in left if image_id not in name} == {"rbd_id.gold"}
