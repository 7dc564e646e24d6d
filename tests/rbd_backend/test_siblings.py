"""Siblings of popular snapshots: same content, hidden, gone with their original."""

import pytest

from rbd_backend.pools import leftovers, opened, raw_pool
from volcore.backends.rbd.direct import family
from volcore.backends.rbd.direct.plan import trashing
from volcore.errors import NotFoundError
from volcore.limits import MIB
from volcore.testing.device_contract import fetch, put

SIZE = 8 * MIB


@pytest.fixture
def popular(direct, monkeypatch):
    """The backend, where four clones of a snapshot are many."""
    monkeypatch.setattr(family, "CHILDREN_MAX", 4)
    direct._session().direct.forget("gold")  # what was kept when its snapshot was made
    return direct


def kin_id(backend):
    return backend._session().headers.image_id("gold")


def kin(backend):
    session = backend._session()
    return family.look(session.ioctx, session.headers, kin_id(backend), "s")


def clone(backend, count, stem="c"):
    """Clone one after the other; wait each time for what goes on behind the answers."""
    for number in range(count):
        backend.clone("gold", "s", f"{stem}{number}", SIZE)
        siblings = backend._session().direct._siblings
        if siblings._thread is not None:
            siblings._thread.submit(lambda: None).result()


def test_clones_are_spread(popular, ceph_cluster, ceph_pool):
    """Goal: few clones of each, all alike, none shown. Method: ten clones where four are many."""
    clone(popular, 10)
    assert kin(popular).counts == [4, 4, 2]
    facts = popular.describe_many([f"c{number}" for number in range(10)])
    assert {(one.parent_volume_id, one.parent_snapshot_id) for one in facts.values()} == {
        ("gold", "s")
    }
    assert {one.depth for one in facts.values()} == {1}
    assert popular.describe("gold").snapshot_ids == ("s",)
    assert {fetch(popular, f"c{number}", 0, 4) for number in range(10)} == {b"gold"}
    popular.close()
    with opened(ceph_cluster, ceph_pool, direct=True) as again:
        again.wait_for_short_path()
        again.clone("gold", "s", "later", SIZE)
        assert kin(again).counts == [4, 4, 3]
    popular.open()


def test_a_written_volume_gets_none(popular):
    """Goal: a sibling has the snapshot's content. Method: write to the volume since."""
    put(popular, "gold", 0, b"new!")
    clone(popular, 6)
    assert kin(popular).counts == [6]
    assert kin(popular).unproven is None
    assert {fetch(popular, f"c{number}", 0, 4) for number in range(6)} == {b"gold"}


def test_a_write_between_look_and_snapshot(popular, ceph_cluster, ceph_pool, monkeypatch):
    """Goal: what a snapshot makes the map forget is seen. Method: a client that comes and goes."""
    import rbd

    siblings = popular._session().direct._siblings
    make = siblings._snapshot

    def late(*words):
        with raw_pool(ceph_cluster, ceph_pool) as ioctx, rbd.Image(ioctx, "gold") as image:
            image.write(b"new!", 0)
        return make(*words)

    monkeypatch.setattr(siblings, "_snapshot", late)
    clone(popular, 6)
    assert kin(popular).unproven is not None
    assert kin(popular).counts == [6]
    assert not siblings.make("gold", "s")
    assert {fetch(popular, f"c{number}", 0, 4) for number in range(6)} == {b"gold"}
    popular.delete_snapshot("gold", "s")
    assert popular._session().headers.find_snapshot(kin_id(popular), "s") is None
    assert not [one for one in popular._session().headers.snapshots(kin_id(popular)) if one.user]


def test_delete_with_siblings(popular, ceph_cluster, ceph_pool):
    """Goal: all siblings go, in any order. Method: delete snapshot, volume, then the clones."""
    clean = {name for name in leftovers(ceph_cluster, ceph_pool) if "gold" not in name}
    gold_id = popular._session().headers.image_id("gold")
    clone(popular, 6)
    popular.delete_snapshot("gold", "s")
    assert popular.describe("gold").snapshot_ids == ()
    with pytest.raises(NotFoundError):
        popular.clone("gold", "s", "late", SIZE)
    popular.delete("gold")
    for number in range(6):
        assert fetch(popular, f"c{number}", 0, 4) == b"gold"
        popular.delete(f"c{number}")
    popular.collect()
    assert leftovers(ceph_cluster, ceph_pool) == {name for name in clean if gold_id not in name}


def test_nothing_out_of_sight_stays(direct):
    """Goal: what a last clone left when it went as its snapshot was hidden goes, too.

    Method: hide snapshots that have no clone, as librbd does; delete another one, and one again.
    """
    gold, session = kin_id(direct), direct._session()

    def hide(name):
        snap = session.headers.find_snapshot(gold, name).snap
        assert session.direct.waves.run([trashing(gold, snap)]) == [0]

    direct.create_snapshot("gold", "t")
    hide("t")
    direct.clone("gold", "s", "c", SIZE)
    direct.delete_snapshot("gold", "s")
    assert len(session.headers.snaps(gold)) == 1  # the clone's
    assert fetch(direct, "c", 0, 4) == b"gold"
    direct.delete("c")
    assert session.headers.snaps(gold) == []
    direct.create_snapshot("gold", "u")
    hide("u")
    with pytest.raises(NotFoundError):
        direct.delete_snapshot("gold", "u")
    assert session.headers.snaps(gold) == []


def test_a_sibling_cut_short(popular, monkeypatch):
    """Goal: an unproven sibling takes no clone and is finished later. Method: cut at its proof."""
    siblings = popular._session().direct._siblings
    unchanged, asked = siblings._is_unchanged, []

    def cut(*words, **more):
        asked.append(words)
        return len(asked) != 2 and unchanged(*words, **more)

    monkeypatch.setattr(siblings, "_is_unchanged", cut)
    clone(popular, 6)
    assert kin(popular).counts == [6]
    assert kin(popular).unproven is not None
    assert popular.describe("gold").snapshot_ids == ("s",)
    assert siblings.make("gold", "s")
    assert kin(popular).unproven is None
    assert kin(popular).counts == [6, 0]
