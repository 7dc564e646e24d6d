"""A stock of snapshot numbers, so that a snapshot does not wait for a monitor.

A number is a transaction of the monitors, which they do once a second; requests that wait together
share one. So a thread keeps some in stock. Each has a row of the directory from then on until its
snapshot is made, and stays in stock over restarts; a number lost between monitor and row is just
never used. A number that was, or may have been, used for a snapshot never comes back.

An image takes only numbers above those it has had. So when one asks for a number above all in stock
(librbd made its last snapshot), new ones are fetched, and the oldest are given back if there are
too many.
"""

import logging
import threading
from bisect import bisect_right, insort
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from volcore.backends.rbd.directory import Directory
from volcore.backends.rbd.errmap import translated
from volcore.errors import VolcoreError

LOW: Final = 32
"""Numbers in stock below which more are fetched."""
BATCH: Final = 32
"""Numbers fetched together: they share one proposal of the monitors."""
MAX: Final = 128
"""Most numbers in stock."""
_RETRY_S: Final = 30.0
_LOG: Final = logging.getLogger(__name__)


class Stock:
    """The numbers of one pool; any thread."""

    def __init__(self, ioctx: Any, directory: Directory) -> None:
        """Have nothing in stock until `start`."""
        self._ioctx = ioctx
        self._directory = directory
        self._changed = threading.Condition()
        self._snaps: list[int] = []
        self._asked_above = 0
        self._thread: threading.Thread | None = None
        self._closed = False

    def start(self) -> None:
        """Read what is in stock, and keep it filled, in a thread."""
        self._thread = threading.Thread(target=self._keep, name="volcore-snap-numbers", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop fetching; waits for a request under way, up to a second. Idempotent."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    def take(self, *, above: int = 0) -> int | None:
        """Return the lowest number above `above`, not in stock any more; None: there is none.

        Its row is still that of a number in stock.
        """
        with self._changed:
            self._asked_above = max(self._asked_above, above)
            at = bisect_right(self._snaps, above)
            found = self._snaps.pop(at) if at < len(self._snaps) else None
            if self._is_low():
                self._changed.notify_all()
            return found

    def used_elsewhere(self, snap: int) -> None:
        """Note a number that an image has from somewhere else: have higher ones in stock soon."""
        with self._changed:
            self._asked_above = max(self._asked_above, snap)
            self._changed.notify_all()

    def put_back(self, snap: int) -> None:
        """Take a number back that was not used, and has the row of a number in stock."""
        with self._changed:
            insort(self._snaps, snap)

    def give_back(self, snap: int) -> None:
        """Tell the monitors that a number is not used any more; idempotent, up to a second."""
        with translated(f"give snapshot number {snap} back"):
            self._ioctx.remove_self_managed_snap(snap)

    def wait(self, count: int, timeout_s: float, *, above: int = 0) -> bool:
        """Return whether so many numbers above `above` are in stock, fetching and waiting."""
        with self._changed:
            self._asked_above = max(self._asked_above, above)
            self._changed.notify_all()
            return self._changed.wait_for(
                lambda: len(self._snaps) - bisect_right(self._snaps, above) >= count, timeout_s
            )

    def _keep(self) -> None:
        """Fill the stock whenever it is low, until closed."""
        try:
            self._add([snap for snap, image_id in self._directory.numbers() if not image_id])
        except VolcoreError as err:
            _LOG.warning("the stock of snapshot numbers cannot be read: %s", err)
            return
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._is_low())
                if self._closed:
                    return
            try:
                self._fetch()
            except VolcoreError as err:
                _LOG.warning("no snapshot numbers, snapshots go through librbd: %s", err)
                with self._changed:
                    self._changed.wait_for(lambda: self._closed, _RETRY_S)

    def _is_low(self) -> bool:
        """Return whether numbers are missing, or new enough ones; under the lock."""
        return len(self._snaps) < LOW or self._snaps[-1] <= self._asked_above

    def _fetch(self) -> None:
        """Get a batch from the monitors, and write it down; give the oldest back if too many."""
        with self._changed:
            excess = max(0, len(self._snaps) + BATCH - MAX)
            old, self._snaps = self._snaps[:excess], self._snaps[excess:]
        self._directory.drop_numbers(old)
        with ThreadPoolExecutor(BATCH) as pool:
            given = [pool.submit(self.give_back, snap) for snap in old]
            asked = [pool.submit(self._ask) for _ in range(BATCH)]
        for done in given:
            done.result()
        snaps = sorted(one.result() for one in asked)
        self._directory.add_numbers(snaps)
        self._add(snaps)

    def _ask(self) -> int:
        """Return a new number."""
        with translated("get a snapshot number"):
            return int(self._ioctx.create_self_managed_snap())

    def _add(self, snaps: list[int]) -> None:
        """Put numbers in stock whose rows are written."""
        with self._changed:
            self._snaps = sorted([*self._snaps, *snaps])
            self._changed.notify_all()
