from collections.abc import Iterator

import pytest

from rbd_backend.pools import opened
from volcore.backends.rbd import RbdBackend
from volcore.testing.cluster import CephAccess


@pytest.fixture
def backend(ceph_cluster: CephAccess, ceph_pool: str) -> Iterator[RbdBackend]:
    """An open backend on a pool of its own."""
    with opened(ceph_cluster, ceph_pool) as backend:
        yield backend
