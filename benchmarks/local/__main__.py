"""Hold the embedded backend against its bars: `python -m benchmarks.local [WORDS...]`."""

import argparse
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

from rich.console import Console

from benchmarks import machine, report
from benchmarks.report import Figure
from benchmarks.sampling import Context

ROOT = Path(__file__).resolve().parents[2]
SCENARIOS = {
    "clone": "clone",
    "scaling": "scaling",
    "listing": "listing",
    "fio": "fio",
    "memory": "memory",
    "diff": "diff",
    "import": "raw_import",
    "kernels": "kernels",
}
DIRECTORY = Path("/var/tmp")
"""On a disk, where the temporary directory may be in memory; short, since sockets go below it."""
JSON_PATH = ROOT / ".cache" / "bench-local.json"
PAGE_PATH = ROOT / "docs" / "benchmarks" / "local.md"
TIME_S_MAX = 900
HEAD = f"""\
# The embedded backend, measured

<!-- Written by `make bench-local`; do not edit. -->

Medians, with quartiles (ends of the range for fewer than eight samples) in
brackets. Rivals ran in the same run, turn by turn. A ratio is that of the
medians or, up to {report.PAIRED_MAX} rounds, the median of the rounds' ratios,
followed by the ratio of each side's best round: other work on the machine only
slows. What each figure isolates is said by its module in `benchmarks/local`.
"""


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench-local", description=__doc__)
    parser.add_argument("words", nargs="*", metavar="SCENARIO", help=", ".join(SCENARIOS))
    parser.add_argument("--tiny", action="store_true", help="show only that everything runs")
    parser.add_argument("--directory", type=Path, default=DIRECTORY, help="where to work")
    parser.add_argument("--json", type=Path, default=JSON_PATH)
    parser.add_argument("--page", type=Path, help="write Markdown; a full run writes docs/")
    options = parser.parse_args()
    if unknown := set(options.words) - set(SCENARIOS):
        parser.error(f"no scenario {unknown.pop()!r}; there are: {', '.join(SCENARIOS)}")
    full = not options.words and not options.tiny
    signal.signal(signal.SIGALRM, _out_of_time)
    signal.alarm(TIME_S_MAX)
    console = Console(stderr=True)
    figures: list[Figure] = []
    start = time.monotonic()
    with _work(options.directory) as directory:
        for word in options.words or SCENARIOS:
            with console.status(word):
                place = directory / word
                place.mkdir()
                scenario = import_module(f"benchmarks.local.{SCENARIOS[word]}")
                figures += scenario.run(Context(directory=place, tiny=options.tiny))
                shutil.rmtree(place)
            spent = time.monotonic() - start
            console.print(f"{word}: done at {spent:.0f} s", highlight=False)
        facts = machine.facts(directory)
    report.print_table(figures, facts)
    report.write_json(options.json, figures, facts)
    page = options.page or (PAGE_PATH if full else None)
    if page is not None:
        report.write_page(page, HEAD, figures, facts)
    return 0


def _out_of_time(number: int, frame: object) -> None:
    raise TimeoutError(f"the benchmark took more than {TIME_S_MAX} s")


@contextmanager
def _work(parent: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=parent, prefix="volcore-bench-") as name:
        yield Path(name)


if __name__ == "__main__":
    sys.exit(main())
