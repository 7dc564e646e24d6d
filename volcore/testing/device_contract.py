"""The part of the backend suite that works through devices; see `backend_contract`."""

import mmap
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import cast

import pytest

from volcore.backends.contract import (
    BlockDevice,
    VolumeBackend,
)
from volcore.errors import (
    IntegrityError,
    OutOfRangeError,
    PreconditionError,
    Reason,
    VolcoreError,
)
from volcore.limits import BLOCK_SIZE_BYTES, CHUNK_SIZE_BYTES, MIB
from volcore.model.extent import Extent, ExtentKind

B = BLOCK_SIZE_BYTES
C = CHUNK_SIZE_BYTES
SIZE = 16 * MIB


def pattern(length_bytes: int, seed: int) -> bytes:
    """Return bytes that are never all zero and differ from seed to seed."""
    return random.Random(seed).randbytes(length_bytes)  # noqa: S311 - test data


def put(backend: VolumeBackend, volume_id: str, offset_bytes: int, data: bytes) -> None:
    """Write through a device of its own and close it."""
    with backend.open_device(volume_id, read_only=False) as device:
        device.write(offset_bytes, data)


def fetch(
    backend: VolumeBackend,
    volume_id: str,
    offset_bytes: int,
    length_bytes: int,
    snapshot_id: str | None = None,
) -> bytes:
    """Read through a device of its own."""
    with backend.open_device(volume_id, snapshot_id, read_only=True) as device:
        return device.read(offset_bytes, length_bytes)


def covered(extents: Sequence[Extent], offset_bytes: int) -> bool:
    """Tell whether one of `extents` holds the byte."""
    return any(e.offset_bytes <= offset_bytes < e.end_bytes for e in extents)


def no_progress(done_bytes: int, total_bytes: int) -> None:
    """Check what a progress callback is told."""
    assert 0 <= done_bytes <= total_bytes


class DeviceContract:
    """Override `backend`; override the hooks where the storage allows it."""

    @pytest.fixture
    def backend(self) -> Iterator[VolumeBackend]:
        """Yield an open, empty backend, and close it afterwards."""
        raise NotImplementedError("override this fixture")

    def reopen(self, backend: VolumeBackend) -> VolumeBackend:
        """Close `backend` and return another on the same storage."""
        del backend
        pytest.skip("this backend does not outlive its process")

    def peek(self, backend: VolumeBackend, volume_id: str, length_bytes: int) -> bytes:
        """Return the first bytes of a volume by other means than the code under test."""
        del backend, volume_id, length_bytes
        pytest.skip("nothing else can read this backend")

    def flip(self, backend: VolumeBackend, volume_id: str, offset_bytes: int) -> None:
        """Change the stored byte of a closed volume by other means than the code under test."""
        del backend, volume_id, offset_bytes
        pytest.skip("nothing else can change this backend")

    @pytest.fixture
    def vol(self, backend: VolumeBackend) -> str:
        """Create a blank volume of SIZE and return its id."""
        backend.create("vol.1", SIZE)
        return "vol.1"

    @pytest.fixture
    def device(self, backend: VolumeBackend, vol: str) -> Iterator[BlockDevice]:
        """Yield a writable device of `vol`."""
        with backend.open_device(vol, read_only=False) as device:
            yield device

    # Reading and writing

    def test_blank_reads_zero(self, device: BlockDevice) -> None:
        """What nobody wrote reads as zeroes, up to the last byte."""
        assert device.size_bytes == SIZE
        assert device.read(0, 2 * B) == bytes(2 * B)
        assert device.read(SIZE - 5, 5) == bytes(5)

    @pytest.mark.parametrize(
        ("offset_bytes", "length_bytes"),
        [
            (0, 1),
            (B - 1, 1),
            (0, B),
            (1, B),
            (B - 1, 2),
            (512, 512),
            (B, 3 * B),
            (5, 3 * B),
            (C - 1, 2),
            (C - B, 2 * B),
            (C - 7, B + 13),
            (3, C + 11),
            (0, 2 * C),
            (SIZE - 1, 1),
            (SIZE - B - 1, B + 1),
        ],
    )
    def test_odd_edges(self, device: BlockDevice, offset_bytes: int, length_bytes: int) -> None:
        """A write of any alignment changes exactly its bytes: compare with a bytearray."""
        low = max(0, offset_bytes - 2 * B)
        high = min(SIZE, offset_bytes + length_bytes + 2 * B)
        model = bytearray(pattern(high - low, 1))
        device.write(low, bytes(model))
        data = pattern(length_bytes, 2)
        device.write(offset_bytes, data)
        model[offset_bytes - low : offset_bytes - low + length_bytes] = data
        assert device.read(low, high - low) == model
        assert device.read(offset_bytes, length_bytes) == data

    def test_odd_edges_on_blank(self, device: BlockDevice) -> None:
        """An unaligned write to a blank volume leaves zeroes around it."""
        device.write(C - 3, b"abcdef")
        assert device.read(C - B, 2 * B) == bytes(B - 3) + b"abcdef" + bytes(B - 3)

    def test_empty_requests(self, device: BlockDevice) -> None:
        """Zero bytes are a valid request everywhere, also at the very end."""
        for offset_bytes in (0, 7, SIZE):
            device.write(offset_bytes, b"")
            assert device.read(offset_bytes, 0) == b""
            device.discard(offset_bytes, 0)
            device.write_zeroes(offset_bytes, 0)
            assert device.extents(offset_bytes, 0) == []

    @pytest.mark.parametrize(
        ("offset_bytes", "length_bytes"), [(SIZE, 1), (SIZE - 1, 2), (SIZE + B, 0), (1 << 62, 1)]
    )
    def test_past_the_end(self, device: BlockDevice, offset_bytes: int, length_bytes: int) -> None:
        """A range past the end is refused by every call and changes nothing."""
        device.write(SIZE - 1, b"x")
        calls: list[Callable[[], object]] = [
            lambda: device.read(offset_bytes, length_bytes),
            lambda: device.write(offset_bytes, bytes(length_bytes)),
            lambda: device.discard(offset_bytes, length_bytes),
            lambda: device.write_zeroes(offset_bytes, length_bytes),
            lambda: device.write_zeroes(offset_bytes, length_bytes, may_trim=False),
            lambda: device.extents(offset_bytes, length_bytes),
        ]
        for call in calls:
            with pytest.raises(OutOfRangeError) as caught:
                call()
            assert caught.value.reason == Reason.OFFSET_PAST_END
        assert device.read(SIZE - 1, 1) == b"x"

    def test_buffer_kinds(self, device: BlockDevice) -> None:
        """bytes, bytearray and memoryviews (also of wider items) are all buffers."""
        data = pattern(2 * B, 3)
        for kind in (bytes, bytearray, memoryview, lambda raw: memoryview(raw).cast("I")):
            device.write(B, bytes(2 * B))
            device.write(B, cast("bytes", kind(data)))
            target = bytearray(2 * B + 2)
            device.read_into(B, memoryview(target)[1:-1])
            assert target == b"\0" + data + b"\0"

    def test_buffer_is_not_kept(self, device: BlockDevice) -> None:
        """A buffer changed after the write returned does not change the volume."""
        buffer = bytearray(pattern(3 * B, 4))
        before = bytes(buffer)
        device.write(100, buffer)
        buffer[:] = bytes(len(buffer))
        assert device.read(100, len(before)) == before
        device.flush()
        assert device.read(100, len(before)) == before

    def test_bulk_writes(self, device: BlockDevice) -> None:
        """Bulk writes are writes, whatever memory they come from and wherever they go."""
        model = bytearray(device.read(0, SIZE))
        pages = memoryview(mmap.mmap(-1, MIB))
        pages[:] = pattern(MIB, 5)
        for seed, (offset, length) in enumerate(((0, MIB), (B, 3 * B), (B + 5, B), (C - B, 2 * B))):
            for source in (pages[:length], memoryview(pattern(B + length, seed))[B:]):
                device.write(offset, bytes(length))
                device.write_bulk(offset, source)
                model[offset : offset + length] = source
                assert device.read(0, SIZE) == model
        device.flush()
        assert device.read(0, SIZE) == model

    def test_overwrite(self, device: BlockDevice) -> None:
        """The last write wins, with and without a flush between."""
        for seed, fua in enumerate((False, True, False)):
            device.write(B // 2, pattern(2 * B, seed), fua=fua)
            assert device.read(B // 2, 2 * B) == pattern(2 * B, seed)
        device.flush()
        device.write(0, b"last")
        assert device.read(0, 4) == b"last"

    def test_random_history(self, device: BlockDevice) -> None:
        """Random writes, zeroes and discards leave what a bytearray has after the same."""
        dice = random.Random(7)  # noqa: S311 - test data
        model = bytearray(SIZE)
        for _ in range(60):
            offset = dice.randrange(SIZE)
            length = min(dice.choice([1, 511, B, B + 1, 5 * B, MIB]), SIZE - offset)
            if dice.random() < 0.3:
                offset, length = offset // B * B, -(-length // B) * B
                length = min(length, SIZE - offset)
            action = dice.choice(["write", "write", "discard", "zero", "fill"])
            data = dice.randbytes(length) if action == "write" else bytes(length)
            if action == "write":
                device.write(offset, data)
            elif action == "discard":
                device.discard(offset, length)
            else:
                device.write_zeroes(offset, length, may_trim=action == "zero")
            model[offset : offset + length] = data
        assert device.read(0, SIZE) == model

    def test_peek(self, backend: VolumeBackend, vol: str) -> None:
        """What was written is there for others too."""
        put(backend, vol, 0, pattern(2 * B, 5))
        assert self.peek(backend, vol, 2 * B) == pattern(2 * B, 5)

    def test_flip(self, backend: VolumeBackend, vol: str) -> None:
        """A byte changed behind the backend's back is an IntegrityError, never data."""
        if not backend.caps.checksums:
            pytest.skip("this backend leaves checksums to the storage below")
        put(backend, vol, 0, pattern(4 * B, 6))
        self.flip(backend, vol, 2 * B + 17)
        with backend.open_device(vol, read_only=True) as device:
            assert device.read(0, 2 * B) == pattern(4 * B, 6)[: 2 * B]
            with pytest.raises(IntegrityError) as caught:
                device.read(0, 4 * B)
        assert caught.value.reason == Reason.BAD_CHECKSUM
        assert caught.value.context["volume"] == vol
        assert caught.value.context["offset_bytes"] == str(2 * B)

    # Zeroes

    @pytest.mark.parametrize("call", ["discard", "write_zeroes", "fill"])
    @pytest.mark.parametrize(
        ("offset_bytes", "length_bytes"),
        [(B, 2 * B), (B + 1, B), (B - 1, 3 * B + 2), (C - B, 2 * B), (C - 1, 2), (0, 2 * C)],
    )
    def test_zeroes(
        self, device: BlockDevice, call: str, offset_bytes: int, length_bytes: int
    ) -> None:
        """A discarded or zeroed range reads as zeroes, its neighbours as before."""
        model = bytearray(pattern(2 * C + 4 * B, 8))
        device.write(0, bytes(model))
        if call == "discard":
            device.discard(offset_bytes, length_bytes)
        else:
            device.write_zeroes(offset_bytes, length_bytes, may_trim=call == "write_zeroes")
        model[offset_bytes : offset_bytes + length_bytes] = bytes(length_bytes)
        assert device.read(0, len(model)) == model
        device.flush()
        assert device.read(0, len(model)) == model

    def test_write_zeroes_fua(self, device: BlockDevice) -> None:
        """Zeroes with force-unit-access are zeroes."""
        device.write(0, pattern(2 * B, 9))
        device.write_zeroes(0, B, fua=True)
        device.write_zeroes(B, 10, may_trim=False, fua=True)
        assert device.read(0, B + 10) == bytes(B + 10)

    def test_write_after_discard(self, device: BlockDevice) -> None:
        """A trimmed block can be written again, before and after a flush."""
        for flush in (False, True):
            device.write(0, pattern(4 * B, 10))
            device.discard(0, 4 * B)
            if flush:
                device.flush()
            device.write(B + 5, b"again")
            assert device.read(0, 4 * B) == bytes(B + 5) + b"again" + bytes(3 * B - 10)
            device.flush()
            assert device.read(B + 5, 5) == b"again"

    def test_trimmed_is_not_absent(self, backend: VolumeBackend, vol: str) -> None:
        """Over a parent, a trimmed range reads as zeroes and never shows the parent again."""
        data = pattern(C + 2 * B, 11)
        put(backend, vol, 0, data)
        backend.create_snapshot(vol, "s")
        backend.clone(vol, "s", "child", SIZE)
        with backend.open_device("child", read_only=False) as child:
            child.discard(B, B)
            child.discard(2 * B + 100, 100)
            child.write_zeroes(C - B, 2 * B)
            model = bytearray(data)
            model[B : 2 * B] = bytes(B)
            model[2 * B + 100 : 2 * B + 200] = bytes(100)
            model[C - B : C + B] = bytes(2 * B)
            assert child.read(0, len(model)) == model
            child.flush()
            assert child.read(0, len(model)) == model
        assert fetch(backend, "child", 0, len(model)) == model
        assert fetch(backend, vol, 0, len(data)) == data

    # Extents

    def test_extents_cover_the_range(self, device: BlockDevice) -> None:
        """Extents are ascending, gapless, exactly the range, and DATA where data is."""
        device.write(C - B, pattern(2 * B, 33))
        device.write(3 * C, pattern(B, 34))
        device.discard(3 * C, B)
        for offset, length in ((0, SIZE), (5, C), (C - B, 2 * B), (SIZE - 1, 1), (C - 1, 2)):
            extents = device.extents(offset, length)
            assert extents[0].offset_bytes == offset
            assert extents[-1].end_bytes == offset + length
            assert all(a.end_bytes == b.offset_bytes for a, b in pairwise(extents))
            for extent in extents:
                assert extent.length_bytes > 0
                if extent.kind != ExtentKind.DATA:
                    zeroes = bytes(extent.length_bytes)
                    assert device.read(extent.offset_bytes, extent.length_bytes) == zeroes
        data = [e for e in device.extents(0, SIZE) if e.kind == ExtentKind.DATA]
        assert covered(data, C - B)
        assert covered(data, C + B - 1)
        assert not covered(data, 2 * C + B)

    def test_extents_see_the_parent(self, backend: VolumeBackend, vol: str) -> None:
        """What only the parent has is DATA in the clone too; what is trimmed is not absent."""
        put(backend, vol, 0, pattern(2 * C, 35))
        backend.create_snapshot(vol, "s")
        backend.clone(vol, "s", "child", SIZE)
        with backend.open_device("child", read_only=False) as child:
            child.discard(C, C)
            kinds = [child.extents(offset, B)[0].kind for offset in (0, C, 2 * C)]
            assert kinds[0] == ExtentKind.DATA
            assert kinds[2] == ExtentKind.ABSENT
            assert child.read(C, B) == bytes(B)
        with backend.open_device(vol, "s", read_only=True) as frozen:
            assert frozen.extents(0, C)[0].kind == ExtentKind.DATA

    # Devices

    @pytest.mark.parametrize("point", [None, "s"])
    def test_read_only(self, backend: VolumeBackend, vol: str, point: str | None) -> None:
        """A read-only device reads, and refuses every change."""
        put(backend, vol, 0, b"fixed")
        if point:
            backend.create_snapshot(vol, point)
        with backend.open_device(vol, point, read_only=True) as device:
            assert device.read_only
            calls: list[Callable[[], object]] = [
                lambda: device.write(0, b"x"),
                lambda: device.discard(0, B),
                lambda: device.write_zeroes(0, B),
                lambda: device.write_zeroes(0, B, may_trim=False),
            ]
            for call in calls:
                with pytest.raises(PreconditionError) as caught:
                    call()
                assert caught.value.reason == Reason.READ_ONLY
            assert device.read(0, 5) == b"fixed"
            device.flush()
        if point:
            with pytest.raises(PreconditionError):
                backend.open_device(vol, point, read_only=False)

    def test_two_devices(self, backend: VolumeBackend, vol: str, device: BlockDevice) -> None:
        """Devices of one volume see each other's writes at once; closing one leaves the other."""
        with backend.open_device(vol, read_only=False) as other:
            assert not other.read_only
            device.write(0, b"from one")
            assert other.read(0, 8) == b"from one"
            other.write(5, b"two")
            assert device.read(0, 8) == b"from two"
            other.close()
            other.close()
        device.write(0, b"on")
        assert device.read(0, 8) == b"onom two"

    def test_closed_device(self, backend: VolumeBackend, vol: str) -> None:
        """A closed device answers with an error of ours; what it wrote is there."""
        device = backend.open_device(vol, read_only=False)
        device.write(0, b"there")
        device.close()
        with pytest.raises(VolcoreError):
            device.read(0, 1)
        with pytest.raises(VolcoreError):
            device.write(0, b"x")
        assert fetch(backend, vol, 0, 5) == b"there"

    def test_concurrent_writers(self, device: BlockDevice) -> None:
        """Writers side by side in one chunk, one sharing blocks with the next, lose nothing."""
        size = 3 * B // 2
        data = [pattern(size, seed) for seed in range(64)]

        def work(index: int) -> None:
            for step in range(index, 64, 4):
                device.write(step * size, data[step])
                assert device.read(step * size, size) == data[step]
                if step % 8 == index:
                    device.flush()

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(work, range(4)))
        assert device.read(0, 64 * size) == b"".join(data)

    def test_reads_race_writes(self, device: BlockDevice) -> None:
        """A read beside writes of the same blocks sees whole old or new blocks, no error."""
        contents = [pattern(B, seed) for seed in range(2)]
        device.write(0, contents[0] * 8)
        done = threading.Event()

        def work() -> None:
            try:
                for step in range(40):
                    device.write(0, contents[step % 2] * 8)
                    if step % 10 == 0:
                        device.flush()
            finally:
                done.set()

        with ThreadPoolExecutor(1) as pool:
            writing = pool.submit(work)
            while not done.is_set():
                for at in range(0, 8 * B, B):
                    assert device.read(at, B) in contents
            writing.result()

    def test_snapshots_beside_writes(self, backend: VolumeBackend, vol: str) -> None:
        """A snapshot taken while a thread writes shows a prefix of its writes."""
        done = threading.Event()
        with backend.open_device(vol, read_only=False) as device:

            def work() -> None:
                for step in range(200):
                    device.write(step * B, bytes([step % 250 + 1]) * B)
                    if done.is_set():
                        break

            with ThreadPoolExecutor(1) as pool:
                writing = pool.submit(work)
                backend.create_snapshot(vol, "s")
                done.set()
                writing.result()
        frozen = fetch(backend, vol, 0, 200 * B, "s")
        seen = [frozen[at : at + B] != bytes(B) for at in range(0, 200 * B, B)]
        assert seen == sorted(seen, reverse=True)
        for step, there in enumerate(seen):
            if there:
                assert frozen[step * B : (step + 1) * B] == bytes([step % 250 + 1]) * B
