"""Incremental diffs: exact beside librbd's own, and right beside a comparison of all bytes."""

import random

import pytest

from rbd_backend.pools import raw_pool
from volcore.backends.rbd import extents
from volcore.limits import CHUNK_SIZE_BYTES
from volcore.model.extent import ExtentKind
from volcore.testing.device_contract import put

CHUNK = CHUNK_SIZE_BYTES
STEPS = 24
PIECE = 64 << 10
"""Writes are of that size and alignment; the rest of a chunk stays as it is."""


class History:
    """Random life of a volume, and the bytes of each of its snapshots."""

    def __init__(self, backend, ioctx, seed):
        self.backend = backend
        self.ioctx = ioctx
        self.dice = random.Random(seed)
        self.chunk_count = 6
        self.points = []
        backend.create("base", self.chunk_count * CHUNK)
        for chunk in (0, 2, 3):
            put(backend, "base", chunk * CHUNK, self.dice.randbytes(PIECE))
        backend.create_snapshot("base", "s")
        backend.clone("base", "s", "v", self.chunk_count * CHUNK)

    def step(self):
        name = self.dice.choices(
            [
                "write",
                "trim",
                "trim_chunk",
                "grow",
                "shrink",
                "clone",
                "revert",
                "direct",
                "librbd",
            ],
            [8, 3, 2, 1, 1, 1, 1, 3, 3],
        )[0]
        getattr(self, name)()
        return name

    def place(self):
        return self.dice.randrange(self.chunk_count) * CHUNK + self.dice.randrange(3) * PIECE

    def write(self):
        put(self.backend, "v", self.place(), self.dice.randbytes(PIECE))

    def trim(self):
        with self.backend.open_device("v", read_only=False) as device:
            device.discard(self.place(), PIECE)

    def trim_chunk(self):
        with self.backend.open_device("v", read_only=False) as device:
            device.discard(self.dice.randrange(self.chunk_count) * CHUNK, CHUNK)

    def grow(self):
        self.chunk_count += 1
        self.backend.resize("v", self.chunk_count * CHUNK)

    def shrink(self):
        self.chunk_count = max(6, self.chunk_count - 2)
        with self.image() as image:
            image.resize(self.chunk_count * CHUNK)

    def clone(self):
        if self.points:
            name = f"c{self.dice.random()}"
            self.backend.clone("v", self.dice.choice(self.points), name, 64 * CHUNK)
            put(self.backend, name, 0, b"clone")

    def revert(self):
        if self.points:
            self.backend.revert("v", self.dice.choice(self.points))
            with self.image() as image:
                self.chunk_count = image.size() // CHUNK

    def direct(self):
        self.points.append(f"d{len(self.points)}")
        session = self.backend._session()
        newest = max(session.headers.snaps(session.headers.image_id("v")), default=0)
        assert session.direct._stock.wait(1, 30, above=newest)
        waves = session.direct.waves
        before = waves.wave_count
        self.backend.create_snapshot("v", self.points[-1])
        assert waves.wave_count - before >= 3

    def librbd(self):
        self.points.append(f"l{len(self.points)}")
        with self.image() as image:
            image.create_snap(self.points[-1])

    def image(self, snapshot=None):
        import rbd

        return rbd.Image(self.ioctx, "v", snapshot=snapshot)

    def content(self, snapshot):
        with self.image(snapshot) as image:
            return image.read(0, image.size())

    def librbds_diff(self, source, target):
        with self.image(target) as image:
            return extents._diff(image, 0, image.size(), source)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_histories(direct, ceph_cluster, ceph_pool, seed):
    """Goal: no change is missed. Method: random histories, diff of every pair of points."""
    with raw_pool(ceph_cluster, ceph_pool) as ioctx:
        history = History(direct, ioctx, seed)
        done = [history.step() for _ in range(STEPS)]
        direct._session().direct.flush()
        points = [*history.points, None]
        contents = {point: history.content(point) for point in points}
        for at, target in enumerate(points):
            for source in [None, *points[:at]]:
                found = direct.diff("v", source, target)
                where = (seed, done, source, target)
                assert found == history.librbds_diff(source, target), where
                before = contents[source] if source else b""
                check(before, contents[target], found, where)


def check(before, after, found, where):
    """All that differs lies in an extent; what is called zero is zero."""
    patched = bytearray(before.ljust(len(after), b"\0")[: len(after)])
    for extent in found:
        part = slice(extent.offset_bytes, extent.end_bytes)
        patched[part] = after[part]
        if extent.kind == ExtentKind.ZERO:
            assert not after[part].strip(b"\0"), where
    assert patched == after, where


def test_many_ranges(direct, ceph_cluster, ceph_pool, monkeypatch):
    """Goal: ranges looked at side by side come out whole. Method: scattered writes."""
    dice = random.Random(5)
    direct.create("v", 400 * CHUNK)
    direct.create_snapshot("v", "s")
    with direct.open_device("v", read_only=False) as device:
        for chunk in dice.sample(range(400), 60):
            device.write(chunk * CHUNK + dice.randrange(CHUNK // 4096) * 4096, bytes([7]) * 4096)
    with raw_pool(ceph_cluster, ceph_pool) as ioctx:
        import rbd

        with rbd.Image(ioctx, "v") as image:
            exact = extents._diff(image, 0, image.size(), "s")
    assert len(exact) >= 60
    assert direct.diff("v", "s", None) == exact
    with monkeypatch.context() as patch:
        patch.setattr(extents, "RANGE_BYTES_MAX", CHUNK)
        assert direct.diff("v", "s", None) == exact
        assert direct.diff("v", None, None) == exact


@pytest.mark.parametrize("change", ["shrink", "flatten"])
def test_a_parent_that_counts_less(direct, ceph_cluster, ceph_pool, change):
    """Goal: what object maps cannot tell is looked at. Method: shrink and grow; flatten."""
    with raw_pool(ceph_cluster, ceph_pool) as ioctx:
        history = History(direct, ioctx, 1)
        history.direct()
        put(direct, "v", 3 * CHUNK, b"own")
        with history.image() as image:
            if change == "flatten":
                image.flatten()
            else:
                image.resize(3 * CHUNK)
                image.resize(6 * CHUNK)
        found = direct.diff("v", "d0", None)
        assert found == history.librbds_diff("d0", None)
        check(history.content("d0"), history.content(None), found, change)
