"""Deleting snapshots that librbd protects for clones of format 1, which others have made.

volcore's own clones are of format 2 and need no protection. Those of OpenStack's RBD driver are of
format 1 unless the cluster says otherwise: their snapshot must be protected, cannot be put out of
sight, and no snapshot knows them: the pool's object `rbd_children` does. Such a snapshot cannot be
deleted before its last clone, so it steps aside: it is renamed as that driver calls what it keeps
for clones, and goes with the last of them.

Source: Ceph, src/librbd/operation/SnapshotUnprotectRequest.cc; cls_rbd.cc, `get_children`.
"""

from contextlib import suppress
from typing import Any, Final

from volcore.backends.rbd.errmap import translated
from volcore.errors import NotFoundError, PreconditionError, Reason

CLONES_ONLY_SUFFIX: Final = ".clone_snap"
"""Of snapshots that hold clones and are no snapshot that anybody looks at."""


def unprotect(image: Any, name: str) -> bool:
    """Take a snapshot's protection away; return False while clones of format 1 need it.

    Idempotent. Complexity: nothing for what is not protected, else a request for each pool.
    """
    busy = PreconditionError(f"snapshot {name} has clones", reason=Reason.WRONG_STATE)
    try:
        with translated(f"unprotect snapshot {name}", busy=busy):
            if image.is_protected_snap(name):
                image.unprotect_snap(name)
    except PreconditionError as err:
        if err is busy:
            return False
        raise
    return True


def delete_snapshot(image: Any, name: str) -> None:
    """Delete a snapshot of an open image, or let it step aside for its clones."""
    if unprotect(image, name):
        image.remove_snap(name)
    elif not name.endswith(CLONES_ONLY_SUFFIX):
        image.rename_snap(name, f"{name}.{image.snap_get_id(name)}{CLONES_ONLY_SUFFIX}")


def delete_unneeded(image: Any, name: str) -> None:
    """Delete a snapshot that holds clones only, unless it still does. Idempotent."""
    with suppress(NotFoundError), translated(f"delete snapshot {name}"):
        if unprotect(image, name):
            image.remove_snap(name)
