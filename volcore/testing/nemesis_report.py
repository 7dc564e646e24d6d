"""What a run of the nemesis reports: calls, faults, and what each kind of fault cost."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

BEFORE_S: Final = 1.0
"""A span that a hit makes long may have begun so long before it."""


@dataclass(frozen=True, slots=True)
class Hit:
    """A fault that was; times of the monotonic clock in seconds. Until `whole_s` it had effects."""

    kind: str
    target: str
    begin_s: float
    end_s: float
    whole_s: float
    alone: bool


@dataclass
class Cost:
    """What faults of one kind cost; seconds, the longest of all of them and their median."""

    count: int = 0
    api_max_s: float = 0.0
    """No call of anybody succeeded for so long."""
    api_median_s: float = 0.0
    call_max_s: float = 0.0
    """Some call took so long."""
    call_median_s: float = 0.0
    librbd_max_s: float = 0.0
    librbd_median_s: float = 0.0
    nbd_max_s: float = 0.0


@dataclass
class Report:
    """What happened."""

    seed: int = 1
    seconds: float = 0.0
    calls: int = 0
    tries: int = 0
    unknown: int = 0
    """Tries of which nobody knows what they did."""
    failed: dict[str, int] = field(default_factory=dict)
    """Calls that failed for the caller, by reason."""
    counts: dict[str, int] = field(default_factory=dict)
    p50_s: float = 0.0
    p99_s: float = 0.0
    max_s: float = 0.0
    names: int = 0
    volumes: int = 0
    faults: int = 0
    costs: dict[str, Cost] = field(default_factory=dict)
    """Of faults that came alone."""
    server_ends: dict[str, int] = field(default_factory=dict)
    guests: dict[str, dict[str, int]] = field(default_factory=dict)
    check_s: float = 0.0
    failures: list[str] = field(default_factory=list)


def cost(
    hits: Sequence[Hit],
    gaps: Sequence[tuple[float, float]],
    calls: Sequence[tuple[float, float]],
    stalls: dict[str, list[tuple[float, float]]],
) -> Cost:
    """Return what the hits cost; `gaps` are the times in which no call succeeded."""
    api = [longest(gaps, hit) for hit in hits]
    call = [longest(calls, hit) for hit in hits]
    librbd = [longest(stalls.get("librbd", ()), hit) for hit in hits]
    nbd = [longest(stalls.get("nbd", ()), hit) for hit in hits]
    return Cost(
        count=len(hits),
        api_max_s=round(max(api), 2),
        api_median_s=round(statistics.median(api), 2),
        call_max_s=round(max(call), 2),
        call_median_s=round(statistics.median(call), 2),
        librbd_max_s=round(max(librbd), 2),
        librbd_median_s=round(statistics.median(librbd), 2),
        nbd_max_s=round(max(nbd), 2),
    )


def longest(spans: Sequence[tuple[float, float]], hit: Hit) -> float:
    """Return the length of the longest span that began with a hit, or while it had effects."""
    since_s = hit.begin_s - BEFORE_S
    return max(
        (
            end - begin
            for begin, end in spans
            if since_s < begin < hit.whole_s and end > hit.begin_s
        ),
        default=0.0,
    )


def quantile(ordered: Sequence[float], part: float) -> float:
    """Return the least value that is not below `part` of all."""
    return round(ordered[math.ceil(part * len(ordered)) - 1], 3) if ordered else 0.0
