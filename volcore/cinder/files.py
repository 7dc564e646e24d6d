"""Temporary files in Cinder's `image_conversion_dir`."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager

from cinder.image import image_utils
from oslo_utils import fileutils

from volcore.cinder.service import Service


@contextmanager
def temporary_file(service: Service, purpose: str, owner: str) -> Iterator[str]:
    """Yield the path of a new file, and delete it, which never blocks an eventlet hub.

    To delete a large file takes seconds.

    Args:
        service: runs what blocks.
        purpose: part of its name.
        owner: Cinder deletes files whose names end so when it starts.
    """
    with image_utils.temporary_file(prefix=f"volcore_{purpose}_", suffix=owner) as path:
        try:
            yield path
        finally:
            service.run(functools.partial(fileutils.delete_if_exists, path))
