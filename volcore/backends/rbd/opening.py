"""Opening rbd images while others of the same line are being freed.

librbd opens an image with all its ancestors, one after another. When one of them is flattened
meanwhile and its parent is freed, librbd looks for a header that has just gone, and answers "not
found" for an image that is there. The next try sees the shorter line.
"""

import errno
import time
from typing import Any, Final

from volcore.backends.rbd.bindings import bindings
from volcore.backends.rbd.errmap import ceph_errors, errno_of
from volcore.backends.rbd.header import Headers

TRIES: Final = 5
PAUSE_S: Final = 0.05


def open_image(ioctx: Any, image_id: str, *, snapshot: str | None = None, read_only: bool) -> Any:
    """Return a handle on an rbd image, which the caller closes.

    Raises what librbd raises; ENOENT only when the image is gone, or for every try: then the
    snapshot is.
    """
    for left in reversed(range(TRIES)):
        try:
            return bindings().rbd.Image(
                ioctx, image_id=image_id, snapshot=snapshot, read_only=read_only
            )
        except ceph_errors() as err:
            gone = errno_of(err) == errno.ENOENT
            if not gone or not left or not Headers(ioctx).exists(image_id):
                raise
        time.sleep(PAUSE_S)
    raise AssertionError("the last try returns or raises")
