"""`volcore` whose calls stop where a file says: there a test kills it, or the caller.

`Hold.at` writes the file, and is told by another one which calls have stopped. Points of a call:

- `middle`: its first commit is done and nothing else; an import has written some of its data, an
  export has sent some.
- `end`: everything is done, but the answer; of a stream, its last word.

    RunningServer(directory, module="volcore.testing.held_server")
"""

import asyncio
import contextvars
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
_POLL_S: Final = 0.01
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
    def at(self, point: str, methods: Iterable[str]) -> Iterator[None]:
        """Let calls of `methods` (`CreateVolume`) stop at a point until the end of the block."""
        self.add(point, methods)
        try:
            yield
        finally:
            self.release()

    def add(self, point: str, methods: Iterable[str]) -> None:
        """Let calls stop at a point, too, until `release`."""
        pairs = self._pairs() | {f"{point}:{method}" for method in methods}
        new = self._wanted.with_suffix(".new")
        new.write_text(" ".join(pairs))
        new.replace(self._wanted)

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

    def _stopped(self) -> list[str]:
        return self._held.read_text().split() if self._held.exists() else []

    def stop(self, point: str, method: str) -> Iterator[None]:
        """Yield, over and over, while a call of `method` shall stop at `point`; in the server."""
        if not self._is_wanted(point, method):
            return
        with self._held.open("a") as held:
            held.write(f"{method}\n")
        while self._is_wanted(point, method):
            yield

    def _is_wanted(self, point: str, method: str) -> bool:
        return f"{point}:{method}" in self._pairs()

    def _pairs(self) -> set[str]:
        try:
            return set(self._wanted.read_text().split())
        except FileNotFoundError:
            return set()


@dataclass(slots=True)
class _Call:
    method: str
    is_past_middle: bool = False


_CALL: contextvars.ContextVar[_Call | None] = contextvars.ContextVar("call", default=None)


def _pass_middle(hold: Hold, wanted: Callable[[str], bool]) -> Iterator[None]:
    """Yield while the call at hand shall stop in its middle, if `wanted` says it is there."""
    call = _CALL.get()
    if call is not None and not call.is_past_middle and wanted(call.method):
        call.is_past_middle = True
        yield from hold.stop("middle", call.method)


def _arm(hold: Hold) -> None:
    """Put the points into the code, in this process only."""
    _arm_calls(hold)
    _arm_commits(hold)
    _arm_imports(hold)
    _arm_exports(hold)


def _arm_calls(hold: Hold) -> None:
    run = CallInterceptor._run

    async def held_run(
        self: Any, method: str, answer: Callable[[Any, Any], Any], request: Any, context: Any
    ) -> Any:
        call = _Call(method.rpartition("/")[2])
        _CALL.set(call)

        async def held_answer(request: Any, context: Any) -> Any:
            response = await answer(request, context)
            for _ in hold.stop("end", call.method):
                await asyncio.sleep(_POLL_S)
            return response

        return await run(self, method, held_answer, request, context)

    CallInterceptor._run = held_run  # type: ignore[method-assign]


def _arm_commits(hold: Hold) -> None:
    for owner in (SqliteCatalog, OmapCatalog):
        commit = owner.commit

        def held_commit(self: Any, changes: Any, commit: Any = commit) -> None:
            commit(self, changes)
            for _ in _pass_middle(hold, lambda method: method not in _STREAMS):
                time.sleep(_POLL_S)

        owner.commit = held_commit  # type: ignore[method-assign]


def _arm_imports(hold: Hold) -> None:
    progress = Work.progress

    def held_progress(self: Work, done_bytes: int, total_bytes: int) -> None:
        progress(self, done_bytes, total_bytes)
        for _ in _pass_middle(hold, lambda method: done_bytes > 0 and method == "ImportImage"):
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
                    for _ in _pass_middle(hold, lambda method: method == "ExportImage"):
                        await asyncio.sleep(_POLL_S)
        finally:
            await pieces.aclose()

    ImageServicer.ExportImage = held_export  # type: ignore[method-assign]


if __name__ == "__main__":
    _arm(Hold(Path(sys.argv[-1]).parent))
    main()
