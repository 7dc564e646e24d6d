"""`volcore` whose calls stop where a file says: there a test kills it, or the caller.

`Hold.at` writes the file, and is told by another one which calls have stopped. Points of a call:

- `middle`: its first commit is done and nothing else; an import has written some of its data, an
  export has sent some.
- `end`: everything is done, but the answer; of a stream, its last word.
- any, drawn by a seed: on arrival, after one of its first commits (or pieces), or its end; or none.

    RunningServer(directory, module="volcore.testing.held_server")
"""

import asyncio
import contextvars
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from volcore.api.images import ImageServicer
from volcore.api.interceptor import CallInterceptor
from volcore.catalog.omap import OmapCatalog
from volcore.catalog.sqlite import SqliteCatalog
from volcore.cli.main import main
from volcore.engine.operations import Work

MODULE: Final = "volcore.testing.held_server"
_STREAMS: Final = ("ImportImage", "ExportImage")
_READS: Final = ("Get", "List", "Check", "Watch", "Wait")
"""Calls that change nothing begin so."""
_DRAWN: Final = "drawn"
_INSTANTS: Final = (None, None, 0, 1, 2, 3, 99)
"""After how many steps a call stops, or at its end if it has fewer; None: it does not."""
_POLL_S: Final = 0.01
_STILL_S: Final = 3.0
_WAIT_S: Final = 180.0


class Hold:
    """Where calls of one server stop; both sides of the two files.

    Args:
        directory: of the `RunningServer`.
    """

    def __init__(self, directory: Path) -> None:
        self._wanted = directory / "hold"
        self._held = directory / "held"

    @contextmanager
    def at(self, point: str, methods: Iterable[str], *, of: str = "") -> Iterator[None]:
        """Let calls of `methods` (`CreateVolume`) stop at a point until the end of the block."""
        self.add(point, methods, of=of)
        try:
            yield
        finally:
            self.release()

    def add(self, point: str, methods: Iterable[str], *, of: str = "") -> None:
        """Let calls stop at a point, too, until `release`.

        With `of` only those whose request has these words; that of `ImportImage` shows none.
        """
        self._want({f"{point}:{method}:{of}" for method in methods})

    def draw(self, seed: int) -> None:
        """Let calls that change something stop where the seed says, if anywhere, until `release`.

        Each draws anew, by its method and how many calls of that there were.
        """
        self._want({f"{_DRAWN}:{seed}:"})

    def _want(self, new: set[str]) -> None:
        pairs = self._pairs() | new
        path = self._wanted.with_suffix(".new")
        path.write_text(" ".join(pairs))
        path.replace(self._wanted)

    def release(self) -> None:
        """Let all go on; idempotent."""
        self._wanted.unlink(missing_ok=True)
        self._held.unlink(missing_ok=True)

    def wait(self, methods: Sequence[str]) -> None:
        """Return when calls of these methods, each as often as named, have stopped.

        Raises:
            TimeoutError: with those that have.
        """
        deadline_s = time.monotonic() + _WAIT_S
        while Counter(methods) - Counter(found := self._stopped()):
            if time.monotonic() > deadline_s:
                raise TimeoutError(f"{methods} should have stopped, {found} have")
            time.sleep(_POLL_S)

    def wait_still(self) -> list[str]:
        """Return the methods of the calls that have stopped, when for a while no more have."""
        found, since_s = self._stopped(), time.monotonic()
        while time.monotonic() < since_s + _STILL_S:
            time.sleep(_POLL_S)
            if len(now := self._stopped()) != len(found):
                found, since_s = now, time.monotonic()
        return found

    def _stopped(self) -> list[str]:
        return self._held.read_text().split() if self._held.exists() else []

    def stop(self, point: str, call: "_Call") -> Iterator[None]:
        """Yield, over and over, while a call shall stop at `point`; in the server."""
        if not self._is_wanted(point, call):
            return
        with self._held.open("a") as held:
            held.write(f"{call.method}\n")
        while self._is_wanted(point, call):
            yield

    def seed(self) -> str | None:
        """Return what calls draw from; in the server."""
        return next((one.split(":")[1] for one in self._pairs() if one.startswith(_DRAWN)), None)

    def _is_wanted(self, point: str, call: "_Call") -> bool:
        if point == _DRAWN:
            return self.seed() is not None
        wanted = (one.split(":", 2) for one in self._pairs())
        return any(
            (where, method) == (point, call.method) and of in call.request
            for where, method, of in wanted
        )

    def _pairs(self) -> set[str]:
        try:
            return set(self._wanted.read_text().split())
        except FileNotFoundError:
            return set()


@dataclass(slots=True)
class _Call:
    method: str
    request: str
    instant: int | None
    steps: int = 0


_CALL: contextvars.ContextVar[_Call | None] = contextvars.ContextVar("call", default=None)


def _draw(hold: Hold, counts: Counter[str], method: str) -> int | None:
    """Return after how many steps a call stops; the same for a seed in every run."""
    seed = hold.seed()
    if seed is None or method.startswith(_READS):
        return None
    counts[method] += 1
    dice = random.Random(f"{seed} {method} {counts[method]}")  # noqa: S311 - test data
    return dice.choice(_INSTANTS)


def _step(hold: Hold, wanted: Callable[[str], bool]) -> Iterator[None]:
    """Yield while the call at hand shall stop after this step of it, if `wanted` says it is one."""
    call = _CALL.get()
    if call is None or not wanted(call.method):
        return
    call.steps += 1
    if call.steps == 1:
        yield from hold.stop("middle", call)
    if call.steps == call.instant:
        yield from _stop_drawn(hold, call)


def _stop_drawn(hold: Hold, call: _Call) -> Iterator[None]:
    call.instant = None
    yield from hold.stop(_DRAWN, call)


def _arm(hold: Hold) -> None:
    """Put the points into the code, in this process only."""
    _arm_calls(hold)
    _arm_commits(hold)
    _arm_imports(hold)
    _arm_exports(hold)


def _arm_calls(hold: Hold) -> None:
    run = CallInterceptor._run
    counts: Counter[str] = Counter()

    async def held_run(
        self: Any, method: str, answer: Callable[[Any, Any], Any], request: Any, context: Any
    ) -> Any:
        name = method.rpartition("/")[2]
        call = _Call(name, str(request), _draw(hold, counts, name))
        _CALL.set(call)

        async def held_answer(request: Any, context: Any) -> Any:
            if call.instant == 0:
                for _ in _stop_drawn(hold, call):
                    await asyncio.sleep(_POLL_S)
            response = await answer(request, context)
            if call.instant is not None:
                for _ in _stop_drawn(hold, call):
                    await asyncio.sleep(_POLL_S)
            for _ in hold.stop("end", call):
                await asyncio.sleep(_POLL_S)
            return response

        return await run(self, method, held_answer, request, context)

    CallInterceptor._run = held_run  # type: ignore[method-assign]


def _arm_commits(hold: Hold) -> None:
    for owner in (SqliteCatalog, OmapCatalog):
        commit = owner.commit

        def held_commit(self: Any, changes: Any, commit: Any = commit) -> None:
            commit(self, changes)
            for _ in _step(hold, lambda method: method not in _STREAMS):
                time.sleep(_POLL_S)

        owner.commit = held_commit  # type: ignore[method-assign]


def _arm_imports(hold: Hold) -> None:
    progress = Work.progress

    def held_progress(self: Work, done_bytes: int, total_bytes: int) -> None:
        progress(self, done_bytes, total_bytes)
        for _ in _step(hold, lambda method: done_bytes > 0 and method == "ImportImage"):
            time.sleep(_POLL_S)

    Work.progress = held_progress  # type: ignore[method-assign]


def _arm_exports(hold: Hold) -> None:
    export = ImageServicer.ExportImage

    async def held_export(self: Any, request: Any, context: Any) -> Any:
        pieces: Any = export(self, request, context)
        try:
            async for piece in pieces:
                yield piece
                if piece.data:
                    for _ in _step(hold, lambda method: method == "ExportImage"):
                        await asyncio.sleep(_POLL_S)
        finally:
            await pieces.aclose()

    ImageServicer.ExportImage = held_export  # type: ignore[method-assign]


if __name__ == "__main__":
    _arm(Hold(Path(sys.argv[-1]).parent))
    main()
