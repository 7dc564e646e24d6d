"""Diffs of snapshots: a copy made from them alone is right, and bad questions are refused."""

import random
from contextlib import ExitStack

import pytest

from volcore.engine.views import CreateVolume
from volcore.errors import InvalidArgumentError, NotFoundError, OutOfRangeError, Reason
from volcore.limits import MIB
from volcore.model.extent import ExtentKind

PIECE = 64 * 1024
ROUNDS = 6


def test_a_copy_from_diffs_is_equal(bench):
    """Goal: nothing is left out, over writes, trims, resizes, direct and librbd's snapshots.

    Method: apply each diff alone to a copy, compare every byte; resume in the middle of each.
    """
    dice, engine, backend = random.Random(4), bench.engine, bench.pool.backend
    size_bytes = 16 * MIB
    volume = engine.volumes.create("p", CreateVolume(name="v", size_bytes=size_bytes))
    copy, base = bytearray(), None
    for number in range(ROUNDS):
        if number % 3 == 2:
            size_bytes += 4 * MIB
            engine.volumes.resize("p", "v", size_bytes)
        with ExitStack() as open_devices:  # an open one makes rbd's snapshots go through librbd
            device = open_devices.enter_context(
                backend.open_device(volume.backend_id, read_only=False)
            )
            for _ in range(8):
                offset = dice.randrange(size_bytes // PIECE) * PIECE
                if dice.random() < 0.7:
                    device.write(offset, dice.randbytes(PIECE))
                else:
                    device.discard(offset, PIECE)
            device.flush()
            if number % 2:
                open_devices.close()
            snapshot = engine.snapshots.create("p", "v", f"s{number}")
        found = engine.diffs.diff_snapshot("p", "v", f"s{number}", base=base)
        assert found.size_bytes == size_bytes
        with backend.open_device(volume.backend_id, snapshot.backend_id, read_only=True) as frozen:
            copy += bytes(size_bytes - len(copy))
            end_bytes = -1
            for extent in found.extents:
                assert extent.offset_bytes >= end_bytes
                end_bytes = extent.end_bytes
                data = bytes(extent.length_bytes)
                if extent.kind is ExtentKind.DATA:
                    data = frozen.read(extent.offset_bytes, extent.length_bytes)
                copy[extent.offset_bytes : end_bytes] = data
            assert copy == frozen.read(0, size_bytes)
        _check_resumed(engine, f"s{number}", base, found)
        base = f"s{number}"
    with pytest.raises(InvalidArgumentError, match="newer"):
        engine.diffs.diff_snapshot("p", "v", "s0", base=base)


def _check_resumed(engine, name, base, whole):
    middle = whole.extents[len(whole.extents) // 2]
    start = middle.offset_bytes + middle.length_bytes // 2
    rest = engine.diffs.diff_snapshot("p", "v", name, base=base, start_bytes=start)
    after = [one for one in whole.extents if one.offset_bytes > start]
    assert rest.extents == [(start, middle.end_bytes - start, middle.kind), *after]
    end = engine.diffs.diff_snapshot("p", "v", name, base=base, start_bytes=whole.size_bytes)
    assert end.extents == []


@pytest.mark.parametrize("bench", ["memory", "local"], indirect=True)
def test_bad_questions(bench):
    """Goal: clear refusals. Method: each wrong field; a snapshot against itself is no change."""
    engine = bench.engine
    engine.volumes.create("p", CreateVolume(name="v", size_bytes=MIB))
    engine.snapshots.create("p", "v", "s")
    assert engine.diffs.diff_snapshot("p", "v", "s", base="s").extents == []
    for start_bytes in (-1, MIB + 1):
        with pytest.raises(OutOfRangeError) as caught:
            engine.diffs.diff_snapshot("p", "v", "s", start_bytes=start_bytes)
        assert caught.value.reason is Reason.OFFSET_PAST_END
    for name, base in (("x", None), ("s", "x")):
        with pytest.raises(NotFoundError) as missing:
            engine.diffs.diff_snapshot("p", "v", name, base=base)
        assert missing.value.reason is Reason.SNAPSHOT_NOT_FOUND


@pytest.mark.parametrize(
    "bench", ["memory", "local", pytest.param("rbd", marks=pytest.mark.ceph)], indirect=True
)
@pytest.mark.parametrize("gone", ["a", "b"])
def test_a_snapshot_deleted_around_the_service(bench, gone):
    """Goal: NOT_FOUND, not a fault. Method: delete one of the two in the backend only."""
    engine = bench.engine
    engine.volumes.create("p", CreateVolume(name="v", size_bytes=MIB))
    made = {name: engine.snapshots.create("p", "v", name) for name in ("a", "b")}
    bench.pool.backend.delete_snapshot(made[gone].backend_volume_id, made[gone].backend_id)
    with pytest.raises(NotFoundError) as caught:
        engine.diffs.diff_snapshot("p", "v", "b", base="a")
    assert caught.value.reason is Reason.OBJECT_NOT_FOUND
