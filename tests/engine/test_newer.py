"""Records of a newer server are left alone, byte for byte, and keep nothing else from going on."""

import json
from functools import partial

import pytest

from engine.conftest import Bench, _stores
from volcore.catalog.contract import Change
from volcore.engine.audit import Audit
from volcore.engine.engine import Engine, EngineSettings
from volcore.engine.pool import now_ns
from volcore.engine.views import CreateVolume, SourceRef
from volcore.errors import NotSupportedError, PreconditionError, Reason, VolcoreError
from volcore.limits import MIB
from volcore.model.faults import FaultKind
from volcore.model.records import AccessMode, Kind, Phase, SourceKind, TrashedVolume, Volume

SIZE = 8 * MIB
FAR_NS = 100 * 24 * 3600 * 10**9
LATER = {"v": 2, "zone": {"name": "b"}}
VOLUMES = ("plain", "format", "word", "added", "half", "held", "busy")


def changed(raw, **more):
    return json.dumps({**json.loads(raw), **more}, sort_keys=True, separators=(",", ":")).encode()


def operation(action, **more):
    body = {"id": action, "action": action, "target": "pools/p/volumes/plain", "subject_id": "1"}
    return changed(json.dumps({**body, "phase": "RUNNING", "create_time_ns": 1, "v": 1}), **more)


def fill(bench):
    """Make what there is before a newer server comes."""
    for name in VOLUMES:
        bench.engine.volumes.create("p", CreateVolume(name=name, size_bytes=SIZE))
    for name in ("plain", "format", "half", "busy"):
        bench.engine.snapshots.create("p", name, "s")
    for name in ("gold", "golder"):
        bench.engine.images.publish("p", name, "plain", "s")
    object.__setattr__(bench.pool, "trash_retention_s", 1)
    for name in ("gone", "went"):
        bench.engine.volumes.create("p", CreateVolume(name=name, size_bytes=SIZE))
        bench.engine.volumes.delete("p", name)
    bench.pool.making.flush()


def plants(bench):
    """Return what a newer server has written: some of it over what was there."""
    pool, find = bench.pool, bench.pool.catalog.below.find
    trashed = pool.list(TrashedVolume)[0]
    word = pool.volume("word")
    over = {
        (Kind.VOLUME, "format"): LATER,
        (Kind.VOLUME, "word"): {"state": "ARCHIVED"},
        (Kind.VOLUME, "added"): {"zone": "b"},
        (Kind.SNAPSHOT, "half/s"): LATER,
        (Kind.IMAGE, "golder"): LATER,
        (Kind.TRASH, trashed.key): LATER,
    }
    attached = {"volume": "held", "host": "h", "volume_id": pool.volume("held").id}
    new = {
        (Kind.ATTACHMENT, "held/h"): {**attached, **LATER},
        (Kind.GROUP_SNAPSHOT, "g"): LATER,
        (Kind.FENCED_HOST, "f"): LATER,
        (Kind.HEALTH, "pool"): LATER,
        (Kind.WARM_CLONE, "gold/w"): LATER,
        (Kind.INTENT, word.id): {
            "v": 1,
            "id": word.id,
            "action": "ARCHIVE_VOLUME",
            "subject_key": "word",
            "subject_id": word.id,
            "owner": "newer",
            "create_time_ns": 1,
        },
        (Kind.INTENT, pool.volume("busy").id): LATER,
        (Kind.INTENT, pool.snapshot("busy", "s").id): LATER,
        ("backup", "b/1"): {"v": 1, "of": "plain"},
    }
    return {
        **{place: changed(find(*place), **more) for place, more in over.items()},
        **{place: changed(b"{}", **body) for place, body in new.items()},
        (Kind.OPERATION, "defragment"): operation("defragment"),
        (Kind.OPERATION, "import"): operation("import", zone="b"),
        (Kind.OPERATION, "delete"): operation("delete", phase="PAUSED"),
    }


KNOWN = {(Kind.OPERATION, "defragment")}
"""Of what is planted this is no newer record: only what it is of is not known."""


class Site:
    """A pool in which a newer server has been, and an engine that was started after it."""

    def __init__(self, backend, catalog):
        self.backend, self.catalog = backend, catalog
        self.bench = self._start()
        fill(self.bench)
        self.planted = plants(self.bench)
        self.backend_ids = {one: self.bench.pool.volume(one).backend_id for one in VOLUMES}
        self.bench.engine.close(5)
        lines = [Change(kind=k, key=key, value=raw) for (k, key), raw in self.planted.items()]
        catalog.commit(lines)
        self.bench = self._start()

    def _start(self):
        engine = Engine(EngineSettings(server_id="test"))
        engine.add_pool("p", self.backend, self.catalog, None)
        return Bench(engine)

    def close(self):
        self.bench.engine.close(5)
        self.catalog.close()
        self.backend.close()

    def check_untouched(self):
        for place, raw in self.planted.items():
            assert self.catalog.find(*place) == raw, place
        for name in VOLUMES:
            assert self.backend.describe(self.backend_ids[name]).size_bytes >= SIZE


@pytest.fixture(params=["memory", "local", pytest.param("rbd", marks=pytest.mark.ceph)])
def site(request, tmp_path):
    backend, catalog = _stores(request, tmp_path)
    backend.open()
    made = Site(backend, catalog)
    yield made
    made.check_untouched()
    made.close()


def changes(engine, name):
    """Return the calls that change a volume, or use it as it is."""
    volumes, snapshots = engine.volumes, engine.snapshots
    read_write = AccessMode.READ_WRITE
    return {
        "create": partial(volumes.create, "p", CreateVolume(name=name, size_bytes=SIZE)),
        "update": partial(volumes.update_labels, "p", name, {"a": "b"}),
        "resize": partial(volumes.resize, "p", name, 2 * SIZE),
        "revert": partial(volumes.revert, "p", name, "s"),
        "flatten": partial(volumes.flatten, "p", name),
        "verify": partial(engine.checks.verify_volume, "p", name),
        "delete": partial(volumes.delete, "p", name, force=True, purge=True),
        "snapshot": partial(snapshots.create, "p", name, "t"),
        "group": partial(engine.group_snapshots.create, "p", "h", ["plain", name]),
        "attach": partial(engine.attachments.attach, "p", name, "host", read_write),
        "hand over": partial(engine.attachments.hand_over, "p", name, "host"),
        "detach": partial(engine.attachments.detach, "p", name, "host"),
        "release": partial(engine.adoption.release, "p", name),
    }


def refused(call):
    with pytest.raises(VolcoreError) as caught:
        call()
    assert "newer server" in caught.value.message or caught.value.reason is not Reason.RECORD_NEWER
    return caught.value.reason


def clone(engine, kind, key):
    engine.volumes.create("p", CreateVolume(name="x", source=SourceRef(kind=kind, key=key)))


def names(found):
    return [one.key for one in found]


def test_attached_by_a_newer_server(site):
    """Goal: snapshots and clones of the volume go on. Method: an attachment that cannot be read."""
    engine = site.bench.engine
    engine.snapshots.create("p", "held", "t")
    clone(engine, SourceKind.VOLUME, "held")
    assert names(engine.snapshots.list("p", "held", limit=9)) == ["held/t"]
    engine.volumes.delete("p", "x")


def test_calls_leave_them_alone(site):
    """Goal: one clear answer for what is newer, all else works. Method: every call, each name."""
    engine = site.bench.engine
    for name in ("format", "word"):
        for what, call in changes(engine, name).items():
            reason = refused(call)
            able = what not in {"revert", "flatten", "verify", "group", "release"}
            assert reason is Reason.RECORD_NEWER or not able, what
            assert reason in {Reason.RECORD_NEWER, Reason.CAPABILITY_ABSENT}, what
        assert refused(partial(engine.volumes.get, "p", name)) is Reason.RECORD_NEWER
        assert refused(partial(clone, engine, SourceKind.VOLUME, name)) is Reason.RECORD_NEWER
    for kind, key in (
        (SourceKind.SNAPSHOT, "half/s"),
        (SourceKind.IMAGE, "golder"),
    ):
        assert refused(partial(clone, engine, kind, key)) is Reason.RECORD_NEWER
    for call in (
        partial(engine.volumes.delete, "p", "half", force=True),
        partial(engine.snapshots.delete, "p", "half", "s"),
        partial(engine.snapshots.rename, "p", "half", "s", "t"),
        partial(engine.volumes.delete, "p", "held"),
        partial(engine.volumes.delete, "p", "busy", force=True, purge=True),
        partial(engine.volumes.resize, "p", "busy", 2 * SIZE),
        partial(engine.snapshots.delete, "p", "busy", "s"),
        partial(engine.attachments.get, "p", "held", "h"),
        partial(engine.images.delete, "p", "golder"),
        partial(engine.images.publish, "p", "golder", "plain", "s"),
        partial(engine.trash.undelete, "p", "gone"),
        partial(engine.fences.get, "p", "f"),
        partial(engine.fences.unfence, "p", "f"),
        partial(engine.attachments.attach, "p", "plain", "f", AccessMode.READ_WRITE),
        partial(engine.operations.get, "p", "delete"),
    ):
        assert refused(call) is Reason.RECORD_NEWER, call
    results = engine.volumes.deploy("p", "gold", ["n1", "format", "n2"])
    told = [one.reason if isinstance(one, VolcoreError) else one.key for one in results]
    assert told == ["n1", Reason.RECORD_NEWER, "n2"]


def test_what_was_added_is_read_and_kept(site):
    """Goal: a record with more fields is used, and not changed. Method: every call on one."""
    engine = site.bench.engine
    assert engine.volumes.get("p", "added").size_bytes == SIZE
    for call in (
        partial(engine.volumes.update_labels, "p", "added", {"a": "b"}),
        partial(engine.volumes.resize, "p", "added", 2 * SIZE),
        partial(engine.volumes.delete, "p", "added"),
    ):
        assert refused(call) is Reason.RECORD_NEWER
    assert site.backend.describe(site.backend_ids["added"]).size_bytes == SIZE
    clone(engine, SourceKind.VOLUME, "added")
    engine.snapshots.create("p", "added", "t")
    engine.volumes.delete("p", "x")


def test_lists_and_work_go_on(site):
    """Goal: nobody else waits for a newer server. Method: lists, figures, background work."""
    engine, pool = site.bench.engine, site.bench.pool
    assert names(engine.volumes.list("p", limit=100)) == ["added", "busy", "half", "held", "plain"]
    assert names(engine.volumes.list("p", limit=2, after="busy")) == ["half", "held"]
    assert names(engine.snapshots.list("p", limit=100)) == ["busy/s", "format/s", "plain/s"]
    assert names(engine.images.list("p", limit=100)) == ["gold"]
    assert engine.attachments.list("p", limit=100) == []
    assert engine.group_snapshots.list("p", limit=100) == []
    assert engine.fences.list("p", limit=100) == []
    assert [one.volume.name for one in engine.trash.list("p", limit=100)] == ["went"]
    listed = {one.id: one.phase for one in engine.operations.list("p", limit=100)}
    assert listed["defragment"] is listed["import"] is Phase.RUNNING
    figures = engine.pools.get("p")
    assert (figures.volume_count, figures.image_count, figures.health) == (5, 1, None)
    engine.operations.forget(pool, FAR_NS + now_ns())
    assert engine.trash.look(FAR_NS + now_ns()) == 1
    engine.warm.step(pool)
    engine.volumes.create("p", CreateVolume(name="fresh", size_bytes=SIZE))
    engine.volumes.resize("p", "plain", 2 * SIZE)
    engine.volumes.delete("p", "fresh", purge=True)
    assert engine.deletions.wait(60)
    assert pool.find(Volume, "fresh") is None


def test_checks_name_them_and_repairs_pass_by(site):
    """Goal: check says what is newer; no repair, export or rebuild harms it. Method: run them."""
    engine = site.bench.engine
    site.backend.create("stray", SIZE)
    *faults, end = Audit(engine.pools, (0.0, 0.0)).run("p", repair=True, objects=True)
    assert not end.is_cut
    planted = {f"{kind} {key}" for kind, key in site.planted.keys() - KNOWN}
    assert {(one.kind, one.subject or one.concerns) for one in faults} == {
        (FaultKind.IMAGE_WITHOUT_RECORD, "stray"),
        *((FaultKind.RECORD_NEWER, name) for name in planted),
    }
    assert not any(one.mended for one in faults)
    (stray,) = (one for one in faults if one.subject)
    assert "newer server may name it" in stray.remedy
    with pytest.raises(PreconditionError) as caught:
        list(engine.exports.lines("p"))
    assert caught.value.reason is Reason.RECORD_NEWER
    with pytest.raises((PreconditionError, NotSupportedError)) as unbuilt:
        list(engine.rebuild.run("p"))
    assert unbuilt.value.reason in {Reason.RECORD_NEWER, Reason.CAPABILITY_ABSENT}
    site.backend.delete("stray")
