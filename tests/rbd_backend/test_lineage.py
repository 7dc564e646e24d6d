"""Parents and clones go in any order, and nothing of them stays."""

import errno
import itertools
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from rbd_backend.pools import leftovers, raw_pool
from volcore.errors import (
    Blocker,
    NotFoundError,
    OperationPendingError,
    PreconditionError,
    Reason,
)
from volcore.limits import CHUNK_SIZE_BYTES, MIB, RBD_DEPTH_MAX
from volcore.testing.device_contract import fetch, put

SIZE = 8 * MIB


def no_progress(done_bytes, total_bytes):
    assert 0 <= done_bytes <= total_bytes


def three_generations(backend, *, live):
    """root <- a, b; a <- aa. Cloned from snapshots, or from the live volumes."""
    backend.create("root", SIZE)
    put(backend, "root", 0, b"root")
    for source, target in (("root", "a"), ("root", "b"), ("a", "aa")):
        snapshot = None
        if not live:
            snapshot = f"for-{target}"
            backend.create_snapshot(source, snapshot)
        backend.clone(source, snapshot, target, SIZE)
        put(backend, target, 10, target.encode())
    return ["root", "a", "b", "aa"]


@pytest.mark.parametrize("half", [0, 1])
def test_every_order_of_deletes(backend, ceph_cluster, ceph_pool, half):
    """Goal: no leak, no damage. Method: all 24 orders; cloned from snapshots and live by turns."""
    orders = list(itertools.permutations(["root", "a", "b", "aa"]))
    for number, order in enumerate(orders[half::2]):
        names = three_generations(backend, live=number % 2 == half)
        for volume_id in order:
            backend.delete(volume_id)
            names.remove(volume_id)
            assert sorted(backend.walk()) == sorted(names)
            for other in names:
                assert fetch(backend, other, 0, 4) == b"root"
        assert leftovers(ceph_cluster, ceph_pool) == set(), order
    assert backend.collect() == 0


def test_flatten_frees_deleted_ancestors(backend, ceph_cluster, ceph_pool):
    three_generations(backend, live=False)
    for volume_id in ("root", "a", "b"):
        backend.delete(volume_id)
    backend.flatten("aa", no_progress)
    assert fetch(backend, "aa", 0, 4) == b"root"
    with raw_pool(ceph_cluster, ceph_pool) as ioctx:
        import rbd

        assert rbd.RBD().list(ioctx) == ["aa"]
        assert list(rbd.RBD().trash_list(ioctx)) == []
    backend.delete("aa")
    assert leftovers(ceph_cluster, ceph_pool) == set()


def test_concurrent_deletes_of_a_family(backend, ceph_cluster, ceph_pool):
    """Goal: deletes side by side neither fail nor leak. Method: a trashed parent, 8 clones."""
    backend.create("root", SIZE)
    backend.create_snapshot("root", "s")
    clones = [f"clone-{n}" for n in range(8)]
    for volume_id in clones:
        backend.clone("root", "s", volume_id, SIZE)
    with ThreadPoolExecutor(9) as pool:
        list(pool.map(backend.delete, ["root", *clones]))
    assert list(backend.walk()) == []
    assert leftovers(ceph_cluster, ceph_pool) == set()


def test_concurrent_deletes_of_one_volume(backend, ceph_cluster, ceph_pool):
    """Goal: exactly one delete does it. Method: 4 threads; the others find nothing or wait."""
    from volcore.errors import NotFoundError, OperationPendingError

    backend.create("one", SIZE)
    backend.create_snapshot("one", "s")
    start = threading.Barrier(4)

    def work(_):
        start.wait()
        try:
            backend.delete("one")
        except (NotFoundError, OperationPendingError):
            return 0
        return 1

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(work, range(4))) == 1
    assert leftovers(ceph_cluster, ceph_pool) == set()


def test_concurrent_clones(backend, ceph_cluster, ceph_pool):
    """Goal: clones side by side all come out right. Method: 16 of one snapshot from 8 threads."""
    backend.create("root", SIZE)
    put(backend, "root", 0, b"root")
    backend.create_snapshot("root", "s")
    names = [f"c{n}" for n in range(16)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: backend.clone("root", "s", name, SIZE), names))
    assert sorted(backend.walk()) == sorted(["root", *names])
    assert all(fetch(backend, name, 0, 4) == b"root" for name in names)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(backend.delete, names))
    backend.delete("root")
    assert leftovers(ceph_cluster, ceph_pool) == set()


def test_depth(backend):
    """Goal: the chain ends before the kernel client's limit; trashed ancestors count."""
    backend.create("d0", SIZE)
    for depth in range(1, RBD_DEPTH_MAX + 1):
        backend.create_snapshot(f"d{depth - 1}", "s")
        backend.clone(f"d{depth - 1}", "s", f"d{depth}", SIZE)
        backend.delete(f"d{depth - 1}")
    last = f"d{RBD_DEPTH_MAX}"
    assert backend.describe(last).depth == RBD_DEPTH_MAX
    with pytest.raises(PreconditionError, match="flatten") as caught:
        backend.clone(last, None, "more", SIZE)
    assert caught.value.reason == Reason.DEPTH_LIMIT
    backend.flatten(last, no_progress)
    assert backend.describe(last).depth == 0
    backend.clone(last, None, "more", SIZE)


def test_parent_of_a_deleted_volume_keeps_its_name(backend):
    backend.create("root", SIZE)
    backend.create_snapshot("root", "s")
    backend.clone("root", "s", "a", SIZE)
    backend.delete("root")
    facts = backend.describe("a")
    assert (facts.parent_volume_id, facts.parent_snapshot_id) == ("root", "s")


def test_hidden_snapshots_stay_hidden(backend, ceph_cluster, ceph_pool):
    """Goal: a clone of a live volume leaves no trace on its source. Method: look with librbd."""
    import rbd

    backend.create("root", SIZE)
    backend.clone("root", None, "a", SIZE)
    assert backend.describe("root").snapshot_ids == ()
    assert backend.describe("a").parent_snapshot_id is None
    with raw_pool(ceph_cluster, ceph_pool) as ioctx, rbd.Image(ioctx, "root") as image:
        namespaces = {snap["namespace"] for snap in image.list_snaps()}
        assert namespaces == {rbd.RBD_SNAP_NAMESPACE_TYPE_TRASH}
    backend.delete("a")
    with raw_pool(ceph_cluster, ceph_pool) as ioctx, rbd.Image(ioctx, "root") as image:
        assert list(image.list_snaps()) == []


def test_delete_in_use_elsewhere(backend, ceph_cluster, ceph_pool):
    """Goal: a volume that a client has open loses nothing. Method: open it through other means."""
    import rbd

    backend.create("busy", SIZE)
    put(backend, "busy", 0, b"data")
    backend.create_snapshot("busy", "s")
    with raw_pool(ceph_cluster, ceph_pool) as ioctx, rbd.Image(ioctx, "busy") as image:
        for call in (
            lambda: backend.delete("busy"),
            lambda: backend.revert("busy", "s"),
        ):
            with pytest.raises(PreconditionError) as caught:
                call()
            assert caught.value.reason == Reason.VOLUME_IN_USE
            (blocker,) = caught.value.blockers
            assert isinstance(blocker, Blocker)
            assert blocker.name in caught.value.message
            assert blocker.name == next(iter(image.watchers_list()))["addr"]
        assert image.read(0, 4) == b"data"
    assert backend.describe("busy").snapshot_ids == ("s",)
    backend.delete("busy")


def test_dropping_watches_changes_nothing_else(backend, ceph_cluster, ceph_pool):
    """Goal: a header written anew is the same header. Method: compare, then use the image."""
    import rbd

    backend.create("root", SIZE)
    put(backend, "root", 0, b"root")
    backend.create_snapshot("root", "s")
    backend.clone("root", "s", "a", SIZE)
    session = backend._session()
    image_id = session.headers.image_id("root")
    with raw_pool(ceph_cluster, ceph_pool) as ioctx, rbd.Image(ioctx, "root") as image:
        before = session.watchers._page(f"rbd_header.{image_id}", "")
        assert not session.watchers.forget_dead("root", image_id)
        assert len(list(image.watchers_list())) == 1
        session.watchers.forget_all(image_id)
        assert session.watchers._page(f"rbd_header.{image_id}", "") == before
        image.write(b"R", 0)
    assert fetch(backend, "root", 0, 4) == b"Root"
    assert fetch(backend, "a", 0, 4) == b"root"
    assert backend.describe("root").snapshot_ids == ("s",)
    backend.delete("root")
    backend.delete("a")
    assert leftovers(ceph_cluster, ceph_pool) == set()


def test_snapshot_in_use(backend):
    backend.create("v", SIZE)
    backend.create_snapshot("v", "s")
    with backend.open_device("v", "s", read_only=True):
        for call in (lambda: backend.delete_snapshot("v", "s"), lambda: backend.delete("v")):
            with pytest.raises(PreconditionError) as caught:
                call()
            assert caught.value.reason == Reason.VOLUME_IN_USE
        backend.revert("v", "s")
    backend.delete_snapshot("v", "s")


def test_allocated_bytes_are_those_of_rbd_du(backend, ceph_cluster, ceph_pool):
    """Goal: object maps are read right. Method: compare with librbd's own whole-object diff."""
    import rbd

    backend.create("v", 40 * MIB)
    for step, chunk in enumerate((0, 3, 3, 9)):
        put(backend, "v", chunk * CHUNK_SIZE_BYTES + 5, b"x")
        backend.create_snapshot("v", f"s{step}")
    put(backend, "v", 0, b"y")
    backend.clone("v", "s3", "c", 40 * MIB)
    put(backend, "c", CHUNK_SIZE_BYTES * 7, b"z")
    hits = []
    with raw_pool(ceph_cluster, ceph_pool) as ioctx, rbd.Image(ioctx, "v") as image:
        points = [None, "s0", "s1", "s2", "s3", None]
        for before, after in itertools.pairwise(points):
            image.set_snap(after)
            image.diff_iterate(0, image.size(), before, lambda *hit: hits.append(hit), False, True)
    assert backend.describe("v").allocated_bytes == len(hits) * CHUNK_SIZE_BYTES
    assert backend.describe("c").allocated_bytes == CHUNK_SIZE_BYTES


def test_revert_after_flatten(backend):
    """Goal: a snapshot from before a flatten still has the parent's bytes, and so has a revert."""
    backend.create("root", SIZE)
    put(backend, "root", 0, b"from the parent")
    backend.create_snapshot("root", "s")
    backend.clone("root", "s", "a", SIZE)
    backend.create_snapshot("a", "before")
    put(backend, "a", 0, b"changed")
    backend.flatten("a", no_progress)
    backend.delete("root")
    assert fetch(backend, "a", 0, 15, "before") == b"from the parent"
    backend.revert("a", "before")
    assert fetch(backend, "a", 0, 15) == b"from the parent"


def test_diff_of_a_clone_covers_every_change(backend):
    """Goal: an incremental backup misses nothing. Method: compare all bytes outside of the diff."""
    import random

    dice = random.Random(3)
    backend.create("root", SIZE)
    put(backend, "root", 0, dice.randbytes(SIZE))
    backend.create_snapshot("root", "s")
    backend.clone("root", "s", "a", SIZE + 4 * MIB)
    backend.create_snapshot("a", "p0")
    for step in range(1, 6):
        with backend.open_device("a", read_only=False) as device:
            for _ in range(3):
                offset, length = dice.randrange(SIZE), dice.choice([1, 4096, 70000, MIB])
                length = min(length, SIZE - offset)
                if dice.random() < 0.5:
                    device.write(offset, dice.randbytes(length))
                else:
                    device.discard(offset, length)
        if step == 3:
            backend.flatten("a", no_progress)
        backend.create_snapshot("a", f"p{step}")
        before = bytearray(fetch(backend, "a", 0, SIZE, f"p{step - 1}"))
        after = fetch(backend, "a", 0, SIZE, f"p{step}")
        for extent in backend.diff("a", f"p{step - 1}", f"p{step}"):
            where = slice(extent.offset_bytes, min(extent.end_bytes, SIZE))
            before[where] = after[where]
        assert before == after
        rebuilt = bytearray(SIZE)
        for extent in backend.diff("a", None, f"p{step}"):
            where = slice(extent.offset_bytes, min(extent.end_bytes, SIZE))
            rebuilt[where] = after[where]
        assert rebuilt == after


def test_an_ancestor_that_is_being_freed(backend, monkeypatch):
    """Goal: what is there is found. Method: librbd's answer when it meets a header on its way out.

    Soak on Ceph, seed 4.
    """
    import rbd

    three_generations(backend, live=False)
    found, answers = rbd.Image, iter(["gone"] * 3)

    def image(*words, **named):
        if next(answers, None):
            raise rbd.ImageNotFound("an ancestor is on its way out", errno=errno.ENOENT)
        return found(*words, **named)

    monkeypatch.setattr(rbd, "Image", image)
    assert fetch(backend, "aa", 0, 4) == b"root"
    assert next(answers, None) is None
    answers = iter(["gone"] * 100)
    with pytest.raises(NotFoundError):
        fetch(backend, "aa", 0, 4)


def test_a_clone_that_meets_an_ancestor_being_freed(backend, monkeypatch):
    """Goal: a call that is to be repeated says so, and leaves nothing. Method: as above."""
    import rbd

    backend.create("gold", SIZE)
    backend.create_snapshot("gold", "s")
    clone = rbd.RBD.clone

    def gone(*_, **__):
        raise rbd.ImageNotFound("an ancestor is on its way out", errno=errno.ENOENT)

    for snapshot in ("s", None):
        monkeypatch.setattr(rbd.RBD, "clone", gone)
        with pytest.raises(OperationPendingError) as caught:
            backend.clone("gold", snapshot, "c", SIZE)
        assert caught.value.retryable
        monkeypatch.setattr(rbd.RBD, "clone", clone)
        assert sorted(backend.walk()) == ["gold"]
        session = backend._session()
        image_id = session.headers.image_id("gold")
        assert len(session.headers.snaps(image_id)) == 1
        backend.clone("gold", snapshot, "c", SIZE)
        backend.delete("c")
