"""Clones that are made without a look at the catalog, on a real Ceph."""

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from rbd_backend.pools import client_counters, leftovers
from rbd_backend.test_warm import SIZE, Site, start
from volcore.engine import making
from volcore.engine.engine import Engine, EngineSettings
from volcore.engine.views import CreateVolume, SourceRef
from volcore.errors import ConflictError, Reason
from volcore.model.records import AccessMode, SourceKind, State, Volume
from volcore.testing.crash import Crash, CrashingCatalog, CrashSwitch
from volcore.testing.device_contract import fetch, put
from volcore.testing.intents import intents_of


def clone(site: Site, name: str, size_bytes: int = 0) -> Volume:
    source = SourceRef(kind=SourceKind.SNAPSHOT, key="src/s")
    request = CreateVolume(name=name, source=source, size_bytes=size_bytes)
    return site.engine.volumes.create("p", request)


def prepare(site: Site) -> None:
    """The snapshot `src/s` and the image `gold` of the same content, both seen lately."""
    site.engine.volumes.create("p", CreateVolume(name="src", size_bytes=SIZE))
    put(site.backend, site.pool.volume("src").backend_id, 0, b"gold")
    site.engine.snapshots.create("p", "src", "s")
    site.engine.images.publish("p", "gold", "src", "s")
    clone(site, "first")
    site.deploy("second")


@pytest.fixture
def site(ceph_cluster, ceph_pool) -> Iterator[Site]:
    found = start(ceph_cluster, ceph_pool, count_max=0)
    with found.undo:
        prepare(found)
        yield found


def test_rounds_as_the_client_counts_them(ceph_cluster, ceph_pool, tmp_path):
    """Goal: no read for a clone, one for a repeat. Method: librados' own counters.

    The lease is renewed and records are looked through now and then beside it, for some ms: hence
    the least of some, a while apart.
    """
    at, conf = tmp_path / "client.asok", tmp_path / "ceph.conf"
    conf.write_text(ceph_cluster.conf_path.read_text() + f"\n[client]\nadmin socket = {at}\n")
    site = start(ceph_cluster, ceph_pool, count_max=0, conf=str(conf))

    def cost(act: Callable[[str], object], stem: str, *, forget: bool = False) -> tuple[int, int]:
        found = []
        for attempt in range(5):
            time.sleep(0.1)
            if forget:
                site.pool.catalog.lately._names.clear()
            before = client_counters(at)
            act(f"{stem}{attempt}")
            site.backend._session().direct.flush()
            site.pool.making.flush()
            after = client_counters(at)
            found.append(tuple(after[key] - before[key] for key in ("op_w", "op_r")))
        return min(found)

    with site.undo:
        prepare(site)
        assert cost(lambda name: clone(site, name), "a") == (2 + 1 + 4 + 1 + 1, 0)

        def two(stem: str) -> None:
            clone(site, f"{stem}-one")
            clone(site, f"{stem}-two")

        assert cost(two, "d") == (2 * (2 + 1 + 4) + 1 + 1, 0), "what follows goes with the next"
        assert cost(lambda name: clone(site, name), "a") == (0, 1)
        assert cost(site.deploy, "b") == (9, 0)
        many = [f"-{number}" for number in range(5)]
        deploy = cost(lambda stem: site.deploy(*(stem + end for end in many)), "c")
        assert deploy == (2 + 1 + 4 * 5 + 1 + 1, 0)
        assert cost(lambda name: clone(site, name), "a", forget=True) == (2 + 1 + 2, 2), (
            "names and intent refused, the names taken back; why, and what there is"
        )
        assert not leftovers_of_names(site)

        def attach(name: str) -> None:
            site.engine.attachments.attach("p", name, "host", AccessMode.READ_WRITE)

        assert cost(attach, "a") == (1, 0), "volumes that were made lately"
        assert cost(attach, "a") == (0, 2), "those that the host has"


def leftovers_of_names(site: Site) -> set[str]:
    """Names in librbd's list and rows that no record has."""
    import rbd

    session = site.backend._session()
    named = set(rbd.RBD().list(session.ioctx)) | {one.volume_id for one in session.directory.walk()}
    known = {volume.backend_id for volume in site.pool.list(Volume)}
    return named - known - {site.pool.image("gold").backend_volume_id}


def test_a_name_that_is_taken_after_all(site):
    """Goal: the commit decides. Method: another server takes names that this one does not know."""
    other = Engine(EngineSettings(server_id="other"))
    other.add_pool("p", site.backend, site.pool.catalog._catalog, None)
    there = Site(other, site.undo)
    same, larger = clone(there, "same"), clone(there, "larger", 2 * SIZE)
    (deployed,) = there.deploy("d1")
    assert clone(site, "same") == same
    with pytest.raises(ConflictError) as caught:
        clone(site, "larger")
    assert caught.value.reason is Reason.NAME_TAKEN
    assert clone(site, "larger", 2 * SIZE) == larger
    made = site.deploy("d0", "d1", "d2")
    assert [volume.name for volume in made] == ["d0", "d1", "d2"]
    assert made[1] == deployed
    assert all(site.read(volume) == b"gold" for volume in made)
    other.close(5)
    assert intents_of(site.pool) == []
    assert not leftovers_of_names(site)


def test_killed_at_each_commit(ceph_cluster, ceph_pool, monkeypatch):
    """Goal: all or nothing, no leak. Method: die before and after each commit of two clones."""
    monkeypatch.setattr(making, "DELAY_S", 3600.0)
    site = start(ceph_cluster, ceph_pool, count_max=0)
    with site.undo:
        prepare(site)
    for at in itertools.count(1):
        switch, names = CrashSwitch(at), [f"{at}-one", f"{at}-two"]
        site = start(ceph_cluster, ceph_pool, count_max=0)
        with site.undo:
            clone(site, "first")
            crashing = CrashingCatalog(site.pool.catalog._catalog, switch)
            site.pool.catalog._catalog = crashing
            site.deploy("second")
            with suppress(Crash):
                site.deploy(*names)
            site.pool.making._over.clear()  # the dead erase nothing
        site = start(ceph_cluster, ceph_pool, count_max=0)
        with site.undo:
            volumes = site.pool.list(Volume)
            assert all(volume.state is State.READY for volume in volumes)
            made = [volume for volume in volumes if volume.name in names]
            assert len(made) in {0, 2}
            assert all(site.read(volume) == b"gold" for volume in made)
            assert intents_of(site.pool) == []
            site.backend.collect()
            assert not leftovers_of_names(site)
            for volume in made:
                site.engine.volumes.delete("p", volume.name)
            assert site.engine.deletions.wait(60)
        if not switch.crashed:
            break
    assert at == 3
    images = {"gold", "src", "first", "second"}
    left = {name for name in leftovers(ceph_cluster, ceph_pool) if name.startswith("rbd_id.")}
    assert len(left) == len(images)


def test_clones_of_a_volume_that_is_written(site):
    """Goal: each shows what was written before it was asked for. Method: callers that write first.

    Those who wait for each other share a snapshot; it must be of an instant after all were asked.
    """
    count, lock = itertools.count(1), threading.Lock()
    source = SourceRef(kind=SourceKind.VOLUME, key="src")
    backend_id = site.pool.volume("src").backend_id

    def work(caller: int) -> None:
        for turn in range(4):
            with lock:
                number = next(count)
                put(site.backend, backend_id, 0, number.to_bytes(4, "big"))
            request = CreateVolume(name=f"of-{caller}-{turn}", source=source)
            made = site.engine.volumes.create("p", request)
            assert int.from_bytes(fetch(site.backend, made.backend_id, 0, 4), "big") >= number

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
