"""Group commit: callers share turns, and none gets another's trouble."""

import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from volcore.engine.combine import Combiner
from volcore.errors import Reason, UnavailableError

FAILURE = UnavailableError("no", reason=Reason.CLUSTER_UNREACHABLE)


class Turns:
    """Acts that say what they got; the first one waits until `go`."""

    def __init__(self, *bad: str) -> None:
        self.seen: list[list[str]] = []
        self.begun = threading.Event()
        self.go = threading.Event()
        self._bad = bad

    def __call__(self, items: Sequence[str]) -> list[str]:
        self.seen.append(list(items))
        self.begun.set()
        assert self.go.wait(30)
        if any(item in self._bad for item in items):
            raise FAILURE
        return [item.upper() for item in items]


def gathered(
    combiner: Combiner[str, str], turns: Turns, calls: Sequence[Sequence[str]]
) -> list[Future[Sequence[str]]]:
    """Make the first call, then the others while it is under way; all have ended at return."""
    with ThreadPoolExecutor(len(calls)) as executor:
        futures = [executor.submit(combiner.run, "key", calls[0], turns)]
        assert turns.begun.wait(30)
        for number, items in enumerate(calls[1:], 1):
            futures.append(executor.submit(combiner.run, "key", items, turns))
            while len(combiner._queues["key"]) < number:
                time.sleep(0.001)
        turns.go.set()
    assert not combiner._queues
    return futures


def test_who_comes_meanwhile_goes_together() -> None:
    """Goal: two turns for five callers, each with its own results. Method: hold up the first."""
    turns = Turns()
    futures = gathered(Combiner(items_max=10), turns, ["a", "b", "cd", "e", "f"])
    assert turns.seen == [["a"], ["b", "c", "d", "e", "f"]]
    assert ["".join(future.result()) for future in futures] == ["A", "B", "CD", "E", "F"]


def test_a_turn_has_room_for_so_many() -> None:
    """Goal: turns are bounded, and too large a call still goes. Method: a small bound."""
    turns = Turns()
    gathered(Combiner(items_max=3), turns, ["a", "b", "cd", "e", "fghi", "j"])
    assert turns.seen == [["a"], ["b", "c", "d"], ["e"], ["f", "g", "h", "i"], ["j"]]


def test_nobody_fails_for_another() -> None:
    """Goal: a turn that fails fails only for whom it must. Method: one bad item among three."""
    turns = Turns("b")
    futures = gathered(Combiner(items_max=10), turns, ["a", "b", "c", "d"])
    assert turns.seen[:2] == [["a"], ["b", "c", "d"]]
    assert sorted(turns.seen[2:]) == [["b"], ["c"], ["d"]]
    assert [future.exception() for future in futures] == [None, FAILURE, None, None]
    assert futures[3].result() == ["D"]


def test_alone_and_apart() -> None:
    """Goal: who is alone, or has another key, waits for nobody. Method: one key is held up."""
    combiner = Combiner[str, str](items_max=10)
    slow, quick = Turns(), Turns()
    quick.go.set()
    with ThreadPoolExecutor(1) as executor:
        held = executor.submit(combiner.run, "other", "a", slow)
        assert slow.begun.wait(30)
        assert combiner.run("key", "b", quick) == ["B"]
        slow.go.set()
        assert held.result() == ["A"]
    with pytest.raises(UnavailableError):
        combiner.run("key", "c", _refused)
    assert combiner.run("key", "d", quick) == ["D"]


def _refused(items: Sequence[str]) -> list[str]:
    raise FAILURE
