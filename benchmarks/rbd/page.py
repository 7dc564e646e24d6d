"""The page of the documentation: a run, as it was; the plots beside it."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.rbd import plots
from benchmarks.rbd.site import Line, Outcome
from benchmarks.report import Figure, number, summary

PERCENTILES = (50, 95, 99)
HEAD = """\
# Volumes on Ceph, measured

<!-- Written by `make bench`; do not edit. -->

Each scenario against its rivals in the same run, turn by turn, on a Ceph of the run's own: on
bluestore, where a write is durable on a disk, and on memstore, where only round trips and processor
time are left. volcore is a server in a process of its own, asked over gRPC, except where a line
says *backend*. What each scenario isolates, and what the rivals do, is said by its module in
`benchmarks/rbd`. Raw figures: [rbd.json](rbd.json).
"""
NOTE = """\
## How it is measured

Contenders take turns, every other round in reverse order, and slow ones take part in some rounds
only: what disturbs one disturbs all, so ratios hold on a shared machine where times do not. A ratio
is that of the medians or, up to 16 rounds, the median of the rounds' ratios. pytest-benchmark
measures one contender after the other, minutes apart, and was left out for that reason. With fewer
than 100 samples p99 is close to the largest one. Requests are what one call costs its client,
writes behind the answer included, as librados itself counts them (reads + writes, and requests to a
monitor); what a rival does on connections of its own, or in a process, is not counted.
"""


def write(directory: Path, outcome: Outcome, facts: Sequence[str]) -> None:
    """Write `rbd.md` and the plots."""
    directory.mkdir(parents=True, exist_ok=True)
    drawn = plots.draw(directory, outcome)
    stores = list(dict.fromkeys(figure.setting for figure in outcome.figures))
    notes = [f"{name}: {text}" for name, text in outcome.notes.items()]
    parts = [
        HEAD,
        *(f"![{alt}]({name}.svg)\n" for name, alt in drawn.items()),
        "## Against the bars\n",
        _table(_bars(outcome.figures, stores)),
        f"\n{summary(outcome.figures)}.\n",
        "## All contenders\n",
        "p50 / p95 / p99 in milliseconds.\n",
        _table(_lines(outcome.lines, stores)),
        "",
        NOTE,
        "".join(f"{note}.\n" for note in notes),
        "".join(f"**FAILED**: {failure}\n" for failure in outcome.failures),
        f"Machine: {'; '.join(facts)}.\n",
    ]
    (directory / "rbd.md").write_text("\n".join(parts))


def _table(rows: Iterable[Sequence[str]]) -> str:
    head, *rest = rows
    lines = [head, ["---"] * len(head), *rest]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _bars(figures: Sequence[Figure], stores: Sequence[str]) -> Iterable[Sequence[str]]:
    """One row for a figure and its rival, with two columns for each store."""
    heads = [word for store in stores for word in (store, "verdict")]
    yield ["scenario", "figure", "against", "bar", *heads]
    rows: dict[tuple[str, str, str, str], dict[str, Figure]] = {}
    for one in figures:
        # The best of several rivals may be another one on another store.
        rival = one.rival.partition(",")[0] if one.unit == "/s" else one.rival
        rows.setdefault((one.scenario, one.name, rival, one.bar), {})[one.setting] = one
    for key, found in rows.items():
        cells: list[str] = []
        for store in stores:
            cells += _cell(found[store]) if store in found else ("", "")
        yield [*key, *cells]


def _cell(figure: Figure) -> tuple[str, str]:
    text = f"{number(figure.ours.median)} {figure.unit}".strip()
    if figure.theirs is not None and figure.ratio is not None:
        ours, theirs = number(figure.ours.median), number(figure.theirs.median)
        text = f"{figure.ratio:.3g} ({ours} / {theirs} {figure.unit})"
    return text, {True: "ok", False: "**MISSED**", None: ""}[figure.ok]


def _lines(lines: Sequence[Line], stores: Sequence[str]) -> Iterable[Sequence[str]]:
    yield ["scenario", "contender", *stores, "requests"]
    rows: dict[tuple[str, str], dict[str, Line]] = {}
    for line in lines:
        rows.setdefault((line.scenario, line.name), {})[line.store] = line
    for (scenario, name), found in rows.items():
        if name.endswith(" again"):
            continue
        cells = [_percentiles(found[store]) if store in found else "" for store in stores]
        requests = next((line.requests for line in found.values() if line.requests), None)
        yield [scenario, name, *cells, "" if requests is None else requests.shown]


def _percentiles(line: Line) -> str:
    return " / ".join(number(line.ms.percentile(percent)) for percent in PERCENTILES)
