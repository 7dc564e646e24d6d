"""The omap of one object as a map with compare-and-set."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from rbd_backend.pools import options, raw_pool
from volcore.backends.rbd import Cluster
from volcore.backends.rbd.omap import OmapObject
from volcore.catalog.contract import ABSENT, Change
from volcore.catalog.omap import OmapCatalog
from volcore.errors import IntegrityError, OperationPendingError, Reason
from volcore.model.records import Kind


@pytest.fixture
def omap(ceph_cluster, ceph_pool):
    opened = OmapObject.opened(Cluster(options(ceph_cluster)), ceph_pool, "volcore_catalog")
    yield opened
    opened.close()


@pytest.mark.parametrize(
    "value", [b"", b"{}", b"\0\0", bytes(range(256)), "ä€".encode(), b"=", b"~", b"x" * 100_000]
)
def test_any_bytes_compare_exactly(omap, value):
    """Goal: compare-and-set sees every byte. Method: swap it against near misses, then itself."""
    assert omap.commit(expect={"k": None}, puts={"k": value})
    assert omap.find("k") == value
    for wrong in (None, value + b"x", value[:-1] + b"?", b"other"):
        assert not omap.commit(expect={"k": wrong}, puts={"k": b"wrong"})
    assert omap.commit(expect={"k": value}, puts={"k": b"right"})
    assert omap.find("k") == b"right"
    assert omap.commit(expect={"k": b"right"}, removals=("k",))
    assert omap.find("k") is None


def test_all_or_nothing(omap):
    """Goal: one failed expectation stops all lines. Method: the last of several is wrong."""
    omap.commit(expect={}, puts={"a": b"1", "b": b"2"})
    assert not omap.commit(
        expect={"a": b"1", "c": None, "b": b"?"}, puts={"a": b"9", "c": b"9"}, removals=("b",)
    )
    assert [omap.find(key) for key in "abc"] == [b"1", b"2", None]


def test_pages(omap):
    """Goal: a list longer than one answer of the OSD is whole. Method: 2 500 rows."""
    for start in range(0, 2500, 500):
        rows = {f"p/{n:05}": str(n).encode() for n in range(start, start + 500)}
        omap.commit(expect={}, puts=rows)
    omap.commit(expect={}, puts={"o/z": b"", "q": b""})
    assert [key for key, _ in omap.walk("p/")] == [f"p/{n:05}" for n in range(2500)]
    assert len(omap.rows(prefix="p/", after="", limit=2400)) == 2400
    assert omap.rows(prefix="p/", after="p/02498", limit=10) == [("p/02499", b"2499")]
    assert omap.rows(prefix="p/", after="", limit=0) == []


def test_rows_of_others_are_refused(omap, ceph_cluster, ceph_pool):
    with raw_pool(ceph_cluster, ceph_pool) as ioctx:
        import rados

        with rados.WriteOpCtx() as op:
            ioctx.set_omap(op, ("k",), (b"plain",))
            ioctx.operate_write_op(op, "volcore_catalog")
    with pytest.raises(IntegrityError) as caught:
        omap.find("k")
    assert caught.value.reason == Reason.BAD_RECORD


def test_compare_and_set_race(ceph_cluster, ceph_pool):
    """Goal: no update is lost. Method: 8 threads with 4 clients count one record up."""
    clusters = [Cluster(options(ceph_cluster)) for _ in range(4)]
    catalogs = [
        OmapCatalog(OmapObject.opened(clusters[n % 4], ceph_pool, "volcore_catalog"))
        for n in range(8)
    ]
    catalogs[0].commit([Change(kind=Kind.VOLUME, key="n", value=b"0", expect=ABSENT)])

    def work(index):
        catalog, done = catalogs[index], 0
        while done < 25:
            found = catalog.find(Kind.VOLUME, "n")
            after = str(int(found) + 1).encode()
            log = Change(kind=Kind.INTENT, key=f"{int(after):04}", value=b"x", expect=ABSENT)
            try:
                catalog.commit([Change(kind=Kind.VOLUME, key="n", value=after, expect=found), log])
            except OperationPendingError:
                continue
            done += 1

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert catalogs[0].find(Kind.VOLUME, "n") == b"200"
    rows = catalogs[0].list(Kind.INTENT)
    assert [key for key, _ in rows] == [f"{n:04}" for n in range(1, 201)]
    for catalog in catalogs:
        catalog.close()
        catalog.close()
