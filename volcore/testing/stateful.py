"""Random histories: a backend beside the memory backend, which is the judge.

Subclass `VolumeMachine`, give it a backend, and run its `TestCase` (Hypothesis prints a seed and
the shortest history it finds when bytes differ).

After each step every volume and snapshot reads the same on both sides. A kill may undo what was
not flushed: each block then has one of the contents that it had since the last flush, and the
judge is told which.
"""

import random
from contextlib import suppress

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from volcore.backends.contract import BlockDevice, SupportsFlatten, SupportsRevert, VolumeBackend
from volcore.backends.memory import MemoryBackend
from volcore.limits import BLOCK_SIZE_BYTES, CHUNK_BLOCKS, CHUNK_SIZE_BYTES

VOLUMES_MAX = 4
SNAPSHOTS_MAX = 3
SIZE = CHUNK_SIZE_BYTES + 5 * BLOCK_SIZE_BYTES
WINDOWS = ((0, 4), (CHUNK_BLOCKS - 3, CHUNK_BLOCKS + 5))
"""Blocks where histories happen: few, so that they meet; both ends of a chunk, and the next one."""
BACKGROUND_STEPS_MAX = 500
"""More than any history of this size can need."""

_picks = st.integers(0, 999)
_offsets = st.one_of(
    *(
        st.integers(low * BLOCK_SIZE_BYTES, high * BLOCK_SIZE_BYTES - 1)
        | st.integers(low, high - 1).map(lambda block: block * BLOCK_SIZE_BYTES)
        for low, high in WINDOWS
    )
)
_lengths = st.one_of(
    st.integers(1, 2 * BLOCK_SIZE_BYTES), st.integers(1, 3).map(lambda n: n * BLOCK_SIZE_BYTES)
)
_changes = st.lists(
    st.tuples(st.sampled_from("wwwudzf"), _offsets, _lengths, _picks), min_size=1, max_size=8
)
"""(how, offset, length, seed): write, write through, discard, zero with leave to trim, fill."""


def content(device: BlockDevice) -> list[bytes]:
    """Return the blocks of the windows."""
    blocks: list[bytes] = []
    for low, high in WINDOWS:
        raw = device.read(low * BLOCK_SIZE_BYTES, (high - low) * BLOCK_SIZE_BYTES)
        blocks += [raw[at : at + BLOCK_SIZE_BYTES] for at in range(0, len(raw), BLOCK_SIZE_BYTES)]
    return blocks


class VolumeMachine(RuleBasedStateMachine):
    """Override `start`, and where it makes sense `restart` and `check_empty`."""

    def __init__(self) -> None:
        """Start both sides."""
        super().__init__()
        self.judge = MemoryBackend()
        self.backend = self.start()
        self.volumes: list[str] = []
        self.serial = 0
        self.devices: dict[str, BlockDevice] = {}
        self.since_flush: dict[str, list[list[bytes]]] = {}
        """Contents of an open volume since its last flush, the flushed one first."""

    def start(self) -> VolumeBackend:
        """Return an open, empty backend."""
        raise NotImplementedError

    def restart(self, *, kill: bool) -> VolumeBackend | None:
        """Stop the backend, cleanly or not, and return another on its storage; None: cannot."""
        del kill
        return None

    def background_step(self) -> bool:
        """Do one piece of the backend's background work; return whether there was any."""
        return False

    def check_idle(self) -> None:
        """Assert what holds when no background work is left."""

    def check_empty(self) -> None:
        """Assert that nothing is left after all volumes were deleted."""

    # Rules

    @initialize()
    def begin(self) -> None:
        """There is always a volume."""
        self.create()

    @precondition(lambda self: len(self.volumes) < VOLUMES_MAX)
    @rule()
    def create(self) -> None:
        """Make a blank volume."""
        volume = self._new()
        for side in (self.judge, self.backend):
            side.create(volume, SIZE)

    @rule(pick=_picks, changes=_changes)
    def change(self, pick: int, changes: list[tuple[str, int, int, int]]) -> None:
        """Write, discard and zero."""
        volume = self._pick(pick)
        device = self._device(volume)
        for how, offset, wanted, seed in changes:
            length = min(wanted, SIZE - offset)
            data = bytes(length)
            if how in "wu":
                data = random.Random(seed).randbytes(length)  # noqa: S311 - test data
                device.write(offset, data, fua=how == "u")
            elif how == "d":
                device.discard(offset, length)
            else:
                device.write_zeroes(offset, length, may_trim=how == "z")
            with self.judge.open_device(volume, read_only=False) as other:
                other.write(offset, data)
            self.since_flush[volume].append(self._judged(volume))
            if how == "u":
                del self.since_flush[volume][:-1]

    @precondition(lambda self: self.devices)
    @rule(pick=_picks)
    def flush(self, pick: int) -> None:
        """Flush an open volume."""
        volume = sorted(self.devices)[pick % len(self.devices)]
        self.devices[volume].flush()
        del self.since_flush[volume][:-1]

    @precondition(lambda self: self.devices)
    @rule(pick=_picks)
    def close(self, pick: int) -> None:
        """Close a volume."""
        self._close(sorted(self.devices)[pick % len(self.devices)])

    @rule(pick=_picks)
    def snapshot(self, pick: int) -> None:
        """Freeze a volume, open or not."""
        volume = self._pick(pick)
        if len(self.judge.describe(volume).snapshot_ids) < SNAPSHOTS_MAX:
            self.serial += 1
            for side in (self.judge, self.backend):
                side.create_snapshot(volume, f"s{self.serial}")
            del self.since_flush.get(volume, [])[:-1]

    @precondition(lambda self: len(self.volumes) < VOLUMES_MAX)
    @rule(pick=_picks, which=_picks, grow=st.integers(0, 3))
    def clone(self, pick: int, which: int, grow: int) -> None:
        """Clone a snapshot, or a volume as it is."""
        source = self._pick(pick)
        points = [None, *self.judge.describe(source).snapshot_ids]
        point = points[which % len(points)]
        with self.judge.open_device(source, point, read_only=True) as device:
            size = device.size_bytes + grow * BLOCK_SIZE_BYTES
        target = self._new()
        for side in (self.judge, self.backend):
            side.clone(source, point, target, size)
        if point is None:
            del self.since_flush.get(source, [])[:-1]

    @rule(pick=_picks, grow=st.integers(0, 9))
    def resize(self, pick: int, grow: int) -> None:
        """Grow a volume."""
        volume = self._pick(pick)
        size = self.judge.describe(volume).size_bytes + grow * BLOCK_SIZE_BYTES
        for side in (self.judge, self.backend):
            side.resize(volume, size)

    @rule(pick=_picks, which=_picks)
    def revert(self, pick: int, which: int) -> None:
        """Take a volume back to one of its snapshots."""
        volume = self._pick(pick)
        points = self.judge.describe(volume).snapshot_ids
        if points and isinstance(self.backend, SupportsRevert):
            self._close(volume)
            for side in (self.judge, self.backend):
                side.revert(volume, points[which % len(points)])

    @rule(pick=_picks)
    def flatten(self, pick: int) -> None:
        """Cut a volume from its ancestors."""
        if isinstance(self.backend, SupportsFlatten):
            volume = self._pick(pick)
            for side in (self.judge, self.backend):
                side.flatten(volume, lambda done, total: None)
            assert self.backend.describe(volume).depth == 0
            del self.since_flush.get(volume, [])[:-1]

    @precondition(lambda self: len(self.volumes) > 1)
    @rule(pick=_picks)
    def delete(self, pick: int) -> None:
        """Delete a volume with its snapshots."""
        volume = self._pick(pick)
        self._close(volume)
        for side in (self.judge, self.backend):
            side.delete(volume)
        self.volumes.remove(volume)

    @rule(pick=_picks, which=_picks)
    def delete_snapshot(self, pick: int, which: int) -> None:
        """Delete a snapshot."""
        volume = self._pick(pick)
        points = self.judge.describe(volume).snapshot_ids
        if points:
            for side in (self.judge, self.backend):
                side.delete_snapshot(volume, points[which % len(points)])

    @rule(count=st.integers(1, 6))
    def work_in_background(self, count: int) -> None:
        """Do some background work, whatever is open."""
        for _ in range(count):
            if not self.background_step():
                return

    @rule()
    def finish_background_work(self) -> None:
        """Do all background work."""
        for _ in range(BACKGROUND_STEPS_MAX):
            if not self.background_step():
                break
        else:
            raise AssertionError("background work does not end")
        self.check_idle()

    @rule()
    def reopen(self) -> None:
        """Stop the backend cleanly and start another."""
        again = self.restart(kill=False)
        if again is not None:
            self.backend = again
            self.devices.clear()
            self.since_flush.clear()

    @precondition(lambda self: self.devices)
    @rule()
    def kill(self) -> None:
        """Start another backend with no word to the old; what was not flushed is old or new."""
        again = self.restart(kill=True)
        if again is not None:
            self.backend = again
            self.devices.clear()
            for volume, versions in self.since_flush.items():
                self._take_over(volume, versions)
            self.since_flush.clear()

    # What always holds

    @invariant()
    def same_bytes(self) -> None:
        """Every point reads the same on both sides, and has the same facts."""
        assert sorted(self.backend.walk()) == sorted(self.volumes)
        for volume in self.volumes:
            expected, found = self.judge.describe(volume), self.backend.describe(volume)
            assert found.size_bytes == expected.size_bytes
            assert found.snapshot_ids == expected.snapshot_ids
            for point in (None, *expected.snapshot_ids):
                with (
                    self.judge.open_device(volume, point, read_only=True) as left,
                    self.backend.open_device(volume, point, read_only=True) as right,
                ):
                    assert left.size_bytes == right.size_bytes
                    assert content(left) == content(right), f"{volume} {point} differs"

    def teardown(self) -> None:
        """Delete everything and look for what is left."""
        for volume in list(self.volumes):
            self._close(volume)
            self.backend.delete(volume)
        assert list(self.backend.walk()) == []
        self.check_empty()
        with suppress(NotImplementedError):
            self.backend.close()

    # Helpers

    def _new(self) -> str:
        self.serial += 1
        self.volumes.append(f"v{self.serial}")
        return self.volumes[-1]

    def _pick(self, pick: int) -> str:
        return self.volumes[pick % len(self.volumes)]

    def _device(self, volume: str) -> BlockDevice:
        if volume not in self.devices:
            self.devices[volume] = self.backend.open_device(volume, read_only=False)
            self.since_flush[volume] = [self._judged(volume)]
        return self.devices[volume]

    def _close(self, volume: str) -> None:
        if volume in self.devices:
            self.devices.pop(volume).close()
            del self.since_flush[volume]

    def _judged(self, volume: str) -> list[bytes]:
        with self.judge.open_device(volume, read_only=True) as device:
            return content(device)

    def _take_over(self, volume: str, versions: list[list[bytes]]) -> None:
        """Check that each block is one of its versions, and give it to the judge."""
        with self.backend.open_device(volume, read_only=True) as device:
            found = content(device)
        for index, block in enumerate(found):
            assert block in [version[index] for version in versions], f"{volume}: block {index}"
        with self.judge.open_device(volume, read_only=False) as device:
            at = 0
            for low, high in WINDOWS:
                count = high - low
                device.write(low * BLOCK_SIZE_BYTES, b"".join(found[at : at + count]))
                at += count
