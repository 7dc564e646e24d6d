"""Debian's Python bindings of librados and librbd, imported when first needed."""

import importlib
import sys
from functools import cache
from typing import Any, NamedTuple

from volcore.errors import PreconditionError, Reason


class Bindings(NamedTuple):
    """The two binding modules."""

    rados: Any
    rbd: Any


@cache
def bindings() -> Bindings:
    """Return the bindings.

    Raises:
        PreconditionError: TOOL_MISSING, they are not installed, or older than Ceph 16.
    """
    try:
        found = Bindings(importlib.import_module("rados"), importlib.import_module("rbd"))
    except ImportError as err:
        raise PreconditionError(
            "Ceph's Python bindings are missing: install the Debian packages python3-rados and"
            " python3-rbd, and let the virtual environment see them (--system-site-packages);"
            f" {sys.executable} said: {err}",
            reason=Reason.TOOL_MISSING,
        ) from err
    needed = (
        (found.rados, "WriteOp", "omap_cmp"),
        (found.rados, "Ioctx", "operate_write_op"),
        (found.rados, "Ioctx", "set_osdmap_full_try"),
        (found.rbd, "Image", "write_zeroes"),
        (found.rbd, "Image", "snap_get_namespace_type"),
        (found.rbd, "Image", "watchers_list"),
    )
    for module, owner, method in needed:
        if not hasattr(getattr(module, owner, None), method):
            raise PreconditionError(
                f"Ceph's Python bindings are too old: {module.__name__}.{owner}.{method} is"
                " missing; install python3-rados and python3-rbd of Ceph 16 or later",
                reason=Reason.TOOL_MISSING,
            )
    return found
