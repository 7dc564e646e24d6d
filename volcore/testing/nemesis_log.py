"""What callers of the nemesis asked and were answered, in files that outlive their processes."""

import pickle
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from volcore.testing import linear
from volcore.testing.volume_model import Answer, Ask

NameCall = linear.Call[Ask, Answer]


@dataclass(frozen=True, slots=True)
class Begun:
    """A try, at its begin; `asks` by name of the volume."""

    number: int
    caller: str
    begin_ns: int
    asks: tuple[tuple[str, Ask], ...]


@dataclass(frozen=True, slots=True)
class Ended:
    """Its end: an answer for each name, None where nobody knows; or nothing was done at all."""

    number: int
    end_ns: int
    answers: tuple[Answer | None, ...]


@dataclass(frozen=True, slots=True)
class Made:
    """A call with all its tries; `failed` is the reason, `odd` one that must not come."""

    kind: str
    begin_ns: int
    end_ns: int
    failed: str = ""
    odd: str = ""


class Log:
    """What is written down, in a file that outlives the process."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb", buffering=0)
        self._lock = threading.Lock()
        self._count = 0

    def begin(
        self, caller: str, asks: Iterable[tuple[str, Ask]], begin_ns: int | None = None
    ) -> int:
        """Write the begin of a try down, now or as it was; return its number."""
        with self._lock:
            self._count += 1
            if begin_ns is None:
                begin_ns = time.monotonic_ns()
            begun = Begun(self._count, caller, begin_ns, tuple(asks))
            self._file.write(pickle.dumps(begun))
            return begun.number

    def end(self, number: int, answers: Iterable[Answer | None]) -> None:
        """Write the end of a try down; no answers at all mean that nothing was done."""
        self.put(Ended(number, time.monotonic_ns(), tuple(answers)))

    def put(self, record: Begun | Ended | Made) -> None:
        """Write a record down."""
        with self._lock:
            self._file.write(pickle.dumps(record))


def records(path: Path) -> Iterator[Begun | Ended | Made]:
    """Yield what a process has written down."""
    with path.open("rb") as file:
        while True:
            try:
                yield pickle.load(file)  # noqa: S301 - our own
            except EOFError:
                return


def gathered(logs: Sequence[Path]) -> tuple[list[Made], dict[str, list[NameCall]]]:
    """Return the calls that were made, and what each name was asked and answered."""
    made: list[Made] = []
    calls: dict[str, list[NameCall]] = defaultdict(list)
    for log in logs:
        begun: dict[int, Begun] = {}
        ended: dict[int, Ended] = {}
        for record in records(log):
            match record:
                case Begun():
                    begun[record.number] = record
                case Ended():
                    ended[record.number] = record
                case Made():
                    made.append(record)
        for number, begin in begun.items():
            end = ended.get(number)
            if end is not None and not end.answers:
                continue
            answers = end.answers if end is not None else (None,) * len(begin.asks)
            end_ns = end.end_ns if end is not None else begin.begin_ns
            for (name, ask), answer in zip(begin.asks, answers, strict=True):
                calls[name].append(linear.Call(begin.begin_ns, end_ns, ask, answer, begin.caller))
    return made, calls
