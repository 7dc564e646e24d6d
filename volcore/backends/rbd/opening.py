"""Opening rbd images while others of the same line are being freed.

librbd opens an image with all its ancestors, one after another. When one of them is flattened
meanwhile and its parent is freed, librbd looks for a header that has just gone, and answers "not
found" for an image that is there. The next try sees the shorter line.

An image must not be closed right after it was opened (docs/design/0017). One that was opened to
read, whose closing asks nobody, is therefore handed out a little later.
"""

import errno
import time
from typing import Any, Final

from volcore.backends.rbd.bindings import bindings
from volcore.backends.rbd.errmap import ceph_errors, errno_of
from volcore.backends.rbd.header import Headers

TRIES: Final = 5
PAUSE_S: Final = 0.05
SETTLE_S: Final = 0.01
"""How long librbd's thread has to leave the state of an image that it has just opened."""


def open_image(ioctx: Any, image_id: str, *, snapshot: str | None = None, read_only: bool) -> Any:
    """Return a handle on an rbd image, which the caller closes.

    Raises what librbd raises; ENOENT only when the image is gone, or for every try: then the
    snapshot is.
    """
    for left in reversed(range(TRIES)):
        try:
            image = bindings().rbd.Image(
                ioctx, image_id=image_id, snapshot=snapshot, read_only=read_only
            )
        except ceph_errors() as err:
            gone = errno_of(err) == errno.ENOENT
            if not gone or not left or not Headers(ioctx).exists(image_id):
                raise
            time.sleep(PAUSE_S)
        else:
            return settled(image) if read_only else image
    raise AssertionError("the last try returns or raises")


def settled(image: Any) -> Any:
    """Return the handle, which was opened to read just now, when it may be closed."""
    time.sleep(SETTLE_S)
    return image
