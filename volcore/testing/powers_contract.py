"""The part of the backend suite for optional powers; see `backend_contract`."""

import threading
from itertools import pairwise

import pytest

from volcore.backends.contract import (
    SupportsDiff,
    SupportsFlatten,
    SupportsGroupSnapshot,
    SupportsRevert,
    VolumeBackend,
)
from volcore.errors import (
    ConflictError,
    NotFoundError,
    PreconditionError,
    Reason,
)
from volcore.testing.device_contract import (
    SIZE,
    B,
    C,
    DeviceContract,
    covered,
    fetch,
    no_progress,
    pattern,
    put,
)

GROUPS_UNDER_LOAD = 12


class PowersContract(DeviceContract):
    """Revert, flatten, group snapshots and diff, for backends that have them."""

    def test_revert(self, backend: VolumeBackend, vol: str) -> None:
        """A reverted volume equals its snapshot; all snapshots stay; repeating changes nothing."""
        if not isinstance(backend, SupportsRevert):
            pytest.skip("no revert")
        put(backend, vol, 0, pattern(2 * B, 27))
        backend.create_snapshot(vol, "one")
        put(backend, vol, B, pattern(2 * B, 28))
        backend.create_snapshot(vol, "two")
        newest = pattern(B, 27) + pattern(2 * B, 28)
        for _ in range(2):
            backend.revert(vol, "one")
            assert fetch(backend, vol, 0, 3 * B) == pattern(2 * B, 27) + bytes(B)
        assert backend.describe(vol).snapshot_ids == ("one", "two")
        assert fetch(backend, vol, 0, 3 * B, "two") == newest
        put(backend, vol, 0, b"on")
        backend.revert(vol, "two")
        assert fetch(backend, vol, 0, 3 * B) == newest
        with pytest.raises(NotFoundError):
            backend.revert(vol, "three")

    def test_revert_size(self, backend: VolumeBackend, vol: str) -> None:
        """Reverting takes the size back too; what is grown again reads as zeroes."""
        if not isinstance(backend, SupportsRevert):
            pytest.skip("no revert")
        put(backend, vol, SIZE - 1, b"e")
        backend.create_snapshot(vol, "s")
        backend.resize(vol, SIZE + C)
        put(backend, vol, SIZE, b"beyond")
        backend.revert(vol, "s")
        assert backend.describe(vol).size_bytes == SIZE
        backend.resize(vol, SIZE + C)
        assert fetch(backend, vol, SIZE - 1, B) == b"e" + bytes(B - 1)

    def test_revert_in_use(self, backend: VolumeBackend, vol: str) -> None:
        """A volume with an open device is not reverted."""
        if not isinstance(backend, SupportsRevert):
            pytest.skip("no revert")
        backend.create_snapshot(vol, "s")
        with backend.open_device(vol, read_only=False) as device:
            device.write(0, b"busy")
            with pytest.raises(PreconditionError) as caught:
                backend.revert(vol, "s")
            assert caught.value.reason == Reason.VOLUME_IN_USE
            assert device.read(0, 4) == b"busy"

    def test_flatten(self, backend: VolumeBackend, vol: str) -> None:
        """A flattened clone, in use all the while, stands alone with the same content."""
        if not isinstance(backend, SupportsFlatten):
            pytest.skip("no flatten")
        data = bytearray(pattern(C + 3 * B, 29))
        put(backend, vol, 0, bytes(data))
        backend.create_snapshot(vol, "s")
        backend.clone(vol, "s", "child", SIZE)
        calls = []
        with backend.open_device("child", read_only=False) as device:
            device.write(B, b"own")
            device.discard(2 * B, B)
            backend.flatten("child", lambda done, total: calls.append((done, total)))
            data[B : B + 3] = b"own"
            data[2 * B : 3 * B] = bytes(B)
            assert device.read(0, len(data)) == data
            facts = backend.describe("child")
            assert (facts.depth, facts.parent_volume_id, facts.parent_snapshot_id) == (
                0,
                None,
                None,
            )
            backend.delete(vol)
            assert device.read(0, len(data)) == data
        assert calls == sorted(calls)
        assert all(0 <= done <= total for done, total in calls)
        backend.flatten("child", no_progress)
        assert fetch(backend, "child", 0, len(data)) == data

    def test_flatten_cancelled(self, backend: VolumeBackend, vol: str) -> None:
        """An exception from progress stops the work; content stays; a repeat finishes it."""
        if not isinstance(backend, SupportsFlatten):
            pytest.skip("no flatten")
        data = pattern(2 * C, 30)
        put(backend, vol, 0, data)
        backend.create_snapshot(vol, "s")
        backend.clone(vol, "s", "child", SIZE)

        def stop(done_bytes: int, total_bytes: int) -> None:
            raise InterruptedError(f"{done_bytes} of {total_bytes}")

        with pytest.raises(InterruptedError):
            backend.flatten("child", stop)
        assert fetch(backend, "child", 0, len(data)) == data
        backend.flatten("child", no_progress)
        assert backend.describe("child").depth == 0
        assert fetch(backend, "child", 0, len(data)) == data

    def test_group_snapshot(self, backend: VolumeBackend, vol: str) -> None:
        """Each volume has its snapshot; a group that cannot be whole leaves nothing."""
        if not isinstance(backend, SupportsGroupSnapshot):
            pytest.skip("no group snapshots")
        backend.create("other", SIZE)
        put(backend, vol, 0, b"one")
        backend.create_group_snapshot([(vol, "g.1"), ("other", "g.2")])
        put(backend, vol, 0, b"two")
        put(backend, "other", 0, b"two")
        assert fetch(backend, vol, 0, 3, "g.1") == b"one"
        assert fetch(backend, "other", 0, 3, "g.2") == bytes(3)
        with pytest.raises(ConflictError):
            backend.create_group_snapshot([(vol, "h.1"), ("other", "g.2")])
        with pytest.raises(NotFoundError):
            backend.create_group_snapshot([(vol, "h.1"), ("gone", "h.2")])
        assert backend.describe(vol).snapshot_ids == ("g.1",)
        assert fetch(backend, "other", 0, 3) == b"two"
        backend.delete_snapshot(vol, "g.1")
        backend.delete_snapshot("other", "g.2")
        assert backend.describe(vol).snapshot_ids == ()

    def test_group_snapshot_under_load(self, backend: VolumeBackend, vol: str) -> None:
        """Goal: one instant. Method: counters go up in volume A before B; snapshots show A >= B.

        Each of several writers has a device of its own on both volumes and a block of its own far
        from the others; A may be ahead of B by the one write that is under way.
        """
        if not isinstance(backend, SupportsGroupSnapshot):
            pytest.skip("no group snapshots")
        backend.create("second", SIZE)
        volumes, writers = (vol, "second"), range(4)
        places = [index * (C + 3 * B) for index in writers]
        stop = threading.Event()
        failures: list[BaseException] = []

        def count(place: int) -> None:
            number = 0
            try:
                with (
                    backend.open_device(vol, read_only=False) as first,
                    backend.open_device("second", read_only=False) as second,
                ):
                    while not stop.is_set():
                        number += 1
                        for device in (first, second):
                            device.write(place, number.to_bytes(8, "big"))
                        if number % 64 == 0:
                            second.flush()
            except BaseException as err:
                failures.append(err)

        threads = [threading.Thread(target=count, args=(place,)) for place in places]
        for thread in threads:
            thread.start()
        try:
            for group in range(GROUPS_UNDER_LOAD):
                backend.create_group_snapshot([(v, f"{v}.{group}") for v in volumes])
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert not failures, failures
        before = [0] * len(places)
        for group in range(GROUPS_UNDER_LOAD):
            for index, place in enumerate(places):
                first, second = (
                    int.from_bytes(fetch(backend, v, place, 8, f"{v}.{group}"), "big")
                    for v in volumes
                )
                assert first >= second >= first - 1, (group, place, first, second)
                assert second >= before[index]
                before[index] = second
        assert any(before), "nothing was written meanwhile"

    def test_diff(self, backend: VolumeBackend, vol: str) -> None:
        """A diff covers every changed byte between two points and no chunk left alone."""
        if not isinstance(backend, SupportsDiff):
            pytest.skip("no diff")
        put(backend, vol, 0, pattern(C + B, 31))
        backend.create_snapshot(vol, "one")
        with backend.open_device(vol, read_only=False) as device:
            device.write(C, pattern(B, 32))
            device.discard(C // 2, B)
            backend.create_snapshot(vol, "two")
            device.write(3 * C + 5, b"late")
            device.flush()
            between = backend.diff(vol, "one", "two")
            since = backend.diff(vol, "two", None)
            whole = backend.diff(vol, None, None)
        assert covered(between, C)
        assert covered(between, C + B - 1)
        assert covered(between, C // 2 + B - 1)
        assert not covered(between, 2 * C)
        assert not covered(between, 3 * C + 5)
        assert covered(since, 3 * C + 5)
        assert not covered(since, C)
        assert all(covered(whole, offset) for offset in (0, C, 3 * C + 5))
        assert not covered(whole, 2 * C)
        for extents in (between, since, whole):
            assert all(a.end_bytes <= b.offset_bytes for a, b in pairwise(extents))
            assert all(e.end_bytes <= SIZE and e.length_bytes > 0 for e in extents)
        with pytest.raises(NotFoundError):
            backend.diff(vol, "three", None)
