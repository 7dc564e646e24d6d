"""Whoever is just opening an image must not miss a snapshot of it.

librbd reads a header, looks at the ancestors, and watches the header at last: one request after the
other. Who is in between when a snapshot is made is not told of it: it writes past the snapshot, and
if it then makes the next one, it leaves holes in the first, which read as zeroes. So all who watch
are told again when an opener has had time to get there: before the answer, and later for the slow.
"""

import heapq
import logging
import threading
import time
from typing import Final

from volcore.backends.rbd.direct import wire
from volcore.backends.rbd.direct.plan import header_object
from volcore.backends.rbd.direct.waves import Waves
from volcore.errors import VolcoreError

REQUESTS: Final = 12
REQUESTS_EACH: Final = 13
"""From reading the header to watching it, and for each ancestor; counted in 16.2 (0011)."""
DETACHED_S: Final = 0.005
ATTACHED_S: Final = 0.1
"""Least patience, for an image that nobody is to open, and for one that a client may open now."""
MARGIN: Final = 2
DETACHED_REQUESTS: Final = 8
"""What an image without ancestors costs librbd, in requests of ours, which wait for Python, too."""
PATIENCE_S_MAX: Final = 2.0
REMINDERS_S: Final = (0.1, 1.0)
"""After the answer: what an opener that is slower still writes past a snapshot ends there."""
_LOG: Final = logging.getLogger(__name__)


def patience_s(read_s: float, depth: int, *, attached: bool) -> float:
    """Return how long after a snapshot an opener that has read the header before it may watch.

    Args:
        read_s: what one request takes.
        depth: ancestors of the image.
        attached: somebody has the right to open it.
    """
    if attached:
        wanted_s = max(ATTACHED_S, MARGIN * (REQUESTS + REQUESTS_EACH * depth) * read_s)
    else:
        wanted_s = max(DETACHED_S, DETACHED_REQUESTS * read_s)
    return min(wanted_s, PATIENCE_S_MAX)


class Reminders:
    """Tells those who watch an image of its snapshot again, behind the answer; any thread."""

    def __init__(self, waves: Waves) -> None:
        """Do nothing until the first snapshot."""
        self._waves = waves
        self._changed = threading.Condition()
        self._due: list[tuple[float, str]] = []
        self._thread: threading.Thread | None = None
        self._closed = False

    def add(self, image_id: str) -> None:
        """Remind those who watch the image by then."""
        now_s, name = time.monotonic(), header_object(image_id)
        with self._changed:
            if self._closed:
                return
            for after_s in REMINDERS_S:
                heapq.heappush(self._due, (now_s + after_s, name))
            self._changed.notify_all()
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name="volcore-reminders", daemon=True
                )
                self._thread.start()

    def close(self) -> None:
        """Send what is left at once, and end; a dead watcher takes two seconds. Idempotent."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._is_due(), self._left_s())
                closed, now_s = self._closed, time.monotonic()
                names = set()
                while self._due and (closed or self._due[0][0] <= now_s):
                    names.add(heapq.heappop(self._due)[1])
            try:
                for reply in [self._waves.notify(name, wire.HEADER_UPDATE) for name in names]:
                    reply.wait()
            except VolcoreError as err:
                _LOG.warning("clients are not reminded of a snapshot: %s", err)
            if closed:
                return

    def _is_due(self) -> bool:
        return bool(self._due) and self._due[0][0] <= time.monotonic()

    def _left_s(self) -> float | None:
        return max(0.0, self._due[0][0] - time.monotonic()) if self._due else None
