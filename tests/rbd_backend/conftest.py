from collections.abc import Iterator

import pytest

from rbd_backend.pools import make_gold, opened
from volcore.backends.contract import ShortPathState
from volcore.backends.rbd import RbdBackend
from volcore.testing.cluster import CephAccess

PROVEN: list[str] = []


@pytest.fixture
def backend(ceph_cluster: CephAccess, ceph_pool: str) -> Iterator[RbdBackend]:
    """An open backend on a pool of its own."""
    with opened(ceph_cluster, ceph_pool) as backend:
        yield backend


@pytest.fixture
def direct(ceph_cluster: CephAccess, ceph_pool: str) -> Iterator[RbdBackend]:
    """A backend whose clones and snapshots take the short path, with the snapshot `gold`, `s`."""
    if PROVEN:  # once in a run is enough, but for the tests of the proof itself
        with opened(ceph_cluster, ceph_pool) as backend:
            backend._session().directory.set_proof(PROVEN[0])
    with opened(ceph_cluster, ceph_pool, direct=True) as backend:
        found = backend.wait_for_short_path()
        assert found.state is ShortPathState.ON, found
        PROVEN[:] = [found.detail]
        assert backend._session().direct._stock.wait(1, 30)
        make_gold(backend)
        yield backend
