"""Group commit: what comes while its like is under way goes together, in the next turn.

As databases do with their log. A caller that is alone starts at once; callers that find another at
work wait for its end, and one of them acts for all. What each gets is what it would have got alone.
"""

import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from volcore.errors import VolcoreError

T = TypeVar("T")
R = TypeVar("R")


@dataclass(slots=True, eq=False)
class _Waiting(Generic[T, R]):
    """A caller that waits for its turn, or for another to act for it."""

    items: Sequence[T]
    told: threading.Event = field(default_factory=threading.Event)
    party: "list[_Waiting[T, R]]" = field(default_factory=list)
    """Of one that shall act: for whom, itself included."""
    results: list[R] | None = None
    """None when told: it shall act for itself."""


class Combiner(Generic[T, R]):
    """Turns by key: one at a time for each, with all that came meanwhile; any thread."""

    def __init__(self, *, items_max: int) -> None:
        """Put at most `items_max` items into one turn; more wait for the one after."""
        self._items_max = items_max
        self._lock = threading.Lock()
        self._queues: dict[Hashable, list[_Waiting[T, R]]] = {}
        """Who waits, for each key with a turn under way."""

    def run(
        self, key: Hashable, items: Sequence[T], act: Callable[[Sequence[T]], Sequence[R]]
    ) -> Sequence[R]:
        """Return what `act` returns for the items: one result for each, in their order.

        Whoever has the same key passes an equal `act`. When a turn of several callers raises, each
        acts for itself, so that none fails for another's sake.

        Raises:
            VolcoreError: as `act` does for these items alone.
        """
        with self._lock:
            queue = self._queues.get(key)
            if queue is None:
                self._queues[key] = []
            else:
                mine = _Waiting[T, R](items)
                queue.append(mine)
        if queue is None:
            try:
                return act(items)
            finally:
                self._pass_on(key)
        mine.told.wait()
        if mine.party:
            try:
                self._act(mine.party, act)
            finally:
                self._pass_on(key)
        return act(items) if mine.results is None else mine.results

    def _act(
        self, party: "list[_Waiting[T, R]]", act: Callable[[Sequence[T]], Sequence[R]]
    ) -> None:
        """Act for all of a party and tell the others."""
        try:
            results = list(act([item for one in party for item in one.items]))
            at = 0
            for one in party:
                one.results = results[at : at + len(one.items)]
                at += len(one.items)
        except VolcoreError:
            if len(party) == 1:
                raise
        finally:
            for one in party[1:]:
                one.told.set()

    def _pass_on(self, key: Hashable) -> None:
        """Give the turn to those who wait."""
        with self._lock:
            queue = self._queues[key]
            if not queue:
                del self._queues[key]
                return
            count, items = 0, 0
            while count < len(queue) and (
                not count or items + len(queue[count].items) <= self._items_max
            ):
                items += len(queue[count].items)
                count += 1
            party, queue[:] = queue[:count], queue[count:]
        party[0].party = party
        party[0].told.set()
