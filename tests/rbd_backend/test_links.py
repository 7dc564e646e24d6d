"""Links that a killed client left cut on one side: what librbd loses then, volcore does not."""

import contextlib
import struct
import subprocess

import pytest

from rbd_backend.glance import glance_store
from rbd_backend.pools import leftovers, opened, raw_pool
from volcore.backends.rbd.opening import settled
from volcore.backends.rbd.session import FEATURES, ORDER
from volcore.errors import NotFoundError, VolcoreError
from volcore.limits import MIB
from volcore.testing.device_contract import fetch, put

SIZE = 12 * MIB
DATA = bytes(range(256)) * (SIZE // 256)


@pytest.fixture
def pool(ceph_cluster, ceph_pool):
    """Opens the pool, again and again."""
    return lambda: opened(ceph_cluster, ceph_pool)


@pytest.fixture
def plain(ceph_cluster, ceph_pool):
    with raw_pool(ceph_cluster, ceph_pool) as ioctx:
        yield ioctx


def make(backend):
    """A clone that has been copied, as it is when librbd begins to cut."""
    backend.create("parent", SIZE)
    put(backend, "parent", 0, DATA)
    backend.create_snapshot("parent", "s")
    backend.clone("parent", "s", "child", SIZE)
    put(backend, "child", 0, DATA)


def cut(ioctx, backend, name="child"):
    """Do what librbd does first of all when it ends a link: the parent forgets its clone."""
    headers = backend._session().headers
    image_id = headers.image_id(name)
    parent = headers.parent(image_id)
    raw = image_id.encode()
    spec = struct.pack("<qI", ioctx.get_pool_id(), len(raw)) + raw + bytes(4)
    body = struct.pack("<QBBI", parent.snap, 2, 1, len(spec)) + spec
    ioctx.execute(f"rbd_header.{parent.image_id}", "rbd", "child_detach", body)


def opens(ioctx, name):
    import rbd

    with contextlib.suppress(rbd.ImageNotFound), settled(rbd.Image(ioctx, name, read_only=True)):
        return True
    return False


def test_librbd_cuts_last(ceph_cluster, ceph_pool, pool):
    """Goal: what the module builds on is so. Method: the requests of a flatten, in their order."""
    with pool() as backend:
        backend.create("parent", SIZE)
        put(backend, "parent", 0, DATA)
        backend.create_snapshot("parent", "s")
        backend.clone("parent", "s", "child", SIZE)
        image_id = backend._session().headers.image_id("child")
    words = ["flatten", "--no-progress", "child", "--debug-ms", "1", "--log-to-stderr=true"]
    command = ["rbd", "--conf", str(ceph_cluster.conf_path), "--pool", ceph_pool, *words]
    log = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    sent = [line for line in log.splitlines() if "--> " in line and "osd_op(" in line]
    copies = [at for at, line in enumerate(sent) if f"rbd_data.{image_id}" in line]
    (child,) = [at for at, line in enumerate(sent) if "rbd.child_detach" in line]
    (parent,) = [at for at, line in enumerate(sent) if "rbd.parent_detach" in line]
    assert len(copies) >= SIZE // (4 * MIB)
    assert max(copies) < child < parent


def test_a_flatten_cut_short(ceph_cluster, ceph_pool, pool, plain):
    """Goal: nothing is lost. Method: cut the parent's side, restart, collect; flatten again."""
    with pool() as backend:
        make(backend)
        backend.delete("parent")
        backend._session().directory.set_flattening("child", True)
        cut(plain, backend)
    with pool() as backend:
        backend.collect()
        assert fetch(backend, "child", 0, SIZE) == DATA
        backend.flatten("child", lambda *_: None)
        assert list(backend._session().directory.walk_flattening()) == []
        assert fetch(backend, "child", 0, SIZE) == DATA
        backend.delete("child")
    assert leftovers(ceph_cluster, ceph_pool) == set()


def test_a_flatten_cut_short_whose_parent_is_gone(ceph_cluster, ceph_pool, pool, plain):
    """Goal: a copied volume is not lost. Method: copy all, cut, free the parent, restart."""
    with pool() as backend:
        make(backend)
        backend.create_snapshot("child", "kept")
        backend._session().directory.set_flattening("child", True)
        cut(plain, backend)
        backend.delete("parent")
        assert not opens(plain, "child"), "librbd could: this module is not needed any more"
    with pool() as backend:
        assert backend.describe("child").depth == 0
        assert fetch(backend, "child", 0, SIZE) == DATA
        with backend.open_device("child", "kept", read_only=True) as device:
            assert device.read(0, SIZE) == DATA
        backend.flatten("child", lambda *_: None)
        assert list(backend._session().directory.walk_flattening()) == []
        backend.delete("child")
    assert leftovers(ceph_cluster, ceph_pool) == set()


@pytest.mark.parametrize("whole", [True, False])
def test_a_parent_in_another_pool(ceph_cluster, ceph_pool, pool, plain, whole):
    """Goal: the same for a volume that was adopted. Method: Glance deletes the parent meanwhile."""
    import rbd

    other = f"{ceph_pool}-images"
    ceph_cluster.create_pool(other)
    with contextlib.ExitStack() as undo:
        undo.callback(ceph_cluster.delete_pool, other)
        store = undo.enter_context(glance_store(ceph_cluster, other))
        store.add("parent", SIZE, {0: DATA})
        rbd.RBD().clone(
            store.ioctx, "parent", "snap", plain, "child", FEATURES, ORDER,
            stripe_unit=1 << ORDER, stripe_count=1,
        )  # fmt: skip
        with pool() as backend:
            backend.adopt("child")
            backend._session().directory.set_flattening("child", True)
            if not whole:
                put(backend, "child", 0, DATA)
                headers = backend._session().headers
                image_id = headers.image_id("child")
                parent = headers.parent(image_id)
                store.forget_child(parent, image_id, pool_id=headers.pool_id)
        assert store.delete("parent") == ("trashed" if whole else "removed")
        assert opens(plain, "child") is whole
        with pool() as backend:
            assert backend.describe("child").depth == (1 if whole else 0)
            assert fetch(backend, "child", 0, SIZE) == DATA
            backend.flatten("child", lambda *_: None)
            assert fetch(backend, "child", 0, SIZE) == DATA
            backend.delete("child")
        assert store.purge() == 0
        assert leftovers(ceph_cluster, other) == set()
    assert leftovers(ceph_cluster, ceph_pool) == set()


def test_a_flatten_that_fails(pool, plain):
    """Goal: no restart is needed. Method: cut the link, and let the flatten fail."""
    with pool() as backend:
        make(backend)

        def stop(done, total):
            cut(plain, backend)
            raise VolcoreError("no", reason="CANCELLED")

        with pytest.raises(VolcoreError, match="no"):
            backend.flatten("child", stop)
        backend.delete("parent")
        assert fetch(backend, "child", 0, SIZE) == DATA


def test_a_needless_snapshot(pool, plain):
    """Goal: a deleted snapshot goes with its last clone. Method: cut, and restart."""
    with pool() as backend:
        make(backend)
        backend.delete_snapshot("parent", "s")
        backend._session().directory.set_flattening("child", True)
        cut(plain, backend)
        image_id = backend._session().headers.image_id("parent")
        assert len(backend._session().headers.snaps(image_id)) == 1
    with pool() as backend:
        assert backend._session().headers.snaps(image_id) == []
        assert fetch(backend, "child", 0, SIZE) == DATA


def test_links_that_are_whole(pool):
    """Goal: INV-RBD-6. Method: restart in the middle of a flatten, and with a needed ancestor."""
    with pool() as backend:
        make(backend)
        backend.clone("child", None, "grandchild", SIZE)
        backend._session().directory.set_flattening("child", True)
        backend.delete("child")
        backend.delete("parent")
        backend._session().directory.set_flattening("grandchild", True)
    with pool() as backend:
        assert backend.describe("grandchild").depth == 2
        assert fetch(backend, "grandchild", 0, SIZE) == DATA


@pytest.mark.parametrize("parent_first", [False, True])
def test_a_delete_cut_short(ceph_cluster, ceph_pool, pool, plain, parent_first):
    """Goal: no image stays for ever. Method: to the trash, cut, perhaps free the parent."""
    import rbd

    with pool() as backend:
        make(backend)
        cut(plain, backend)
        session = backend._session()
        entry = session.find("child")
        rbd.RBD().trash_move(plain, "child", 0)
        assert session.directory.retire(entry, entry.image_id)
        if parent_first:
            backend.delete("parent")
    with pool() as backend:
        backend.collect()
        with contextlib.suppress(NotFoundError):
            backend.delete("parent")
    assert leftovers(ceph_cluster, ceph_pool) == set()


def test_a_clone_cut_short(ceph_cluster, ceph_pool, pool, plain):
    """Goal: a half clone goes. Method: as librbd leaves it, and its parent is freed before."""
    import rbd

    with pool() as backend:
        make(backend)
        backend.delete("child")
        assert backend._session().directory.reserve("half", "")
        rbd.RBD().clone(plain, "parent", "s", plain, "half", FEATURES, ORDER)
        cut(plain, backend, "half")
        backend.delete("parent")
    with pool() as backend:
        backend.collect()
        assert list(backend.walk()) == []
    assert leftovers(ceph_cluster, ceph_pool) == set()
