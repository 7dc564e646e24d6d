"""Goal: a diff is exact. Method: random layers, reverted and cloned; compare with full reads."""

import itertools
import random
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from volcore.backends.local import LocalBackend, LocalStore, diff
from volcore.backends.local.pagecodec import decoded
from volcore.kernels import chunkmap
from volcore.limits import BLOCK_SIZE_BYTES, CHUNK_BLOCKS, CHUNK_SIZE_BYTES
from volcore.model.extent import ExtentKind

from .test_histories import QUICK

B, C = BLOCK_SIZE_BYTES, CHUNK_SIZE_BYTES
SIZE = 2 * C + 3 * B
BLOCKS = 2 * CHUNK_BLOCKS + 3
_blocks = st.one_of(st.integers(0, 6), st.integers(CHUNK_BLOCKS - 3, CHUNK_BLOCKS + 3))
_steps = st.lists(
    st.one_of(
        st.tuples(st.sampled_from("wwd"), _blocks, st.integers(1, 5)),
        st.tuples(st.sampled_from("WD"), st.integers(0, 1), st.just(0)),  # a whole chunk
        st.tuples(st.just("s"), st.just(0), st.just(0)),
        st.tuples(st.just("r"), st.integers(0, 9), st.just(0)),
    ),
    min_size=1,
    max_size=14,
)


@pytest.mark.timeout(300)
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    _steps,
    st.integers(0, 9),
    st.integers(0, 9),
    st.sampled_from([(4,), (1, 2, 4)]),
    st.sampled_from([1, 2, 8192]),
)
@example([("s", 0, 0), ("w", 0, 1), ("s", 0, 0), ("w", 1, 1)], 0, 2, (4,), 8192)  # neighbours
def test_diff_is_exact(steps, first, second, versions, chunks_at_once):
    place = Path(tempfile.mkdtemp(prefix="volcore-", dir=QUICK))
    backend = LocalBackend(LocalStore.open(place))
    try:
        backend.open()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(diff, "CHUNKS_AT_ONCE", chunks_at_once)
            check(backend, steps, first, second, versions)
    finally:
        backend.close()
        shutil.rmtree(place)


def check(backend, steps, first, second, versions):
    backend.create("v", SIZE)
    points = []
    for number, (how, where, count) in enumerate([*steps, ("s", 0, 0)]):
        if how == "s":
            points.append(f"s{number}")
            backend.create_snapshot("v", points[-1])
        elif how == "r":
            if points:
                backend.revert("v", points[where % len(points)])
        else:
            change(backend, how, where, count, number)
    make_older(backend, versions)
    source, target = points[first % len(points)], points[second % len(points)]
    for one, other in ((source, target), (None, target), (source, None), (None, None)):
        compare(backend, one, other)


def make_older(backend, versions):
    """Write pages as servers of these versions did, in turn."""
    for number, (row_id, *row) in enumerate(
        backend._database.query(
            "SELECT rowid, layer_id, chunk_index, states, crcs, checksum FROM page"
        )
    ):
        page = decoded(*row)
        version = versions[number % len(versions)]
        form = (page.states, page.crcs.tobytes())
        if version != 1:
            form = chunkmap.pack(page.states, page.crcs) if version == 2 else row[2:4]
        backend._database.execute(
            "UPDATE page SET states = ?, crcs = ? WHERE rowid = ?", (*form, row_id)
        )


def change(backend, how, where, count, number):
    with backend.open_device("v", read_only=False) as device:
        offset, length = where * B, count * B
        if how in "WD":
            offset, length = where * C, C
        if how in "wW":
            device.write(offset, random.Random(number).randbytes(B) * (length // B))
        else:
            device.discard(offset, length)


def compare(backend, source, target):
    """Every changed block is in the diff, none twice; what is not DATA in it reads as zeroes.

    Neighbours of one kind are one extent.
    """
    extents = backend.diff("v", source, target)
    for one, other in itertools.pairwise(extents):
        assert (one.end_bytes, one.kind) != (other.offset_bytes, other.kind)
    with backend.open_device("v", target, read_only=True) as device:
        new = device.read(0, SIZE)
    old = bytes(SIZE)
    if source is not None:
        with backend.open_device("v", source, read_only=True) as device:
            old = device.read(0, SIZE)
    covered = bytearray(BLOCKS)
    for extent in extents:
        low, high = extent.offset_bytes // B, extent.end_bytes // B
        assert extent.length_bytes > 0
        assert extent.end_bytes <= SIZE
        assert not any(covered[low:high])
        covered[low:high] = bytes([extent.kind]) * (high - low)
        assert extent.kind is not ExtentKind.ABSENT
        if extent.kind is ExtentKind.ZERO:
            assert source is not None
            assert not any(new[extent.offset_bytes : extent.end_bytes])
    assert [e.offset_bytes for e in extents] == sorted(e.offset_bytes for e in extents)
    for block in range(BLOCKS):
        if old[block * B : block * B + B] != new[block * B : block * B + B]:
            assert covered[block], f"block {block} differs"
    if source == target and source is not None:
        assert not extents
