"""Warm clones on a real Ceph: one round for a claim, and nothing handed out that is gone."""

import gc
import itertools
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from functools import partial

import pytest

from rbd_backend.pools import client_counters, leftovers, options, raw_pool
from volcore.backends.contract import RbdConnection, ShortPathState
from volcore.backends.rbd import Cluster, RbdBackend
from volcore.backends.rbd.directory import Directory
from volcore.backends.rbd.omap import OmapObject
from volcore.catalog.contract import ABSENT
from volcore.catalog.omap import OmapCatalog
from volcore.engine import behind
from volcore.engine.engine import Engine, EngineSettings
from volcore.engine.pool import Pool, image_lock, volume_lock
from volcore.engine.views import CreateVolume, SourceRef
from volcore.errors import OperationPendingError, UnavailableError, VolcoreError
from volcore.limits import MIB
from volcore.model.records import AccessMode, SourceKind, Volume, WarmClone
from volcore.testing.crash import Crash, CrashingCatalog, CrashSwitch
from volcore.testing.device_contract import fetch, put

SIZE = 8 * MIB
PROVEN: list[str] = []
"""For what the short path was proven."""


@dataclass
class Site:
    """An engine over a pool of a real Ceph; its keeper works when it is told to."""

    engine: Engine
    undo: ExitStack

    @property
    def pool(self) -> Pool:
        return self.engine.pools.open("p")

    @property
    def backend(self) -> RbdBackend:
        assert isinstance(self.pool.backend, RbdBackend)
        return self.pool.backend

    def keep(self) -> None:
        while self.engine.warm.step(self.pool):
            pass
        assert self.engine.deletions.wait(60)

    def deploy(self, *names: str, size_bytes: int = 0) -> list[Volume]:
        made = self.engine.volumes.deploy("p", "gold", names, size_bytes=size_bytes)
        assert all(isinstance(one, Volume) for one in made), made
        return [one for one in made if isinstance(one, Volume)]

    def figures(self) -> tuple[int, int]:
        found = self.pool.stock.figures()
        return found.ready_count, found.target_count

    def read(self, volume: Volume, length_bytes: int = 4) -> bytes:
        return fetch(self.backend, volume.backend_id, 0, length_bytes)


def start(access, pool: str, *, count_max: int = 64, conf: str = "", **changes) -> Site:
    """A server of its own, with connections of its own."""
    with ExitStack() as undo:
        found = options(access, **({"conf_path": conf} if conf else {}))
        cluster = Cluster(found)
        if PROVEN:  # on this very cluster, by the first test: it takes seconds
            directory = undo.enter_context(
                closing(OmapObject.opened(cluster, pool, "volcore_directory"))
            )
            Directory(directory).set_proof(PROVEN[0])
        backend = RbdBackend(cluster, pool, direct=True, **changes)
        backend.open()
        undo.callback(backend.close)
        wanted = ShortPathState.ON if changes.get("lock", True) else ShortPathState.OFF
        assert backend.wait_for_short_path().state is wanted
        if wanted is ShortPathState.ON:
            PROVEN[:] = [backend.short_path.detail]
        catalog = OmapCatalog(OmapObject.opened(cluster, pool, "volcore_catalog"))
        undo.callback(catalog.close)
        engine = Engine(EngineSettings(server_id="test"))
        undo.callback(engine.close, 5)
        engine.add_pool("p", backend, catalog, None, warm_clones_max=count_max)
        return Site(engine, undo.pop_all())


def prepare(site: Site) -> None:
    """The image `gold`, of which one volume was deployed, and its stock of four."""
    site.engine.volumes.create("p", CreateVolume(name="src", size_bytes=SIZE))
    put(site.backend, site.pool.volume("src").backend_id, 0, b"gold")
    site.engine.snapshots.create("p", "src", "s")
    site.engine.images.publish("p", "gold", "src", "s")
    site.engine.volumes.delete("p", "src", force=True)
    site.deploy("first")
    site.keep()
    assert site.figures() == (4, 4)


@pytest.fixture
def site(ceph_cluster, ceph_pool) -> Iterator[Site]:
    found = start(ceph_cluster, ceph_pool)
    with found.undo:
        prepare(found)
        yield found


def warm(volume: Volume) -> bool:
    return volume.backend_id.startswith("warm-gold.")


def test_rounds_as_the_client_counts_them(ceph_cluster, ceph_pool, tmp_path):
    """Goal: one write for a claim, whatever its count. Method: librados' own counters.

    The lease is renewed now and then beside it, hence the least of some.
    """
    at, conf = tmp_path / "client.asok", tmp_path / "ceph.conf"
    conf.write_text(ceph_cluster.conf_path.read_text() + f"\n[client]\nadmin socket = {at}\n")
    site = start(ceph_cluster, ceph_pool, conf=str(conf))
    with site.undo:
        prepare(site)
        source = SourceRef(kind=SourceKind.IMAGE, key="gold")

        def deploy(*names: str) -> list[Volume]:
            return site.deploy(*names)

        def create(*names: str) -> list[Volume]:
            request = CreateVolume(name=names[0], source=source)
            return [site.engine.volumes.create("p", request)]

        for act, count in ((deploy, 1), (deploy, 3), (create, 1)):
            found = []
            for attempt in range(5):
                time.sleep(0.1)  # what looks through the records beside it takes some ms
                names = [f"{act.__name__}-{count}-{attempt}-{number}" for number in range(count)]
                before = client_counters(at)
                assert all(warm(volume) for volume in act(*names))
                assert site.pool.behind.wait(60)
                after = client_counters(at)
                found.append(tuple(after[key] - before[key] for key in ("op_w", "op_r")))
                site.keep()
            assert min(found) == (1, count), "one write, and behind it a look for each"


def test_a_claimed_volume_is_a_volume(site, ceph_cluster, ceph_pool):
    """Goal: nothing of it is special. Method: all that can be done to one, deletes in any order."""
    import rbd

    one, two, large = site.deploy("a", "b") + site.deploy("large", size_bytes=2 * SIZE)
    assert warm(one)
    assert warm(two)
    assert not warm(large), "the stock has no clones of that size yet"
    site.keep()
    assert warm(site.deploy("large2", size_bytes=2 * SIZE)[0])
    assert site.read(one) == site.read(two) == b"gold"
    assert site.backend.connection(one.backend_id, read_only=False).image == one.backend_id
    with raw_pool(ceph_cluster, ceph_pool) as ioctx:
        names = rbd.RBD().list(ioctx)
        with rbd.Image(ioctx, one.backend_id) as image:
            image.write(b"mine", 0)
    shown = {v.backend_id for v in site.engine.volumes.list("p", limit=100)}
    stock = {clone.backend_id for clone in site.pool.list(WarmClone)}
    image_name = site.engine.images.get("p", "gold").backend_volume_id
    assert set(names) == shown | stock | {image_name}
    assert all(name.startswith("warm-gold.") for name in stock)
    assert len(shown) == site.engine.pools.get("p").volume_count == 5
    assert site.engine.volumes.facts("p", site.engine.volumes.get("p", "a")).depth == 2
    site.engine.snapshots.create("p", "a", "s")
    site.engine.volumes.resize("p", "a", 3 * SIZE)
    site.engine.volumes.revert("p", "a", "s")
    assert site.read(one) == b"mine"
    operation = site.engine.volumes.flatten("p", "b")
    assert site.engine.operations.wait("p", operation.id, 60).phase == "SUCCEEDED"
    site.engine.images.delete("p", "gold")
    assert site.read(one) == b"mine"
    assert site.read(two) == b"gold"
    for name in ("a", "b", "first", "large", "large2"):
        site.engine.volumes.delete("p", name, force=True)
    site.keep()
    assert site.figures() == (0, 0)
    assert leftovers(ceph_cluster, ceph_pool) == set()


def test_turned_off_empties_the_stock(ceph_cluster, ceph_pool):
    """Goal: the operator's word holds. Method: start again with a smaller bound, then without."""
    site = start(ceph_cluster, ceph_pool)
    with site.undo:
        prepare(site)
        site.deploy("a", "b")
        site.keep()
    for count_max, wanted in ((3, 3), (0, 0)):
        site = start(ceph_cluster, ceph_pool, count_max=count_max)
        with site.undo:
            site.keep()
            assert len(site.pool.list(WarmClone)) == site.figures()[0] == wanted
            named = [name for name in site.backend.walk() if name.startswith("warm-")]
            assert len(named) == wanted + 2
            assert not warm(site.deploy("c", "d", "e", "f")[0])


def ready(site: Site) -> list[str]:
    """The stock's names in the backend, in the order in which they will be claimed."""
    ((_, line),) = site.pool.stock._lines.items()
    return [clone.backend_id for clone in line.ready]


def test_gone_or_foreign(site, ceph_cluster, ceph_pool):
    """Goal: what others deleted is replaced. Method: `rbd rm`, and another of that name."""
    import rbd

    clones = ready(site)
    with raw_pool(ceph_cluster, ceph_pool) as ioctx:
        for name in clones[:2]:
            rbd.RBD().remove(ioctx, name)
        rbd.RBD().create(ioctx, clones[0], SIZE, old_format=False, features=61)
        told = site.deploy("a", "b", "c")
        assert [backend_id(volume) for volume in told] == clones[:3], "nothing is looked for before"
        found = site.engine.attachments.attach("p", "a", "host", AccessMode.READ_WRITE)
        assert isinstance(found.connection, RbdConnection)
        assert found.connection.image == clones[3], "it waits until the volume has its clone"
        assert site.pool.behind.wait(60)
        made = [site.pool.volume(name) for name in "abc"]
        assert [site.read(volume) for volume in made] == [b"gold"] * 3
        assert all(map(warm, made))
        assert made[0].backend_id == clones[3]
        assert made[2].backend_id == clones[2]
        for one, other in zip(told, made, strict=True):
            assert one == other.but(backend_id=one.backend_id, revision=1), "else as it was told"
        site.keep()
        names = rbd.RBD().list(ioctx)
        assert clones[0] in names, "it is not ours any more"
        assert clones[1] not in names
        rbd.RBD().remove(ioctx, clones[0])
    assert all(site.read(volume) == b"gold" for volume in site.deploy("d", "e"))
    assert len(site.pool.list(WarmClone)) == site.figures()[0]


def test_all_gone(site, ceph_cluster, ceph_pool, monkeypatch):
    """Goal: a volume gets a clone whatever comes. Method: the stock is gone, and errors at first.

    Until then nobody else has the name, and the image cannot be deleted.
    """
    import rbd

    clones = ready(site)
    monkeypatch.setattr(behind, "RETRY_S", 0.05)
    failures = iter([UnavailableError("no", reason="CLUSTER_UNREACHABLE")] * 3)
    free = threading.Event()
    commit = site.pool.catalog.commit

    def failing(changes):
        if any(one.key == "a" and one.expect is not ABSENT for one in changes):
            free.wait(60)
            for err in failures:
                raise err
        commit(changes)

    monkeypatch.setattr(site.pool.catalog, "commit", failing)
    with raw_pool(ceph_cluster, ceph_pool) as ioctx:
        for name in clones:
            rbd.RBD().remove(ioctx, name)
    (told,) = site.deploy("a")
    for key in (volume_lock("a"), image_lock("gold")):
        with pytest.raises(OperationPendingError), site.pool.locks.hold([key], timeout_s=0.1):
            pass
    free.set()
    assert site.pool.behind.wait(60)
    volume = site.pool.volume("a")
    assert (volume.id, volume.revision) == (told.id, told.revision)
    assert volume.backend_id not in clones
    assert site.read(volume) == b"gold"
    site.engine.volumes.delete("p", "a")
    site.keep()
    assert len(site.pool.list(WarmClone)) == site.figures()[0]
    named = {clone.backend_id for clone in site.pool.list(WarmClone)}
    named |= {site.pool.volume("first").backend_id}
    named |= {site.engine.images.get("p", "gold").backend_volume_id}
    assert set(site.backend.walk()) == named


def test_gone_while_the_server_was_down(ceph_cluster, ceph_pool):
    """Goal: the same at a start. Method: delete one of four in between."""
    import rbd

    site = start(ceph_cluster, ceph_pool)
    with site.undo:
        prepare(site)
        name = site.pool.list(WarmClone)[0].backend_id
    with raw_pool(ceph_cluster, ceph_pool) as ioctx:
        rbd.RBD().remove(ioctx, name)
    site = start(ceph_cluster, ceph_pool)
    with site.undo:
        assert site.figures()[0] == 3
        assert all(site.read(volume) == b"gold" for volume in site.deploy("a", "b", "c"))
        site.keep()
        assert name not in {clone.backend_id for clone in site.pool.list(WarmClone)}


def test_snapshot_deleted_behind_our_back(site, ceph_cluster, ceph_pool):
    """Goal: a clone outlives its snapshot's name. Method: librbd deletes it; claim, then refill."""
    import rbd

    image = site.engine.images.get("p", "gold")
    with (
        raw_pool(ceph_cluster, ceph_pool) as ioctx,
        rbd.Image(ioctx, image.backend_volume_id) as found,
    ):
        found.remove_snap(image.backend_snapshot_id)
    made = site.deploy("a", "b", "c")
    assert all(warm(volume) and site.read(volume) == b"gold" for volume in made)
    with pytest.raises(VolcoreError):
        site.engine.warm.step(site.pool)
    assert len(list(site.backend.walk())) == 6, "nothing half-made: gold, first, a, b, c, one warm"


def test_racing_claims(site):
    """Goal: no clone twice, under refills and deletes. Method: 8 callers, a keeper beside."""
    site.deploy(*(f"seed{number}" for number in range(20)))
    site.keep()
    stop, gate = threading.Event(), threading.Barrier(8)

    def keeper() -> None:
        while not stop.is_set():
            site.engine.warm.step(site.pool)
            time.sleep(0.01)

    def work(thread: int) -> list[Volume]:
        gate.wait()
        made = [site.deploy(f"t{thread}-{number}")[0] for number in range(8)]
        site.engine.volumes.delete("p", made[0].name)
        return made[1:] + site.deploy(*(f"u{thread}-{number}" for number in range(3)))

    thread = threading.Thread(target=keeper)
    thread.start()
    try:
        with ThreadPoolExecutor(8) as pool:
            made = [volume for some in pool.map(work, range(8)) for volume in some]
    finally:
        stop.set()
        thread.join()
    assert len(made) == len({volume.backend_id for volume in made}) == 80
    assert sum(map(warm, made)) >= 20
    site.keep()
    shown = {v.backend_id for v in site.engine.volumes.list("p", limit=1000)}
    stock = {clone.backend_id for clone in site.pool.list(WarmClone)}
    assert not shown & stock
    assert set(site.backend.walk()) - shown - stock == {
        site.engine.images.get("p", "gold").backend_volume_id
    }


def test_two_servers_never_share_a_clone(ceph_cluster, ceph_pool):
    """Goal: the record decides, not memory. Method: two engines that know the same four clones."""
    site = start(ceph_cluster, ceph_pool, lock=False)
    with site.undo:
        backend, catalog = site.backend, site.pool.catalog
        prepare(site)
        second = Engine(EngineSettings(server_id="other"))
        second.add_pool("p", backend, catalog, None, warm_clones_max=64)
        other = Site(second, ExitStack())
        assert other.figures()[0] == 4
        mine = site.deploy("a", "b")
        theirs = []
        for name in "cdefgh":  # those that are not there any more are found one by one
            theirs += other.deploy(name)
            other.keep()
        assert all(map(warm, mine))
        assert warm(theirs[-1])
        assert len(set(map(backend_id, mine + theirs))) == 8
        assert all(site.read(volume) == b"gold" for volume in mine + theirs)
        second.close(5)


def backend_id(volume: Volume) -> str:
    return volume.backend_id


def restart(site: Site, switch: CrashSwitch | None = None) -> Site:
    """A new server over the same pool, which may die at a commit."""
    engine = Engine(EngineSettings(server_id="test"))
    catalog = site.pool.catalog
    found = catalog if switch is None else CrashingCatalog(catalog, switch)
    engine.add_pool("p", site.backend, found, None, warm_clones_max=6)
    if switch is None:
        site.undo.callback(engine.close, 5)
    return Site(engine, ExitStack())


def test_killed_at_each_commit(site, ceph_cluster, ceph_pool):
    """Goal: all or nothing, no leak. Method: die at each commit of a claim, a refill, a delete."""
    backend = site.backend
    restarted = partial(restart, site)
    for at in itertools.count(1):
        names = [f"v{at}-{number}" for number in range(restarted().figures()[0])]
        ended = False
        with suppress(Crash):
            server = restarted(CrashSwitch(at))
            server.deploy(*names)  # all that there are
            server.keep()
            server.pool.stock.doom(server.pool.list(WarmClone)[:1])
            server.keep()
            ended = True
        server = restarted()
        server.keep()
        shown = server.engine.volumes.list("p", limit=1000)
        stock = server.pool.list(WarmClone)
        assert len(stock) == server.figures()[0]
        named = [v.backend_id for v in shown] + [clone.backend_id for clone in stock]
        named.append(server.engine.images.get("p", "gold").backend_volume_id)
        assert len(named) == len(set(named))
        assert set(backend.walk()) == set(named)
        with raw_pool(ceph_cluster, ceph_pool) as ioctx:
            assert set(rbd_names(ioctx)) == set(named)
        made = [volume.name for volume in shown if volume.name in names]
        assert made in ([], names)
        if ended:
            break
        server.deploy(*names, "again")
        server.keep()
        for name in (*names, "again"):
            server.engine.volumes.delete("p", name)
        assert server.engine.deletions.wait(60)
    assert at > 10


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("left", [0, 1])
def test_killed_while_replacing(site, ceph_cluster, ceph_pool, left):
    """Goal: no leak, no clone twice. Method: die at each commit that replaces a clone.

    By one out of the stock, or by one that has to be made. Until then the volume has the clone that
    somebody deleted, as if that had been a moment later.
    """
    import rbd

    for at in itertools.count(3):  # the claim is 1 and 2
        before = restart(site)
        before.deploy(f"seed{at}")
        before.keep()
        before.pool.making.flush()  # else the next server has a commit to make
        switch, name = CrashSwitch(at), f"v{at}"
        server = restart(site, switch)
        clones = ready(server)
        lost = clones[: len(clones) - left]
        with raw_pool(ceph_cluster, ceph_pool) as ioctx:
            for clone in lost:
                rbd.RBD().remove(ioctx, clone)
        server.deploy(name)
        while not switch.crashed and not server.pool.behind.wait(0.05):
            pass
        server = restart(site)
        server.keep()
        volumes = server.engine.volumes.list("p", limit=100)
        named = [volume.backend_id for volume in volumes]
        named += [clone.backend_id for clone in server.pool.list(WarmClone)]
        named.append(server.engine.images.get("p", "gold").backend_volume_id)
        assert len(named) == len(set(named))
        assert set(site.backend.walk()) | set(lost[:1]) == set(named) | set(lost[:1])
        volume = server.pool.volume(name)
        assert volume.backend_id != lost[0] or switch.crashed
        if volume.backend_id != lost[0]:
            assert server.read(volume) == b"gold"
        server.engine.volumes.delete("p", name)
        server.keep()
        assert lost[0] not in server.backend.walk()
        if not switch.crashed:
            break
    assert at == (5 if left else 9), "the replacement, or two commits before it that make a clone"


def rbd_names(ioctx) -> list[str]:
    import rbd

    return list(rbd.RBD().list(ioctx))


def test_an_answer_that_is_lost(site, monkeypatch):
    """Goal: neither leaked nor given twice. Method: the commit happens, or not, and then fails."""
    commit = site.pool.catalog.commit

    def lost(changes, *, before):
        if before:
            commit(changes)
        raise UnavailableError("no answer", reason="CLUSTER_UNREACHABLE")

    for name, before in (("a", True), ("b", False)):
        with monkeypatch.context() as patch:
            patch.setattr(site.pool.catalog, "commit", partial(lost, before=before))
            (result,) = site.engine.volumes.deploy("p", "gold", [name])
            assert isinstance(result, UnavailableError)
        site.keep()
        (volume,) = site.deploy(name)
        assert warm(volume)
        assert site.read(volume) == b"gold"
    site.keep()
    assert len(site.pool.list(WarmClone)) == site.figures()[0]


def test_looks_that_nobody_waits_for(site):
    """Goal: librados never writes into freed memory. Method: ask often, drop the answers."""
    names = [clone.backend_id for clone in site.pool.list(WarmClone)]
    for _ in range(500):
        site.backend.look_for(names)
    gc.collect()
    assert site.backend.look_for([*names, "warm-gone"])() == {"warm-gone"}
    site.backend._session().presence.close()
    assert not site.backend._session().presence._under_way
