"""The last row of a direct clone, written behind the answer: it says that the clone is complete.

It goes with the names of the next clones if some come soon, which is one operation less for each,
else by itself. Until then recovery finds the clone whole.
"""

import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Final

from volcore.backends.rbd.direct.waves import Pending, Waves, Write
from volcore.backends.rbd.directory import OBJECT_NAME, Directory, Link
from volcore.errors import VolcoreError

DELAY_S: Final = 0.05
"""How long a row waits for others."""


class Finisher:
    """Writes the last rows of one pool; any thread.

    Whoever changes the row of a volume calls `settled` before: then nothing here follows.
    """

    def __init__(self, waves: Waves, directory: Directory) -> None:
        """Nothing runs until the first row comes."""
        self._waves = waves
        self._directory = directory
        self._changed = threading.Condition()
        self._waiting: dict[str, Link] = {}
        self._sent: dict[str, tuple[Pending, Link]] = {}
        self._thread: threading.Thread | None = None
        self._idle = False
        """Whether the thread waits for a first row; else it looks again by itself."""
        self._closed = False

    def add(self, links: Mapping[str, Link]) -> None:
        """Write the rows of these volumes soon."""
        with self._changed:
            ended = [key for key, (pending, _) in self._sent.items() if pending.is_done]
            for volume_id in ended:
                del self._sent[volume_id]
            self._waiting |= links
            if self._idle:
                self._changed.notify_all()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="volcore-rows", daemon=True)
                self._thread.start()

    def send(self, fill: Callable[[Any], None]) -> Pending:
        """Start a write to the directory; the rows that wait go with it.

        Raises:
            UnavailableError: the connection is closed.
        """
        with self._changed:
            return self._send(fill)

    def refused(self, write: Pending) -> None:
        """Note that a write failed with which rows went; they go with another."""
        with self._changed:
            for volume_id, (pending, link) in list(self._sent.items()):
                if pending is write:
                    del self._sent[volume_id]
                    self._waiting[volume_id] = link
            self._changed.notify_all()

    def settled(self, volume_id: str) -> None:
        """Return when no write to the row of that volume will come or is under way.

        What failed to be written, whoever reads the row will settle.
        """
        while True:
            with self._changed:
                if volume_id in self._waiting:
                    with suppress(VolcoreError):
                        self._send(_nothing)
                sent = self._sent.get(volume_id)
            if sent is None:
                return
            sent[0].wait()
            with self._changed:
                if self._sent.get(volume_id) is sent:
                    del self._sent[volume_id]

    def flush(self) -> None:
        """Return when what was added before is written."""
        with self._changed:
            volume_ids = [*self._waiting, *self._sent]
        for volume_id in volume_ids:
            self.settled(volume_id)

    def close(self) -> None:
        """Write what there is, and end; idempotent."""
        self.flush()
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    def _send(self, fill: Callable[[Any], None]) -> Pending:
        """See `send`; under the lock, so that writes have the order in which rows are handled."""
        links, self._waiting = self._waiting, {}

        def both(op: Any) -> None:
            fill(op)
            if links:
                self._directory.completing(op, links)

        pending = self._waves.send(Write(OBJECT_NAME, both))
        self._sent |= {volume_id: (pending, link) for volume_id, link in links.items()}
        return pending

    def _run(self) -> None:
        """Write rows that nothing else took along, until closed."""
        while True:
            with self._changed:
                self._idle = True
                self._changed.wait_for(lambda: self._waiting or self._closed)
                self._idle = False
                if self._closed:
                    return
                self._changed.wait_for(lambda: self._closed, DELAY_S)
                if self._waiting:
                    with suppress(VolcoreError):
                        self._send(_nothing)


def _nothing(_op: Any) -> None:
    """Write nothing of one's own."""
