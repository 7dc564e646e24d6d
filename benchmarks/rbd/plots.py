"""Plots of a run, as SVG and PNG."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.rbd.site import Line, Outcome
from benchmarks.report import Figure, number

OURS = "#1f6f8b"
THEIRS = "#b0b7bd"
FLOOR = "#e0c068"
MISSED = "#c0392b"
OURS_NAMES = ("volcore", "backend", "claimed")
FLOOR_NAMES = ("64 B write", "object stat", "empty call")
PNG_DPI = 110


def draw(directory: Path, outcome: Outcome) -> dict[str, str]:
    """Draw what there are figures for; return names without suffix, and what they show."""
    try:
        import matplotlib
    except ImportError:  # it comes with the extra `bench`
        return {}
    matplotlib.use("Agg")
    # Text stays text, and the same figures give the same file.
    matplotlib.rcParams |= {
        "svg.fonttype": "none", "svg.hashsalt": "volcore", "font.size": 9,
        "axes.spines.top": False, "axes.spines.right": False,
    }  # fmt: skip
    drawn = {}
    clones = [line for line in outcome.lines if line.scenario in {"clone", "warm"}]
    if clones:
        clones.sort(key=lambda line: line.ms.median)
        _save(directory, "rbd-clone", _latencies(clones, "One clone of 10 GiB: p50, bar to p99"))
        drawn["rbd-clone"] = "p50 and p99 of one clone by each contender"
    scaling = [line for line in outcome.lines if line.scenario.startswith("scaling")]
    if scaling:
        _save(directory, "rbd-scaling", _latencies(scaling, "What must not grow: p50, bar to p99"))
        drawn["rbd-scaling"] = "p50 and p99 of clones by depth, size and count"
    barred = [figure for figure in outcome.figures if figure.ok is not None]
    if barred:
        _save(directory, "rbd-bars", _margins(barred))
        drawn["rbd-bars"] = "How far each figure is from its bar"
    return drawn


def _save(directory: Path, name: str, figure: Any) -> None:
    import matplotlib.pyplot as plt

    figure.savefig(directory / f"{name}.svg", bbox_inches="tight", metadata={"Date": None})
    figure.savefig(directory / f"{name}.png", bbox_inches="tight", dpi=PNG_DPI)
    plt.close(figure)


def _latencies(lines: Sequence[Line], title: str) -> Any:
    """One row for each contender, one column for each store, time on a logarithmic axis."""
    import matplotlib.pyplot as plt

    stores = sorted({line.store for line in lines})
    names = [name for name in dict.fromkeys(line.name for line in lines) if "again" not in name]
    figure, all_axes = plt.subplots(
        1, len(stores), figsize=(9.5, 0.6 + 0.28 * len(names)), sharey=True, squeeze=False
    )
    for axes, store in zip(all_axes[0], stores, strict=True):
        for at, name in enumerate(names):
            line = next((one for one in lines if (one.name, one.store) == (name, store)), None)
            if line is None:
                continue
            p50, p99 = line.ms.median, line.ms.percentile(99)
            axes.barh(at, p50, color=_colour(line), height=0.65)
            axes.plot([p50, p99], [at, at], color="#444", linewidth=1)
            axes.text(p99 * 1.08, at, number(p50), va="center", fontsize=7)
        _logarithmic(axes)
        axes.set_xlabel("ms")
        axes.set_title(store)
        axes.set_yticks(range(len(names)), names)
        axes.margins(x=0.12)
    all_axes[0][0].invert_yaxis()
    figure.suptitle(title, x=0.02, ha="left")
    figure.tight_layout()
    return figure


def _logarithmic(axes: Any) -> None:
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_formatter(lambda *_: "")


def _colour(line: Line) -> str:
    if line.name in FLOOR_NAMES:
        return FLOOR
    if line.name in OURS_NAMES or (
        line.scenario.startswith("scaling") and not line.name.startswith("rbd")
    ):
        return OURS
    return THEIRS


def _margins(figures: Sequence[Figure]) -> Any:
    """The figure divided by its bar: left of 1 is better, for rates the other way round."""
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(_title(one) for one in figures))
    stores = list(dict.fromkeys(one.setting for one in figures))
    figure, axes = plt.subplots(figsize=(9.5, 0.9 + 0.28 * len(names)))
    for one in figures:
        part = one.judged / one.at_most if one.at_most else (one.at_least or 0) / one.judged
        colour = OURS if one.ok else MISSED
        marker = "o" if one.setting == stores[0] else "s"
        axes.plot(part, names.index(_title(one)), marker, color=colour, markersize=6)
    for store, marker in zip(stores, "os", strict=False):
        axes.plot([], [], marker, color="#777", label=store)
    axes.axvline(1, color="#444", linewidth=1)
    _logarithmic(axes)
    axes.margins(x=0.05, y=0.1)
    axes.set_xlabel("part of the bar; right of the line is missed")
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.grid(axis="x", color="#eee")
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False)
    figure.tight_layout()
    return figure


def _title(figure: Figure) -> str:
    rival = "" if figure.unit == "/s" else figure.rival
    return f"{figure.name} / {rival}" if rival else figure.name
