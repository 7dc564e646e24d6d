"""Volumes in the making, whose records are written before they are whole.

The first commit of a creation writes the record of the volume as it will be, READY, and an intent.
Until the backend has made it, this server shows it as CREATING (`Pool.find`, `Pool.list`). Then the
caller is answered, and the intent is erased behind the answer: with the first commit of a later
creation, or by itself after 50 ms. After a crash the backend says which of them are whole
(`changes.settle`); nobody had an answer for the others.

Invariants (docs/invariants.md):
1. INV-MAKE-1 (must): a volume whose creation has not ended, or was not taken back, is not shown.
2. INV-MAKE-2 (must): an intent is erased only after the backend has made its volume durable.
"""

import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Final

from volcore.catalog.contract import ANYTHING, Change
from volcore.errors import VolcoreError
from volcore.model.records import Intent

DELAY_S: Final = 0.05
"""How long an intent waits for a commit to go with."""
RETRY_S: Final = 1.0
TAKEN_BACK_MAX: Final = 10_000
"""How many volumes are remembered that were taken back: longer than any read is under way."""
TOGETHER_MAX: Final = 1000
"""Intents erased with one commit."""


class Making:
    """The creations of one pool; any thread.

    The key of such an intent is nobody else's (`key_of`), so that it may stand beside the intent of
    what is done with the volume next, and may be erased at any time after.
    """

    def __init__(self, commit: Callable[[Sequence[Change]], None]) -> None:
        """Nothing runs until the first creation ends."""
        self._commit = commit
        self._changed = threading.Condition()
        self._hidden: dict[str, Intent] = {}
        self._failed: set[str] = set()
        self._taken_back: dict[str, None] = {}
        self._over: list[Intent] = []
        self._committing = 0
        self._thread: threading.Thread | None = None
        self._idle = False
        """Whether the thread waits for a first intent; else it looks again by itself."""
        self._closed = False

    def hides(self, volume_id: str) -> bool:
        """Say whether the volume must not be shown yet, or never."""
        return volume_id in self._hidden or volume_id in self._taken_back

    def intent_of(self, volume_id: str) -> Intent | None:
        """Return the intent of a volume that is hidden."""
        return self._hidden.get(volume_id)

    def has_failed(self, volume_id: str) -> bool:
        """Say whether it is known that the volume is not to become whole."""
        return volume_id in self._failed

    def begin(self, intents: Iterable[Intent]) -> None:
        """Hide the volumes; before the commit that writes their records."""
        with self._changed:
            self._hidden |= {intent.subject_id: intent for intent in intents}

    def ended(self, intents: Sequence[Intent]) -> None:
        """Show volumes that are whole and durable, and erase their intents soon."""
        with self._changed:
            self._show(intents)
            self._over += intents
            if self._idle:
                self._changed.notify_all()
            if self._thread is None and intents:
                self._thread = threading.Thread(target=self._run, name="intents", daemon=True)
                self._thread.start()

    def failed(self, intents: Iterable[Intent]) -> None:
        """Keep volumes hidden until they are settled: they are not whole, or nobody knows."""
        with self._changed:
            self._failed |= {intent.subject_id for intent in intents}

    def unwritten(self, intents: Iterable[Intent]) -> None:
        """Forget creations whose records were not written, unless an earlier try may have been."""
        with self._changed:
            self._show(one for one in intents if one.subject_id not in self._failed)

    def settled(self, intent: Intent, *, taken_back: bool) -> None:
        """Forget a creation; what was taken back stays hidden from reads that have its record."""
        with self._changed:
            if taken_back or intent.subject_id in self._failed:
                self._taken_back[intent.subject_id] = None
                if len(self._taken_back) > TAKEN_BACK_MAX:
                    del self._taken_back[next(iter(self._taken_back))]
            self._show([intent])

    def commit(self, changes: Sequence[Change]) -> None:
        """Commit, and erase with it the intents that wait for that.

        Raises:
            OperationPendingError, UnavailableError: as the catalog; the intents wait on.
        """
        with self._changed:
            over, self._over = self._over[:TOGETHER_MAX], self._over[TOGETHER_MAX:]
            self._committing += 1
        try:
            self._commit([*changes, *map(erased, over)])
        except BaseException:
            with self._changed:
                self._over += over
            raise
        finally:
            with self._changed:
                self._committing -= 1
                self._changed.notify_all()

    def flush(self) -> None:
        """Return when what has ended before is erased, or could not be.

        What is left the next start erases.
        """
        with self._changed:
            self._changed.wait_for(lambda: not self._committing)
        with suppress(VolcoreError):
            while self._over:
                self.commit(())

    def close(self) -> None:
        """Erase what there is, and end; idempotent."""
        self.flush()
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    def _show(self, intents: Iterable[Intent]) -> None:
        for intent in intents:
            self._hidden.pop(intent.subject_id, None)
            self._failed.discard(intent.subject_id)

    def _run(self) -> None:
        """Erase what nothing else took along, until closed."""
        pause_s = DELAY_S
        while True:
            with self._changed:
                self._idle = True
                self._changed.wait_for(lambda: self._over or self._closed)
                self._idle = False
                if self._changed.wait_for(lambda: self._closed, pause_s):
                    return
            pause_s = DELAY_S
            if self._over:
                try:
                    self.commit(())
                except VolcoreError:
                    pause_s = RETRY_S


def key_of(volume_id: str) -> str:
    """Return the key of the intent to make a volume."""
    return f"make-{volume_id}"


def erased(intent: Intent) -> Change:
    """Return the change that erases an intent, whether it is there or not."""
    return Change(kind=intent.KIND, key=intent.key, value=None, expect=ANYTHING)
