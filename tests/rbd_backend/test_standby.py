"""A server on standby, on a real Ceph."""

import threading

import pytest

from rbd_backend.pools import options
from volcore.backends.rbd import Cluster, PoolWatch, RbdBackend
from volcore.engine.pools import Pools
from volcore.engine.standby import Standby
from volcore.errors import Reason, UnavailableError

pytestmark = pytest.mark.ceph
BLOCKED_S = 300


def test_fenced_off_while_it_takes_a_pool(ceph_cluster, ceph_pool):
    """Goal: it stands by as before. Method: another server was faster, and has fenced it off."""
    found = options(ceph_cluster)
    cluster, other, failures, done = Cluster(found), Cluster(found), [], threading.Event()
    other.acquire()

    def take(_name):
        if not failures:
            other.block(cluster.addresses.split(), duration_s=BLOCKED_S)
        backend = RbdBackend(cluster, ceph_pool, direct=False)
        try:
            backend.open()
        except UnavailableError as err:
            failures.append(err)
            raise
        backend.close()

    standby = Standby(
        Pools(),
        ["p"],
        watch=lambda _: PoolWatch(cluster, ceph_pool),
        take=take,
        on_all_taken=done.set,
    )
    try:
        assert done.wait(60)
        assert [err.reason for err in failures] == [Reason.CLUSTER_UNREACHABLE]
    finally:
        standby.close()
        other.release()
