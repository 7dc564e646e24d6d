"""Says whether a history of concurrent calls may come from something that does one at a time.

Each call took effect at one instant between its begin and its end (Herlihy and Wing 1990). One
whose answer nobody got may have taken effect at any instant after its begin, or never. Things that
know nothing of each other, such as names, are judged apart: a history of all of them is
linearizable exactly if that of each is.

*Source*: Lowe, "Testing for linearizability" (2017), just-in-time: instants are chosen only when a
call ends, and all that can be by then is kept as a set, in which every combination stands once.
"""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Generic, Protocol, TypeVar

StateT = TypeVar("StateT", bound=Hashable)
AskT = TypeVar("AskT", bound=Hashable)
AnswerT = TypeVar("AnswerT")
AskT_contra = TypeVar("AskT_contra", bound=Hashable, contravariant=True)
AnswerT_contra = TypeVar("AnswerT_contra", contravariant=True)
COMBINATIONS_MAX: Final = 500_000
"""At one end of a call; more is an error of who made the history, and no judgement."""


@dataclass(frozen=True, slots=True)
class Call(Generic[AskT, AnswerT]):
    """One call; times of one clock in nanoseconds. Without an answer `end_ns` does not count."""

    begin_ns: int
    end_ns: int
    ask: AskT
    answer: AnswerT | None
    caller: str = ""


class Model(Protocol[StateT, AskT_contra, AnswerT_contra]):
    """What the thing does that does one at a time."""

    start: StateT

    def step(
        self, state: StateT, ask: AskT_contra, answer: AnswerT_contra | None
    ) -> Iterable[StateT]:
        """Return the states that it may have after it was asked so and answered so.

        None at all if it could not have answered that; an answer of None may have been any.
        """

    def only_looks(self, ask: AskT_contra, answer: AnswerT_contra) -> bool:
        """Say whether such a call changes nothing, whatever the state."""


@dataclass(frozen=True, slots=True)
class Violation(Generic[StateT, AskT, AnswerT]):
    """A call whose answer cannot be, and what the thing may have been before it."""

    call: Call[AskT, AnswerT]
    states: tuple[StateT, ...]
    beside: tuple[Call[AskT, AnswerT], ...]
    """Calls that were under way, or whose answers nobody got."""

    def __str__(self) -> str:
        """Tell the story in a few lines."""
        lines = [f"{_words(self.call)} cannot be; before it:"]
        lines += [f"  the state {state}" for state in self.states[:4]]
        lines += [f"  beside it {_words(call)}" for call in self.beside[:12]]
        return "\n".join(lines)


class TooManyCombinationsError(Exception):
    """So many calls overlap that the history is not judged."""


_Done = frozenset[int]


def check(
    calls: Sequence[Call[AskT, AnswerT]], model: Model[StateT, AskT, AnswerT]
) -> Violation[StateT, AskT, AnswerT] | None:
    """Return the first call that cannot be explained, or None: the history is linearizable.

    Complexity: linear in the calls, exponential in those that overlap.

    Raises:
        TooManyCombinationsError: it would take more than `COMBINATIONS_MAX`.
    """
    search = _Search(calls, model)
    possible: _Possible[StateT] = _Possible()
    possible.add(model.start, frozenset(), frozenset())
    # At one instant begins come first: the calls overlap.
    events = [(call.begin_ns, 0, number) for number, call in enumerate(calls)]
    events += [(call.end_ns, 1, n) for n, call in enumerate(calls) if call.answer is not None]
    for _, is_end, number in sorted(events):
        if not is_end:
            search.under_way.add(number)
            continue
        after = search.end(possible, number)
        if not after.found:
            beside = sorted(search.under_way - {number})
            states = tuple(dict.fromkeys(state for state, _ in possible.found))
            return Violation(calls[number], states, tuple(calls[n] for n in beside))
        search.under_way.discard(number)
        possible = after
    return None


class _Possible(Generic[StateT]):
    """What can be: a state, the calls under way that have taken effect, the unanswered that have.

    Of two that differ only in the last, one that used more of them is left out: whatever may follow
    from it may follow from the other.
    """

    def __init__(self) -> None:
        self.found: dict[tuple[StateT, _Done], list[_Done]] = {}

    def add(self, state: StateT, done: _Done, used: _Done) -> bool:
        """Take one in; say whether it is news."""
        known = self.found.setdefault((state, done), [])
        if any(one <= used for one in known):
            return False
        known[:] = [one for one in known if not used <= one]
        known.append(used)
        return True


class _Search(Generic[StateT, AskT, AnswerT]):
    """The calls under way, and what follows when one of them ends."""

    def __init__(
        self, calls: Sequence[Call[AskT, AnswerT]], model: Model[StateT, AskT, AnswerT]
    ) -> None:
        self._calls = calls
        self._model = model
        self._elder = _elders(calls)
        self.under_way: set[int] = set()

    def end(self, possible: "_Possible[StateT]", ending: int) -> "_Possible[StateT]":
        """Return what can be after the answer of call `ending`."""
        after: _Possible[StateT] = _Possible()
        seen: _Possible[StateT] = _Possible()
        todo = [
            (state, done, used)
            for (state, done), many in possible.found.items()
            for used in many
            if seen.add(state, done, used)
        ]
        count = 0
        while todo:
            state, done, used = todo.pop()
            count += 1
            if count > COMBINATIONS_MAX:
                raise TooManyCombinationsError(
                    f"{len(self.under_way)} calls overlap {_words(self._calls[ending])}"
                )
            if ending in done:
                after.add(state, done - {ending}, used)
                continue
            todo += [one for one in self._next(state, done, used) if seen.add(*one)]
        return after

    def _next(self, state: StateT, done: _Done, used: _Done) -> list[tuple[StateT, _Done, _Done]]:
        """Return what can be after one more call under way has taken effect."""
        found: list[tuple[StateT, _Done, _Done]] = []
        for number in self.under_way - done - used:
            call = self._calls[number]
            if self._elder.get(number, number) not in used | {number}:
                continue
            for then in self._model.step(state, call.ask, call.answer):
                if call.answer is None:
                    if then != state:  # without effect it may as well not have been
                        found.append((then, done, used | {number}))
                    continue
                reached = then, done | {number}, used
                if then == state and self._model.only_looks(call.ask, call.answer):
                    return [reached]  # no later instant suits it better
                found.append(reached)
        return found


def _elders(calls: Sequence[Call[AskT, AnswerT]]) -> dict[int, int]:
    """Return for calls without an answer the one before that asked the same, if there is one.

    They do the same, and whenever the later one may take effect, the earlier one may: so the later
    one is left out until that is used up. Else 20 of them would be a million combinations.
    """
    found: dict[int, int] = {}
    last: dict[AskT, int] = {}
    unanswered = [number for number, call in enumerate(calls) if call.answer is None]
    for number in sorted(unanswered, key=lambda number: calls[number].begin_ns):
        ask = calls[number].ask
        if ask in last:
            found[number] = last[ask]
        last[ask] = number
    return found


def _words(call: Call[AskT, AnswerT]) -> str:
    answer = "without an answer" if call.answer is None else f"answered {call.answer}"
    times = f"{call.begin_ns / 1e9:.3f} to {call.end_ns / 1e9:.3f} s"
    return f"{call.caller or 'a caller'} {call.ask}, {answer}, {times}"
