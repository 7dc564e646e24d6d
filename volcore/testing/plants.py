"""Bugs planted in a recorded history: each is what the trace of a broken store would look like.

A test that cannot fail proves nothing: the crash sweep has to find every one of these.
"""

from collections.abc import Callable
from typing import Final

from volcore.testing.recorder import Kind, Record

Plant = Callable[[list[Record], frozenset[int]], list[Record]]


def _none(changes: list[Record], _layers: frozenset[int]) -> list[Record]:
    return changes


def _no_data_sync(changes: list[Record], layers: frozenset[int]) -> list[Record]:
    """Pages are committed, the data they describe was never synced."""
    return [
        record
        for record in changes
        if not (record.kind in {Kind.SYNC_BEGIN, Kind.SYNC_END} and record.inode in layers)
    ]


def _late_data_sync(changes: list[Record], layers: frozenset[int]) -> list[Record]:
    """Data is synced after the commit instead of before it."""
    planted: list[Record] = []
    late: list[Record] = []
    for record in changes:
        if record.kind == Kind.SYNC_END and record.inode in layers:
            late.append(record)
            continue
        planted.append(record)
        if record.kind == Kind.SYNC_END:
            planted += late
            late.clear()
    return planted + late


def _no_commit_sync(changes: list[Record], layers: frozenset[int]) -> list[Record]:
    """A commit returns before the log is synced."""
    return [
        record
        for record in changes
        if not (record.kind in {Kind.SYNC_BEGIN, Kind.SYNC_END} and record.inode not in layers)
    ]


def _no_name_sync(changes: list[Record], _layers: frozenset[int]) -> list[Record]:
    """The names of new layer files are never synced."""
    return [
        record
        for record in changes
        if not (record.kind in {Kind.DIR_BEGIN, Kind.DIR_END} and record.path == "layers")
    ]


def _early_punch(changes: list[Record], _layers: frozenset[int]) -> list[Record]:
    """Space is punched out before the page that gives it up is durable."""
    planted: list[Record] = []
    for record in changes:
        if record.kind == Kind.PUNCH:
            at = max(i for i, old in enumerate(planted) if old.kind == Kind.SYNC_BEGIN)
            planted.insert(at, record)
        else:
            planted.append(record)
    return planted


PLANTS: Final[dict[str, Plant]] = {
    "none": _none,
    "no-data-sync": _no_data_sync,
    "late-data-sync": _late_data_sync,
    "no-commit-sync": _no_commit_sync,
    "no-name-sync": _no_name_sync,
    "early-punch": _early_punch,
    "no-notes": _none,
}
"""`no-notes` is planted in the store itself: it overwrites without a note."""
