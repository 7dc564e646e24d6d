"""Work that no caller waits for: deleting what is dead, merging what nobody needs apart.

One thread for each pool. It looks at the rows for work whenever something was deleted, and at the
start, does it in small steps, and goes to sleep. Nothing is remembered between two looks, so a stop
at any point costs nothing but the step at hand. In order:

1. Dead layers: what is open with one in its chain follows the rows. Then file, pages and row are
   deleted, some pages at a time; then their parents, if they are dead now.
2. Blank layers: what refers to them refers to their parents.
3. Pairs of frozen layers: merged (`volcore.backends.local.merge`).
4. Pairs of a layer and a volume's top: when nothing is on the top, the layer becomes the top again;
   else the top is frozen, so that both can be merged.

Open volumes follow the rows one after the other, each with a pause as short as that of a snapshot;
a file goes when no open chain has its layer any more.

INV-LOCK-1: the thread takes the database's lock for one step at a time, and holds no other with it.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

import structlog

from volcore.backends.local.merge import Merge
from volcore.backends.local.openings import Openings
from volcore.backends.local.pruning import Pair, Pruning
from volcore.backends.local.store import LocalStore
from volcore.errors import ExhaustedError, VolcoreError
from volcore.limits import MIB

BYTES_PER_S_DEFAULT: Final = 128 * MIB
PAGES_PER_STEP: Final = 256
"""Pages of a dead layer deleted in one transaction: some milliseconds."""
LOOK_INTERVAL_S: Final = 0.2
"""Deletes that come one after the other are looked at together."""
LOOKS_SHARE: Final = 10
"""After a look at very many rows, so many times as long passes before the next one."""
RETRY_S: Final = 60.0
"""After a full disk or damage: the same pair again, later."""
RETRY_SOON_S: Final = 5.0
"""After a failure elsewhere: deleting what is dead must not wait long, it gives space."""
FREEZE_INTERVAL_S: Final = 2.0
FREEZE_INTERVAL_S_MAX: Final = 120.0
"""A volume that is written all the time is frozen for a merge ever more seldom."""
ROUNDS_MAX: Final = 1000
"""Looks that `finish` takes at most: each shortens a chain, or frees a layer."""
_log = structlog.get_logger("volcore.local")


class Upkeep:
    """The background work of one pool."""

    def __init__(self, store: LocalStore, openings: Openings) -> None:
        self._store = store
        self._openings = openings
        self._changes = Pruning(store.layers)
        self._rows = Pruning(store.scanner)
        self._merge = Merge(store, store.scanner, lambda layer: bool(openings.with_layer(layer)))
        self._thread: threading.Thread | None = None
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._look_s = 0.0
        """How long the last look at the rows took."""
        self._not_before: dict[tuple[int, int], float] = {}
        """For a pair that could not be merged: when to try again."""
        self._freezes: dict[str, tuple[float, float]] = {}
        """For a volume frozen for a merge: when it may be again, and how long it waited last."""

    def start(self, bytes_per_s: int) -> None:
        """Do the work in a thread from now on, writing at most so much."""
        self._wake.set()
        self._thread = threading.Thread(
            target=self._run, args=(bytes_per_s,), name="upkeep", daemon=True
        )
        self._thread.start()

    def wake(self) -> None:
        """There may be work. Without a thread, delete here and now what is dead."""
        if self._thread is not None:
            self._wake.set()
            return
        # What fails is repeated with the next one, or at a start: the commit has been done.
        with suppress(VolcoreError):
            for _ in self._reap_all():
                pass

    def stop(self) -> None:
        """Return when the step at hand is done. Idempotent."""
        self._stop.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join()

    def step(self) -> bool:
        """Do one piece of work now; return whether there was any. Not beside the thread."""
        return next(self._work(), None) is not None

    def finish(self) -> None:
        """Work until there is nothing left that can be done now. Not beside the thread."""
        self._not_before.clear()
        for _ in range(ROUNDS_MAX):
            self._freezes.clear()
            if not sum(1 for _ in self._work()):
                return

    def _run(self, bytes_per_s: int) -> None:
        while not self._stop.is_set():
            self._wake.wait(self._patience_s())
            if self._stop.wait(max(LOOK_INTERVAL_S, LOOKS_SHARE * self._look_s)):
                return
            self._wake.clear()
            try:
                if self._look(bytes_per_s):
                    self._wake.set()
            except VolcoreError as err:
                _log.warning("upkeep put off", reason=err.reason, message=err.message)
                self._stop.wait(RETRY_SOON_S)
                self._wake.set()
            except Exception:  # a bug: what is dead must still be deleted
                _log.exception("upkeep failed")
                self._stop.wait(RETRY_S)
                self._wake.set()

    def _look(self, bytes_per_s: int) -> int:
        """Do what there is to do now; return how many steps that were."""
        steps = written = 0
        started_s = time.monotonic()
        for step_bytes in self._work():
            steps += 1
            written += step_bytes
            if self._stop.wait(step_bytes / bytes_per_s):
                break
        if written:
            took_s = round(time.monotonic() - started_s, 3)
            _log.info("layers merged", bytes=written, steps=steps, seconds=took_s)
        return steps

    def _patience_s(self) -> float | None:
        """Return how long to sleep at most; None: until something happens."""
        times = [*self._not_before.values(), *(when for when, _ in self._freezes.values())]
        return max(0.0, min(times) - time.monotonic()) if times else None

    def _work(self) -> Iterator[int]:
        """Do what there is to do, yielding after each step the bytes that it wrote."""
        yield from self._follow_all()
        yield from self._reap_all()
        started_s = time.monotonic()
        blanks, pairs = self._rows.blanks(), self._rows.pairs()
        now_s = time.monotonic()
        self._look_s = now_s - started_s
        for layer_id, parent_id in blanks:
            yield from self._bypass(layer_id, parent_id)
        known = {(pair.lower, pair.upper) for pair in pairs}
        self._not_before = {
            key: when for key, when in self._not_before.items() if key in known and when > now_s
        }
        volumes = {pair.volume_id for pair in pairs}
        self._freezes = {v: times for v, times in self._freezes.items() if v in volumes}
        for pair in pairs:
            if (pair.lower, pair.upper) in self._not_before:
                continue
            try:
                yield from self._merged(pair) if pair.frozen else self._top(pair)
            except VolcoreError as err:
                self._not_before[pair.lower, pair.upper] = time.monotonic() + RETRY_S
                _log.warning(
                    "merge put off",
                    layers=(pair.lower, pair.upper),
                    reason=err.reason,
                    message=err.message,
                )
                if isinstance(err, ExhaustedError):
                    break
        # What merging freed comes with the next look.

    def _follow_all(self) -> Iterator[int]:
        """Let what is open follow the rows where a dead layer is still in its chain."""
        for layer_id in self._rows.dead():
            for key in self._openings.with_layer(layer_id):
                self._openings.follow(key)
                if key not in self._openings.with_layer(layer_id):
                    yield 0

    def _reap_all(self) -> Iterator[int]:
        while True:
            dead = [one for one in self._rows.dead() if not self._openings.with_layer(one)]
            if not dead:
                return
            for layer_id in dead:
                yield from self._reap(layer_id)

    def _reap(self, layer_id: int) -> Iterator[int]:
        """Delete a dead layer: its file first, for that is what gives space on a full disk."""
        self._store.files.delete(layer_id)
        while self._changes.delete_some_pages(layer_id, PAGES_PER_STEP) == PAGES_PER_STEP:
            yield 0
        with self._store.database.transaction():
            self._changes.delete_layer(layer_id)
        yield 0

    def _bypass(self, layer_id: int, parent_id: int | None) -> Iterator[int]:
        gone = False
        while not gone and (layer_id, parent_id) in self._rows.blanks(layer_id):
            with self._store.database.transaction():
                gone = self._changes.bypass(layer_id, parent_id)
            yield 0

    def _merged(self, pair: Pair) -> Iterator[int]:
        while (step_bytes := self._merge.step(pair)) is not None:
            yield step_bytes

    def _top(self, pair: Pair) -> Iterator[int]:
        """Take a step with a volume's top and the layer that only it needs."""
        if self._openings.thaw_top(pair):
            self._freezes.pop(pair.volume_id, None)
            yield 0
            return
        now_s = time.monotonic()
        not_before_s, waited_s = self._freezes.get(pair.volume_id, (0.0, FREEZE_INTERVAL_S / 2))
        if now_s >= not_before_s and self._openings.freeze_top(pair):
            wait_s = min(2 * waited_s, FREEZE_INTERVAL_S_MAX)
            if self._openings.is_open(pair.volume_id):
                self._freezes[pair.volume_id] = now_s + wait_s, wait_s
            yield 0
