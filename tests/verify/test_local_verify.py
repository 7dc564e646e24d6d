"""Every kind of damage is found, with who sees it, nothing else is, and what can be is healed."""

import contextlib
import dataclasses
import os
import random
import sqlite3
import threading

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from volcore.backends.local.direct import DirectReader
from volcore.backends.local.pagecodec import encoded
from volcore.backends.verifying import DamageKind, SupportsVerify
from volcore.errors import BackendIOError, CancelledError, NotFoundError, Reason
from volcore.limits import CHUNK_BLOCKS

from .damage import (
    SIZE,
    B,
    C,
    Watcher,
    fetch,
    file_of,
    flip,
    layer_of,
    opened,
    put,
    snapshot_of_all,
    verify,
)


@pytest.fixture
def backend(tmp_path):
    backend = opened(tmp_path / "pool")
    yield backend
    backend.close()


@pytest.fixture
def family(backend):
    """An image, three clones; the first overwrites block 3, the second block C, the third grows."""
    backend.create("image", SIZE)
    put(backend, "image", 0, os.urandom(8 * B))
    put(backend, "image", C, os.urandom(4 * B))
    backend.create_snapshot("image", "base")
    for name in ("one", "two", "three"):
        backend.clone("image", "base", name, SIZE if name != "three" else 2 * SIZE)
    put(backend, "one", 3 * B, os.urandom(B))
    put(backend, "two", C, os.urandom(B))
    backend.create_snapshot("two", "s")
    put(backend, "three", SIZE, os.urandom(B))
    return backend


def names(damage):
    return {volume if point is None else f"{volume}/{point}" for volume, point in damage.points}


def test_supported(backend):
    """Goal: the engine sees the power. Method: ask the protocol."""
    assert isinstance(backend, SupportsVerify)


def test_sound(family):
    """Goal: no false findings, everything read. Method: verify all; count what was compared."""
    watcher = verify(family)
    assert watcher.damage == []
    done, total, checked, _ = watcher.calls[-1]
    assert done == total
    assert checked == (8 + 4 + 1 + 1 + 1) * B
    for point in (("image", None), ("image", "base"), ("one", None), ("two", "s"), ("three", None)):
        assert verify(family, *point).damage == []
    assert verify(family, "one").calls[-1][2] == 12 * B
    with pytest.raises(NotFoundError):
        verify(family, "nobody")
    with pytest.raises(NotFoundError):
        verify(family, "one", "nobody")


def test_all_who_see_it_are_named(family):
    """Goal: one flip, all readers. Method: flip blocks of the image; scrub, and verify each."""
    image = layer_of(family, "image", "base")
    flip(family, image, 3 * B + 7)
    flip(family, image, C + 5)
    everyone = {"image", "image/base", "one", "two", "two/s", "three"}
    first, second = verify(family).damage
    assert (first.kind, first.layer) == (DamageKind.CHECKSUM, image)
    assert (first.offset_bytes, first.length_bytes, first.healed) == (3 * B, B, False)
    assert names(first) == everyone - {"one"}
    assert first.point_count == 5
    assert (second.offset_bytes, names(second)) == (C, everyone - {"two", "two/s"})
    assert [d.offset_bytes for d in verify(family, "one").damage] == [C]
    assert [d.offset_bytes for d in verify(family, "two", "s").damage] == [3 * B]
    assert [d.offset_bytes for d in verify(family, "three").damage] == [3 * B, C]


def test_unseen_damage_is_harmless(family):
    """Goal: what nobody can read is no finding. Method: overwrite in the only reader, delete."""
    image = layer_of(family, "image", "base")
    for name in ("two", "three"):
        family.delete(name)
    family.delete("image")
    flip(family, image, 3 * B)
    assert verify(family).damage == []


def test_neighbours_are_one_finding(family):
    """Goal: short lists. Method: damage three blocks in a row, and one apart."""
    image = layer_of(family, "image", "base")
    for block in (4, 5, 6):
        flip(family, image, block * B)
    flip(family, image, 0)
    found = [(d.offset_bytes, d.length_bytes) for d in verify(family).damage]
    assert found == [(0, B), (4 * B, 3 * B)]


@pytest.mark.parametrize("cut_bytes", [0, 2 * B, 2 * B + 7, C + B])
def test_short_file(family, cut_bytes):
    """Goal: missing bytes are found. Method: cut the file."""
    image = layer_of(family, "image", "base")
    os.truncate(file_of(family, image), cut_bytes)
    watcher = verify(family)
    data = set(range(8)) | set(range(CHUNK_BLOCKS, CHUNK_BLOCKS + 4))
    assert watcher.blocks == {(image, block) for block in data if (block + 1) * B > cut_bytes}
    assert {d.kind for d in watcher.damage} == {DamageKind.MISSING}


def test_missing_and_swapped_files(family):
    """Goal: a wrong file is as bad as none. Method: delete one, exchange two."""
    one, two, image = (layer_of(family, *p) for p in (["one"], ["two", "s"], ["image", "base"]))
    file_of(family, one).unlink()
    assert verify(family).blocks == {(one, 3)}
    file_of(family, two).rename(file_of(family, one))
    file_of(family, image).rename(file_of(family, two))
    found = verify(family).blocks
    assert {(one, 3), (image, 0), (image, 7), (image, CHUNK_BLOCKS)} <= found


@pytest.mark.parametrize("column", ["states", "crcs"])
def test_damaged_page(family, column):
    """Goal: a damaged map is found once, for all readers. Method: change a byte of the row."""
    image = layer_of(family, "image", "base")
    family._database.execute(
        f"UPDATE page SET {column} = CAST(zeroblob(2) || substr({column}, 3) AS BLOB)"
        " WHERE layer_id = ? AND chunk_index = 0",
        (image,),
    )
    for watcher in (verify(family), verify(family, "one")):
        (damage,) = watcher.damage
        assert (damage.kind, damage.layer) == (DamageKind.MAP, image)
        assert (damage.offset_bytes, damage.length_bytes) == (0, C)
        assert names(damage) == {"image", "image/base", "one", "two", "two/s", "three"}


def test_lost_and_old_pages(family):
    """Goal: a map that is gone is no hole. Method: delete a page, past the triggers."""
    image = layer_of(family, "image", "base")
    path = family._store.directory / "volcore.db"
    with contextlib.closing(sqlite3.connect(path)) as other:
        other.execute("DELETE FROM page WHERE layer_id = ? AND chunk_index = 1", (image,))
        other.commit()
    for watcher in (verify(family), verify(family, "one")):
        (damage,) = watcher.damage
        assert (damage.kind, damage.layer, damage.length_bytes) == (DamageKind.MAP, image, 0)
        assert names(damage) == {"image", "image/base", "one", "two", "two/s", "three"}


def test_damaged_index(backend):
    """Goal: what diffs rely on is checked. Method: a row changes past the index on its states."""
    backend.create("v", SIZE)
    put(backend, "v", 0, os.urandom(8 * B))
    put(backend, "v", C, os.urandom(C))
    backend.create_snapshot("v", "s")
    layer = layer_of(backend, "v", "s")
    (other,) = backend._layers.pages([layer], 0)
    states = encoded(dataclasses.replace(other, states=b"\1" * 7 + b"\2" + bytes(1016)))[2]
    without_index(backend, "UPDATE page SET states = ? WHERE chunk_index = 0", states)
    (damage,) = verify(backend).damage
    assert (damage.kind, damage.offset_bytes) == (DamageKind.MAP, 0)
    assert names(damage) == {"v", "v/s"}


def without_index(backend, sql, *parameters):
    """Change a row while SQLite does not know of the index on states."""
    path = backend._store.directory / "volcore.db"
    with contextlib.closing(sqlite3.connect(path)) as other:
        other.execute("PRAGMA writable_schema=ON")
        index = other.execute("SELECT * FROM sqlite_master WHERE name = 'page_states'").fetchone()
        other.execute("DELETE FROM sqlite_master WHERE name = 'page_states'")
        other.commit()
    with contextlib.closing(sqlite3.connect(path)) as other:
        other.execute(sql, parameters)
        other.execute("PRAGMA writable_schema=ON")
        other.execute("INSERT INTO sqlite_master VALUES (?, ?, ?, ?, ?)", index)
        other.commit()


def test_broken_chains(family):
    """Goal: circles and holes end no loop. Method: change parents behind the database's back."""
    database = family._database
    database.query("PRAGMA foreign_keys=OFF")
    image, one, three = (layer_of(family, *p) for p in (["image", "base"], ["one"], ["three"]))
    database.execute("UPDATE layer SET parent_id = 9999 WHERE id = ?", (three,))
    found = verify(family).damage
    assert DamageKind.DATABASE in {d.kind for d in found}
    chains = [d for d in found if d.kind is DamageKind.CHAIN]
    assert [names(d) for d in chains] == [{"three"}]
    assert [d.kind for d in verify(family, "three").damage] == [DamageKind.CHAIN]
    database.execute("UPDATE layer SET parent_id = ? WHERE id = ?", (one, image))
    found = [d for d in verify(family).damage if d.kind is DamageKind.CHAIN]
    assert {"one", "image/base", "two"} <= set().union(*map(names, found))
    assert DamageKind.CHAIN in {d.kind for d in verify(family, "one").damage}


def test_rows_that_point_nowhere(family):
    """Goal: a volume without its layer is found. Method: delete the row."""
    database = family._database
    database.query("PRAGMA foreign_keys=OFF")
    top = layer_of(family, "one")
    database.execute("DELETE FROM layer WHERE id = ?", (top,))
    found = verify(family).damage
    assert any(d.kind is DamageKind.CHAIN and names(d) == {"one"} for d in found)
    assert any(d.kind is DamageKind.DATABASE and "page" in d.detail for d in found)


def test_unreadable_sectors_heal_and_hold_up_nobody(family, monkeypatch):
    """Goal: EIO is asked for outside of all locks only. Method: a disk with a mending bad block."""
    image = layer_of(family, "image", "base")
    good = fetch(family, "image", 5 * B, B)
    broken = [True]
    real = DirectReader._read

    def refusing(self, layer_id, offset_bytes, target):
        if layer_id == image and broken and offset_bytes <= 5 * B < offset_bytes + len(target):
            assert not family._database.inside(), "nobody waits for a dying disk"
            raise OSError(5, "Input/output error")
        return real(self, layer_id, offset_bytes, target)

    write = family._store.files.write

    def mending(*arguments):
        broken.clear()
        return write(*arguments)

    monkeypatch.setattr(DirectReader, "_read", refusing)
    (damage,) = verify(family).damage
    assert (damage.kind, damage.offset_bytes, damage.length_bytes) == (
        DamageKind.UNREADABLE, 5 * B, B,
    )  # fmt: skip
    monkeypatch.setattr(family._store.files, "write", mending)
    (damage,) = verify(family, heal=True).damage  # from the page cache
    assert damage.healed
    assert verify(family).damage == []
    assert fetch(family, "two", 5 * B, B) == good


@pytest.mark.parametrize("is_open", [False, True])
def test_damage_that_the_page_cache_hides(backend, monkeypatch, is_open):
    """Goal: the disk counts, not memory. Method: a disk that gives other bytes than the cache."""
    backend.create("v", SIZE)
    put(backend, "v", 0, os.urandom(8 * B))
    rotten = [True]
    real = DirectReader._read

    def rotting(self, layer_id, offset_bytes, target):
        got = real(self, layer_id, offset_bytes, target)
        at = 3 * B - offset_bytes
        if rotten and 0 <= at < got:
            target[at] ^= 1
        return got

    write = backend._store.files.write

    def mending(*arguments):
        rotten.clear()
        return write(*arguments)

    monkeypatch.setattr(DirectReader, "_read", rotting)
    with backend.open_device("v", read_only=False) if is_open else contextlib.nullcontext():
        assert verify(backend).blocks == {(1, 3)}
        monkeypatch.setattr(backend._store.files, "write", mending)
        assert [d.healed for d in verify(backend, heal=True).damage] == [True]
        assert verify(backend).damage == []


def test_noted_chunks_of_a_frozen_layer(family):
    """Goal: a merge at work is no damage. Method: a note on a frozen layer; flip in its chunk."""
    image = layer_of(family, "image", "base")
    family._store.layers.add_notes(image, [0])
    flip(family, image, 0)
    flip(family, image, C)
    before = snapshot_of_all(family)
    found = verify(family, heal=True, source=lambda _, at: [os.urandom(B)])
    assert found.blocks == {(image, CHUNK_BLOCKS)}
    assert snapshot_of_all(family) == before


def test_failed_sync_while_healing(family, monkeypatch):
    """Goal: damage is told even if healing fails. Method: a sync that fails."""
    image = layer_of(family, "image", "base")
    good = fetch(family, "image", 0, B)
    flip(family, image, 0)

    def failing(layer_id):
        raise BackendIOError("sync failed", reason=Reason.BACKEND_IO)

    monkeypatch.setattr(family._store.files, "sync", failing)
    (damage,) = verify(family, heal=True, source=lambda _, at: [good]).damage
    assert not damage.healed


def test_noted_chunks_of_a_crash(backend, tmp_path):
    """Goal: torn checksums are no damage. Method: overwrite, die before the flush, scrub."""
    backend.create("v", SIZE)
    put(backend, "v", 0, os.urandom(8 * B))
    device = backend.open_device("v", read_only=False)
    device.write(0, os.urandom(8 * B))  # noted; the page still has the old checksums
    backend._store.close()
    backend._devices.clear()
    again = opened(tmp_path / "pool")
    assert again._store.layers.notes(1)
    assert verify(again).damage == []
    os.truncate(file_of(again, 1), 6 * B)
    assert verify(again).blocks == {(1, 6), (1, 7)}
    again.close()


def test_open_volume_with_unflushed_overwrites(backend):
    """Goal: writers are no damage, damage is. Method: overwrite unflushed; flip one block."""
    backend.create("v", SIZE)
    put(backend, "v", 0, os.urandom(64 * B))
    with backend.open_device("v", read_only=False) as device:
        device.write(0, os.urandom(8 * B))
        device.discard(20 * B, 4 * B)
        assert verify(backend).damage == []
        assert verify(backend, "v").damage == []
        flip(backend, 1, 2 * B)  # among the overwritten ones
        flip(backend, 1, 40 * B)
        assert verify(backend).blocks == {(1, 2), (1, 40)}
        assert verify(backend, heal=True).blocks == {(1, 2), (1, 40)}


def test_concurrent_writers(backend):
    """Goal: no false finding, ever. Method: overwrite, trim, flush, snapshot while scrubbing."""
    backend.create("v", SIZE)
    put(backend, "v", 0, os.urandom(SIZE))
    stop = threading.Event()
    failures = []

    def write(seed):
        chance = random.Random(seed)
        with backend.open_device("v", read_only=False) as device:
            while not stop.is_set():
                at = chance.randrange(SIZE // B - 64) * B
                what = chance.random()
                if what < 0.8:
                    device.write(at, chance.randbytes(chance.randrange(1, 20) * B))
                elif what < 0.9:
                    device.discard(at, 8 * B)
                else:
                    device.flush()

    def snapshot():
        for number in range(12):
            backend.create_snapshot("v", f"s{number}")
            if number > 1:
                backend.delete_snapshot("v", f"s{number - 2}")
            stop.wait(0.1)

    def guarded(act, *arguments):
        try:
            act(*arguments)
        except BaseException as err:
            failures.append(err)

    threads = [threading.Thread(target=guarded, args=(write, seed)) for seed in (1, 2)]
    threads.append(threading.Thread(target=guarded, args=(snapshot,)))
    for thread in threads:
        thread.start()
    try:
        for _ in range(6):
            assert verify(backend, heal=True).damage == []
            assert verify(backend, "v").damage == []
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert failures == []
    assert verify(backend).damage == []


def test_heal_from_a_flattened_sibling(family):
    """Goal: another layer's copy heals. Method: flatten a clone, damage the image, heal."""
    family.flatten("one", lambda done, total: None)
    image = layer_of(family, "image", "base")
    good = fetch(family, "two", 0, 8 * B)
    for offset in (2 * B, 3 * B, C + B):
        flip(family, image, offset)
    before = snapshot_of_all(family)
    assert verify(family).blocks == {(image, 2), (image, 3), (image, CHUNK_BLOCKS + 1)}
    assert snapshot_of_all(family) == before, "a verify writes nothing"
    healed = {(d.offset_bytes, d.healed) for d in verify(family, heal=True).damage}
    # Block 3 was overwritten in the clone before it was flattened: nobody has it any more.
    assert healed == {(2 * B, True), (3 * B, False), (C + B, True)}
    assert verify(family).blocks == {(image, 3)}
    assert fetch(family, "two", 0, 3 * B) == good[: 3 * B]


def test_heal_from_the_source(family):
    """Goal: the image's file heals, if it proves right. Method: a source with one wrong block."""
    image = layer_of(family, "image", "base")
    good = fetch(family, "image", 0, 8 * B)
    flip(family, image, 2 * B)
    flip(family, image, 5 * B)
    asked = []

    def source(volume_ids, offset_bytes):
        asked.append((set(volume_ids), offset_bytes))
        yield os.urandom(B)
        if offset_bytes == 2 * B:
            yield good[2 * B : 3 * B]

    found = verify(family, heal=True, source=source).damage
    assert [(d.offset_bytes, d.healed) for d in found] == [(2 * B, True), (5 * B, False)]
    assert {offset for _, offset in asked} == {2 * B, 5 * B}
    assert all("image" in volume_ids for volume_ids, _ in asked)
    assert verify(family).blocks == {(image, 5)}


def test_heal_a_lost_file(family):
    """Goal: even a whole file comes back. Method: delete it, heal from the source."""
    image = layer_of(family, "image", "base")
    good = file_of(family, image).read_bytes()
    family._store.files.delete(image)
    found = verify(family, heal=True, source=lambda _, offset: [good[offset : offset + B]]).damage
    assert all(d.healed for d in found)
    assert verify(family).damage == []
    assert fetch(family, "three", 0, 8 * B) == good[: 8 * B]


def test_heal_beside_writers(backend):
    """Goal: healing overwrites nothing newer. Method: overwrite damaged blocks while healing."""
    backend.create("v", SIZE)
    old = os.urandom(64 * B)
    put(backend, "v", 0, old)
    with backend.open_device("v", read_only=False) as device:
        for round_number in range(10):
            for block in range(0, 64, 2):
                flip(backend, 1, block * B)
            new = os.urandom(B)
            writer = threading.Thread(
                target=lambda data=new: [device.write(block * B, data) for block in range(0, 64, 4)]
            )
            writer.start()
            verify(backend, heal=True, source=lambda _, at: [old[at : at + B]])
            writer.join()
            verify(backend, heal=True, source=lambda _, at: [old[at : at + B]])
            for block in range(0, 64, 4):
                assert device.read(block * B, B) == new, (round_number, block)
            for block in range(2, 64, 4):
                assert device.read(block * B, B) == old[block * B : (block + 1) * B]
            device.write(0, old)
            device.flush()


def test_cancel_and_resume(family):
    """Goal: a scrub goes on where it stopped. Method: cancel after each step, go on by cursor."""
    image, one = layer_of(family, "image", "base"), layer_of(family, "one")
    flip(family, image, 0)
    flip(family, image, C)
    flip(family, one, 3 * B)
    whole = verify(family)
    cursor, found, steps = "", set(), 0
    while True:
        watcher = Watcher(stop_after=1)
        try:
            verify(family, watcher=watcher, cursor=cursor)
        except CancelledError:
            cursor = watcher.calls[-1][3]
            found |= watcher.blocks
            steps += 1
            assert watcher.calls[-1][0] == steps * C
            continue
        break
    assert found == whole.blocks
    assert steps == len(whole.calls)


def test_throttle(family):
    """Goal: gentle. Method: read 3 chunks' worth of spans at a rate that takes a moment."""
    watcher = verify(family, bytes_per_s_max=200 * B)
    assert watcher.damage == []
    assert len(watcher.calls) > len(verify(family).calls)


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_found_is_what_was_planted(tmp_path_factory, data):
    """Goal: found == planted. Method: a random tree of layers, random flips, an oracle of reads."""
    backend = opened(tmp_path_factory.mktemp("pool") / "pool")
    chance = random.Random(data.draw(st.integers(0, 2**32)))
    try:
        backend.create("v0", 2 * C)
        points = ["v0"]
        for number in range(1, data.draw(st.integers(2, 6))):
            parent = chance.choice(points)
            for _ in range(4):
                at = chance.randrange(2 * CHUNK_BLOCKS - 32) * B
                put(backend, parent, at, chance.randbytes(chance.randrange(1, 32) * B))
            backend.clone(parent, None, f"v{number}", 2 * C)
            points.append(f"v{number}")
        written = []
        for path in (backend._store.directory / "layers").iterdir():
            written += [(int(path.stem), block) for block in range(path.stat().st_size // B)]
        planted = chance.sample(written, min(len(written), data.draw(st.integers(0, 12))))
        for layer, block in planted:
            flip(backend, layer, block * B + chance.randrange(B))
        expected = {name: set(_bad_reads(backend, name)) for name in points}
        found: dict[str, set[int]] = {name: set() for name in points}
        for damage in verify(backend).damage:
            assert {(damage.layer, damage.offset_bytes // B)} <= set(planted)
            for name, _ in damage.points:
                blocks = range(
                    damage.offset_bytes // B, (damage.offset_bytes + damage.length_bytes) // B
                )
                found[name] |= set(blocks)
        assert found == expected
        for name in points:
            assert {block for _, block in verify(backend, name).blocks} == expected[name]
    finally:
        backend.close()


def _bad_reads(backend, name):
    """Yield every block that the volume's own readers cannot have."""
    with backend.open_device(name, read_only=True) as device:
        for block in range(2 * CHUNK_BLOCKS):
            try:
                device.read(block * B, B)
            except Exception:
                yield block
