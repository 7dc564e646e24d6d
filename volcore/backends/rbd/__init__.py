"""Volumes as stock RBD images of a Ceph pool.

QEMU, the kernel client, `rbd` and mirroring work on them as on any other image. `RbdBackend` is the
entry; `Cluster` is the connection that pools of one cluster share.
"""

from volcore.backends.rbd.backend import RbdBackend
from volcore.backends.rbd.connection import Cluster
from volcore.backends.rbd.standby import PoolWatch

__all__ = ["Cluster", "PoolWatch", "RbdBackend"]
