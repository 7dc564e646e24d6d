"""Use cases of volumes and snapshots, on a pool with intents and on one with joined commits."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from volcore.engine.views import CreateVolume, SourceRef
from volcore.errors import (
    ConflictError,
    InvalidArgumentError,
    NotFoundError,
    OperationPendingError,
    OutOfRangeError,
    PreconditionError,
    Reason,
    VolcoreError,
)
from volcore.limits import BLOCK_SIZE_BYTES, MIB
from volcore.model import names
from volcore.model.records import AccessMode, Phase, SourceKind, Volume
from volcore.testing.intents import intents_of

SIZE = 8 * MIB


def blank(name: str, size_bytes: int = SIZE, **fields) -> CreateVolume:
    return CreateVolume(name=name, size_bytes=size_bytes, **fields)


def clone(name: str, kind: SourceKind, key: str, size_bytes: int = 0) -> CreateVolume:
    return CreateVolume(name=name, source=SourceRef(kind=kind, key=key), size_bytes=size_bytes)


def write(bench, name: str, data: bytes, offset_bytes: int = 0) -> None:
    volume = bench.engine.volumes.get("p", name)
    with bench.pool.backend.open_device(volume.backend_id, read_only=False) as device:
        device.write(offset_bytes, data)


def read(bench, name: str, length_bytes: int, offset_bytes: int = 0) -> bytes:
    volume = bench.engine.volumes.get("p", name)
    with bench.pool.backend.open_device(volume.backend_id, read_only=True) as device:
        return device.read(offset_bytes, length_bytes)


def test_same_call_returns_same_volume(bench):
    """Repeating a creation gives the same record ten times over."""
    first = bench.engine.volumes.create("p", blank("v"))
    assert all(bench.engine.volumes.create("p", blank("v")) == first for _ in range(10))


def test_many_blank_at_once(bench):
    """Goal: calls that share a turn get their own answers. Method: 16 callers, some names twice."""
    taken = bench.engine.volumes.create("p", blank("v-0"))

    def create(number: int) -> Volume | VolcoreError:
        try:
            return bench.engine.volumes.create("p", blank(f"v-{number % 24}", 2 * SIZE))
        except VolcoreError as err:
            return err

    with ThreadPoolExecutor(16) as callers:
        answers = list(callers.map(create, range(48)))
    assert {answers[0].reason, answers[24].reason} == {Reason.NAME_TAKEN}
    assert answers[1:24] == answers[25:]
    listed = bench.engine.volumes.list("p", limit=100)
    assert sorted(volume.name for volume in listed) == sorted(f"v-{n}" for n in range(24))
    assert {volume.id for volume in listed} == {taken.id, *(one.id for one in answers[1:24])}
    assert set(bench.pool.backend.walk()) == {volume.backend_id for volume in listed}


def test_other_parameters_are_a_conflict(bench):
    """A name that exists with another size is refused and unchanged."""
    first = bench.engine.volumes.create("p", blank("v"))
    with pytest.raises(ConflictError) as caught:
        bench.engine.volumes.create("p", blank("v", 2 * SIZE))
    assert caught.value.reason is Reason.NAME_TAKEN
    assert bench.engine.volumes.get("p", "v") == first


def test_concurrent_creations_agree(bench):
    """Eight equal calls at once make one volume."""
    results: list[Volume] = []
    threads = [
        threading.Thread(
            target=lambda: results.append(bench.engine.volumes.create("p", blank("v")))
        )
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({volume.id for volume in results}) == 1
    assert len(results) == 8
    assert len(list(bench.pool.backend.walk())) == 1


@pytest.mark.parametrize(
    "name", ["", "x" * 300, "../x", "a/b", "bad\x00", "tab\t", "\N{PILE OF POO}", "-x", ".hidden"]
)
def test_bad_names(bench, name):
    """Each bad name is refused with one reason, and nothing is made."""
    with pytest.raises(InvalidArgumentError) as caught:
        bench.engine.volumes.create("p", blank(name))
    assert caught.value.reason is Reason.BAD_NAME
    assert not list(bench.pool.backend.walk())


@pytest.mark.parametrize("size_bytes", [0, -1, -(2**63), 2**63 - 1, 2**63, 4097, 100])
def test_bad_sizes(bench, size_bytes):
    """Each bad size is refused with one reason, and nothing is made."""
    with pytest.raises(OutOfRangeError) as caught:
        bench.engine.volumes.create("p", blank("v", size_bytes))
    assert caught.value.reason is Reason.SIZE_NOT_ALLOWED
    assert not list(bench.pool.backend.walk())


def test_unknown_pool_names_the_known(bench):
    """The sentence about an unknown pool tells which ones there are."""
    with pytest.raises(NotFoundError, match="this server has: p"):
        bench.engine.volumes.create("nope", blank("v"))


def test_clone_chain_and_deletes_in_any_order(bench):
    """Snapshot, clone, clone of the clone; the sources go first and the contents stay."""
    volumes, snapshots = bench.engine.volumes, bench.engine.snapshots
    volumes.create("p", blank("a"))
    write(bench, "a", b"one" * 1000)
    snapshots.create("p", "a", "s")
    volumes.create("p", clone("b", SourceKind.SNAPSHOT, "a/s"))
    write(bench, "b", b"two" * 1000, 4 * MIB)
    volumes.create("p", clone("c", SourceKind.VOLUME, "b", 2 * SIZE))
    volumes.delete("p", "a", force=True)
    volumes.delete("p", "b")
    assert read(bench, "c", 3000) == b"one" * 1000
    assert read(bench, "c", 3000, 4 * MIB) == b"two" * 1000
    assert volumes.get("p", "c").size_bytes == 2 * SIZE
    volumes.delete("p", "c")
    assert bench.engine.deletions.wait(60)
    assert not list(bench.pool.backend.walk())
    volumes.delete("p", "c")


def test_delete_refuses_snapshots_and_names_them(bench):
    """A volume with snapshots is kept, and the error lists them."""
    bench.engine.volumes.create("p", blank("a"))
    bench.engine.snapshots.create("p", "a", "s1")
    bench.engine.snapshots.create("p", "a", "s2")
    with pytest.raises(PreconditionError) as caught:
        bench.engine.volumes.delete("p", "a")
    assert caught.value.reason is Reason.VOLUME_HAS_SNAPSHOTS
    assert [b.name for b in caught.value.blockers] == [
        "pools/p/volumes/a/snapshots/s1",
        "pools/p/volumes/a/snapshots/s2",
    ]
    bench.engine.volumes.delete("p", "a", force=True)
    assert bench.engine.snapshots.list("p", None, limit=10) == []


def test_delete_of_a_volume_in_use_changes_nothing(bench):
    """The backend's refusal (a device is open) leaves the volume and its snapshots as they were."""
    volume = bench.engine.volumes.create("p", blank("a"))
    bench.engine.snapshots.create("p", "a", "s")
    with bench.pool.backend.open_device(volume.backend_id, read_only=True):
        with pytest.raises(PreconditionError) as caught:
            bench.engine.volumes.delete("p", "a", force=True)
        assert caught.value.reason is Reason.VOLUME_IN_USE
    assert bench.engine.volumes.get("p", "a").id == volume.id
    assert [s.name for s in bench.engine.snapshots.list("p", "a", limit=10)] == ["s"]
    assert intents_of(bench.pool) == []
    bench.engine.volumes.delete("p", "a", force=True)


def test_resize_grows_only(bench):
    """Growing shows, the same size is fine, shrinking is refused."""
    bench.engine.volumes.create("p", blank("a"))
    assert bench.engine.volumes.resize("p", "a", 2 * SIZE).size_bytes == 2 * SIZE
    assert bench.engine.volumes.resize("p", "a", 2 * SIZE).size_bytes == 2 * SIZE
    with pytest.raises(OutOfRangeError) as caught:
        bench.engine.volumes.resize("p", "a", SIZE)
    assert caught.value.reason is Reason.SHRINK_REFUSED
    assert read(bench, "a", 4096, SIZE) == bytes(4096)


def test_revert_restores_content_and_size(bench):
    """Content and size are the snapshot's again; the snapshot stays."""
    bench.engine.volumes.create("p", blank("a"))
    write(bench, "a", b"before")
    bench.engine.snapshots.create("p", "a", "s")
    write(bench, "a", b"AFTER!")
    bench.engine.volumes.resize("p", "a", 2 * SIZE)
    assert bench.engine.volumes.revert("p", "a", "s").size_bytes == SIZE
    assert read(bench, "a", 6) == b"before"
    assert bench.engine.volumes.revert("p", "a", "s").size_bytes == SIZE


def test_flatten_is_an_operation_that_ends(bench):
    """A flattened clone keeps its content and loses its depth."""
    bench.engine.volumes.create("p", blank("a"))
    write(bench, "a", b"shared")
    bench.engine.volumes.create("p", clone("b", SourceKind.VOLUME, "a"))
    operation = bench.engine.volumes.flatten("p", "b")
    ended = bench.engine.operations.wait("p", operation.id, 30)
    assert ended.phase is Phase.SUCCEEDED, ended.error_message
    assert bench.engine.volumes.facts("p", bench.engine.volumes.get("p", "b")).depth == 0
    assert read(bench, "b", 6) == b"shared"
    assert bench.engine.operations.cancel("p", operation.id).phase is Phase.SUCCEEDED


def test_deploy_gives_a_result_for_each(bench, published):
    """Names that exist already or are bad fail by themselves, in the order of the request."""
    bench.engine.volumes.create("p", blank("taken", 2 * SIZE))
    results = bench.engine.volumes.deploy("p", published, ["a", "taken", "../x", "b"])
    assert isinstance(results[0], Volume)
    assert isinstance(results[3], Volume)
    assert isinstance(results[1], ConflictError)
    assert isinstance(results[2], InvalidArgumentError)
    assert bench.engine.volumes.deploy("p", published, ["a", "b"]) == [results[0], results[3]]


def test_calls_of_one_image_do_not_mix(bench, published):
    """Goal: calls that share a turn get each its own. Method: many at once, some wrong or twice."""

    def call(number):
        name = f"m{number % 20}"
        size_bytes = BLOCK_SIZE_BYTES if number % 5 == 4 else 0  # smaller than the image
        try:
            return bench.engine.volumes.create(
                "p", clone(name, SourceKind.IMAGE, published, size_bytes)
            )
        except OutOfRangeError as err:
            return err

    with ThreadPoolExecutor(16) as executor:
        outcomes = list(executor.map(call, range(40)))
    for number, outcome in enumerate(outcomes):
        if number % 5 == 4:
            assert outcome.reason is Reason.SHRINK_REFUSED
        else:
            assert outcome.name == f"m{number % 20}"
            assert outcome == bench.engine.volumes.get("p", outcome.name)
    assert len(bench.engine.volumes.list("p", limit=100)) == 1 + 16
    assert intents_of(bench.pool) == []


def test_deploy_refuses_nonsense(bench, published):
    """No names, a name twice, too many: one sentence each."""
    for wrong in ([], ["a", "a"], [f"v{i}" for i in range(1001)]):
        with pytest.raises(InvalidArgumentError):
            bench.engine.volumes.deploy("p", published, wrong)
    assert bench.engine.volumes.list("p", limit=100)[0].name == "src"


@pytest.fixture
def published(bench) -> str:
    """An image made of a snapshot of volume `src`."""
    bench.engine.volumes.create("p", blank("src"))
    write(bench, "src", b"golden")
    bench.engine.snapshots.create("p", "src", "s")
    bench.engine.images.publish("p", "gold", "src", "s")
    return "gold"


def test_published_image_outlives_its_volume(bench, published):
    """Volume, snapshot and image go; the deployed volumes keep their content."""
    first = bench.engine.images.get("p", published)
    assert bench.engine.images.publish("p", published, "src", "s") == first
    bench.engine.volumes.deploy("p", published, ["a", "b"], size_bytes=2 * SIZE)
    bench.engine.volumes.delete("p", "src", force=True)
    bench.engine.images.delete("p", published)
    bench.engine.images.delete("p", published)
    assert read(bench, "a", 6) == read(bench, "b", 6) == b"golden"
    source = bench.engine.volumes.get("p", "a").source
    assert (source.kind, source.id) == (SourceKind.IMAGE, first.id)
    for name in ("a", "b"):
        bench.engine.volumes.delete("p", name)
    assert bench.engine.deletions.wait(60)
    assert not list(bench.pool.backend.walk())


def test_labels_and_etags(bench):
    """An old etag is refused; an equal update changes nothing."""
    first = bench.engine.volumes.create("p", blank("a", labels={"x": "1"}))
    tag = names.etag(first.id, first.revision)
    second = bench.engine.volumes.update_labels("p", "a", {"x": "2"}, etag=tag)
    assert second.labels == {"x": "2"}
    assert bench.engine.volumes.update_labels("p", "a", {"x": "2"}) == second
    with pytest.raises(OperationPendingError):
        bench.engine.volumes.update_labels("p", "a", {}, etag=tag)
    with pytest.raises(OperationPendingError):
        bench.engine.volumes.delete("p", "a", etag=tag)
    with pytest.raises(InvalidArgumentError):
        bench.engine.volumes.update_labels("p", "a", {"bad key": "x"})


def test_paging_goes_through_all(bench):
    """Pages of two cover seven volumes once each, in order."""
    for index in range(7):
        bench.engine.volumes.create("p", blank(f"v{index}"))
    seen: list[str] = []
    after = ""
    while page := bench.engine.volumes.list("p", after=after, limit=2):
        seen += [volume.name for volume in page]
        after = page[-1].name
    assert seen == [f"v{index}" for index in range(7)]


def test_missing_things_are_not_found(bench):
    """Each kind of missing thing has its own reason."""
    engine = bench.engine
    engine.volumes.create("p", blank("a"))
    cases = [
        (lambda: engine.volumes.get("p", "x"), Reason.VOLUME_NOT_FOUND),
        (lambda: engine.snapshots.create("p", "x", "s"), Reason.VOLUME_NOT_FOUND),
        (lambda: engine.snapshots.get("p", "a", "x"), Reason.SNAPSHOT_NOT_FOUND),
        (lambda: engine.images.get("p", "x"), Reason.IMAGE_NOT_FOUND),
        (lambda: engine.volumes.deploy("p", "x", ["v"]), Reason.IMAGE_NOT_FOUND),
        (lambda: engine.volumes.revert("p", "a", "x"), Reason.SNAPSHOT_NOT_FOUND),
        (lambda: engine.attachments.get("p", "a", "h"), Reason.ATTACHMENT_NOT_FOUND),
        (lambda: engine.operations.get("p", "x"), Reason.OPERATION_NOT_FOUND),
    ]
    for call, reason in cases:
        with pytest.raises(NotFoundError) as caught:
            call()
        assert caught.value.reason is reason
    engine.snapshots.delete("p", "a", "x")
    engine.attachments.detach("p", "a", "h")


@pytest.mark.parametrize("bench", ["memory", "local"], indirect=True)
def test_attaching_without_an_exporter_is_refused(bench):
    """A pool that needs NBD says which setting is missing; nothing is recorded."""
    bench.engine.volumes.create("p", blank("a"))
    with pytest.raises(VolcoreError, match=r"\[nbd\] listen"):
        bench.engine.attachments.attach("p", "a", "h", AccessMode.READ_ONLY)
    bench.engine.volumes.delete("p", "a")


def test_one_writer_or_many_readers(served):
    """The same attachment again is the same; what would let two hosts write is refused by name."""
    attachments = served.engine.attachments
    served.engine.volumes.create("p", blank("a"))
    first = attachments.attach("p", "a", "h1", AccessMode.READ_WRITE)
    assert attachments.attach("p", "a", "h1", AccessMode.READ_WRITE) == first
    with pytest.raises(ConflictError):
        attachments.attach("p", "a", "h1", AccessMode.READ_ONLY)
    for mode in AccessMode:
        with pytest.raises(PreconditionError) as caught:
            attachments.attach("p", "a", "h2", mode)
        assert caught.value.blockers[0].name == "pools/p/volumes/a/attachments/h1"
    with pytest.raises(PreconditionError):
        served.engine.volumes.delete("p", "a")
    attachments.detach("p", "a", "h1")
    attachments.detach("p", "a", "h1")
    attachments.attach("p", "a", "h1", AccessMode.READ_ONLY)
    attachments.attach("p", "a", "h2", AccessMode.READ_ONLY)
    with pytest.raises(PreconditionError):
        attachments.attach("p", "a", "h3", AccessMode.READ_WRITE)
    assert [view.record.host for view in attachments.list("p", "a", limit=9)] == ["h1", "h2"]
    for host in ("h1", "h2"):
        attachments.detach("p", "a", host)
    served.engine.volumes.delete("p", "a")
