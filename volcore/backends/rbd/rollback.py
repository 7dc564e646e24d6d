"""Rolling an image back to one of its snapshots, again if that was cut off.

librbd (seen in 16.2.15) writes the snapshot's object map over that of the image before it rolls the
objects back, and leaves out objects that neither map has. So when it dies in between, the next
rollback leaves objects that were written for the first time since the snapshot, and the image shows
them. Therefore the header says that a rollback has begun; where it says so already, all objects are
marked as there, and none is left out. tests/rbd_backend/test_revert.py holds it.
"""

from typing import Any

from volcore.backends.rbd.header import Headers
from volcore.backends.rbd.objectmap import mark_all, mark_changed
from volcore.backends.rbd.opening import open_image


def roll_back(ioctx: Any, headers: Headers, image_id: str, snapshot: str) -> None:
    """Make an image equal to its snapshot, size included. Idempotent.

    Precondition: nobody else has the image open for writing. Complexity: the objects of both; after
    one that was cut off, all that the image may have. Raises what librbd raises.
    """
    if headers.has_begun_rollback(image_id):
        mark_all(ioctx, image_id, headers.size_bytes(image_id))
    else:
        headers.begin_rollback(image_id)
    with open_image(ioctx, image_id, read_only=False) as image:
        image.rollback_to_snap(snapshot)
        mark_changed(ioctx, image_id, int(image.size()))
    headers.end_rollback(image_id)
