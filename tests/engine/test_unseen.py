"""Volumes made without a look are as with one: blank, or of a source seen lately."""

import time
from collections.abc import Callable

import pytest
from rbd_backend.test_pool import ceph_cluster_command
from rbd_backend.test_warm import start

from engine.conftest import Bench
from volcore.engine.engine import Engine, EngineSettings
from volcore.engine.lately import MADE_MAX, NAMES_MAX, SOURCES_MAX, Lately
from volcore.engine.pool import drop, put
from volcore.engine.views import AttachmentView, CreateVolume, SourceRef
from volcore.errors import ExhaustedError, PreconditionError, Reason, VolcoreError
from volcore.limits import MIB
from volcore.model import names
from volcore.model.fences import FencedHost, FenceState
from volcore.model.records import (
    AccessMode,
    Attachment,
    Image,
    Intent,
    IntentAction,
    Kind,
    Snapshot,
    SourceKind,
    State,
    Volume,
)
from volcore.testing.cluster import CephCluster
from volcore.testing.device_contract import put as put_data
from volcore.testing.intents import intents_of

SIZE = 8 * MIB
SOURCES = {SourceKind.IMAGE: "gold", SourceKind.SNAPSHOT: "src/s"}
Answer = tuple[object, ...]


def make(engine: Engine, kind: SourceKind | None, name: str, size_bytes: int = 0) -> Answer:
    """Make one, blank without a kind; return what is to be compared, of an error too."""
    source = None if kind is None else SourceRef(kind=kind, key=SOURCES[kind])
    request = CreateVolume(name=name, source=source, size_bytes=size_bytes)
    try:
        made = engine.volumes.create("p", request)
    except VolcoreError as err:
        return type(err), err.reason, err.message.replace(repr(name), "*"), err.retryable
    assert (made.source is None) == (kind is None)
    return made.source, made.size_bytes, made.labels


def answers(engine: Engine, kind: SourceKind | None, end: str = "") -> list[Answer]:
    """To some requests, one of them repeated and one of them wrong."""
    wanted = (("new", 0), ("new", 0), ("large", 3 * SIZE), ("small", SIZE // 2))
    if kind is None:
        wanted = (("new", SIZE), ("new", SIZE), ("large", 3 * SIZE), ("odd", SIZE + 1))
    return [make(engine, kind, name + end, size_bytes) for name, size_bytes in wanted]


def prepare(engine: Engine) -> None:
    engine.volumes.create("p", CreateVolume(name="src", size_bytes=SIZE))
    engine.snapshots.create("p", "src", "s")
    engine.images.publish("p", "gold", "src", "s")


def relabel(bench: Bench, other: Engine) -> None:
    for record in (bench.pool.image("gold"), bench.pool.snapshot("src", "s")):
        at = other.pools.open("p")
        at.catalog.commit([put(record.but(labels={"k": "v"}), record)])


def delete(bench: Bench, other: Engine) -> None:
    other.images.delete("p", "gold")
    other.snapshots.delete("p", "src", "s")
    assert other.deletions.wait(60)


def replace(bench: Bench, other: Engine) -> None:
    delete(bench, other)
    other.volumes.resize("p", "src", 2 * SIZE)
    other.snapshots.create("p", "src", "s")
    other.images.publish("p", "gold", "src", "s")


def take(bench: Bench, other: Engine) -> None:
    for name in ("new", "large"):
        other.volumes.create("p", CreateVolume(name=name, size_bytes=SIZE))


def leave(bench: Bench, other: Engine) -> None:
    """What a server leaves that dies while it makes the volumes."""
    for name in ("new", "large"):
        record_id = names.new_id()
        volume = Volume(
            name=name,
            id=record_id,
            backend_id=names.backend_id(name, record_id),
            size_bytes=SIZE,
            state=State.CREATING,
            create_time_ns=1,
        )
        intent = Intent(
            id=record_id,
            action=IntentAction.CREATE_VOLUME,
            subject_key=volume.key,
            subject_id=record_id,
            backend_volume_id=volume.backend_id,
            owner="dead",
            create_time_ns=1,
        )
        other.pools.open("p").catalog.commit([put(volume), put(intent)])


@pytest.mark.parametrize("kind", [*SOURCES, None])
@pytest.mark.parametrize("meanwhile", [None, relabel, delete, replace, take, leave])
def test_as_if_looked_at(
    bench: Bench, kind: SourceKind | None, meanwhile: Callable[[Bench, Engine], None] | None
) -> None:
    """Goal: a stale memory changes no answer. Method: another server changes what this one knows.

    A third server, which knows nothing, says what the answers should be.
    """
    engine, at = bench.engine, bench.pool
    prepare(engine)
    make(engine, kind, "first", SIZE)
    if kind is not None and not at.backend.caps.joins_catalog:
        record = {SourceKind.IMAGE: Image, SourceKind.SNAPSHOT: Snapshot}[kind]
        assert at.lately(record, SOURCES[kind]) is not None
    other, third = (Engine(EngineSettings(server_id=name)) for name in ("other", "third"))
    for server in (other, third):
        server.add_pool("p", at.backend, at.catalog._catalog, None)
    if meanwhile is not None:
        meanwhile(bench, other)
    stale = answers(engine, kind)
    assert stale == answers(third, kind, "" if meanwhile is take else "2")
    for server in (other, third):
        server.close(5)
    assert intents_of(at) == []
    listed = {volume.backend_id for volume in at.list(Volume)}
    listed |= {image.backend_volume_id for image in at.list(Image)}
    assert set(at.backend.walk()) == listed


def attached_elsewhere(other: Engine) -> None:
    other.attachments.attach("p", "v", "elsewhere", AccessMode.READ_WRITE)


def detached_again(other: Engine) -> None:
    attached_elsewhere(other)
    other.attachments.detach("p", "v", "elsewhere")


def fenced(other: Engine) -> None:
    host = FencedHost(host="host", state=FenceState.FENCED, create_time_ns=1)
    other.pools.open("p").catalog.commit([put(host)])


def relabelled(other: Engine) -> None:
    other.volumes.update_labels("p", "v", {"k": "v"})


def deleted(other: Engine) -> None:
    other.volumes.delete("p", "v")


def made_again(other: Engine) -> None:
    deleted(other)
    other.volumes.create("p", CreateVolume(name="v", size_bytes=SIZE))


@pytest.mark.parametrize(
    ("meanwhile", "reason"),
    [
        (None, None),
        (attached_elsewhere, Reason.VOLUME_IN_USE),
        (detached_again, None),
        (fenced, Reason.HOST_FENCED),
        (relabelled, None),
        (deleted, Reason.VOLUME_NOT_FOUND),
        (made_again, None),
    ],
)
def test_attach_as_if_looked_at(
    served: Bench, meanwhile: Callable[[Engine], None] | None, reason: Reason | None
) -> None:
    """Goal: a new volume is attached as any other. Method: another server changes it before."""
    engine, at = served.engine, served.pool
    engine.volumes.create("p", CreateVolume(name="v", size_bytes=SIZE))
    assert at.backend.caps.joins_catalog or at.made_lately("v") is not None
    other = Engine(EngineSettings(server_id="other"))
    other.add_pool("p", at.backend, at.catalog._catalog, at.exporter)
    if meanwhile is not None:
        meanwhile(other)

    def attach() -> AttachmentView:
        return engine.attachments.attach("p", "v", "host", AccessMode.READ_WRITE)

    if reason is None:
        first = attach()
        assert first.record.volume_id == other.volumes.get("p", "v").id
        assert at.made_lately("v") is None
        assert attach() == first == other.attachments.get("p", "v", "host")
    else:
        with pytest.raises(VolcoreError) as caught:
            attach()
        assert caught.value.reason is reason
        assert "host" not in {one.host for one in at.list(Attachment)}
    assert engine.volumes.list("p", limit=9) == other.volumes.list("p", limit=9)
    other.close(5)


def test_records_that_come_back(served: Bench) -> None:
    """Goal: one host writes. Method: a volume and its attachment come back, as from a rebuild."""
    engine, at = served.engine, served.pool
    made = engine.volumes.create("p", CreateVolume(name="v", size_bytes=SIZE))
    attached_elsewhere(engine)
    there = at.find(Attachment, "v/elsewhere")
    assert there is not None
    at.catalog.commit([drop(at.volume("v")), drop(there)])
    at.catalog.commit([put(made), put(there)])
    with pytest.raises(PreconditionError) as caught:
        engine.attachments.attach("p", "v", "host", AccessMode.READ_WRITE)
    assert caught.value.reason is Reason.VOLUME_IN_USE


def test_bounded() -> None:
    """Goal: memory ends somewhere. Method: more than fits; the eldest is forgotten."""
    lately = Lately()
    for number in range(SOURCES_MAX + 1):
        lately.saw(Kind.IMAGE, str(number), b"x")
    assert lately.source(Kind.IMAGE, "0") is None
    assert lately.source(Kind.IMAGE, str(SOURCES_MAX)) == b"x"
    for number in range(NAMES_MAX + 1):
        lately.saw(Kind.VOLUME, str(number), b"x")
    assert not lately.any_taken(["0"])
    assert lately.any_taken(["0", "1"])
    lately.saw(Kind.VOLUME, "1", None)
    assert not lately.any_taken(["0", "1"])
    assert lately.source(Kind.VOLUME, "2") is None
    for number in range(MADE_MAX + 1):
        lately.note_made(str(number), b"x")
    assert lately.made("0") is None
    assert lately.made("1") == b"x"


@pytest.mark.ceph
def test_repeated_on_a_full_pool(ceph_cluster: CephCluster, ceph_pool: str) -> None:
    """Goal: what exists is told, full or not. Method: a quota, and a server that knows no names."""
    site = start(ceph_cluster, ceph_pool, count_max=0)
    with site.undo:
        prepare(site.engine)
        asked = [(kind, f"made-{kind}") for kind in (*SOURCES, None)]
        made = [make(site.engine, kind, name, SIZE) for kind, name in asked]
        put_data(site.backend, site.pool.volume("made-None").backend_id, 0, bytes(6 * MIB))
        site.pool.making.flush()
    ceph_cluster_command(ceph_cluster, "osd pool set-quota", ceph_pool, "max_bytes", str(4 * MIB))
    site = start(ceph_cluster, ceph_pool, count_max=0)
    with site.undo:
        deadline_s = time.monotonic() + 60
        while (
            make(site.engine, None, f"other-{time.monotonic_ns()}", SIZE)[0] is not ExhaustedError
        ):
            assert time.monotonic() < deadline_s
            time.sleep(0.1)
        site.pool.image("gold")
        site.pool.snapshot("src", "s")
        assert [make(site.engine, kind, name, SIZE) for kind, name in asked] == made
