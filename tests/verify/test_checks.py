"""Checks as operations: names, healing from the source, health, schedule, restart."""

import os
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from volcore.backends.local import LocalBackend, LocalStore
from volcore.backends.memory import MemoryBackend
from volcore.catalog.sqlite import SqliteCatalog
from volcore.database import Database
from volcore.engine import checks as checks_module
from volcore.engine.engine import Engine, EngineSettings
from volcore.engine.images import ImageSettings
from volcore.engine.pool import now_ns, put
from volcore.engine.schedule import ScrubSettings
from volcore.engine.views import CreateVolume, ImportRequest, SourceRef
from volcore.errors import NotFoundError, NotSupportedError, OperationPendingError, Reason
from volcore.model.checks import Check, Finding, without
from volcore.model.records import Health, Image, Operation, Phase, SourceKind

from .damage import B, C, flip, layer_of

HOUR_NS = 3600 * 10**9


class Bench:
    """An engine over one local pool `p`; may be stopped and started again."""

    def __init__(self, directory, **scrub):
        self.directory = directory
        self.scrub_settings = ScrubSettings(**scrub)
        self.start()

    def start(self):
        settings = EngineSettings(
            server_id="test",
            images=ImageSettings(directories=(self.directory,)),
            scrub=self.scrub_settings,
        )
        self.engine = Engine(settings)
        store = LocalStore.open(self.directory / "pool")
        self.backend = LocalBackend(store)
        self.backend.open()
        self.engine.add_pool("p", self.backend, SqliteCatalog(store.database), None)

    def stop(self):
        self.engine.close(30)
        self.backend.close()

    @property
    def pool(self):
        return self.engine.pools.open("p")

    @property
    def health(self):
        return self.engine.pools.get("p").health

    def done(self, operation):
        ended = self.engine.operations.wait("p", operation.id, 60)
        assert ended.phase is Phase.SUCCEEDED, ended
        return ended.check

    def verify(self, name, **options):
        return self.done(self.engine.checks.verify_volume("p", name, **options))

    def scrub(self, **options):
        return self.done(self.engine.checks.scrub("p", **options))

    def image_layer(self, name="golden"):
        image = self.pool.image(name)
        return layer_of(self.backend, image.backend_volume_id, image.backend_snapshot_id)


@pytest.fixture
def bench(tmp_path):
    bench = Bench(tmp_path)
    yield bench
    bench.stop()


def qcow2(raw, target):
    command = ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, target]
    subprocess.run(command, check=True, timeout=60)


@pytest.fixture(params=["raw", "qcow2"])
def golden(bench, request, tmp_path):
    """An image of a file on the server, two clones of it, a snapshot of one."""
    raw = tmp_path / "golden.raw"
    raw.write_bytes(os.urandom(2 * C))
    path = raw
    if request.param == "qcow2":
        path = tmp_path / "golden.qcow2"
        qcow2(raw, path)
    bench.engine.images.import_image("p", ImportRequest(name="golden", server_path=str(path)))
    for name in ("vm-1", "vm-2"):
        source = SourceRef(kind=SourceKind.IMAGE, key="golden")
        bench.engine.volumes.create("p", CreateVolume(name=name, source=source))
    bench.engine.snapshots.create("p", "vm-2", "s")
    return path


def test_named(bench, golden):
    """Goal: findings bear the names that operators know. Method: flip a byte of the image."""
    flip(bench.backend, bench.image_layer(), C + 5)
    check = bench.scrub()
    (finding,) = check.findings
    assert (finding.kind, finding.offset_bytes, finding.length_bytes) == ("CHECKSUM", C, B)
    assert set(finding.names) == {
        "pools/p/images/golden", "pools/p/volumes/vm-1", "pools/p/volumes/vm-2",
        "pools/p/volumes/vm-2/snapshots/s",
    }  # fmt: skip
    assert finding.name_count == 4
    assert (check.bad_blocks, check.healed_blocks, check.finding_count) == (1, 0, 1)
    assert check.checked_bytes == 2 * C
    assert (bench.health.damaged_blocks, bench.health.damage) == (1, (finding,))
    assert bench.health.scrub_end_ns > bench.health.scrub_begin_ns > 0


def test_healed_from_the_source(bench, golden):
    """Goal: verify --heal of each kind repairs. Method: flip, heal by volume, snapshot, image."""
    checks = bench.engine.checks
    layer = bench.image_layer()
    for number, start in enumerate(
        [
            lambda: checks.verify_volume("p", "vm-1", heal=True),
            lambda: checks.verify_snapshot("p", "vm-2", "s", heal=True),
            lambda: checks.verify_image("p", "golden", heal=True),
            lambda: checks.scrub("p", heal=True),
        ]
    ):
        flip(bench.backend, layer, number * 3 * B)
        assert bench.verify("vm-1").damaged_blocks == 1
        assert bench.health.damaged_blocks == 1
        check = bench.done(start())
        assert (check.bad_blocks, check.healed_blocks, check.damaged_blocks) == (1, 1, 0)
        assert bench.health.damaged_blocks == 0
        assert bench.health.damage == ()
    assert bench.scrub().bad_blocks == 0


def test_not_healed_when_the_source_changed(bench, golden):
    """Goal: nothing unproven is written. Method: change the source file, take it away."""
    layer = bench.image_layer()
    flip(bench.backend, layer, 0)
    before = bench.backend._store.files.path(layer).read_bytes()
    other = golden.with_suffix(".other")
    if golden.suffix == ".qcow2":
        raw = golden.with_suffix(".new")
        raw.write_bytes(os.urandom(2 * C))
        qcow2(raw, other)
    else:
        other.write_bytes(os.urandom(2 * C))
    other.rename(golden)
    assert bench.scrub(heal=True).healed_blocks == 0
    golden.write_bytes(b"no image at all")
    assert bench.scrub(heal=True).healed_blocks == 0
    golden.unlink()
    assert bench.scrub(heal=True).healed_blocks == 0
    assert bench.backend._store.files.path(layer).read_bytes() == before
    assert bench.health.damaged_blocks == 1


def test_old_image_records_keep_their_bytes(bench, golden):
    """Goal: records of before stay comparable. Method: look for the new fields in their JSON."""
    image = bench.pool.image("golden")
    assert image.source_path == str(golden)
    assert b"source_path" not in image.but(source_path="").encode()
    operation = Operation(
        id="a", action="flatten", target="", subject_id="", phase=Phase.RUNNING, create_time_ns=1
    )
    assert b"check" not in operation.encode()
    finding = Finding(
        kind="MAP", layer=1, offset_bytes=0, length_bytes=C, names=("a", "b"), name_count=2,
        healed=False,
    )  # fmt: skip
    checked = operation.but(check=Check(heal=True).plus(finding))
    assert Operation.decode(checked.encode()) == checked
    assert Image.decode(image.encode()) == image


def test_one_at_a_time(bench, golden):
    """Goal: the same call again is the same scrub. Method: start twice; with heal it is refused."""
    checks = bench.engine.checks
    first = checks.scrub("p", bytes_per_s_max=16 * B)
    assert checks.scrub("p").id == first.id
    with pytest.raises(OperationPendingError):
        checks.scrub("p", heal=True)
    bench.engine.operations.cancel("p", first.id)
    ended = bench.engine.operations.wait("p", first.id, 30)
    assert ended.phase is Phase.CANCELLED
    assert bench.health is None or not bench.health.scrub_end_ns


def test_one_at_a_time_whoever_calls(bench, golden):
    """Goal: calls at the same time start one scrub. Method: eight threads at once."""
    with ThreadPoolExecutor(8) as executor:
        calls = [
            executor.submit(bench.engine.checks.scrub, "p", bytes_per_s_max=B) for _ in range(8)
        ]
    (operation_id,) = {call.result().id for call in calls}
    bench.engine.operations.cancel("p", operation_id)
    assert bench.engine.operations.wait("p", operation_id, 30).phase is Phase.CANCELLED


def test_delete_while_verified(bench, golden):
    """Goal: a check is in nobody's way. Method: delete a volume while it is verified slowly."""
    operation = bench.engine.checks.verify_volume("p", "vm-1")
    bench.engine.volumes.delete("p", "vm-1")
    ended = bench.engine.operations.wait("p", operation.id, 30)
    assert ended.phase in {Phase.CANCELLED, Phase.SUCCEEDED}
    with pytest.raises(NotFoundError):
        bench.engine.checks.verify_volume("p", "vm-1")


def test_restart(bench, golden, monkeypatch):
    """Goal: a stop costs a scrub nothing. Method: stop in the middle of a slow one, start again."""
    monkeypatch.setattr(checks_module, "SCRUB_WRITE_INTERVAL_S", 0.0)
    flip(bench.backend, bench.image_layer(), 0)
    operation = bench.engine.checks.scrub("p", bytes_per_s_max=8 * C)
    deadline = time.monotonic() + 30
    while not bench.engine.operations.get("p", operation.id).check.cursor:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    bench.stop()
    bench.start()
    check = bench.done(operation)
    assert check.checked_bytes == 2 * C, "no chunk was read twice"
    assert (check.bad_blocks, check.finding_count) == (1, 1)
    assert bench.health.damaged_blocks == 1


def test_schedule(bench, golden):
    """Goal: weekly by the pool's own clock. Method: look at the schedule with other times."""
    schedule = bench.engine.schedule
    now = now_ns()
    assert schedule.look(now) == []
    assert schedule.look(now + 167 * HOUR_NS) == []
    flip(bench.backend, bench.image_layer(), 0)
    assert schedule.look(now + 169 * HOUR_NS) == ["p"]
    (operation,) = [o for o in bench.engine.operations.list("p", limit=99) if o.action == "scrub"]
    check = bench.done(operation)
    assert (check.heal, check.bytes_per_s_max, check.healed_blocks) == (True, 32 << 20, 1)
    ended = bench.health.scrub_end_ns
    assert schedule.look(ended + 167 * HOUR_NS) == []
    bench.stop()
    bench.start()
    assert bench.health.scrub_end_ns == ended
    assert bench.engine.schedule.look(ended + 167 * HOUR_NS) == []
    assert bench.engine.schedule.look(ended + 169 * HOUR_NS) == ["p"]


@pytest.fixture
def slow(tmp_path):
    bench = Bench(tmp_path, bytes_per_s_max=B)
    yield bench
    bench.stop()


@pytest.mark.parametrize("restart", [False, True])
def test_cancelled_scrub_rests(slow, restart):
    """Goal: who cancels a scheduled scrub has an hour. Method: cancel one, look again."""
    bench = slow
    bench.engine.volumes.create("p", CreateVolume(name="v", size_bytes=4 * C))
    with bench.backend.open_device(bench.pool.volume("v").backend_id, read_only=False) as device:
        device.write(0, os.urandom(4 * C))
    assert bench.engine.schedule.look(now_ns()) == []  # the clock begins
    now = now_ns() + 169 * HOUR_NS
    assert bench.engine.schedule.look(now) == ["p"]
    (operation,) = bench.engine.operations.list("p", limit=99)
    bench.engine.operations.cancel("p", operation.id)
    ended = bench.engine.operations.wait("p", operation.id, 30)
    assert ended.phase is Phase.CANCELLED
    if restart:
        bench.stop()
        bench.start()
    bench.pool.catalog.commit([put(ended.but(end_time_ns=now), ended)])
    assert bench.engine.schedule.look(now + HOUR_NS - 1) == []
    assert bench.engine.schedule.look(now + HOUR_NS) == ["p"]


def test_operations_are_forgotten(bench, golden):
    """Goal: a server that runs for long forgets them too. Method: tidy up at other times."""
    operation = bench.engine.checks.verify_volume("p", "vm-1")
    bench.done(operation)
    (ended,) = [o for o in bench.pool.list(Operation) if o.id == operation.id]
    bench.engine.schedule.tidy(ended.end_time_ns + 24 * HOUR_NS - 1)
    assert bench.engine.operations.get("p", operation.id).phase is Phase.SUCCEEDED
    bench.engine.schedule.tidy(ended.end_time_ns + 24 * HOUR_NS + 1)
    assert bench.pool.list(Operation) == []


def test_no_checksums(tmp_path):
    """Goal: a pool that cannot says so. Method: a memory pool."""
    engine = Engine(EngineSettings(server_id="test"))
    memory = MemoryBackend()
    memory.open()
    engine.add_pool("m", memory, SqliteCatalog(Database(None)), None)
    with pytest.raises(NotSupportedError) as caught:
        engine.checks.scrub("m")
    assert caught.value.reason is Reason.CAPABILITY_ABSENT
    assert not engine.pools.get("m").verify
    assert engine.schedule.look(now_ns() + 10**6 * HOUR_NS) == []
    engine.close(5)
    memory.close()


def finding(first, count, *, layer=1, healed=False):
    return Finding(
        kind="CHECKSUM", layer=layer, offset_bytes=first * B, length_bytes=count * B, names=(),
        name_count=0, healed=healed,
    )  # fmt: skip


def test_known_damage_is_counted_once():
    """Goal: the count is of blocks. Method: find pieces of what is known, heal a part."""
    health = Health(first_time_ns=1)
    health = checks_module._with_findings(health, [finding(0, 10)])
    assert health.damaged_blocks == 10
    health = checks_module._with_findings(health, [finding(2, 3), finding(20, 1)])
    assert health.damaged_blocks == 11
    health = checks_module._with_findings(health, [finding(0, 4, healed=True)])
    assert health.damaged_blocks == 7
    health = checks_module._with_findings(health, [finding(0, 99, layer=2, healed=True)])
    assert health.damaged_blocks == 7
    assert without([finding(0, 4)], [finding(1, 2)]) == [finding(0, 1), finding(3, 1)]
    assert Check(heal=False).plus(finding(0, 1)).plus(finding(1, 1)).finding_count == 1
