"""Snapshots by the short path: few rounds, whole or gone after any cut, right beside clients."""

import random
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from rbd_backend.pools import (
    GOLD_SIZE_BYTES,
    check_object_maps,
    counted,
    least_cost,
    leftovers,
    make_gold,
    opened,
    raw_pool,
    story_of,
)
from rbd_backend.test_warm import start
from volcore.backends.contract import ShortPathState
from volcore.backends.rbd.direct import openers, snapshotter, stock, wire
from volcore.backends.rbd.direct.openers import patience_s
from volcore.backends.rbd.direct.plan import header_object
from volcore.backends.rbd.direct.snapshotter import Outcome
from volcore.backends.rbd.direct.waves import Waves
from volcore.engine.views import CreateVolume, SourceRef
from volcore.errors import ConflictError, ExhaustedError, NotFoundError, Reason, UnavailableError
from volcore.limits import MIB
from volcore.model.records import AccessMode, SourceKind
from volcore.testing.device_contract import covered, fetch, put

CHUNK = 4 * MIB
FULL_CUTS = [range(count) for count in range(5)]
"""Writes that a crash may leave: row, map's copy, snapshot, map."""


@pytest.fixture
def volume(direct):
    """The backend with a volume `v` that holds something in its first chunk."""
    direct.create("v", 4 * CHUNK)
    put(direct, "v", 0, b"old")
    assert direct._session().direct._stock.wait(8, 30)
    return direct


def snapshots_of(backend, volume_id="v"):
    return backend.describe(volume_id).snapshot_ids


def used_numbers(backend):
    return [snap for snap, image_id in backend._session().directory.numbers() if image_id]


def wait_cleared(backend):
    """Wait until no snapshot is yet to be ended."""
    deadline = time.monotonic() + 30
    while backend._session().direct._clearing._left:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def check_cleared(backend):
    """No number is in use, once all snapshots are ended."""
    wait_cleared(backend)
    assert used_numbers(backend) == []


def waves_of(backend, act):
    waves = backend._session().direct.waves
    before = waves.wave_count
    act()
    return waves.wave_count - before


@contextmanager
def only(monkeypatch, backend, numbers):
    """Let only some of the writes that follow be sent; the others find a dead connection."""
    count = iter(range(100))
    send = Waves.send

    def limited(self, write):
        if next(count) not in numbers:
            raise UnavailableError("cut", reason=Reason.CLUSTER_UNREACHABLE)
        return send(self, write)

    with monkeypatch.context() as patch:
        patch.setattr(Waves, "send", limited)
        yield


def test_rounds_as_the_client_counts_them(ceph_cluster, ceph_pool, tmp_path):
    """Goal: at most four rounds: one read of the row, three waves. Method: librados' counters."""
    with counted(ceph_cluster, ceph_pool, tmp_path) as (backend, at):
        make_gold(backend)
        backend._session().direct.flush()

        def snapshot(attempt):
            assert waves_of(backend, lambda: backend.create_snapshot("gold", f"t{attempt}")) == 3
            wait_cleared(backend)

        reads, writes = least_cost(at, snapshot)
    assert writes == len(("row", "copy of the map", "snapshot", "map", "no row"))
    assert reads <= len(
        ("volume's row", "header", "map", "map again", "lock", "lock again", *("watchers",) * 2)
    )


def test_cut_anywhere(volume, ceph_cluster, ceph_pool, monkeypatch):
    """Goal: made or not. Method: each set of writes that a crash may leave, then recovery."""
    clean = leftovers(ceph_cluster, ceph_pool)
    for number, cut in enumerate(FULL_CUTS):
        name = f"s{number}"
        with only(monkeypatch, volume, cut):
            try:
                volume.create_snapshot("v", name)
            except UnavailableError:
                assert cut != range(5)
        assert (name in snapshots_of(volume)) == (2 in cut), cut
        put(volume, "v", CHUNK, b"new%d" % number)
        volume.collect()
        check_cleared(volume)
        assert (name in snapshots_of(volume)) == (2 in cut), cut
        if 2 in cut:
            assert fetch(volume, "v", CHUNK, 4, name) != b"new%d" % number
            found = volume.diff("v", name, None)
            assert covered(found, CHUNK)
            assert not covered(found, 2 * CHUNK)
            check_object_maps(ceph_cluster, ceph_pool, "v")
            volume.delete_snapshot("v", name)
        assert leftovers(ceph_cluster, ceph_pool) - clean <= data_of(volume), cut


def test_numbers_above_those_of_librbd(volume):
    """Goal: librbd has no more than one turn. Method: a snapshot of an open volume, then wait."""
    session = volume._session()
    image_id = session.headers.image_id("v")
    with volume.open_device("v", read_only=False):
        volume.create_snapshot("v", "attached")
    above = session.headers.snap_seq(image_id)
    deadline = time.monotonic() + 30
    while session.direct._stock._snaps[-1:] <= [above]:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert session.direct.snapshot("v", image_id, "detached") is Outcome.MADE


def data_of(backend):
    prefix = f"rbd_data.{backend._session().headers.image_id('v')}."
    return {f"{prefix}{number:016x}" for number in range(4)}


def test_recovery_cut_anywhere(volume, ceph_cluster, ceph_pool, monkeypatch):
    """Goal: recovery can be cut, too. Method: fail before each of its writes, then repeat it."""
    clean = leftovers(ceph_cluster, ceph_pool)
    for allowed in range(4):
        with only(monkeypatch, volume, (0, 1)), pytest.raises(UnavailableError):
            volume.create_snapshot("v", "s")
        with only(monkeypatch, volume, range(allowed)):
            try:
                volume.collect()
            except UnavailableError:
                assert allowed < 3
        volume.collect()
        check_cleared(volume)
        assert snapshots_of(volume) == ()
        assert leftovers(ceph_cluster, ceph_pool) == clean
    volume.create_snapshot("v", "s")
    assert snapshots_of(volume) == ("s",)


def test_a_volume_deleted_after_a_crash(volume, ceph_cluster, ceph_pool, monkeypatch):
    """Goal: the copy of a map outlives no volume. Method: crash, delete, recover."""
    clean = leftovers(ceph_cluster, ceph_pool) - data_of(volume)
    with only(monkeypatch, volume, (0, 1)), pytest.raises(UnavailableError):
        volume.create_snapshot("v", "s")
    image_id = volume._session().headers.image_id("v")
    volume.delete("v")
    volume.collect()
    check_cleared(volume)
    assert leftovers(ceph_cluster, ceph_pool) == {
        name for name in clean if image_id not in name
    } - {"rbd_id.v"}


def test_names_and_limits(volume, ceph_cluster, ceph_pool, monkeypatch):
    """Goal: what is refused leaves nothing. Method: a taken name, too many, no volume."""
    volume.create_snapshot("v", "s")
    clean = leftovers(ceph_cluster, ceph_pool)
    numbers = len(volume._session().direct._stock._snaps)
    with pytest.raises(ConflictError):
        volume.create_snapshot("v", "s")
    with pytest.raises(NotFoundError):
        volume.create_snapshot("gone", "s")
    with monkeypatch.context() as patch:
        patch.setattr(snapshotter, "SNAPSHOTS_PER_VOLUME_MAX", 1)
        with pytest.raises(ExhaustedError) as caught:
            volume.create_snapshot("v", "t")
    assert caught.value.reason == Reason.TOO_MANY_SNAPSHOTS
    assert len(volume._session().direct._stock._snaps) >= numbers
    check_cleared(volume)
    assert leftovers(ceph_cluster, ceph_pool) == clean
    assert waves_of(volume, lambda: volume.create_snapshot("v", "t")) == 3


def test_newer_snapshots_of_librbd(volume, ceph_cluster, ceph_pool):
    """Goal: a number is always the image's highest. Method: librbd's snapshots take newer ones."""
    import rbd

    volume.create_snapshot("v", "a")
    with raw_pool(ceph_cluster, ceph_pool) as ioctx, rbd.Image(ioctx, "v") as image:
        image.create_snap("b")
    kept = list(volume._session().direct._stock._snaps)
    assert waves_of(volume, lambda: volume.create_snapshot("v", "c")) == 1
    assert snapshots_of(volume) == ("a", "b", "c")
    assert kept == [snap for snap in volume._session().direct._stock._snaps if snap <= kept[-1]]
    newest = max(volume._session().headers.snaps(volume._session().headers.image_id("v")))
    assert volume._session().direct._stock.wait(1, 30, above=newest)
    assert waves_of(volume, lambda: volume.create_snapshot("v", "d")) >= 3
    assert snapshots_of(volume) == ("a", "b", "c", "d")
    check_cleared(volume)


def test_the_stock_is_bounded_and_kept(ceph_cluster, ceph_pool):
    """Goal: numbers are not lost by a restart. Method: open again, look at the rows."""
    with opened(ceph_cluster, ceph_pool, direct=True) as backend:
        backend.wait_for_short_path()
        assert backend._session().direct._stock.wait(stock.LOW, 30)
        before = [snap for snap, _ in backend._session().directory.numbers()]
    with opened(ceph_cluster, ceph_pool, direct=True) as backend:
        assert backend.short_path.state is ShortPathState.ON
        assert backend._session().direct._stock.wait(len(before), 5)
        make_gold(backend)
        wait_cleared(backend)
        after = [snap for snap, _ in backend._session().directory.numbers()]
        assert len(after) < stock.LOW + stock.BATCH
        assert after[0] == before[1]
        for _ in range(stock.MAX // stock.BATCH):
            numbers = [snap for snap, _ in backend._session().directory.numbers()]
            assert backend._session().direct._stock.wait(1, 30, above=numbers[-1])
        numbers = [snap for snap, _ in backend._session().directory.numbers()]
        assert len(numbers) <= stock.MAX
        assert numbers[0] > after[0]


def test_an_empty_stock(volume, monkeypatch):
    """Goal: without numbers librbd makes the snapshot. Method: take them all."""
    numbers = volume._session().direct._stock
    with monkeypatch.context() as patch:
        patch.setattr(numbers, "take", lambda *, above=0: None)
        assert waves_of(volume, lambda: volume.create_snapshot("v", "s")) == 0
    assert snapshots_of(volume) == ("s",)


def test_whoever_has_it_open(volume, ceph_cluster, ceph_pool):
    """Goal: never beside a client. Method: a watcher, a writer, a dead writer, our own device."""
    import rbd

    direct = volume._session().direct
    image_id = volume._session().headers.image_id("v")
    clean = leftovers(ceph_cluster, ceph_pool)
    with raw_pool(ceph_cluster, ceph_pool) as ioctx:
        with rbd.Image(ioctx, "v") as image:
            assert direct.snapshot("v", image_id, "s") is Outcome.REFUSED
            image.write(b"open", CHUNK)
            assert direct.snapshot("v", image_id, "s") is Outcome.REFUSED
            volume.create_snapshot("v", "s")
            image.write(b"late", CHUNK)
        assert fetch(volume, "v", CHUNK, 4, "s") == b"open"
        ioctx.lock_exclusive(f"rbd_header.{image_id}", "rbd_lock", "auto 1", "", None)
        assert direct.snapshot("v", image_id, "t") is Outcome.REFUSED
        ioctx.unlock(f"rbd_header.{image_id}", "rbd_lock", "auto 1")
    with volume.open_device("v", read_only=False) as device:
        device.write(0, b"mine")
        assert waves_of(volume, lambda: volume.create_snapshot("v", "t")) == 0
        device.write(0, b"then")
    assert fetch(volume, "v", 0, 4, "t") == b"mine"
    check_cleared(volume)
    new = leftovers(ceph_cluster, ceph_pool) - clean - data_of(volume)
    assert len(new) == 2
    assert all(name.startswith(f"rbd_object_map.{image_id}.") for name in new)


@pytest.mark.parametrize(
    ("opens", "writes"),
    [
        ("_copy", "_copy"),
        ("_copy", "_add"),
        ("_add", "_add"),
        ("_add", "_cleaning"),
        ("_add", "never"),
        ("_cleaning", "_cleaning"),
    ],
)
def test_a_client_between_two_steps(volume, ceph_cluster, ceph_pool, monkeypatch, opens, writes):
    """Goal: a snapshot is of one instant, its diff misses nothing. Method: a client between steps.

    It opens the image before one step, writes before the same or a later one, and stays.
    """
    import rbd

    with raw_pool(ceph_cluster, ceph_pool) as ioctx:
        images = []

        def hook(name):
            act = getattr(snapshotter._Steps, name)

            def hooked(self, *args):
                if not images and name == opens:
                    images.append(rbd.Image(ioctx, "v"))
                if images and name == writes:
                    images[0].write(b"between", 2 * CHUNK)
                return act(self, *args)

            monkeypatch.setattr(snapshotter._Steps, name, hooked)

        for name in ("_copy", "_add", "_cleaning"):
            hook(name)
        volume.create_snapshot("v", "s")
        at_first = fetch(volume, "v", 2 * CHUNK, 7, "s")
        images[0].write(b"later", 2 * CHUNK)
        images[0].write(b"later", 3 * CHUNK)
        images[0].close()
    assert fetch(volume, "v", 2 * CHUNK, 7, "s") == at_first
    assert at_first in (b"between", bytes(7))
    found = volume.diff("v", "s", None)
    assert covered(found, 2 * CHUNK)
    assert covered(found, 3 * CHUNK)
    volume.collect()
    check_cleared(volume)
    check_object_maps(ceph_cluster, ceph_pool, "v")


def test_openers_miss_no_snapshot(direct, ceph_cluster, ceph_pool):
    """Goal: one instant of the call, whoever opens meanwhile. Method: one that answers reach late.

    It reads the header some 50 ms before it watches it. With 5 ms for it, 7 of 24 snapshots showed
    what was written after they were answered.
    """
    import rados
    import rbd

    slow = {"ms_inject_delay_type": "osd", "ms_inject_delay_probability": "1"}
    conf = {"rbd_default_clone_format": "2", "ms_inject_delay_max": "0.006", **slow}
    rng, begun, wrong = random.Random(7), [0], []

    def write(ioctx, name):
        with rbd.Image(ioctx, name) as image:
            for begun[0] in range(1, 4):
                for chunk in range(4):
                    image.write(begun[0].to_bytes(8, "big"), chunk * CHUNK)

    with (
        rados.Rados(conffile=str(ceph_cluster.conf_path), rados_id="admin", conf=conf) as cluster,
        cluster.open_ioctx(ceph_pool) as ioctx,
        ThreadPoolExecutor(1) as pool,
    ):
        assert direct._session().direct._stock.wait(16, 30)
        for number in range(16):
            name, begun[0] = f"v{number}", 0
            direct.create(name, 4 * CHUNK)
            with direct.open_device(name, read_only=False) as device:
                for chunk in range(4):
                    device.write(chunk * CHUNK, bytes(8))
            writing = pool.submit(write, ioctx, name)
            time.sleep(rng.uniform(0.01, 0.06))
            direct.create_snapshot(name, "s", attached=True)
            answered = begun[0]
            writing.result()
            found = counts(direct, name, "s")
            if is_torn(found) or max(found) > answered:
                wrong.append((answered, found, story_of(ceph_cluster, ceph_pool, direct, name)))
    assert not wrong


@pytest.mark.parametrize("is_watched", [False, True])
def test_watchers_are_reminded(volume, ceph_cluster, ceph_pool, is_watched):
    """Goal: who was missed all the same learns of it soon. Method: watch behind the answer.

    A volume that somebody watches before is librbd's to snapshot.
    """
    header = header_object(volume._session().directory.find("v").image_id)
    heard = []

    def hear(_notify_id, _notifier_id, _watch_id, data):
        heard.append(data)

    with raw_pool(ceph_cluster, ceph_pool) as ioctx:
        if is_watched:
            watch = ioctx.watch(header, hear)
        volume.create_snapshot("v", "s")
        heard.clear()
        if not is_watched:
            watch = ioctx.watch(header, hear)
        deadline = time.monotonic() + 10
        while not heard:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        watch.close()
    assert heard[0] == wire.HEADER_UPDATE.encode()


def test_patience():
    assert patience_s(0.0003, 0, attached=False) == openers.DETACHED_S
    assert patience_s(0.003, 16, attached=False) == 8 * 0.003
    assert patience_s(0.0003, 1, attached=True) == openers.ATTACHED_S
    assert patience_s(0.002, 4, attached=True) == 2 * (12 + 4 * 13) * 0.002
    assert patience_s(1, 1, attached=True) == patience_s(1, 1, attached=False) == 2


def test_who_may_open_is_waited_for(ceph_cluster, ceph_pool, monkeypatch):
    """Goal: patience while the catalog has an attachment: for snapshots, and clones as it is."""
    seen = []

    def asked(read_s, depth, *, attached):
        seen.append(attached)
        return patience_s(read_s, depth, attached=attached)

    site = start(ceph_cluster, ceph_pool, count_max=0)
    with site.undo, monkeypatch.context() as patch:
        patch.setattr(snapshotter, "patience_s", asked)
        site.engine.volumes.create("p", CreateVolume(name="v", size_bytes=CHUNK))
        source = SourceRef(kind=SourceKind.VOLUME, key="v")
        for round_ in range(2):
            if round_:
                site.engine.attachments.attach("p", "v", "host", AccessMode.READ_WRITE)
            site.engine.snapshots.create("p", "v", f"s{round_}")
            site.engine.volumes.create("p", CreateVolume(name=f"c{round_}", source=source))
        site.engine.attachments.detach("p", "v", "host")
        site.engine.snapshots.create("p", "v", "last")
    assert seen == [False, False, True, True, False]


def counts(backend, volume_id, snapshot_id):
    """What a writer of ascending numbers left at the beginning of each of four chunks."""
    with backend.open_device(volume_id, snapshot_id, read_only=True) as device:
        return [int.from_bytes(device.read(chunk * CHUNK, 8), "big") for chunk in range(4)]


def is_torn(found):
    """Whether no writer of chunk after chunk leaves that."""
    return found != sorted(found, reverse=True) or found[0] > found[3] + 1


def test_a_writer_sees_prefixes(volume, ceph_cluster, ceph_pool):
    """Goal: one instant, whoever writes. Method: a client opens, counts up and closes in a loop."""
    import rbd

    stop = []
    put(volume, "v", 0, bytes(8))

    def write():
        count = 0
        with raw_pool(ceph_cluster, ceph_pool) as ioctx:
            while not stop:
                with rbd.Image(ioctx, "v") as image:
                    for _ in range(20):
                        count += 1
                        for chunk in range(4):
                            image.write(count.to_bytes(8, "big"), chunk * CHUNK)
        return count

    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write)
        try:
            for number in range(12):
                volume.create_snapshot("v", f"s{number}", attached=True)
        finally:
            stop.append(True)
        assert writing.result() > 0
    found = {name: counts(volume, "v", name) for name in snapshots_of(volume)}
    torn = [one for one in found.values() if is_torn(one)]
    assert not torn, f"{found}\n{story_of(ceph_cluster, ceph_pool, volume, 'v')}"


def test_clones_beside(direct):
    """Goal: clones that change the header meanwhile cost a repeat at most. Method: both at once."""
    with ThreadPoolExecutor(4) as pool:
        clones = [
            pool.submit(direct.clone, "gold", "s", f"c{n}", GOLD_SIZE_BYTES) for n in range(9)
        ]
        made = [pool.submit(direct.create_snapshot, "gold", f"t{n}") for n in range(9)]
        for one in (*clones, *made):
            one.result()
    assert set(snapshots_of(direct, "gold")) == {"s", *(f"t{n}" for n in range(9))}
    direct.clone("gold", "t4", "of-direct", GOLD_SIZE_BYTES)
    assert fetch(direct, "of-direct", 0, 4) == b"gold"
    direct.revert("gold", "t0")
    assert fetch(direct, "gold", 0, 4) == b"gold"
