"""Threads that write beside a recorded history, and what their volume may hold at any instant."""

import random
import threading
import time
from collections.abc import Callable

from volcore.backends.contract import BlockDevice
from volcore.limits import BLOCK_SIZE_BYTES, CHUNK_BLOCKS
from volcore.testing.history import SIZE_BYTES, PointModel, Step

VOLUME = "background"
BLOCKS_EACH = 6
"""Blocks of one thread; threads share a chunk, never a block."""


class BackgroundWriter(threading.Thread):
    """Writes, trims and flushes its own blocks of `VOLUME`; `mark` gets each step before or after.

    A change is marked before it begins, a flush after it returned: at any instant the marks so far
    say what may be on the disk, and what must.
    """

    def __init__(
        self, device: BlockDevice, number: int, seed: int, mark: Callable[[str], None]
    ) -> None:
        super().__init__(name=f"background-{number}", daemon=True)
        self._device = device
        self._number = number
        self._dice = random.Random(f"{seed}/{number}")  # noqa: S311 - test data
        self._mark = mark
        self._stopped = threading.Event()
        self._steps = 0
        self.failure: Exception | None = None

    def stop(self) -> None:
        """Stop after the current step, and wait.

        Raises:
            Exception: what the thread failed with.
        """
        self._stopped.set()
        self.join()
        if self.failure is not None:
            raise self.failure

    def let_work(self, count: int) -> None:
        """Return after so many more steps, or when the thread failed."""
        goal = self._steps + count
        while self._steps < goal and self.is_alive():
            time.sleep(0.001)

    def run(self) -> None:
        """See the class."""
        dice = self._dice
        try:
            while not self._stopped.wait(0.001):
                self._steps += 1
                chance = dice.random()
                if chance < 0.25:
                    self._device.flush()
                    self._mark(f"settle {self._number}")
                    continue
                first = self._number * BLOCKS_EACH + dice.choice((0, CHUNK_BLOCKS - 64))
                block, count = first + dice.randrange(BLOCKS_EACH - 1), dice.choice((1, 2))
                offset, length = block * BLOCK_SIZE_BYTES, count * BLOCK_SIZE_BYTES
                seed = 0 if chance < 0.35 else dice.randrange(1, 1 << 60)
                self._mark(f"put {self._number} {seed} {offset} {length}")
                if seed:
                    self._device.write(offset, written(seed, length))
                else:
                    self._device.discard(offset, length)
        except Exception as err:
            self.failure = err


def written(seed: int, length: int) -> bytes:
    """Return what a `put` wrote; seed 0 is a trim."""
    return Step(kind="write", seed=seed, length_bytes=length).data() if seed else bytes(length)


class BackgroundModel:
    """Follows the marks."""

    def __init__(self) -> None:
        self._threads: dict[int, PointModel] = {}

    def follow(self, word: str) -> bool:
        """Take a mark; return whether it was one of ours."""
        what, *numbers = word.split()
        if what not in {"put", "settle"}:
            return False
        number, *rest = map(int, numbers)
        model = self._threads.setdefault(number, PointModel(SIZE_BYTES))
        if rest:
            seed, offset, length = rest
            model.put(offset, written(seed, length))
        else:
            model.settle()
        return True

    def now(self) -> PointModel:
        """Return what the volume may hold."""
        joined = PointModel(SIZE_BYTES)
        for model in self._threads.values():
            joined.blocks.update(model.blocks)
        return joined
