"""Figures: what was measured, against what, and how it fares; as table, JSON, Markdown."""

import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

PAIRED_MAX = 16
"""Rounds up to which a ratio is the median of the rounds' ratios."""
LESS_IS_BETTER = {"us", "ms", "MiB"}
HEADS = ("scenario", "figure", "volcore", "rival", "ratio", "bar", "verdict")


@dataclass(frozen=True, slots=True)
class Sample:
    """Values of one contender; the spread is between its quartiles, or its ends if it is small."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def percentile(self, percent: int) -> float:
        """With few values, the largest ones stand for the last per cents."""
        if len(self.values) < 2:
            return self.values[0]
        return statistics.quantiles(self.values, n=100, method="inclusive")[percent - 1]

    @property
    def spread(self) -> tuple[float, float]:
        if len(self.values) < 8:
            return min(self.values), max(self.values)
        low, _, high = statistics.quantiles(self.values, n=4, method="inclusive")
        return low, high

    def scaled(self, factor: float) -> "Sample":
        return Sample(tuple(value * factor for value in self.values))

    def rates(self, amount: float) -> "Sample":
        """What `amount` done in each of the times makes per unit of time."""
        return Sample(tuple(amount / value for value in self.values))

    def shown(self, unit: str) -> str:
        low, high = self.spread
        if len(set(self.values)) == 1:
            return f"{number(self.median)} {unit}"
        return f"{number(self.median)} {unit} ({number(low)} to {number(high)})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One line. The bar holds for the ratio to the rival, or for the median where there is none."""

    scenario: str
    name: str
    unit: str
    ours: Sample
    rival: str = ""
    theirs: Sample | None = None
    at_most: float | None = None
    at_least: float | None = None
    setting: str = ""
    """What else was so, where the same figure is measured in several settings."""

    @property
    def ratio(self) -> float | None:
        """Of the medians; of few rounds the median of their ratios: neighbours share a weather."""
        if self.theirs is None or not all(self.theirs.values):
            return None
        if self.is_paired:
            pairs = zip(self.ours.values, self.theirs.values, strict=True)
            return statistics.median(ours / theirs for ours, theirs in pairs)
        return self.ours.median / self.theirs.median

    @property
    def is_paired(self) -> bool:
        theirs = () if self.theirs is None else self.theirs.values
        return 1 < len(self.ours.values) == len(theirs) <= PAIRED_MAX

    @property
    def ratio_of_best(self) -> float | None:
        """Of the best round of each: what is left when other work on the machine only slows."""
        if self.theirs is None or self.ratio is None or not self.is_paired:
            return None
        best = min if self.unit in LESS_IS_BETTER else max
        return best(self.ours.values) / best(self.theirs.values)

    @property
    def judged(self) -> float:
        """What the bar is for."""
        return self.ours.median if self.ratio is None else self.ratio

    @property
    def ok(self) -> bool | None:
        """None: nothing was promised."""
        judged = self.judged
        if self.at_most is not None:
            return judged <= self.at_most
        if self.at_least is not None:
            return judged >= self.at_least
        return None

    @property
    def bar(self) -> str:
        bound, word = self.at_most, "at most"
        if bound is None:
            bound, word = self.at_least, "at least"
        if bound is None:
            return ""
        return f"{word} {bound:g}" + (f" {self.unit}" if self.theirs is None else "")

    def cells(self) -> tuple[str, ...]:
        rival = ""
        if self.theirs is not None:
            rival = f"{self.rival}: {self.theirs.shown(self.unit)}"
        ratio = "" if self.ratio is None else f"{self.ratio:.2f}"
        if self.ratio_of_best is not None:
            ratio += f" (best {self.ratio_of_best:.2f})"
        verdict = {True: "ok", False: "MISSED", None: ""}[self.ok]
        return (
            self.scenario, self.name, self.ours.shown(self.unit), rival, ratio, self.bar, verdict
        )  # fmt: skip

    def plain(self) -> dict[str, object]:
        """For JSON."""
        return {
            "scenario": self.scenario,
            "setting": self.setting,
            "name": self.name,
            "unit": self.unit,
            "median": self.ours.median,
            "spread": self.ours.spread,
            "count": len(self.ours.values),
            "rival": self.rival,
            "rival_median": None if self.theirs is None else self.theirs.median,
            "rival_spread": None if self.theirs is None else self.theirs.spread,
            "ratio": self.ratio,
            "ratio_of_best": self.ratio_of_best,
            "at_most": self.at_most,
            "at_least": self.at_least,
            "ok": self.ok,
        }


def number(value: float) -> str:
    """Three digits that count, no exponent."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def summary(figures: Iterable[Figure]) -> str:
    verdicts = [figure.ok for figure in figures if figure.ok is not None]
    return f"{verdicts.count(True)} of {len(verdicts)} bars met"


def print_table(figures: Sequence[Figure], facts: Sequence[str]) -> None:
    """Print everything; a terminal that is narrow wraps cells instead of cutting them."""
    table = Table(*HEADS)
    for figure in figures:
        style = {True: "green", False: "bold red", None: ""}[figure.ok]
        *cells, verdict = figure.cells()
        table.add_row(*cells, f"[{style}]{verdict}[/]" if verdict else "")
    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    console.print(table)
    console.print("; ".join(facts), highlight=False)
    console.print(summary(figures), highlight=False)


def write_json(path: Path, figures: Sequence[Figure], facts: Sequence[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"facts": list(facts), "figures": [figure.plain() for figure in figures]}
    path.write_text(json.dumps(content, indent=1) + "\n")


def write_page(path: Path, head: str, figures: Sequence[Figure], facts: Sequence[str]) -> None:
    """Write the page of the documentation: a run, as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = ["| " + " | ".join(row) + " |" for row in (HEADS, ["---"] * len(HEADS))]
    rows += ["| " + " | ".join(figure.cells()) + " |" for figure in figures]
    last = f"{summary(figures)}. Machine: {'; '.join(facts)}."
    path.write_text("\n".join([head, *rows, "", last, ""]))
