"""Blank volumes by the short path: as few rounds as promised, whole or gone after any cut."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from rbd_backend.pools import (
    counted,
    least_cost,
    leftovers,
    opened,
    raw_pool,
    recovery_cut,
    wait_finished,
)
from rbd_backend.test_direct import subsets
from rbd_backend.test_pool import ceph_cluster_command
from volcore.backends.contract import ShortPathState
from volcore.backends.rbd.direct import facts, finishing, wire
from volcore.backends.rbd.direct.plan import listing, new_image_id
from volcore.backends.rbd.direct.waves import Write
from volcore.backends.rbd.directory import OBJECT_NAME, Link
from volcore.errors import (
    ConflictError,
    ExhaustedError,
    NotFoundError,
    Reason,
    UnavailableError,
)
from volcore.limits import MIB, TIB
from volcore.testing.device_contract import fetch, put

SIZE = 8 * MIB


def writes_of(backend, name):
    """All writes of one blank volume: two of wave 1, three of wave 2."""
    session = backend._session()
    plan = session.direct._cloner._planned(name, Link(image_id=new_image_id(name)), SIZE)
    row = Write(OBJECT_NAME, lambda op: session.directory.reserving(op, {name: plan.link}))
    return [row, listing([plan])], plan.image(session.ioctx)


def test_rounds(direct, monkeypatch):
    """Goal: two rounds for a volume, and for a batch. Method: count waves and writes."""
    wait_finished(direct)
    monkeypatch.setattr(finishing, "DELAY_S", 60)
    session = direct._session()
    direct.create("first", SIZE)
    for sizes in ({"one": SIZE}, {"large": TIB}, {f"m{n}": SIZE for n in range(200)}):
        before = session.direct.waves.wave_count, session.direct.waves.write_count
        assert direct.create_many(sizes) == {}
        batches = -(-len(sizes) // 128)
        assert session.direct.waves.wave_count - before[0] == 2 * batches
        written = session.direct.waves.write_count - before[1]
        assert written == 2 * batches + 3 * len(sizes), "last rows go with the next names"
    assert direct.describe("large").size_bytes == TIB
    session.direct.flush()
    assert all(one.image_id for one in session.directory.walk())


def test_rounds_as_the_client_counts_them(ceph_cluster, ceph_pool, tmp_path):
    """Goal: the count above hides nothing. Method: librados' own counters."""
    with counted(ceph_cluster, ceph_pool, tmp_path) as (backend, at):
        backend.create("first", SIZE)
        backend._session().direct.flush()

        def create(attempt):
            backend.create(f"v{attempt}", SIZE)
            backend._session().direct.flush()

        assert least_cost(at, create) == (0, 6)


def test_cut_anywhere(direct, ceph_cluster, ceph_pool):
    """Goal: whole or gone. Method: each set of writes that a crash may leave, then recovery."""
    cuts = [(part, ()) for part in subsets(range(2))]
    cuts += [((0, 1), part) for part in subsets(range(3))]
    waves = direct._session().direct.waves
    clean = leftovers(ceph_cluster, ceph_pool)
    for named, imaged in cuts:
        first, second = writes_of(direct, "b")
        written = [first[n] for n in named] + [second[n] for n in imaged]
        assert not any(waves.run(written)), (named, imaged)
        direct.collect()
        exists = list(direct.walk()) == ["b", "gold"]
        assert exists == ({0, 1} <= set(imaged)), (named, imaged)
        if exists:
            assert fetch(direct, "b", 0, 4) == bytes(4)
            direct.delete("b")
        else:
            with pytest.raises(NotFoundError):  # as the engine does when it settles its intent
                direct.delete("b")
        assert leftovers(ceph_cluster, ceph_pool) == clean, (named, imaged)


def test_recovery_cut_anywhere(direct, ceph_cluster, ceph_pool):
    """Goal: undoing can be cut, too. Method: fail before each of its writes, then repeat it."""
    session = direct._session()
    clean = leftovers(ceph_cluster, ceph_pool)
    for allowed in range(5):
        first, second = writes_of(direct, "b")
        assert not any(session.direct.waves.run([*first, second[0]]))
        with recovery_cut(session, allowed):
            try:
                direct.collect()
            except UnavailableError:
                assert list(direct.walk()) == ["gold"]
        direct.collect()
        assert list(direct.walk()) == ["gold"]
        assert leftovers(ceph_cluster, ceph_pool) == clean


def test_a_used_volume_is_never_undone(direct, ceph_cluster, ceph_pool):
    """Goal: a crash before the last row loses nothing. Method: write, snapshot, clone; recover."""
    import rbd

    session = direct._session()
    first, second = writes_of(direct, "b")
    assert not any(session.direct.waves.run(first))
    assert not any(session.direct.waves.run(second))
    assert session.directory.find("b").raw.endswith(b'"parent":"","snap":0,"v":2}')
    with raw_pool(ceph_cluster, ceph_pool) as ioctx:
        with rbd.Image(ioctx, "b") as image:
            image.write(b"mine", 4)
            image.create_snap("s")
        rbd.RBD().clone(ioctx, "b", "s", ioctx, "foreign", features=61)
        assert session.direct.recovery.settle(session.directory.find("b"))
        assert fetch(direct, "b", 0, 8) == bytes(4) + b"mine"
        with rbd.Image(ioctx, "foreign") as image:
            assert image.read(4, 4) == b"mine"


def test_a_reservation_that_fails(direct, ceph_cluster, ceph_pool):
    """Goal: nothing is made that nobody wrote down. Method: refuse, for one and for many."""
    clean = leftovers(ceph_cluster, ceph_pool)

    def refuse():
        raise ConflictError("no", reason=Reason.CATALOG_CONFLICT)

    for sizes in ({"b": SIZE}, {"b": SIZE, "c": SIZE}):
        with pytest.raises(ConflictError):
            direct.create_many(sizes, reserve=refuse)
    assert list(direct.walk()) == ["gold"]
    assert leftovers(ceph_cluster, ceph_pool) == clean
    assert direct.create_many({"b": SIZE, "c": SIZE}) == {}


def test_taken_names(direct, ceph_cluster, ceph_pool):
    """Goal: nobody else's image is harmed. Method: foreign names, rows, in batches too."""
    import rbd

    with raw_pool(ceph_cluster, ceph_pool) as ioctx:
        rbd.RBD().create(ioctx, "foreign", SIZE, old_format=False, features=61)
        direct.create("ours", SIZE)
        clean = leftovers(ceph_cluster, ceph_pool)
        for name in ("foreign", "ours", "gold"):
            with pytest.raises(ConflictError):
                direct.create(name, SIZE)
        failed = direct.create_many({"foreign": 2 * SIZE, "x": SIZE, "ours": SIZE})
        assert set(failed) == {"foreign", "ours"}
        assert all(isinstance(err, ConflictError) for err in failed.values())
        direct.delete("x")
        assert leftovers(ceph_cluster, ceph_pool) == clean
        assert sorted(rbd.RBD().list(ioctx)) == ["foreign", "gold", "ours"]
        with rbd.Image(ioctx, "foreign") as image:
            assert image.size() == SIZE


def test_full_pool(direct, ceph_cluster, ceph_pool):
    """Goal: a full pool is POOL_FULL, and nothing stays. Method: a quota."""
    direct.create("fits", SIZE)
    put(direct, "fits", 0, bytes(6 * MIB))
    clean = leftovers(ceph_cluster, ceph_pool)
    ceph_cluster_command(ceph_cluster, "osd pool set-quota", ceph_pool, "max_bytes", str(4 * MIB))

    def create_until_full():
        for number in range(600):
            direct.create(f"b{number}", SIZE)
            direct.delete(f"b{number}")

    with pytest.raises(ExhaustedError) as caught:
        create_until_full()
    assert caught.value.reason == Reason.POOL_FULL
    assert sorted(direct.walk()) == ["fits", "gold"]
    assert leftovers(ceph_cluster, ceph_pool) == clean


def test_an_unusual_pool(direct, ceph_cluster, ceph_pool, monkeypatch):
    """Goal: settings of the pool count. Method: give it one, and let what is known grow old."""
    import rbd

    with raw_pool(ceph_cluster, ceph_pool) as ioctx:
        rbd.RBD().pool_metadata_set(ioctx, "conf_rbd_journal_order", "22")
    monkeypatch.setattr(facts, "AGE_S_MAX", 0)
    waves = direct._session().direct.waves
    before = waves.wave_count
    assert direct.create_many({"a": SIZE, "b": SIZE}) == {}
    assert waves.wave_count == before
    assert sorted(direct.walk()) == ["a", "b", "gold"]
    assert all(one.link is None for one in direct._session().directory.walk())


def test_many_threads(direct, ceph_cluster, ceph_pool):
    """Goal: volumes made and deleted side by side. Method: 8 threads, each its own names."""

    def work(thread):
        for number in range(6):
            direct.create(f"t{thread}-{number}", SIZE)
            if number % 2:
                direct.delete(f"t{thread}-{number}")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
        names = [name for name in direct.walk() if name != "gold"]
        assert len(names) == 24
        list(pool.map(direct.delete, [*names, "gold"]))
    assert leftovers(ceph_cluster, ceph_pool) == set()


def test_a_difference_refuses_the_path(ceph_cluster, ceph_pool, monkeypatch):
    """Goal: what librbd would not write is never used. Method: spoil headers without a parent."""
    rows = wire.header_rows

    def spoilt(**changes):
        found = rows(**changes)
        return found if changes["parent"] is not None else found | {"op_features": bytes(8)}

    monkeypatch.setattr(wire, "header_rows", spoilt)
    with opened(ceph_cluster, ceph_pool, direct=True) as backend:
        found = backend.wait_for_short_path()
        assert found.state is ShortPathState.REFUSED
        assert "a new image" in found.detail
        assert "op_features" in found.detail
        backend.create("v", SIZE)
        assert backend._session().directory.find("v").link is None
        backend.delete("v")
    assert leftovers(ceph_cluster, ceph_pool) == set()
