"""Hold volumes on Ceph against their bars: `python -m benchmarks.rbd [WORDS...]`."""

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Literal

from rich.console import Console

from benchmarks import machine, report
from benchmarks.rbd import page
from benchmarks.rbd.site import Outcome, Site

ROOT = Path(__file__).resolve().parents[2]
SCENARIOS = ("clone", "blank", "warm", "burst", "snapshot", "delete", "diff", "look", "scaling")
STORES: tuple[Literal["bluestore", "memstore"], ...] = ("bluestore", "memstore")
DIRECTORY = Path("/var/tmp")
"""On a disk, where the temporary directory may be in memory; short, since sockets go below it."""
JSON_PATH = ROOT / ".cache" / "bench-rbd.json"
PAGES = ROOT / "docs" / "benchmarks"


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("words", nargs="*", metavar="SCENARIO", help=", ".join(SCENARIOS))
    parser.add_argument("--store", choices=STORES, action="append", help="default: both")
    parser.add_argument("--tiny", action="store_true", help="show only that everything runs")
    parser.add_argument("--directory", type=Path, default=DIRECTORY, help="where to work")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--pages", type=Path, help="write Markdown and plots; a full run: docs/")
    options = parser.parse_args()
    if unknown := set(options.words) - set(SCENARIOS):
        parser.error(f"no scenario {unknown.pop()!r}; there are: {', '.join(SCENARIOS)}")
    full = not options.words and not options.tiny and options.store is None
    outcome, facts = Outcome(), Facts(options.directory)
    pages = options.pages or (PAGES if full else None)
    path = options.json or (pages / "rbd.json" if pages is not None else JSON_PATH)
    try:
        for store in options.store or STORES:
            for _ in measure(store, options.words or SCENARIOS, outcome, facts, options):
                write_json(path, outcome, facts.shown)
    except KeyboardInterrupt:
        if not outcome.figures:
            raise
        outcome.failures.append("interrupted; what came after is missing")
    report.print_table(outcome.figures, facts.shown)
    for failure in outcome.failures:
        print(failure, file=sys.stderr)
    write_json(path, outcome, facts.shown)
    if pages is not None:
        page.write(pages, outcome, facts.shown)
    return 1 if outcome.failures else 0


class Facts:
    """What a reader must know of the machine, and how busy others kept it."""

    def __init__(self, directory: Path) -> None:
        self._plain = machine.facts(directory)
        self._plain += [machine.said(["ceph", "--version"]), "one monitor, one OSD, size 1"]
        self._loads = [os.getloadavg()[0]]
        self._start_s = time.monotonic()

    @property
    def spent_s(self) -> float:
        return time.monotonic() - self._start_s

    def look(self) -> None:
        self._loads.append(os.getloadavg()[0])

    @property
    def shown(self) -> list[str]:
        low, high = min(self._loads), max(self._loads)
        load = f"load {low:.1f} to {high:.1f} during the run, its own included"
        shared = ["the machine was shared with other work"] if self._loads[0] > 1 else []
        return [*self._plain, load, *shared, f"the run took {self.spent_s / 60:.0f} minutes"]


def measure(
    store: Literal["bluestore", "memstore"],
    words: Sequence[str],
    outcome: Outcome,
    facts: Facts,
    options: argparse.Namespace,
) -> Iterator[str]:
    """Run some scenarios on one store; yield each when it has ended.

    One that fails is told, and the others go on.
    """
    console = Console(stderr=True)
    with contextlib.ExitStack() as undo:
        name = tempfile.TemporaryDirectory(dir=options.directory, prefix="volcore-bench-")
        place = Path(undo.enter_context(name))
        site = Site(store, place, undo, outcome, tiny=options.tiny)
        for word in words:
            end = "done"
            try:
                with console.status(f"{store}: {word}"):
                    import_module(f"benchmarks.rbd.{word}").run(site)
            except Exception as err:
                end = "failed"
                outcome.failures.append(f"{store}: {word}: {type(err).__name__}: {err}")
            facts.look()
            text = f"{store}: {word}: {end} at {facts.spent_s:.0f} s"
            console.print(text, highlight=False)
            yield word


def write_json(path: Path, outcome: Outcome, facts: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "facts": facts,
        "notes": outcome.notes,
        "failures": outcome.failures,
        "figures": [figure.plain() for figure in outcome.figures],
        "contenders": [line.plain() for line in outcome.lines],
    }
    path.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
