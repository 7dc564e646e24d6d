"""One server per pool, and what a killed one leaves."""

import json
import random
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing, suppress

import pytest

from rbd_backend.pools import leftovers, new_backend, opened, options, raw_pool
from volcore.backends.rbd import Cluster, lease
from volcore.backends.rbd.lease import LOCK_NAME, LOCK_OBJECT, PoolLease
from volcore.backends.rbd.opening import settled
from volcore.errors import NotFoundError, PreconditionError, Reason, UnavailableError
from volcore.limits import MIB
from volcore.testing.device_contract import fetch, put

SIZE = 8 * MIB

SERVER = """
import sys
from volcore.backends.rbd import Cluster, RbdBackend
from volcore.backends.rbd.connection import ClusterOptions

conf_path, user, pool = sys.argv[1:4]
backend = RbdBackend(Cluster(ClusterOptions(conf_path=conf_path, user=user)), pool)
backend.open()
"""


def start_server(access, pool, script):
    """Run a server in a process of its own until its first line of output."""
    found = options(access)
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER + script, found.conf_path, found.user, pool],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    return process


def kill(process):
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()


def test_second_server_is_refused(ceph_cluster, ceph_pool):
    """Goal: one server per pool. Method: a second one beside it, then after a clean stop."""
    with opened(ceph_cluster, ceph_pool) as first:
        first.create("v", SIZE)
        with pytest.raises(PreconditionError, match=r"process \d+") as caught:
            new_backend(ceph_cluster, ceph_pool).open()
        assert caught.value.reason == Reason.POOL_LOCKED
        assert caught.value.blockers
        with opened(ceph_cluster, ceph_pool, lock=False) as beside:
            assert list(beside.walk()) == ["v"]
    with opened(ceph_cluster, ceph_pool) as second:
        assert list(second.walk()) == ["v"]


def test_killed_server_is_replaced_at_once(ceph_cluster, ceph_pool):
    """Goal: no wait, and no ghost. Method: kill -9 with a volume open for writing; delete it."""
    process = start_server(
        ceph_cluster,
        ceph_pool,
        f"""
backend.create("v", {SIZE})
device = backend.open_device("v", read_only=False)
device.write(0, b"written")
print("ready", flush=True)
sys.stdin.read()
""",
    )
    kill(process)
    started_s = time.monotonic()
    with opened(ceph_cluster, ceph_pool) as backend:
        assert fetch(backend, "v", 0, 7) == b"written"
        put(backend, "v", 0, b"on")
        backend.delete("v")
    assert time.monotonic() - started_s < 15
    assert leftovers(ceph_cluster, ceph_pool) == set()


def test_superseded_server_cannot_write(ceph_cluster, ceph_pool, monkeypatch):
    """Goal: a server that slept through its lease does no harm. Method: take its lock away."""
    monkeypatch.setattr(lease, "RENEW_S", 3.0)
    lost = threading.Event()
    old = new_backend(ceph_cluster, ceph_pool, on_lost=lost.set)
    old.open()
    with closing(old):
        old.create("v", SIZE)
        device = old.open_device("v", read_only=False)
        with raw_pool(ceph_cluster, ceph_pool) as ioctx:
            ioctx.remove_object(LOCK_OBJECT)
        new = new_backend(ceph_cluster, ceph_pool)
        new.open()
        try:
            assert lost.wait(20)
            assert not old._session().lease.held
            for call in (
                lambda: old.create("w", SIZE),
                lambda: old.delete("v"),
                lambda: device.write(0, b"late"),
            ):
                with pytest.raises(UnavailableError):
                    call()
            # Also where its own clock would let it: the cluster has fenced it.
            monkeypatch.setattr(PoolLease, "held", property(lambda _: True))
            with pytest.raises(UnavailableError):
                device.write(0, b"late")
            monkeypatch.undo()
            assert fetch(new, "v", 0, 4) == bytes(4)
        finally:
            new.close()
        with suppress(UnavailableError):
            device.close()


def test_lease_runs_out(ceph_cluster, ceph_pool, monkeypatch):
    """Goal: a server that stopped renewing is replaced. Method: a lease of 4 s, never renewed."""
    monkeypatch.setattr(lease, "LEASE_S", 4)
    monkeypatch.setattr(lease, "RENEW_S", 100)
    with opened(ceph_cluster, ceph_pool) as old:
        old.create("v", SIZE)
        with pytest.raises(PreconditionError):
            new_backend(ceph_cluster, ceph_pool).open()
        time.sleep(4.1)
        with pytest.raises(UnavailableError, match="lock"):
            old.create("w", SIZE)
        with opened(ceph_cluster, ceph_pool) as new:
            assert list(new.walk()) == ["v"]


def test_lease_that_ran_out_is_taken_again(ceph_cluster, ceph_pool, monkeypatch):
    """Goal: a pause of the cluster costs no server. Method: the lock is gone, and nobody came."""
    monkeypatch.setattr(lease, "RENEW_S", 0.1)
    lost = threading.Event()
    backend = new_backend(ceph_cluster, ceph_pool, on_lost=lost.set)
    backend.open()
    with closing(backend), raw_pool(ceph_cluster, ceph_pool) as ioctx:
        ioctx.rm_xattr(LOCK_OBJECT, f"lock.{LOCK_NAME}")
        end_s = time.monotonic() + 10
        while f"lock.{LOCK_NAME}" not in dict(ioctx.get_xattrs(LOCK_OBJECT)):
            assert time.monotonic() < end_s, "the lock is not taken again"
            time.sleep(0.02)
        backend.create("v", SIZE)
        assert not lost.is_set()


def test_pool_that_somebody_had_is_lost(ceph_cluster, ceph_pool, monkeypatch):
    """Goal: never on with what one remembers. Method: the lock is gone, and another server served.

    It could not fence this one off, and has gone since: only its name in the directory tells.
    """
    monkeypatch.setattr(lease, "RENEW_S", 0.1)
    lost = threading.Event()
    backend = new_backend(ceph_cluster, ceph_pool, on_lost=lost.set)
    backend.open()
    with closing(backend), raw_pool(ceph_cluster, ceph_pool) as ioctx:
        backend._session().directory.set_server(None)
        ioctx.rm_xattr(LOCK_OBJECT, f"lock.{LOCK_NAME}")
        assert lost.wait(10)
        with pytest.raises(UnavailableError):
            backend.create("v", SIZE)
        with opened(ceph_cluster, ceph_pool) as after:
            assert list(after.walk()) == []


def test_nobody_takes_over_who_cannot_fence(ceph_cluster, ceph_pool, monkeypatch):
    """Goal: two never write at once. Method: a server of another host, and no right to fence it."""
    text = json.dumps({"host": "elsewhere", "boot": "other", "pid": 1, "address": "10.0.0.1:0/1"})
    with opened(ceph_cluster, ceph_pool) as backend:
        backend.create("v", SIZE)
    with opened(ceph_cluster, ceph_pool, lock=False) as beside:
        beside._session().directory.set_server(text.encode())
        monkeypatch.setattr(Cluster, "fence", lambda *_: False)
        with pytest.raises(PreconditionError, match="profile rbd") as caught:
            new_backend(ceph_cluster, ceph_pool).open()
        assert caught.value.reason == Reason.POOL_UNUSABLE
        monkeypatch.undo()
        with opened(ceph_cluster, ceph_pool) as after:
            assert list(after.walk()) == ["v"]


def test_holder_of_another_host_is_waited_for(ceph_cluster, ceph_pool):
    """Goal: nobody breaks the lock of a process he cannot see. Method: a foreign holder."""
    text = json.dumps({"host": "elsewhere", "boot": "other", "pid": 1})
    with raw_pool(ceph_cluster, ceph_pool) as ioctx:
        ioctx.lock_exclusive(LOCK_OBJECT, LOCK_NAME, "theirs", text, 30)
        with pytest.raises(PreconditionError, match="elsewhere, process 1"):
            new_backend(ceph_cluster, ceph_pool).open()
        ioctx.unlock(LOCK_OBJECT, LOCK_NAME, "theirs")
        with opened(ceph_cluster, ceph_pool):
            pass


@pytest.mark.parametrize("seed", range(8))
def test_kill_anywhere(ceph_cluster, ceph_pool, seed):
    """Goal: whatever a kill interrupts, delete and collect finish. Method: kill -9 at random times.

    The victim makes, clones and deletes; each volume it told of must be whole, each other one
    must be whole, gone, or go with `delete` of its id, as engine recovery would call it.
    """
    dice = random.Random(seed)
    process = start_server(
        ceph_cluster,
        ceph_pool,
        f"""
print("ready", flush=True)
for n in range(1000):
    backend.create(f"root{{n}}", {SIZE})
    with backend.open_device(f"root{{n}}", read_only=False) as device:
        device.write(0, b"root")
    backend.create_snapshot(f"root{{n}}", "s")
    backend.clone(f"root{{n}}", "s", f"a{{n}}", {2 * SIZE})
    backend.clone(f"a{{n}}", None, f"b{{n}}", {2 * SIZE})
    for name in ("root", "a", "b")[:: 1 - 2 * (n % 2)]:
        backend.delete(f"{{name}}{{n}}")
    print(n, flush=True)
""",
    )
    time.sleep(0.2 + dice.random())
    process.send_signal(signal.SIGKILL)
    last = process.stdout.read().count("\n")
    process.wait()
    process.stdout.close()
    with opened(ceph_cluster, ceph_pool) as backend:
        for volume_id in backend.walk():
            if not volume_id.startswith("root"):
                assert fetch(backend, volume_id, 0, 4) == b"root"
        for n in range(last + 2):
            for name in ("root", "a", "b"):
                with suppress(NotFoundError):
                    backend.delete(f"{name}{n}")
        assert list(backend.walk()) == []
        backend.collect()
        assert leftovers(ceph_cluster, ceph_pool) == set()


def test_collect_sweeps_what_a_kill_left_half_made(ceph_cluster, ceph_pool):
    """Goal: nothing leaks without the engine's help. Method: write the rows a kill leaves."""
    with opened(ceph_cluster, ceph_pool) as backend:
        directory = backend._session().directory
        backend.create("source", SIZE)
        # Killed after the reservation.
        directory.reserve("none", "")
        # Killed after the image.
        directory.reserve("made", "")
        # Killed after the hidden snapshot.
        directory.reserve("hidden", "source")
        backend.create_snapshot("source", ".clone-hidden")
        # Killed after the move to the trash.
        backend.create("moved", SIZE)
        # Killed after the volume had gone from the directory.
        backend.create("retired", SIZE)
        session = backend._session()
        session.rbd.create(session.ioctx, "made", SIZE, old_format=False, features=61)
        session.rbd.trash_move(session.ioctx, "moved", 0)
        entry = directory.find("retired")
        directory.retire(entry, entry.image_id)
        backend.collect()
        assert sorted(backend.walk()) == ["moved", "source"]
        backend.delete("moved")
        assert [s["name"] for s in snapshots_of(ceph_cluster, ceph_pool, "source")] == []
        backend.delete("source")
        assert leftovers(ceph_cluster, ceph_pool) == set()


def snapshots_of(access, pool, name):
    import rbd

    with raw_pool(access, pool) as ioctx, settled(rbd.Image(ioctx, name, read_only=True)) as image:
        return list(image.list_snaps())
