"""Both paths at once, killed again and again; then rbd's own tools judge."""

import contextlib
import json
import random
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from rbd_backend.pools import leftovers, opened, options, raw_pool
from rbd_backend.test_direct import links
from volcore.backends.contract import ShortPathState
from volcore.backends.rbd.opening import settled
from volcore.errors import NotFoundError
from volcore.limits import BLOCK_SIZE_BYTES
from volcore.testing.direct_mix import (
    BLOCKS,
    SOURCE,
    Journal,
    first_tag,
    is_blank,
    prepare,
)
from volcore.testing.rbd_judge import looked

KILLS = 4
RUN_S = (0.5, 2.5)


@pytest.mark.skipif(shutil.which("rbd") is None, reason="no rbd command")
def test_kill_in_the_middle(ceph_cluster, ceph_pool, tmp_path):
    """Goal: nothing lost, nothing left. Method: kill -9 at random times, compare all bytes."""
    dice = random.Random(11)
    with opened(ceph_cluster, ceph_pool, direct=True) as backend:
        assert backend.wait_for_short_path().state is ShortPathState.ON
        prepare(backend)
    lines: list[str] = []
    snapshot_count = 0
    for seed in range(KILLS):
        run_and_kill(ceph_cluster, ceph_pool, tmp_path / "journal", seed, dice.uniform(*RUN_S))
        lines += (tmp_path / "journal").read_text().splitlines()
        journal = Journal.read(lines)
        with opened(ceph_cluster, ceph_pool, direct=True) as backend:
            backend.collect()
            alive = settle(backend, journal)
            check_bytes(ceph_cluster, ceph_pool, journal, alive)
            check_snapshots(ceph_cluster, ceph_pool, journal, alive)
            assert not any(image_id for _, image_id in backend._session().directory.numbers())
            check_tools(ceph_cluster, ceph_pool, alive)
            clones = [name for name in alive if not is_blank(name)]
            ids = {backend._session().headers.image_id(name) for name in clones}
            assert links(ceph_cluster, ceph_pool, backend) == ids
            # What was in doubt is decided now; later journals go on from there.
            with ThreadPoolExecutor(8) as pool:
                list(pool.map(backend.delete, alive))
        lines = []
        snapshot_count += sum(map(len, journal.snapshots.values()))
    assert journal.call_count > 0
    assert snapshot_count > 0
    with opened(ceph_cluster, ceph_pool) as backend:
        backend.delete(SOURCE)
        backend.collect()
    assert leftovers(ceph_cluster, ceph_pool) == set()


def run_and_kill(access, pool, journal, seed, run_s):
    """Let the work go on for a while from its first call, then kill it."""
    chosen = options(access)
    command = [sys.executable, "-m", "volcore.testing.direct_mix", chosen.conf_path, chosen.user]
    with journal.open("w") as out:
        process = subprocess.Popen([*command, pool, "--seed", str(seed)], stdout=out)
        try:
            end_s = time.monotonic() + 30
            while not journal.stat().st_size and time.monotonic() < end_s:
                assert process.poll() is None
                time.sleep(0.02)
            time.sleep(run_s)
            assert process.poll() is None, "it ended by itself"
        finally:
            process.kill()
            process.wait()


def settle(backend, journal):
    """Return the volumes that exist: all that must, and of those in doubt whatever is whole.

    Deletes that were cut are repeated, as the engine does: until then the image may have left
    librbd's list already, though not the backend's.
    """
    for call in journal.undecided.values():
        if call["act"] == "delete":
            for name in call["names"]:
                with contextlib.suppress(NotFoundError):
                    backend.delete(name)
    alive = set(backend.walk()) - {SOURCE}
    must = set(journal.volumes)
    doubt = journal.in_doubt()
    assert must - doubt <= alive
    assert alive - must <= doubt
    return sorted(alive)


def check_bytes(access, pool, journal, alive):
    """librbd, from another client, reads what the journal says."""
    import rbd

    pending = {name: call for call in journal.undecided.values() for name in call["names"]}
    with raw_pool(access, pool) as ioctx:
        for name in alive:
            tags = journal.volumes.get(name, {})
            with settled(rbd.Image(ioctx, name, read_only=True)) as image:
                for offset in BLOCKS:
                    found = set(image.read(offset, BLOCK_SIZE_BYTES))
                    allowed = [{tags.get(offset, first_tag(name))}]
                    call = pending.get(name, {})
                    if call.get("act") == "write" and call["offset"] == offset:
                        allowed.append({call["tag"]})
                    assert found in allowed, (name, offset)


def check_snapshots(access, pool, journal, alive):
    """Snapshots are there or were never answered, with the bytes of their moment."""
    import rbd

    begun = {call.get("snapshot") for call in journal.undecided.values()}
    with raw_pool(access, pool) as ioctx:
        for name in alive:
            taken = journal.snapshots.get(name, {})
            with settled(rbd.Image(ioctx, name, read_only=True)) as image:
                found = {one["name"] for one in image.list_snaps()}
                assert set(taken) <= found <= set(taken) | begun
                for snapshot, tags in taken.items():
                    image.set_snap(snapshot)
                    for offset in BLOCKS:
                        data = set(image.read(offset, BLOCK_SIZE_BYTES))
                        assert data == {tags.get(offset, first_tag(name))}, (name, snapshot, offset)


def check_tools(access, pool, alive):
    """`rbd` lists, describes, measures and checks every image."""

    def rbd(*words):
        done = looked(["rbd", "--conf", str(access.conf_path), "--pool", pool], *words)
        assert done.returncode == 0, (words, done.returncode, done.stderr[-2000:])
        return done.stdout

    assert sorted(json.loads(rbd("ls", "--format", "json"))) == sorted([*alive, SOURCE])
    children = json.loads(rbd("children", f"{SOURCE}@s", "--format", "json"))
    clones = [name for name in alive if not is_blank(name)]
    assert sorted(child["image"] for child in children) == clones

    def measured(name):
        return {one["name"] for one in json.loads(rbd("du", name, "--format", "json"))["images"]}

    with ThreadPoolExecutor(2) as threads:
        # One by one: of many images opened and closed by one command, it dies of one (0017).
        assert all(
            names == {name} for name, names in zip(alive, threads.map(measured, alive), strict=True)
        )
    for name in clones[:3] + [name for name in alive if is_blank(name)][:3]:
        found = json.loads(rbd("info", name, "--format", "json"))
        assert is_blank(name) or found["parent"]["image"] == SOURCE
        assert not found["flags"]
        rbd("object-map", "check", "--no-progress", name)
