"""Which mounting of a file system a file is on: what was in the page cache is lost with it.

The kernel names no mounting in a way that all namespaces share. But a file system that is mounted
has a directory in sysfs, made when it is mounted, and inode numbers there go up.
"""

import array
import errno
import fcntl
import os
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Final

_BTRFS_IOC_FS_INFO: Final = 0x8400941F
"""<linux/btrfs.h>; 1024 bytes, the UUID is at 16."""
_SYSFS: Final = Path("/sys/fs")
_BY_DEVICE: Final = ("ext4", "xfs", "f2fs")
_IN_MEMORY: Final = 1


def mounting_of(fd: int) -> int:
    """Return a number of the mounting that the file is on; another one has another number.

    Raises:
        OSError: ENOTSUP, that cannot be told here.
    """
    device = os.fstat(fd).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    name = Path(f"/sys/dev/block/{number}").resolve().name
    for place in (_btrfs(fd), *(_SYSFS / kind / name for kind in _BY_DEVICE)):
        with suppress(OSError):
            return place.stat().st_ino
    with Path("/proc/self/mountinfo").open("rb") as lines:  # a path there may be no text
        for line in lines:
            words = line.split(b" - ", 1)
            if words[0].split()[2] == number.encode() and words[1].startswith(b"tmpfs "):
                return _IN_MEMORY  # and gone with its mount
    raise OSError(errno.ENOTSUP, "this file system does not tell when it was mounted")


def _btrfs(fd: int) -> Path:
    answer = array.array("B", bytes(1024))
    with suppress(OSError):
        fcntl.ioctl(fd, _BTRFS_IOC_FS_INFO, answer)
    return _SYSFS / "btrfs" / str(uuid.UUID(bytes=answer[16:32].tobytes()))
