"""Completing copies that a killed client began: without it, a flatten loses data.

librbd's first write to an object of a clone marks the object in the object map, then copies the
parent's content into it ("copyup"). A client that dies in between, a guest's QEMU or an earlier
flatten, leaves an object that the map has and the cluster has not. Reading still finds the parent.
But librbd's flatten (seen in 16.2.15) skips what the map has and then cuts the parent off: from
then on the object reads as zeroes. Rebuilding the object map first does not help: it keeps such an
object, which somebody might be writing.

So, before each flatten, such objects are filled as librbd itself would do it: with the method
`copyup` of the OSD class `rbd`, which writes only where there is no object, atomically on the OSD.
It is sent without a snapshot context, as deep-flatten does: the image's snapshots see it too.
tests/rbd_backend/test_copyup.py plants such objects and fails without this module.
"""

import errno
import os
from collections.abc import Callable, Iterator
from typing import Any, Final

from volcore.backends.rbd.errmap import error_of_code, translated
from volcore.backends.rbd.header import Parent
from volcore.kernels.zero import is_zero
from volcore.limits import CHUNK_SIZE_BYTES
from volcore.model.extent import chunk_count

_STATS_AT_ONCE: Final = 64


def complete_copies(
    ioctx: Any,
    image: Any,
    parent: Parent,
    open_parent: Callable[[], Any],
    check: Callable[[], None],
) -> int:
    """Fill every object that the object map has and the cluster has not; return how many.

    Idempotent; may run beside clients that write. `check` is called now and then and may raise.
    """
    prefix = image.block_name_prefix()
    overlap_bytes = int(image.overlap())
    missing = [
        index
        for index in _missing(ioctx, prefix, _mapped(image, overlap_bytes))
        if index * CHUNK_SIZE_BYTES < overlap_bytes
    ]
    if not missing:
        return 0
    with open_parent() as source:
        source.set_snap_by_id(parent.snap)
        for index in missing:
            check()
            offset_bytes = index * CHUNK_SIZE_BYTES
            with translated("complete a copy from the parent"):
                data = source.read(
                    offset_bytes, min(CHUNK_SIZE_BYTES, overlap_bytes - offset_bytes)
                )
                if not is_zero(data):
                    ioctx.execute(f"{prefix}.{index:016x}", "rbd", "copyup", data)
    return len(missing)


def _mapped(image: Any, overlap_bytes: int) -> Iterator[int]:
    """Yield the index of each object below the overlap that the object map has."""
    found: set[int] = set()

    def take(offset_bytes: int, length_bytes: int, exists: bool) -> None:
        if exists:
            end_bytes = min(offset_bytes + length_bytes, overlap_bytes)
            found.update(range(offset_bytes // CHUNK_SIZE_BYTES, chunk_count(end_bytes)))

    with translated("list the objects of a volume"):
        image.diff_iterate(0, image.size(), None, take, False, True)
    yield from sorted(found)


def _missing(ioctx: Any, prefix: str, indexes: Iterator[int]) -> Iterator[int]:
    """Yield those of `indexes` that have no object in the cluster; asks for many at once."""
    batch: list[tuple[int, Any]] = []
    for index in indexes:
        batch.append((index, ioctx.aio_stat(f"{prefix}.{index:016x}", lambda *_: None)))
        if len(batch) == _STATS_AT_ONCE:
            yield from _absent(batch)
            batch.clear()
    yield from _absent(batch)


def _absent(batch: list[tuple[int, Any]]) -> Iterator[int]:
    for index, completion in batch:
        completion.wait_for_complete_and_cb()
        code = completion.get_return_value()
        if code == -errno.ENOENT:
            yield index
        elif code < 0:
            doing = "look for an object of a volume"
            raise error_of_code(-code, doing, os.strerror(-code))
