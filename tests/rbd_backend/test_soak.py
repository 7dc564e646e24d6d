"""A short piece of what `scripts/soak rbd` does for 10,000 operations."""

import shutil

import pytest

from volcore.testing.rbd_soak import Plan, Soak

pytestmark = pytest.mark.skipif(shutil.which("rbd") is None, reason="no rbd command")


@pytest.mark.timeout(300)
def test_callers_tools_restarts_and_kills(ceph_cluster, ceph_pool, tmp_path):
    """Goal: INV-RBD-1 to INV-RBD-4, all bytes. Method: random work, then the judge of the soak."""
    plan = Plan(operations=120, callers=6, tool_users=1, kill_every=30, osd_every=80, seed=3)
    report = Soak(ceph_cluster, ceph_pool, tmp_path, plan).run()
    assert report.failures == []
    assert report.kills >= 2
    assert sum(report.counts.values()) == plan.operations
    assert report.volumes > 0
    assert report.tool_calls > 0
    assert report.checks > 0
