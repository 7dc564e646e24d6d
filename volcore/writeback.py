"""Large files go to the disk as they grow, not in one burst.

The kernel leaves a written page alone for half a minute (dirty_expire_centisecs), and then writes
all that has gathered: gigabytes, behind which every flush of everybody on that disk waits seconds.
"""

import os
from typing import Final

from volcore.limits import MIB

PIECE_BYTES: Final = 8 * MIB
"""Some ten milliseconds of a disk."""


class Writeback:
    """What of one growing file is on its way to the disk; durable is nothing by that.

    *Concurrency*: one caller.
    """

    def __init__(self, descriptor: int) -> None:
        """`descriptor` is of a regular file, and stays the caller's."""
        self._descriptor = descriptor
        self._begun_bytes = 0

    def wrote(self, end_bytes: int) -> None:
        """Note that the file is written up to `end_bytes`; does not wait for the disk."""
        length_bytes = end_bytes - self._begun_bytes
        if length_bytes < PIECE_BYTES:
            return
        # Linux starts to write what is dirty there, and drops what is clean: no page is, yet.
        os.posix_fadvise(self._descriptor, self._begun_bytes, length_bytes, os.POSIX_FADV_DONTNEED)
        self._begun_bytes = end_bytes
