"""What librbd leaves out of an object map, and fast diffs then miss.

A rollback gives the image the map that its snapshot has. There an object may be "clean", the same
as in the snapshot before that one; but the image has other snapshots behind it now, and its objects
are new. `rbd object-map check` finds fault with that (seen in 16.2.15), and a diff that trusts the
map may leave out what changed. So all clean objects are marked as changed: a diff then tells too
much at worst. tests/rbd_backend/test_revert.py holds it.
"""

from typing import Any, Final

from volcore.backends.rbd.direct import wire
from volcore.backends.rbd.direct.plan import map_object
from volcore.backends.rbd.errmap import translated
from volcore.errors import NotFoundError
from volcore.model.extent import chunk_count

_OBJECTS_AT_ONCE: Final = 256 << 10
"""As many as librbd changes in one call."""


def mark_changed(ioctx: Any, image_id: str, size_bytes: int) -> None:
    """Mark every object that the map of the image calls clean as changed.

    Precondition: nobody else has the image open for writing. Idempotent. Complexity: one request
    for each TiB.
    """
    _mark(ioctx, image_id, size_bytes, wire.EXISTS_CLEAN)


def mark_all(ioctx: Any, image_id: str, size_bytes: int) -> None:
    """Mark every object that the map of the image does not have as there; as `mark_changed`."""
    _mark(ioctx, image_id, size_bytes, wire.NONEXISTENT)


def _mark(ioctx: Any, image_id: str, size_bytes: int, state: int) -> None:
    total = chunk_count(size_bytes)
    for start in range(0, total, _OBJECTS_AT_ONCE):
        end = min(start + _OBJECTS_AT_ONCE, total)
        body = wire.marking(start, end, wire.EXISTS, was=state)
        try:
            with translated(f"update the object map of rbd image {image_id}"):
                ioctx.execute(map_object(image_id), "rbd", "object_map_update", body)
        except NotFoundError:  # an adopted image without a map: diffs look at the objects
            return
