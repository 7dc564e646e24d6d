"""Locks, tables and descriptors of the data path: native and pure alike; blocks: against files."""

import gc
import os
import random
import resource
import signal
import threading
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

from volcore.kernels import crc32c

B = 4096
CHUNK_BLOCKS = 1024


@pytest.fixture(params=["_native", "pure"])
def kernel(request: pytest.FixtureRequest) -> ModuleType:
    return import_module(f"volcore.kernels.{request.param}.datapath")


@pytest.fixture
def native() -> ModuleType:
    return import_module("volcore.kernels._native.datapath")


class Arrays:
    """The arrays of one chunk, none of its blocks owned by anybody."""

    def __init__(self) -> None:
        self.owners = memoryview(bytearray(b"\xff" * 2 * CHUNK_BLOCKS)).cast("H")
        self.crcs = memoryview(bytearray(4 * CHUNK_BLOCKS)).cast("I")
        self.states = bytearray(CHUNK_BLOCKS)
        self.maybe_durable = bytearray(CHUNK_BLOCKS)

    def state(self, kernel: ModuleType, index: int, mark=None):
        arrays = (self.owners, self.crcs, self.states, self.maybe_durable)
        return kernel.ChunkState(index, *arrays, mark)


def descriptor(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT)


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def test_a_descriptor_in_use_stays_open(kernel: ModuleType, tmp_path: Path) -> None:
    file = kernel.LayerFd()
    assert (file.is_open, file.enter()) == (False, -1)
    fd = descriptor(tmp_path / "f")
    file.install(fd)
    assert file.enter() == fd
    assert not file.close(unless_used=True)
    assert file.is_open
    assert not file.close()
    assert is_open(fd)
    file.leave()
    assert not is_open(fd)
    assert file.enter() == -1


def test_an_unused_descriptor_is_closed_and_may_come_back(
    kernel: ModuleType, tmp_path: Path
) -> None:
    file = kernel.LayerFd()
    file.install(descriptor(tmp_path / "f"))
    used = file.used
    assert file.close(unless_used=True)
    file.install(descriptor(tmp_path / "f"))
    assert file.used > used
    with pytest.raises(ValueError, match="none may be there"):
        file.install(0)
    fd = file.enter()
    file.leave()
    del file
    assert not is_open(fd)


def test_marks_follow(kernel: ModuleType) -> None:
    """Goal: INV-LOCAL-12. Method: soil and settle, and forget a map that is dirty."""
    marks, stripe = [bytearray(1), bytearray(1)], kernel.Stripe()
    states = [Arrays().state(kernel, 16 * number, marks[number]) for number in (0, 1)]
    with stripe:
        for state in states:
            stripe.add(state)
            stripe.soil(state)
        assert marks == [b"\1", b"\1"]
        stripe.settle(states[0])
        assert marks == [b"\0", b"\1"]
    del stripe, states, state
    gc.collect()
    assert marks == [b"\0", b"\1"]
    with pytest.raises(ValueError, match="one byte"):
        Arrays().state(kernel, 0, bytearray(2))


def test_maps_are_found_and_the_least_used_goes(kernel: ModuleType) -> None:
    stripe = kernel.Stripe()
    states = [Arrays().state(kernel, 16 * number) for number in range(200)]
    with stripe:
        for state in states:
            stripe.add(state)
        with pytest.raises(ValueError, match="there already"):
            stripe.add(Arrays().state(kernel, 16))
        assert stripe.find(16 * 7) is states[7]
        assert stripe.find(16 * 200) is None
        stripe.soil(states[0])
        stripe.soil(states[3])
        assert stripe.shrink(4, 16 * 1) == 196
        assert {state.index // 16 for state in stripe.states()} == {0, 1, 3, 7}
        assert [state.index // 16 for state in stripe.dirty()] == [0, 3]
        with pytest.raises(ValueError, match="forgotten"):
            stripe.clear()
        stripe.settle(states[0])
        stripe.settle(states[0])
        assert (stripe.dirty_count, states[0].dirty, states[3].dirty) == (1, False, True)
        stripe.settle(states[3])
        stripe.clear()
        assert len(stripe) == 0
        with pytest.raises(ValueError, match="not in this stripe"):
            stripe.soil(states[0])


def test_a_stripe_excludes_others_and_lets_its_holder_in_again(kernel: ModuleType) -> None:
    stripe = kernel.Stripe()
    order: list[str] = []

    def other() -> None:
        with stripe:
            order.append("other")

    with stripe, stripe:
        thread = threading.Thread(target=other)
        thread.start()
        thread.join(0.05)
        order.append("holder")
    thread.join(10)
    assert order == ["holder", "other"]


@pytest.mark.parametrize("wrong", ["owners", "crcs", "states", "maybe_durable"])
def test_arrays_of_the_wrong_size_are_refused(kernel: ModuleType, wrong: str) -> None:
    arrays = Arrays()
    setattr(arrays, wrong, bytearray(10))
    with pytest.raises(ValueError, match="size"):
        arrays.state(kernel, 0)


def test_what_is_not_at_hand_is_declined(kernel: ModuleType) -> None:
    path = kernel.DataPath(writable=True, dirty_chunks_max=100)
    assert not path.read(0, bytearray(B))
    assert not path.write(0, bytes(B))
    path.set_chain(1)
    with path.stripes[0]:
        path.stripes[0].add(Arrays().state(kernel, 0))
    assert not path.write(0, bytes(B)), "no file is attached"
    with pytest.raises(ValueError, match="chain"):
        path.attach(1, kernel.LayerFd())
    with pytest.raises(ValueError, match="shorter"):
        path.extend_chain(0)


def prepared(native: ModuleType, path: Path, **options) -> tuple:
    one = native.DataPath(writable=True, dirty_chunks_max=options.get("dirty_chunks_max", 100))
    one.set_chain(1)
    file = native.LayerFd()
    file.install(descriptor(path))
    one.attach(0, file)
    arrays = Arrays()
    state = arrays.state(native, 0)
    with one.stripes[0]:
        one.stripes[0].add(state)
    return one, arrays, state, file


def test_blocks_are_written_marked_and_read_back(native: ModuleType, tmp_path: Path) -> None:
    path, arrays, state, _ = prepared(native, tmp_path / "f")
    rng = random.Random(1)
    data = rng.randbytes(600 * B)
    assert path.write(10, data)
    assert (state.version, state.dirty, path.dirty_count()) == (10, True, 1)
    assert bytes(arrays.states) == bytes(10) + b"\1" * 600 + bytes(414)
    assert list(arrays.owners[9:12]) == [0xFFFF, 0, 0]
    assert arrays.crcs[10] == crc32c.crc32c(data[:B])
    got = bytearray(b"\xee" * 612 * B)
    assert path.read(9, got)
    assert got == bytes(B) + data + bytes(11 * B)
    with open(tmp_path / "f", "rb") as file:
        file.seek(10 * B)
        assert file.read() == data


def test_what_may_not_be_overwritten_yet_is_declined(native: ModuleType, tmp_path: Path) -> None:
    path, arrays, state, _ = prepared(native, tmp_path / "f")
    arrays.maybe_durable[5] = 1
    assert path.write(4, bytes(B))
    assert not path.write(4, bytes(2 * B))
    state.noted = True
    assert path.write(4, bytes(2 * B))
    path.closed = True
    assert not path.write(4, bytes(B))


def test_too_much_that_is_dirty_is_declined(native: ModuleType, tmp_path: Path) -> None:
    path, _, _, _ = prepared(native, tmp_path / "f", dirty_chunks_max=15)
    assert path.write(0, bytes(B))
    assert not path.write(0, bytes(B))


def test_damage_and_missing_bytes_are_declined(native: ModuleType, tmp_path: Path) -> None:
    path, _, _, file = prepared(native, tmp_path / "f")
    assert path.write(0, b"x" * 8 * B)
    with open(tmp_path / "f", "r+b") as raw:
        raw.seek(3 * B)
        raw.write(b"y")
    assert path.read(0, bytearray(3 * B))
    assert not path.read(0, bytearray(8 * B))
    os.truncate(tmp_path / "f", 4 * B)
    assert not path.read(4, bytearray(B))
    file.close()
    assert not path.read(0, bytearray(B)), "the descriptor is closed"


def test_a_failed_write_leaves_no_false_checksum(native: ModuleType, tmp_path: Path) -> None:
    """Goal: what was torn reads as what is there. Method: a disk that is full in the middle."""
    path, arrays, _, _ = prepared(native, tmp_path / "f")
    assert path.write(0, b"a" * 16 * B)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8 * B + 100, hard))
    try:
        assert not path.write(0, b"b" * 16 * B)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, old)
    got = bytearray(16 * B)
    assert path.read(0, got)
    assert got[: 8 * B] == b"b" * 8 * B
    assert got[9 * B :] == b"a" * 7 * B
    assert arrays.crcs[8] == crc32c.crc32c(got[8 * B : 9 * B])


def test_readers_meet_no_half_writes(native: ModuleType, tmp_path: Path) -> None:
    """Goal: a block is old or new, or declined. Method: read while others write."""
    path, _, _, _ = prepared(native, tmp_path / "f")
    blocks = [bytes([number]) * B for number in range(1, 9)]
    for at in range(64):
        assert path.write(at, blocks[0])
    done = threading.Event()
    wrong: list[bytes] = []

    def write(seed: int) -> None:
        rng = random.Random(seed)
        while not done.is_set():
            path.write(rng.randrange(64), rng.choice(blocks))

    def read(seed: int) -> None:
        rng = random.Random(seed)
        got = bytearray(B)
        for _ in range(5000):
            if path.read(rng.randrange(64), got) and bytes(got) not in blocks:
                wrong.append(bytes(got))

    writers = [threading.Thread(target=write, args=(seed,)) for seed in range(2)]
    readers = [threading.Thread(target=read, args=(seed,)) for seed in range(2, 4)]
    for thread in writers + readers:
        thread.start()
    for thread in readers:
        thread.join(60)
    done.set()
    for thread in writers:
        thread.join(10)
    assert not wrong
