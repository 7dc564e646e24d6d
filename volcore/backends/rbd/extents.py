"""What an image holds and what changed, from librbd's diff."""

import itertools
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from volcore.limits import CHUNK_SIZE_BYTES
from volcore.model.extent import Extent, ExtentKind

RANGE_BYTES_MAX: Final = 64 * CHUNK_SIZE_BYTES
"""Most of an image that one call of librbd looks at, object by object."""
_DIFFS_AT_ONCE: Final = 8
_RANGES_ALONE_MAX: Final = 4
"""Fewer calls than this are not worth threads."""

_Found = tuple[int, int, bool]
"""Start, length, and whether there is data, as librbd's diff calls back with."""


def device_extents(image: Any, offset_bytes: int, length_bytes: int) -> list[Extent]:
    """Return gapless extents of the range, parents taken into account.

    librbd tells what the range holds object by object; a hole and a trimmed range look alike and
    are ABSENT.
    """
    end_bytes = offset_bytes + length_bytes
    found: list[Extent] = []
    at = offset_bytes
    for data in _diff(image, offset_bytes, length_bytes, None):
        if data.kind != ExtentKind.DATA or data.end_bytes <= at:
            continue
        start = max(data.offset_bytes, at)
        if start > at:
            found.append(Extent(at, start - at, ExtentKind.ABSENT))
        stop = min(data.end_bytes, end_bytes)
        found.append(Extent(start, stop - start, ExtentKind.DATA))
        at = stop
    if at < end_bytes:
        found.append(Extent(at, end_bytes - at, ExtentKind.ABSENT))
    return found


def changed_extents(
    image: Any, from_snapshot_id: str | None, *, overlap_bytes: int = 0
) -> list[Extent]:
    """Return ascending extents of the whole image that may differ since a snapshot.

    Object maps tell which objects can have changed, at both points and at all snapshots between;
    only these are looked at one by one.

    Complexity: a request for each object map and one for each object that may have changed.

    Args:
        image: open at the later point.
        from_snapshot_id: None: everything that is not a hole, the parents' data too.
        overlap_bytes: what the snapshot reads from the parent. If the later point reads less (it
            was flattened, or shrunk by another tool), object maps do not tell what that changed.
    """
    if from_snapshot_id is not None and overlap_bytes > image.overlap():
        return _diff(image, 0, int(image.size()), from_snapshot_id)
    ranges = _ranges(_iterate(image, 0, int(image.size()), from_snapshot_id, whole_object=True))
    if len(ranges) < _RANGES_ALONE_MAX:
        found = [_iterate(image, at, length, from_snapshot_id) for at, length in ranges]
    else:
        with ThreadPoolExecutor(_DIFFS_AT_ONCE) as pool:
            found = list(
                pool.map(lambda one: _iterate(image, one[0], one[1], from_snapshot_id), ranges)
            )
    return _merged(itertools.chain.from_iterable(found))


def _diff(
    image: Any, offset_bytes: int, length_bytes: int, from_snapshot_id: str | None
) -> list[Extent]:
    """Return librbd's exact diff of a range, merged."""
    return _merged(_iterate(image, offset_bytes, length_bytes, from_snapshot_id))


def _iterate(
    image: Any,
    offset_bytes: int,
    length_bytes: int,
    from_snapshot_id: str | None,
    *,
    whole_object: bool = False,
) -> list[_Found]:
    """Return what librbd's diff calls back with, sorted: it comes in the order of replies."""
    if not length_bytes:
        return []
    found: list[_Found] = []
    image.diff_iterate(
        offset_bytes,
        length_bytes,
        from_snapshot_id,
        lambda offset, length, exists: found.append((offset, length, bool(exists))),
        from_snapshot_id is None,
        whole_object,
    )
    return sorted(found)


def _ranges(found: list[_Found]) -> list[tuple[int, int]]:
    """Return (start, length) of what may have changed, in parts of at most RANGE_BYTES_MAX."""
    joined: list[tuple[int, int]] = []
    for offset, length, _ in found:
        if joined and sum(joined[-1]) == offset and joined[-1][1] + length <= RANGE_BYTES_MAX:
            joined[-1] = (joined[-1][0], joined[-1][1] + length)
        else:
            joined.append((offset, length))
    return joined


def _merged(found: Iterable[_Found]) -> list[Extent]:
    """Return extents, neighbours of a kind as one."""
    merged: list[Extent] = []
    for offset, length, exists in found:
        kind = ExtentKind.DATA if exists else ExtentKind.ZERO
        if merged and merged[-1].kind == kind and merged[-1].end_bytes == offset:
            last = merged.pop()
            offset, length = last.offset_bytes, last.length_bytes + length
        merged.append(Extent(offset, length, kind))
    return merged
