"""Exports of a catalog, and imports into one that was lost."""

import json
from contextlib import closing, contextmanager

import pytest
from rbd_backend.pools import options, raw_pool

from volcore.backends.rbd import Cluster, RbdBackend
from volcore.backends.rbd.omap import OmapObject
from volcore.catalog.omap import OmapCatalog
from volcore.engine.audit import Audit
from volcore.engine.engine import Engine, EngineSettings
from volcore.engine.exports import KINDS, frames
from volcore.engine.images import ImageSettings
from volcore.engine.pool import put
from volcore.engine.views import CreateVolume, ImportRequest
from volcore.errors import (
    IntegrityError,
    InvalidArgumentError,
    NotSupportedError,
    OutOfRangeError,
    PreconditionError,
    Reason,
)
from volcore.limits import EXPORT_BYTES_MAX, MIB
from volcore.model.faults import FaultKind
from volcore.model.records import Image, Intent, Operation, Volume, WarmClone
from volcore.testing.device_contract import fetch
from volcore.testing.device_contract import put as write

SIZE = 8 * MIB
COUNT = 40
DATA = b"precious" * 512
not_joined = pytest.mark.parametrize(
    "bench", ["memory", pytest.param("rbd", marks=pytest.mark.ceph)], indirect=True
)


def fill(engine, tmp_path, count):
    """One of each kind, and many volumes of an image."""
    gold = tmp_path / "gold.raw"
    gold.write_bytes(DATA * 16)
    pool = engine.pools.open("p")
    engine.images.import_image("p", ImportRequest(name="gold", server_path=str(gold)))
    labels = {"os": "d\u00e9bian"}
    engine.volumes.create("p", CreateVolume(name="v", size_bytes=SIZE, labels=labels))
    write(pool.backend, pool.volume("v").backend_id, 0, DATA)
    engine.snapshots.create("p", "v", "s")
    names = [f"vm-{n}" for n in range(count)]
    engine.volumes.deploy("p", "gold", names)
    object.__setattr__(pool, "trash_retention_s", 1000)
    engine.volumes.delete("p", names[0])
    pool.making.flush()


def exported(engine):
    return b"".join(engine.exports.lines("p"))


def records(data):
    """The lines without the head, which has a time, and the digest of that."""
    return data.splitlines()[1:-1]


@contextmanager
def served(access, pool, directory):
    """A server, which the next one follows."""
    cluster = options(access)
    omap = OmapObject.opened(Cluster(cluster), pool, "volcore_catalog")
    backend = RbdBackend(Cluster(cluster), pool)
    backend.open()
    with closing(omap), closing(backend):
        engine = Engine(
            EngineSettings(server_id="test", images=ImageSettings(directories=(directory,)))
        )
        engine.add_pool("p", backend, OmapCatalog(omap), None)
        yield engine
        engine.close(5)


@pytest.mark.ceph
def test_a_lost_catalog(ceph_cluster, ceph_pool, tmp_path):
    """Goal: it comes back equal, and no image is touched. Method: delete the object, restart."""
    with served(ceph_cluster, ceph_pool, tmp_path) as engine:
        fill(engine, tmp_path, COUNT)
        before = exported(engine)
        images = sorted(engine.pools.open("p").backend.walk())
    assert len(records(before)) == len(images) + 1 == COUNT + 3
    with raw_pool(ceph_cluster, ceph_pool) as ioctx:
        ioctx.remove_object("volcore_catalog")
    with served(ceph_cluster, ceph_pool, tmp_path) as engine:
        at = engine.pools.open("p")
        assert records(exported(engine)) == []
        *faults, _ = Audit(engine.pools, (0.05,)).run("p", repair=True)
        assert [one.kind for one in faults] == [FaultKind.IMAGE_WITHOUT_RECORD] * len(images)
        assert not any(one.mendable or one.mended for one in faults)
        assert sorted(at.backend.walk()) == images
        assert engine.exports.put("p", before) == COUNT + 3
        assert records(exported(engine)) == records(before)
        assert engine.exports.put("p", before) == COUNT + 3
        *faults, _ = Audit(engine.pools, (0.05,)).run("p", objects=True)
        assert faults == []
        assert fetch(at.backend, at.volume("v").backend_id, 0, len(DATA)) == DATA
        engine.volumes.create("p", CreateVolume(name="more", size_bytes=SIZE))
        with pytest.raises(PreconditionError) as caught:
            engine.exports.put("p", before)
        assert caught.value.reason is Reason.CATALOG_NOT_EMPTY


def test_what_is_exported(bench, tmp_path):
    """Goal: no work, nothing half-made. Method: plant what must be left out, look at each line."""
    fill(bench.engine, tmp_path, 3)
    volume = bench.pool.volume("v")
    clone = WarmClone(
        image="gold", id="1", image_id="2", backend_id="warm.1", size_bytes=SIZE, state="READY",
        create_time_ns=1,
    )  # fmt: skip
    half = volume.but(name="half", state="CREATING")
    bench.pool.catalog.commit([put(clone), put(half)])
    lines = [json.loads(line) for line in records(exported(bench.engine))]
    assert {line["kind"] for line in lines} == {"volume", "snapshot", "image", "trash"}
    assert not KINDS.keys() & {Intent.KIND, Operation.KIND, WarmClone.KIND}
    volumes = {line["key"]: line["record"] for line in lines if line["kind"] == Volume.KIND}
    assert volumes.keys() == {"v", "vm-1", "vm-2"}
    assert volumes["v"]["labels"] == {"os": "d\u00e9bian"}
    assert [line["key"] for line in lines if line["kind"] == Image.KIND] == ["gold"]


@not_joined
def test_what_is_refused(bench, tmp_path):
    """Goal: nothing is written of a bad export. Method: cut, change, forge."""
    bench.engine.volumes.create("p", CreateVolume(name="v", size_bytes=SIZE))
    bench.pool.making.flush()
    good = exported(bench.engine)
    bench.engine.volumes.delete("p", "v")
    assert bench.engine.deletions.wait(30)
    head, line, end = good.splitlines(keepends=True)
    forged = line.replace(b'"key":"v"', b'"key":"w"')
    bad = {
        b"": "head",
        b"[]\n": "no JSON object",
        line + end: "head",
        head + line: "last line",
        head + end: "last line",
        good[:-20]: "no JSON object",
        head + forged + end: "last line",
        head.replace(b'"v":1', b'"v":2') + line + end: "format 2",
    }
    for data, word in bad.items():
        with pytest.raises(InvalidArgumentError, match=word):
            bench.engine.exports.put("p", data)
    with pytest.raises(IntegrityError):
        bench.engine.exports.put("p", signed(head + forged))
    with pytest.raises(PreconditionError) as newer:
        bench.engine.exports.put("p", signed(head + line.replace(b'"v":1', b'"v":2')))
    assert newer.value.reason is Reason.RECORD_NEWER
    with pytest.raises(InvalidArgumentError, match="kind"):
        bench.engine.exports.put("p", signed(head + line.replace(b'"volume"', b'"intent"', 1)))
    with pytest.raises(OutOfRangeError):
        bench.engine.exports.put("p", bytes(EXPORT_BYTES_MAX + 1))
    assert records(exported(bench.engine)) == []
    assert bench.engine.exports.put("p", good) == 1


def signed(lines):
    """Add the end that fits."""
    from hashlib import sha256

    end = {"count": lines.count(b"\n") - 1, "sha256": sha256(lines).hexdigest()}
    return lines + json.dumps(end).encode()


@pytest.mark.parametrize("bench", ["local"], indirect=True)
def test_a_pool_that_is_one_database(bench):
    """Goal: records without their layers are refused. Method: import what was exported."""
    with pytest.raises(NotSupportedError):
        bench.engine.exports.put("p", exported(bench.engine))


def test_frames():
    """Goal: bounded pieces that are the whole. Method: short and long lines."""
    lines = [b"a" * 3, b"b" * 25, b"", b"c" * 10]
    pieces = list(frames(iter(lines), 10))
    assert b"".join(pieces) == b"".join(lines)
    assert max(map(len, pieces)) == 10
