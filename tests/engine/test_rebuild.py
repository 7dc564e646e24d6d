"""A catalog that was lost, made again from what the rbd images carry."""

import pytest
from rbd_backend.pools import raw_pool
from rbd_backend.test_warm import SIZE, Site, start

from volcore.engine.audit import Audit
from volcore.engine.rebuild import Rebuilt
from volcore.engine.views import CreateVolume, SourceRef
from volcore.model.faults import FaultKind
from volcore.model.records import AccessMode, SourceKind
from volcore.testing.device_contract import put

pytestmark = pytest.mark.ceph
OBJECTS = ("volcore_catalog", "volcore_directory")


def fill(site: Site) -> None:
    """Records of every kind, each kind changed."""
    engine, pool = site.engine, site.pool
    object.__setattr__(pool, "trash_retention_s", 1000)
    labels = {"os": "d\u00e9bian"}
    engine.volumes.create("p", CreateVolume(name="v", size_bytes=SIZE, labels=labels))
    put(site.backend, pool.volume("v").backend_id, 0, b"gold")
    engine.snapshots.create("p", "v", "s", labels={"a": "b"})
    engine.snapshots.create("p", "v", "old")
    engine.snapshots.rename("p", "v", "old", "new")
    engine.snapshots.create("p", "v", "gone")
    engine.images.publish("p", "gold", "v", "s")
    site.deploy(*(f"vm-{n}" for n in range(6)))
    of = SourceRef(kind=SourceKind.VOLUME, key="vm-0")
    engine.volumes.create("p", CreateVolume(name="live", source=of))
    engine.volumes.resize("p", "vm-1", 2 * SIZE)
    engine.volumes.update_labels("p", "vm-1", {"tier": "fast"})
    engine.attachments.attach("p", "vm-2", "host-1", AccessMode.READ_WRITE)
    engine.attachments.attach("p", "vm-3", "host-1", AccessMode.READ_WRITE)
    engine.attachments.detach("p", "vm-3", "host-1")
    engine.snapshots.create("p", "vm-4", "kept")
    engine.volumes.delete("p", "vm-4", force=True)
    engine.volumes.delete("p", "vm-5")
    engine.trash.undelete("p", "vm-5", new_name="back")
    engine.snapshots.delete("p", "v", "gone")
    engine.volumes.create("p", CreateVolume(name="brief", size_bytes=SIZE))
    object.__setattr__(pool, "trash_retention_s", 0)
    engine.volumes.delete("p", "brief")
    assert engine.deletions.wait(60)
    pool.making.flush()


def exported(site: Site) -> list[bytes]:
    """The records, without the head, which has a time, and the digest of that."""
    return b"".join(site.engine.exports.lines("p")).splitlines()[1:-1]


def lose(access, pool: str, *names: str) -> None:
    with raw_pool(access, pool) as ioctx:
        for name in names:
            ioctx.remove_object(name)


def rebuilt(site: Site) -> tuple[list[FaultKind], int]:
    *faults, end = site.engine.rebuild.run("p")
    assert isinstance(end, Rebuilt)
    return [fault.kind for fault in faults], end.record_count


def faults_of(site: Site) -> list[FaultKind]:
    *faults, _ = Audit(site.engine.pools, (0.05, 0.3, 1.0)).run("p", objects=True)
    return [fault.kind for fault in faults]


@pytest.mark.parametrize("lost", [OBJECTS, OBJECTS[:1]], ids=["both", "catalog"])
def test_equal_to_the_export(ceph_cluster, ceph_pool, lost):
    """Goal: nothing is missing or different. Method: all kinds, objects deleted, rebuilt twice."""
    site = start(ceph_cluster, ceph_pool, count_max=0)
    with site.undo:
        fill(site)
        before = exported(site)
    lose(ceph_cluster, ceph_pool, *lost)
    site = start(ceph_cluster, ceph_pool, count_max=0)
    with site.undo:
        assert exported(site) == []
        assert rebuilt(site) == ([], len(before))
        assert exported(site) == before
        assert rebuilt(site) == ([], len(before))
        assert faults_of(site) == []
        assert site.read(site.pool.volume("vm-0")) == b"gold"
        site.deploy("more")
        assert rebuilt(site) == ([], len(before) + 1)
