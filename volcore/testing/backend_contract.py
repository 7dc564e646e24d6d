"""The suite that every backend passes: subclass `BackendContract`, give it a `backend`.

    class TestMine(BackendContract):
        @pytest.fixture
        def backend(self):
            backend = MineBackend(...)
            backend.open()
            yield backend
            backend.close()

Optional hooks: `reopen` (stop cleanly and start again on the same storage), `peek` (read a volume
around the code under test), `flip` (change a stored byte around it). Volumes are small and
snapshots few, since each may cost a second on a real cluster. What a backend may decide for itself
is left open: space is counted in its own units, extents and diffs may round up to a chunk.
"""

from collections.abc import Callable

import pytest

from volcore.backends.contract import (
    SupportsCollect,
    VolumeBackend,
)
from volcore.errors import (
    ConflictError,
    NotFoundError,
    OutOfRangeError,
    PreconditionError,
    Reason,
    VolcoreError,
)
from volcore.limits import MIB
from volcore.testing.device_contract import (
    SIZE,
    B,
    C,
    fetch,
    pattern,
    put,
)
from volcore.testing.powers_contract import PowersContract


class BackendContract(PowersContract):
    """Override `backend`; override the hooks where the storage allows it."""

    # Names and facts

    def test_create_describe(self, backend: VolumeBackend, vol: str) -> None:
        """A new volume has its size, no parent, no snapshots, and next to no space."""
        facts = backend.describe(vol)
        assert (facts.volume_id, facts.size_bytes, facts.depth) == (vol, SIZE, 0)
        assert (facts.parent_volume_id, facts.parent_snapshot_id) == (None, None)
        assert facts.snapshot_ids == ()
        assert facts.allocated_bytes <= C

    def test_walk(self, backend: VolumeBackend) -> None:
        """Each volume is listed once, deleted ones not."""
        assert list(backend.walk()) == []
        for volume_id in ("a.1", "b_2", "c-3"):
            backend.create(volume_id, SIZE)
        backend.delete("b_2")
        assert sorted(backend.walk()) == ["a.1", "c-3"]

    def test_create_twice(self, backend: VolumeBackend, vol: str) -> None:
        """An id that exists is refused, and the volume under it is not touched."""
        put(backend, vol, 0, b"kept")
        with pytest.raises(ConflictError) as caught:
            backend.create(vol, SIZE)
        assert caught.value.reason == Reason.NAME_TAKEN
        assert fetch(backend, vol, 0, 4) == b"kept"

    def test_unknown_volume(self, backend: VolumeBackend, vol: str) -> None:
        """Every call on an unknown volume is a NotFoundError."""
        calls: list[Callable[[], object]] = [
            lambda: backend.delete("gone"),
            lambda: backend.resize("gone", SIZE),
            lambda: backend.describe("gone"),
            lambda: backend.create_snapshot("gone", "s"),
            lambda: backend.delete_snapshot("gone", "s"),
            lambda: backend.clone("gone", "s", "new", SIZE),
            lambda: backend.clone("gone", None, "new", SIZE),
            lambda: backend.open_device("gone", read_only=True),
            lambda: backend.open_device("gone", read_only=False),
        ]
        for call in calls:
            with pytest.raises(NotFoundError) as caught:
                call()
            assert caught.value.reason == Reason.OBJECT_NOT_FOUND
        assert list(backend.walk()) == [vol]

    def test_unknown_snapshot(self, backend: VolumeBackend, vol: str) -> None:
        """Every call on an unknown snapshot is a NotFoundError and leaves nothing behind."""
        calls: list[Callable[[], object]] = [
            lambda: backend.delete_snapshot(vol, "gone"),
            lambda: backend.clone(vol, "gone", "new", SIZE),
            lambda: backend.open_device(vol, "gone", read_only=True),
        ]
        for call in calls:
            with pytest.raises(NotFoundError) as caught:
                call()
            assert caught.value.reason == Reason.OBJECT_NOT_FOUND
        assert list(backend.walk()) == [vol]

    def test_delete_twice(self, backend: VolumeBackend, vol: str) -> None:
        """Deleting is strict: the second time there is nothing to delete."""
        backend.delete(vol)
        with pytest.raises(NotFoundError):
            backend.delete(vol)

    def test_deleted_id_can_come_back(self, backend: VolumeBackend, vol: str) -> None:
        """A volume under the id of a deleted one starts blank."""
        put(backend, vol, 0, b"old")
        backend.delete(vol)
        backend.create(vol, SIZE)
        assert fetch(backend, vol, 0, 3) == bytes(3)

    def test_snapshot_names(self, backend: VolumeBackend, vol: str) -> None:
        """Snapshots are listed oldest first; an id that exists is refused."""
        for snapshot_id in ("z.1", "a-2"):
            backend.create_snapshot(vol, snapshot_id)
        with pytest.raises(ConflictError):
            backend.create_snapshot(vol, "z.1")
        assert backend.describe(vol).snapshot_ids == ("z.1", "a-2")
        backend.delete_snapshot(vol, "z.1")
        assert backend.describe(vol).snapshot_ids == ("a-2",)

    def test_snapshot_ids_belong_to_their_volume(self, backend: VolumeBackend, vol: str) -> None:
        """Two volumes may each have a snapshot of the same id."""
        backend.create("other", SIZE)
        put(backend, vol, 0, b"one")
        put(backend, "other", 0, b"two")
        for volume_id in (vol, "other"):
            backend.create_snapshot(volume_id, "s")
        assert fetch(backend, vol, 0, 3, "s") == b"one"
        assert fetch(backend, "other", 0, 3, "s") == b"two"

    def test_caps(self, backend: VolumeBackend) -> None:
        """The abilities are plausible and do not change."""
        caps = backend.caps
        assert caps == backend.caps
        assert caps.chunk_size_bytes % caps.block_size_bytes == 0
        assert caps.depth_max >= 1
        assert caps.snapshots_max >= 1

    def test_stats(self, backend: VolumeBackend, vol: str) -> None:
        """The pool has room, and what is available fits in it."""
        put(backend, vol, 0, pattern(MIB, 1))
        stats = backend.stats()
        assert 0 < stats.available_bytes <= stats.capacity_bytes
        assert stats.allocated_bytes >= 0

    # Snapshots and clones

    def test_snapshot_isolation(self, backend: VolumeBackend, vol: str) -> None:
        """A snapshot keeps its content while the volume changes under an open device."""
        first, second = pattern(3 * B, 12), pattern(3 * B, 13)
        with backend.open_device(vol, read_only=False) as device:
            device.write(100, first)
            backend.create_snapshot(vol, "s")
            device.write(100, second)
            device.discard(B, B)
            expected = device.read(0, 4 * B)
            assert fetch(backend, vol, 0, 4 * B, "s") == bytes(100) + first + bytes(B - 100)
        assert expected[B : 2 * B] == bytes(B)
        assert fetch(backend, vol, 0, 4 * B) == expected

    def test_snapshots_in_a_row(self, backend: VolumeBackend, vol: str) -> None:
        """Each of several snapshots shows its own time, also after the middle one went."""
        for step in range(3):
            put(backend, vol, step * B, pattern(2 * B, step))
            backend.create_snapshot(vol, f"s{step}")
        put(backend, vol, 0, bytes(4 * B))
        model = bytearray(4 * B)
        states = []
        for step in range(3):
            model[step * B : (step + 2) * B] = pattern(2 * B, step)
            states.append(bytes(model))
        backend.delete_snapshot(vol, "s1")
        assert fetch(backend, vol, 0, 4 * B, "s0") == states[0]
        assert fetch(backend, vol, 0, 4 * B, "s2") == states[2]
        assert fetch(backend, vol, 0, 4 * B) == bytes(4 * B)

    def test_snapshot_of_blank(self, backend: VolumeBackend, vol: str) -> None:
        """A blank volume has blank snapshots and clones."""
        backend.create_snapshot(vol, "s")
        backend.clone(vol, "s", "child", SIZE)
        put(backend, vol, 0, b"later")
        assert fetch(backend, vol, 0, B, "s") == bytes(B)
        assert fetch(backend, "child", 0, B) == bytes(B)

    def test_clone_of_snapshot(self, backend: VolumeBackend, vol: str) -> None:
        """A clone shows the snapshot; neither side sees what the other writes."""
        data = pattern(C + B, 14)
        put(backend, vol, 0, data)
        backend.create_snapshot(vol, "s")
        put(backend, vol, 0, b"parent")
        backend.clone(vol, "s", "child", SIZE)
        assert fetch(backend, "child", 0, len(data)) == data
        put(backend, "child", B, b"child")
        put(backend, vol, B, b"elder")
        assert fetch(backend, "child", 0, 2 * B) == data[:B] + b"child" + data[B + 5 : 2 * B]
        assert fetch(backend, vol, 0, len(data), "s") == data
        assert fetch(backend, vol, B, 5) == b"elder"

    def test_clone_facts(self, backend: VolumeBackend, vol: str) -> None:
        """A clone names its parent, counts its depth, and occupies nothing of its own."""
        put(backend, vol, 0, pattern(2 * C, 15))
        backend.create_snapshot(vol, "s")
        backend.clone(vol, "s", "child", SIZE)
        facts = backend.describe("child")
        assert (facts.parent_volume_id, facts.parent_snapshot_id) == (vol, "s")
        assert facts.depth >= 1
        assert facts.snapshot_ids == ()
        assert facts.allocated_bytes <= C
        assert sorted(backend.walk()) == ["child", vol]

    def test_clone_of_live_volume(self, backend: VolumeBackend, vol: str) -> None:
        """A clone of a volume in use has its content of that instant, flushed or not."""
        data = pattern(2 * B, 16)
        with backend.open_device(vol, read_only=False) as device:
            device.write(7, data)
            backend.clone(vol, None, "child", SIZE)
            device.write(7, b"after")
            assert fetch(backend, "child", 7, 2 * B) == data
            put(backend, "child", 7, b"other")
            assert device.read(7, 5) == b"after"
        facts = backend.describe("child")
        assert facts.depth >= 1
        assert facts.parent_volume_id == vol
        assert backend.describe(vol).snapshot_ids == ()

    def test_clone_larger(self, backend: VolumeBackend, vol: str) -> None:
        """A clone may be larger; the rest is zeroes and writable. Smaller is refused."""
        put(backend, vol, SIZE - B, pattern(B, 17))
        backend.create_snapshot(vol, "s")
        backend.clone(vol, "s", "child", SIZE + C)
        with backend.open_device("child", read_only=False) as child:
            assert child.size_bytes == SIZE + C
            assert child.read(SIZE - B, 2 * B) == pattern(B, 17) + bytes(B)
            child.write(SIZE + C - 3, b"end")
            assert child.read(SIZE + C - 3, 3) == b"end"
        with pytest.raises(OutOfRangeError) as caught:
            backend.clone(vol, "s", "small", SIZE - B)
        assert caught.value.reason == Reason.SHRINK_REFUSED
        assert sorted(backend.walk()) == ["child", vol]

    def test_clone_onto_existing(self, backend: VolumeBackend, vol: str) -> None:
        """A clone never replaces a volume."""
        backend.create("other", SIZE)
        put(backend, "other", 0, b"mine")
        backend.create_snapshot(vol, "s")
        for source in ("s", None):
            with pytest.raises(ConflictError):
                backend.clone(vol, source, "other", SIZE)
        assert fetch(backend, "other", 0, 4) == b"mine"

    def test_grandchild(self, backend: VolumeBackend, vol: str) -> None:
        """A clone of a clone reads through both, each block from the nearest that has it."""
        put(backend, vol, 0, pattern(3 * B, 18))
        backend.create_snapshot(vol, "s")
        backend.clone(vol, "s", "child", SIZE)
        put(backend, "child", B, pattern(B, 19))
        backend.create_snapshot("child", "s")
        backend.clone("child", "s", "grand", SIZE)
        put(backend, "grand", 2 * B + 1, b"g")
        root = pattern(3 * B, 18)
        expected = root[:B] + pattern(B, 19) + root[2 * B : 2 * B + 1] + b"g" + root[2 * B + 2 :]
        assert fetch(backend, "grand", 0, 3 * B) == expected
        assert backend.describe("child").depth >= 1
        assert backend.describe("grand").depth >= 2

    # Sizes

    def test_resize(self, backend: VolumeBackend, vol: str) -> None:
        """Growing shows at once on open devices; shrinking is refused; same size is nothing."""
        with backend.open_device(vol, read_only=False) as device:
            device.write(SIZE - 1, b"x")
            backend.resize(vol, SIZE)
            backend.resize(vol, SIZE + 2 * C)
            assert device.size_bytes == SIZE + 2 * C
            assert device.read(SIZE - 1, B) == b"x" + bytes(B - 1)
            device.write(SIZE + 2 * C - 1, b"y")
            assert device.read(SIZE + 2 * C - 1, 1) == b"y"
            with pytest.raises(OutOfRangeError) as caught:
                backend.resize(vol, SIZE)
            assert caught.value.reason == Reason.SHRINK_REFUSED
        assert backend.describe(vol).size_bytes == SIZE + 2 * C

    def test_resize_with_clones(self, backend: VolumeBackend, vol: str) -> None:
        """A parent that grows changes neither its snapshot nor a clone, and the other way."""
        put(backend, vol, SIZE - B, pattern(B, 20))
        backend.create_snapshot(vol, "s")
        backend.clone(vol, "s", "child", SIZE)
        backend.resize(vol, SIZE + C)
        put(backend, vol, SIZE, b"beyond")
        with backend.open_device(vol, "s", read_only=True) as frozen:
            assert frozen.size_bytes == SIZE
        backend.resize("child", SIZE + 2 * C)
        assert fetch(backend, "child", SIZE - B, 2 * B) == pattern(B, 20) + bytes(B)
        assert backend.describe(vol).size_bytes == SIZE + C

    # Deleting

    def test_delete_parent_first(self, backend: VolumeBackend, vol: str) -> None:
        """A clone outlives its parent volume, and then goes itself."""
        put(backend, vol, 0, pattern(B, 21))
        backend.create_snapshot(vol, "s")
        backend.clone(vol, "s", "child", SIZE)
        backend.delete(vol)
        assert list(backend.walk()) == ["child"]
        assert fetch(backend, "child", 0, B) == pattern(B, 21)
        put(backend, "child", 0, b"alive")
        assert fetch(backend, "child", 0, B) == b"alive" + pattern(B, 21)[5:]
        backend.delete("child")
        assert list(backend.walk()) == []

    def test_delete_snapshot_first(self, backend: VolumeBackend, vol: str) -> None:
        """A clone outlives its parent snapshot, which is no longer listed."""
        put(backend, vol, 0, pattern(B, 22))
        backend.create_snapshot(vol, "s")
        backend.clone(vol, "s", "child", SIZE)
        backend.delete_snapshot(vol, "s")
        assert backend.describe(vol).snapshot_ids == ()
        put(backend, vol, 0, bytes(B))
        assert fetch(backend, "child", 0, B) == pattern(B, 22)
        backend.create_snapshot(vol, "s")
        assert fetch(backend, vol, 0, B, "s") == bytes(B)

    def test_delete_middle_first(self, backend: VolumeBackend, vol: str) -> None:
        """A grandchild outlives the clone between, and then the root."""
        put(backend, vol, 0, pattern(B, 23))
        backend.create_snapshot(vol, "s")
        backend.clone(vol, "s", "child", SIZE)
        put(backend, "child", B, pattern(B, 24))
        backend.create_snapshot("child", "s")
        backend.clone("child", "s", "grand", SIZE)
        expected = pattern(B, 23) + pattern(B, 24)
        backend.delete("child")
        assert fetch(backend, "grand", 0, 2 * B) == expected
        backend.delete(vol)
        assert fetch(backend, "grand", 0, 2 * B) == expected
        backend.delete("grand")
        assert list(backend.walk()) == []

    def test_delete_in_use(self, backend: VolumeBackend, vol: str) -> None:
        """A volume with an open device is not deleted, and the device goes on."""
        with backend.open_device(vol, read_only=False) as device:
            device.write(0, b"busy")
            with pytest.raises(PreconditionError) as caught:
                backend.delete(vol)
            assert caught.value.reason == Reason.VOLUME_IN_USE
            assert device.read(0, 4) == b"busy"
        backend.delete(vol)

    def test_space_comes_back(self, backend: VolumeBackend, vol: str) -> None:
        """A volume's space is counted, and what is trimmed is no longer counted."""
        put(backend, vol, 0, pattern(2 * C, 25))
        full = backend.describe(vol).allocated_bytes
        assert full >= 2 * C
        with backend.open_device(vol, read_only=False) as device:
            device.discard(0, 2 * C)
        assert backend.describe(vol).allocated_bytes <= full - C

    def test_collect(self, backend: VolumeBackend, vol: str) -> None:
        """Collecting changes no content, and what is deleted is gone in the end."""
        if not isinstance(backend, SupportsCollect):
            pytest.skip("nothing to collect")
        put(backend, vol, 0, pattern(2 * B, 26))
        backend.create_snapshot(vol, "s")
        backend.clone(vol, "s", "child", SIZE)
        put(backend, "child", 0, b"x")
        backend.delete(vol)
        backend.collect()
        assert fetch(backend, "child", 0, 2 * B) == b"x" + pattern(2 * B, 26)[1:]
        backend.delete("child")
        backend.collect()
        assert backend.collect() == 0
        assert list(backend.walk()) == []

    # Durability

    def test_reopen(self, backend: VolumeBackend, vol: str) -> None:
        """Volumes, snapshots, clones, sizes and bytes are all there after a restart."""
        put(backend, vol, 1, pattern(C, 36))
        backend.create_snapshot(vol, "s")
        backend.clone(vol, "s", "child", SIZE + C)
        put(backend, "child", B, b"child")
        with backend.open_device(vol, read_only=False) as device:
            device.discard(0, C)
        before = [backend.describe(volume_id) for volume_id in (vol, "child")]
        again = self.reopen(backend)
        try:
            assert sorted(again.walk()) == ["child", vol]
            for facts in before:
                now = again.describe(facts.volume_id)
                assert now.size_bytes == facts.size_bytes
                assert now.snapshot_ids == facts.snapshot_ids
                assert now.parent_snapshot_id == facts.parent_snapshot_id
            assert fetch(again, vol, 0, C + 2) == bytes(C) + pattern(C, 36)[-1:] + bytes(1)
            expected = b"\0" + pattern(C, 36)
            assert fetch(again, vol, 0, C + 1, "s") == expected
            expected = expected[:B] + b"child" + expected[B + 5 :]
            assert fetch(again, "child", 0, C + 1) == expected
        finally:
            again.close()

    def test_close_closes_devices(self, backend: VolumeBackend, vol: str) -> None:
        """Closing the backend flushes and closes its devices; closing again is nothing."""
        device = backend.open_device(vol, read_only=False)
        device.write(0, b"last words")
        again = self.reopen(backend)
        try:
            with pytest.raises(VolcoreError):
                device.read(0, 1)
            assert fetch(again, vol, 0, 10) == b"last words"
            device.close()
            backend.close()
        finally:
            again.close()
