"""Clones by the short path: as few rounds as promised, whole or gone after any cut."""

import itertools
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from rbd_backend.pools import (
    GOLD_SIZE_BYTES,
    client_counters,
    counted,
    least_cost,
    leftovers,
    make_gold,
    opened,
    raw_pool,
    recovery_cut,
    wait_finished,
    wait_quiet,
)
from rbd_backend.test_pool import ceph_cluster_command
from volcore.backends.contract import ShortPathState
from volcore.backends.rbd.direct import finishing, wire
from volcore.backends.rbd.direct.plan import header_object, listing
from volcore.backends.rbd.direct.waves import Write
from volcore.backends.rbd.directory import OBJECT_NAME
from volcore.backends.rbd.session import FEATURES, ORDER
from volcore.errors import (
    ConflictError,
    ExhaustedError,
    NotFoundError,
    OutOfRangeError,
    Reason,
    UnavailableError,
)
from volcore.limits import GIB, MIB, TIB
from volcore.testing.device_contract import fetch, put

SIZE = GOLD_SIZE_BYTES


def plans_of(backend, names):
    direct = backend._session().direct
    facts = direct._facts.get("gold", "s")
    return facts, [direct._cloner._plan(facts, name, SIZE) for name in names]


def writes_of(backend, name):
    """All writes of one clone: two of wave 1, four of wave 2."""
    session = backend._session()
    facts, (plan,) = plans_of(backend, [name])
    row = Write(OBJECT_NAME, lambda op: session.directory.reserving(op, {name: plan.link}))
    image = plan.image(session.ioctx, parent_features=facts.features)
    return [row, listing([plan])], image


def links(access, pool, backend):
    """Ids of all clones that the snapshots of `gold` know."""
    gold = backend._session().headers.image_id("gold")
    rows = backend._session().watchers._page(header_object(gold), "")
    found = [wire.children(row) for key, row in rows.items() if key.startswith("snap_children_")]
    return set(itertools.chain.from_iterable(found))


def subsets(things):
    return itertools.chain.from_iterable(
        itertools.combinations(things, count) for count in range(len(things) + 1)
    )


def test_rounds(direct, monkeypatch):
    """Goal: two rounds for a clone, and for a batch. Method: count waves and writes."""
    wait_finished(direct)
    monkeypatch.setattr(finishing, "DELAY_S", 60)
    waves = direct._session().direct.waves
    direct.clone("gold", "s", "first", SIZE)
    for targets in ({"one": SIZE}, {"larger": 3 * SIZE}, {f"m{n}": SIZE for n in range(64)}):
        before = waves.wave_count, waves.write_count
        assert direct.clone_many("gold", "s", targets) == {}
        count = len(targets)
        assert waves.wave_count - before[0] == 2
        assert waves.write_count - before[1] == 2 + 4 * count, "last rows go with the next names"
    before = waves.write_count
    direct._session().direct.flush()
    assert waves.write_count - before == 1


def test_last_rows(direct, monkeypatch):
    """Goal: each is written once, and never after a delete. Method: refuse what they go with."""
    session = direct._session()

    def whole(name: str) -> bool:
        return bool(session.directory.find(name).image_id)

    direct.clone("gold", "s", "alone", SIZE)
    while not whole("alone"):
        time.sleep(finishing.DELAY_S / 5)
    monkeypatch.setattr(finishing, "DELAY_S", 60)
    for name in ("a", "b", "c"):
        direct.clone("gold", "s", name, SIZE)
    assert whole("a")
    direct.delete("a")
    assert not whole("c")
    session.directory.reserve("taken", "")
    for targets in ({"taken": SIZE}, {"taken": SIZE, "d": SIZE}):
        failed = direct.clone_many("gold", "s", targets)
        assert failed.keys() == {"taken"}
    assert whole("c"), "they went with d"
    direct.clone("gold", "s", "e", SIZE)
    direct.delete("e")
    direct.delete("c")
    direct.clone("gold", "s", "f", SIZE)
    session.direct.flush()
    session.directory.forget("taken")
    assert {one.volume_id for one in session.directory.walk() if one.image_id} == {
        "gold", "alone", "b", "d", "f",
    }  # fmt: skip
    assert all(one.image_id for one in session.directory.walk())


def test_rounds_as_the_client_counts_them(ceph_cluster, ceph_pool, tmp_path):
    """Goal: the count above hides nothing. Method: librados' own counters."""
    with counted(ceph_cluster, ceph_pool, tmp_path) as (backend, at):
        make_gold(backend)
        backend.clone("gold", "s", "first", SIZE)
        backend._session().direct.flush()

        def clone(attempt):
            backend.clone("gold", "s", f"c{attempt}", SIZE)
            backend._session().direct.flush()

        assert least_cost(at, clone) == (0, 7)


def test_the_first_clone_as_the_client_counts(ceph_cluster, ceph_pool, tmp_path):
    """Goal: nothing is looked up for a snapshot just made, whatever it is of. Method: as above.

    Nor again for others when a clone of the volume as it is was made; the last clone that goes
    changes the parent's features, which costs one read and no second attempt.
    """
    with counted(ceph_cluster, ceph_pool, tmp_path) as (backend, at):
        make_gold(backend)

        def cost(volume_id, snapshot_id, target_id):
            backend._session().direct.flush()
            wait_quiet(at)
            before = client_counters(at)
            backend.clone(volume_id, snapshot_id, target_id, SIZE)
            backend._session().direct.flush()
            after = client_counters(at)
            return after["op_r"] - before["op_r"], after["op_w"] - before["op_w"]

        assert cost("gold", "s", "a") == (0, 7)
        backend.create_snapshot("a", "t")
        assert cost("a", "t", "b") == (0, 7)
        backend.clone("gold", None, "live", SIZE)
        assert cost("gold", "s", "c") == (0, 7)
        assert backend.describe("b").depth == 2
        backend.delete("b")
        assert cost("a", "t", "d") == (1, 7)
        assert cost("a", "t", "e") == (0, 7)
        with backend.open_device("a", read_only=False):
            backend.create_snapshot("a", "by librbd")
        assert 0 < cost("a", "by librbd", "f")[0] <= 10
        assert fetch(backend, "f", 0, 4) == b"gold"


def test_cut_anywhere(direct, ceph_cluster, ceph_pool):
    """Goal: whole or gone. Method: each set of writes that a crash may leave, then recovery."""
    first, second = writes_of(direct, "c")
    cuts = [(part, ()) for part in subsets(range(2))]
    cuts += [((0, 1), part) for part in subsets(range(4))]
    waves = direct._session().direct.waves
    clean = leftovers(ceph_cluster, ceph_pool)
    for named, imaged in cuts:
        first, second = writes_of(direct, "c")
        written = [first[n] for n in named] + [second[n] for n in imaged]
        assert not any(waves.run(written)), (named, imaged)
        direct.collect()
        exists = list(direct.walk()) == ["c", "gold"]
        assert exists == ({0, 1} <= set(imaged)), (named, imaged)
        if exists:
            assert fetch(direct, "c", 0, 4) == b"gold"
            direct.delete("c")
        else:
            with pytest.raises(NotFoundError):  # as the engine does when it settles its intent
                direct.delete("c")
        assert links(ceph_cluster, ceph_pool, direct) == set(), (named, imaged)
        assert leftovers(ceph_cluster, ceph_pool) == clean, (named, imaged)


def test_recovery_cut_anywhere(direct, ceph_cluster, ceph_pool):
    """Goal: undoing can be cut, too. Method: fail before each of its writes, then repeat it."""
    session = direct._session()
    clean = leftovers(ceph_cluster, ceph_pool)
    for allowed in range(6):
        first, second = writes_of(direct, "c")
        assert not any(session.direct.waves.run([*first, second[0], second[2]]))
        with recovery_cut(session, allowed):
            try:
                direct.collect()
            except UnavailableError:
                assert list(direct.walk()) == ["gold"]
        direct.collect()
        assert list(direct.walk()) == ["gold"]
        assert links(ceph_cluster, ceph_pool, direct) == set()
        assert leftovers(ceph_cluster, ceph_pool) == clean


def test_a_reservation_that_fails(direct, ceph_cluster, ceph_pool):
    """Goal: nothing is made that nobody wrote down. Method: refuse, for one and for many."""
    clean = leftovers(ceph_cluster, ceph_pool)
    calls = []

    def refuse():
        calls.append(1)
        raise ConflictError("no", reason=Reason.CATALOG_CONFLICT)

    for targets in ({"c": SIZE}, {"c": SIZE, "d": SIZE}):
        with pytest.raises(ConflictError):
            direct.clone_many("gold", "s", targets, reserve=refuse)
    assert len(calls) == 2
    with pytest.raises(NotFoundError):
        direct.clone_many("gold", "gone", {"c": SIZE}, reserve=refuse)
    assert len(calls) == 2
    assert list(direct.walk()) == ["gold"]
    assert leftovers(ceph_cluster, ceph_pool) == clean
    assert direct.clone_many("gold", "s", {"c": SIZE, "d": SIZE}, reserve=lambda: None) == {}


def test_a_used_clone_is_never_undone(direct, ceph_cluster, ceph_pool):
    """Goal: a crash before the last row loses nothing. Method: write, flatten, then recover."""
    import rbd

    session = direct._session()
    first, second = writes_of(direct, "c")
    assert not any(session.direct.waves.run(first))
    assert not any(session.direct.waves.run(second))
    with raw_pool(ceph_cluster, ceph_pool) as ioctx, rbd.Image(ioctx, "c") as image:
        image.write(b"mine", 4)
        image.flatten()
    assert session.direct.recovery.settle(session.directory.find("c"))
    assert fetch(direct, "c", 0, 8) == b"goldmine"


def test_a_clone_of_a_deleted_snapshot_is_never_undone(direct, ceph_cluster, ceph_pool):
    """Goal: a linked clone stays. Method: its last row is lost, its snapshot goes to the trash."""
    import rbd

    session = direct._session()
    first, second = writes_of(direct, "c")
    assert not any(session.direct.waves.run(first))
    assert not any(session.direct.waves.run(second))
    with raw_pool(ceph_cluster, ceph_pool) as ioctx, rbd.Image(ioctx, "gold") as image:
        image.remove_snap("s")
    assert session.direct.recovery.settle(session.directory.find("c"))
    assert fetch(direct, "c", 0, 4) == b"gold"


def test_a_snapshot_deleted_behind_our_back(direct, ceph_cluster, ceph_pool):
    """Goal: cached facts never make an orphan. Method: librbd deletes the snapshot."""
    import rbd

    direct.create_snapshot("gold", "other")
    direct.clone("gold", "other", "keeps-the-features", SIZE)
    direct.clone("gold", "s", "before", SIZE)
    direct.delete("before")
    with raw_pool(ceph_cluster, ceph_pool) as ioctx, rbd.Image(ioctx, "gold") as image:
        image.remove_snap("s")
    clean = leftovers(ceph_cluster, ceph_pool)
    failed = direct.clone_many("gold", "s", {"c": SIZE, "d": SIZE})
    assert failed.keys() == {"c", "d"}
    assert all(isinstance(err, NotFoundError) for err in failed.values())
    with pytest.raises(NotFoundError):
        direct.clone("gold", "s", "c", SIZE)
    assert leftovers(ceph_cluster, ceph_pool) == clean
    direct.create_snapshot("gold", "new")
    with raw_pool(ceph_cluster, ceph_pool) as ioctx, rbd.Image(ioctx, "gold") as image:
        image.remove_snap("new")
    with pytest.raises(NotFoundError):
        direct.clone("gold", "new", "c", SIZE)
    assert leftovers(ceph_cluster, ceph_pool) == clean


def test_a_snapshot_made_anew(direct):
    """Goal: what is kept is of the last one of that name. Method: delete it, make it again."""
    for content in (b"one!", b"two!"):
        put(direct, "gold", 0, content)
        direct.create_snapshot("gold", "again")
        direct.clone("gold", "again", f"of-{content.decode()}", SIZE)
        assert fetch(direct, f"of-{content.decode()}", 0, 4) == content
        direct.delete_snapshot("gold", "again")
    with pytest.raises(NotFoundError):
        direct.clone("gold", "again", "c", SIZE)


def test_features_changed_behind_our_back(direct, ceph_cluster, ceph_pool):
    """Goal: an unusual parent is left to librbd. Method: give it journaling, then metadata."""
    import rbd

    waves = direct._session().direct.waves
    direct.clone("gold", "s", "a", SIZE)
    with raw_pool(ceph_cluster, ceph_pool) as ioctx, rbd.Image(ioctx, "gold") as image:
        image.update_features(rbd.RBD_FEATURE_JOURNALING, True)
    direct.clone("gold", "s", "b", SIZE)
    before = waves.wave_count
    direct.clone("gold", "s", "c", SIZE)
    assert waves.wave_count == before
    with raw_pool(ceph_cluster, ceph_pool) as ioctx, rbd.Image(ioctx, "gold") as image:
        image.update_features(rbd.RBD_FEATURE_JOURNALING, False)
        image.metadata_set("conf_rbd_cache", "true")
    direct._session().direct.forget("gold")
    direct.clone("gold", "s", "d", SIZE)
    assert waves.wave_count == before
    assert all(fetch(direct, name, 0, 4) == b"gold" for name in "abcd")


def test_taken_names(direct, ceph_cluster, ceph_pool):
    """Goal: nobody else's image is harmed. Method: foreign names, rows, in batches too."""
    import rbd

    with raw_pool(ceph_cluster, ceph_pool) as ioctx:
        rbd.RBD().create(ioctx, "foreign", SIZE, old_format=False, features=61)
        direct.clone("gold", "s", "ours", SIZE)
        clean = leftovers(ceph_cluster, ceph_pool)
        for name in ("foreign", "ours", "gold"):
            with pytest.raises(ConflictError):
                direct.clone("gold", "s", name, SIZE)
        failed = direct.clone_many("gold", "s", {"foreign": SIZE, "x": SIZE, "ours": SIZE})
        assert set(failed) == {"foreign", "ours"}
        assert all(isinstance(err, ConflictError) for err in failed.values())
        assert fetch(direct, "x", 0, 4) == b"gold"
        direct.delete("x")
        assert leftovers(ceph_cluster, ceph_pool) == clean
        assert sorted(rbd.RBD().list(ioctx)) == ["foreign", "gold", "ours"]
        with rbd.Image(ioctx, "foreign") as image:
            assert image.size() == SIZE
    with pytest.raises(OutOfRangeError):
        direct.clone("gold", "s", "small", 4 * MIB)
    assert leftovers(ceph_cluster, ceph_pool) == clean


def test_an_old_row_resurrects_nothing(direct):
    """Goal: recovery beside deletes is harmless. Method: settle a row that is outdated."""
    session = direct._session()
    first, second = writes_of(direct, "c")
    assert not any(session.direct.waves.run([*first]))
    assert not any(session.direct.waves.run(second))
    old = session.directory.find("c")
    direct.clone("c", None, "child", SIZE)  # keeps the image of `c` in the trash
    direct.delete("c")
    assert not session.direct.recovery.settle(old)
    assert sorted(direct.walk()) == ["child", "gold"]
    assert fetch(direct, "child", 0, 4) == b"gold"


def test_full_pool(direct, ceph_cluster, ceph_pool):
    """Goal: a full pool is POOL_FULL, and nothing stays of the clone. Method: a quota."""
    direct.clone("gold", "s", "fits", SIZE)
    put(direct, "fits", 0, bytes(6 * MIB))
    clean = leftovers(ceph_cluster, ceph_pool)
    ceph_cluster_command(ceph_cluster, "osd pool set-quota", ceph_pool, "max_bytes", str(4 * MIB))

    def clone_until_full():
        for number in range(200):
            direct.clone("gold", "s", f"c{number}", SIZE)
            direct.delete(f"c{number}")
            time.sleep(0.1)

    with pytest.raises(ExhaustedError) as caught:
        clone_until_full()
    assert caught.value.reason == Reason.POOL_FULL
    assert sorted(direct.walk()) == ["fits", "gold"]
    assert leftovers(ceph_cluster, ceph_pool) == clean


def test_many_threads(direct, ceph_cluster, ceph_pool):
    """Goal: clones and deletes side by side. Method: 8 threads, each its own names."""

    def work(thread):
        for number in range(6):
            direct.clone("gold", "s", f"t{thread}-{number}", SIZE)
            if number % 2:
                direct.delete(f"t{thread}-{number}")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    names = [name for name in direct.walk() if name != "gold"]
    assert len(names) == 24
    assert len(links(ceph_cluster, ceph_pool, direct)) == 24
    direct.delete("gold")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(direct.delete, names))
    assert leftovers(ceph_cluster, ceph_pool) == set()


@pytest.mark.parametrize("size_bytes", [4096, 4 * MIB, 64 * GIB + 4096, TIB])
def test_object_map_is_librbds(direct, ceph_cluster, ceph_pool, size_bytes):
    """Goal: maps of all sizes. Method: librbd makes an image of that size."""
    import rbd

    with raw_pool(ceph_cluster, ceph_pool) as ioctx:
        rbd.RBD().create(ioctx, "v", size_bytes, ORDER, old_format=False, features=FEATURES)
        with rbd.Image(ioctx, "v") as image:
            found = ioctx.read(f"rbd_object_map.{image.id()}", 1 << 20)
        assert found == wire.empty_object_map(size_bytes, ORDER)
        rbd.RBD().remove(ioctx, "v")


def test_a_difference_refuses_the_path(ceph_cluster, ceph_pool, monkeypatch):
    """Goal: what librbd would not write is never used. Method: spoil one row of the header."""
    rows = wire.header_rows

    def spoilt(**changes):
        return rows(**changes) | {"op_features": bytes(8)}

    with monkeypatch.context() as patch:
        patch.setattr(wire, "header_rows", spoilt)
        with opened(ceph_cluster, ceph_pool, direct=True) as backend:
            found = backend.wait_for_short_path()
            assert found.state is ShortPathState.REFUSED
            assert "op_features" in found.detail
            make_gold(backend)
            backend.clone("gold", "s", "a", SIZE)
            assert backend._session().direct.waves.wave_count < 10
            backend.delete("a")
            backend.delete("gold")
    assert leftovers(ceph_cluster, ceph_pool) == set()
    with opened(ceph_cluster, ceph_pool, direct=True) as backend:
        assert backend.wait_for_short_path().state is ShortPathState.ON
    with opened(ceph_cluster, ceph_pool, direct=True) as backend:
        assert backend.short_path.state is ShortPathState.ON  # remembered
    with opened(ceph_cluster, ceph_pool) as backend:
        assert backend.short_path.state is ShortPathState.OFF


def test_a_proof_cut_short_leaves_nothing(ceph_cluster, ceph_pool, monkeypatch):
    """Goal: scratch images go. Method: stop at once; then a crash after the first clones."""
    with opened(ceph_cluster, ceph_pool, direct=True):
        pass
    assert leftovers(ceph_cluster, ceph_pool) == set()
    from volcore.backends.rbd.direct.proof import Proof

    with monkeypatch.context() as patch:
        patch.setattr(Proof, "clean_up", lambda self: None)
        patch.setattr(Proof, "_live", lambda *_: threading.Event().wait(0))
        with opened(ceph_cluster, ceph_pool, direct=True) as backend:
            backend.wait_for_short_path()
            backend._session().directory.set_proving(True)
    assert leftovers(ceph_cluster, ceph_pool) != set()
    with opened(ceph_cluster, ceph_pool):
        assert leftovers(ceph_cluster, ceph_pool) == set()


@pytest.mark.parametrize("count", [1, 3])  # 0 to 4 hold as well, at 5 s each
def test_a_proof_killed_between_its_writes(ceph_cluster, ceph_pool, monkeypatch, count):
    """Goal: the next proof is not in the way of itself. Method: some writes of a clone, then none.

    As when the server dies between the two waves, or within the second.
    """
    import rbd

    from volcore.backends.rbd.direct.proof import Proof, StoppedError

    def write(self, plan, *more):
        features = self._features | wire.OPERATIONS
        for one in [listing([plan]), *plan.image(self._ioctx, parent_features=features)][:count]:
            assert not any(self._waves.run([one]))
        raise StoppedError

    with monkeypatch.context() as patch:
        patch.setattr(Proof, "clean_up", lambda self: None)
        patch.setattr(Proof, "_write", write)
        with opened(ceph_cluster, ceph_pool, direct=True) as backend:
            backend.wait_for_short_path()
            backend._session().directory.set_proving(True)
    with opened(ceph_cluster, ceph_pool, direct=True) as backend:
        state = backend.wait_for_short_path()
        assert state.state is ShortPathState.ON, state.detail
    assert leftovers(ceph_cluster, ceph_pool) == set()
    with raw_pool(ceph_cluster, ceph_pool) as ioctx:
        assert not rbd.RBD().list(ioctx)


_DELETE = """
import os, signal, sys
import rados, rbd

conf, pool, parent, child = sys.argv[1:]
cluster = rados.Rados(conffile=conf, rados_id="admin", conf={"rbd_default_clone_format": "2"})
cluster.connect()
ioctx = cluster.open_ioctx(pool)
librbd = rbd.RBD()
librbd.create(ioctx, parent, 1 << 22, old_format=False, features=61)
with rbd.Image(ioctx, parent) as image:
    image.create_snap("q")
librbd.clone(ioctx, parent, "q", ioctx, child, 61)
print(cluster.get_addrs(), flush=True)
librbd.remove(ioctx, child, on_progress=lambda *_: os.kill(os.getpid(), signal.SIGKILL))
"""


def test_a_proof_killed_while_librbd_deletes(ceph_cluster, ceph_pool):
    """Goal: such an image is deleted, too. Method: kill a process within librbd's delete of one."""
    import rbd

    from volcore.backends.rbd.direct.proof import SCRATCH

    names = [f"{SCRATCH}.ours0", f"{SCRATCH}.ours0.child"]
    words = [sys.executable, "-c", _DELETE, str(ceph_cluster.conf_path), ceph_pool, *names]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    with raw_pool(ceph_cluster, ceph_pool) as ioctx:
        assert names[1] in rbd.RBD().list(ioctx)
        with pytest.raises(rbd.ImageNotFound):
            rbd.Image(ioctx, names[1])
        with ceph_cluster._connect() as cluster:  # as whoever takes a pool over does
            address = done.stdout.strip().removeprefix("v2:")
            ceph_cluster._command(cluster, "osd blocklist", blocklistop="add", addr=address)
            cluster.wait_for_latest_osdmap()
        with opened(ceph_cluster, ceph_pool) as backend:
            backend._session().directory.set_proving(True)
        with opened(ceph_cluster, ceph_pool):
            assert rbd.RBD().list(ioctx) == []
    assert leftovers(ceph_cluster, ceph_pool) == set()


def test_undone_beside_a_deleted_snapshot(direct):
    """Goal: a deleted snapshot does not outlast its clones. Method: delete it, then recover."""
    first, second = writes_of(direct, "c")
    waves = direct._session().direct.waves
    assert not any(waves.run(first))
    assert not any(waves.run(second[2:3]))  # the link
    gold = direct._session().headers.image_id("gold")
    direct.delete_snapshot("gold", "s")
    assert len(direct._session().headers.snaps(gold)) == 1
    direct.collect()
    assert list(direct.walk()) == ["gold"]
    assert direct._session().headers.snaps(gold) == []
