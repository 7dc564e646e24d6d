"""What an image holds and what changed, from librbd's diff."""

from typing import Any

from volcore.model.extent import Extent, ExtentKind


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


def changed_extents(image: Any, from_snapshot_id: str | None) -> list[Extent]:
    """Return ascending extents of the whole image that may differ since a snapshot.

    None: everything that is not a hole, the parents' data too.
    """
    return _diff(image, 0, int(image.size()), from_snapshot_id)


def _diff(
    image: Any, offset_bytes: int, length_bytes: int, from_snapshot_id: str | None
) -> list[Extent]:
    """Return librbd's exact diff, sorted and merged: it comes in the order of replies."""
    if not length_bytes:
        return []
    found: list[tuple[int, int, bool]] = []
    image.diff_iterate(
        offset_bytes,
        length_bytes,
        from_snapshot_id,
        lambda offset, length, exists: found.append((offset, length, bool(exists))),
        from_snapshot_id is None,
        False,
    )
    found.sort()
    merged: list[Extent] = []
    for offset, length, exists in found:
        kind = ExtentKind.DATA if exists else ExtentKind.ZERO
        if merged and merged[-1].kind == kind and merged[-1].end_bytes == offset:
            last = merged.pop()
            offset, length = last.offset_bytes, last.length_bytes + length
        merged.append(Extent(offset, length, kind))
    return merged
