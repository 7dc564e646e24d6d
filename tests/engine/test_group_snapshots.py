"""Use cases of group snapshots."""

import pytest

from engine.test_volumes import blank, clone, read, write
from volcore.engine import group_snapshots, pools
from volcore.errors import (
    ConflictError,
    InvalidArgumentError,
    NotFoundError,
    NotSupportedError,
    PreconditionError,
    Reason,
)
from volcore.model.records import SourceKind
from volcore.testing.intents import intents_of

pytestmark = pytest.mark.parametrize("bench", ["memory", "local"], indirect=True)


@pytest.fixture
def groups(bench):
    for name in ("a", "b", "c"):
        bench.engine.volumes.create("p", blank(name))
        write(bench, name, name.encode())
    return bench.engine.group_snapshots


def test_same_call_returns_same_group(bench, groups):
    """Ten equal calls, in any order of the volumes, make one group; others are conflicts."""
    first = groups.create("p", "g", ["b", "a"], labels={"k": "v"})
    assert [member.volume for member in first.members] == ["a", "b"]
    for _ in range(10):
        assert groups.create("p", "g", ["a", "b"], labels={"k": "v"}) == first
    assert groups.get("p", "g") == first
    for volumes, labels in ((["a"], {"k": "v"}), (["a", "b", "c"], {"k": "v"}), (["a", "b"], {})):
        with pytest.raises(ConflictError) as caught:
            groups.create("p", "g", volumes, labels=labels)
        assert caught.value.reason is Reason.NAME_TAKEN
    assert groups.list("p", limit=9) == [first]
    assert intents_of(bench.pool) == []


def test_members_are_snapshots(bench, groups):
    """A member is listed with its volume and can be cloned; it goes with its group only."""
    groups.create("p", "g", ["a", "b"])
    write(bench, "a", b"X")
    engine = bench.engine
    assert [s.name for s in engine.snapshots.list("p", "a", limit=9)] == ["g"]
    engine.volumes.create("p", clone("copy", SourceKind.SNAPSHOT, "a/g"))
    assert read(bench, "copy", 1) == b"a"
    for refused in (
        lambda: engine.snapshots.delete("p", "a", "g"),
        lambda: engine.volumes.delete("p", "a", force=True),
    ):
        with pytest.raises(PreconditionError) as caught:
            refused()
        assert caught.value.reason is Reason.SNAPSHOT_IN_GROUP
        assert caught.value.blockers[0].name == "pools/p/groupSnapshots/g"
    with pytest.raises(ConflictError):
        engine.snapshots.create("p", "a", "g")
    for _ in range(3):
        groups.delete("p", "g")
    assert engine.snapshots.list("p", limit=9) == []
    with pytest.raises(NotFoundError) as missing:
        groups.get("p", "g")
    assert missing.value.reason is Reason.GROUP_SNAPSHOT_NOT_FOUND
    assert read(bench, "copy", 1) == b"a"
    engine.volumes.delete("p", "a")
    assert groups.create("p", "g", ["b", "c"]).record.volumes == ("b", "c")


def test_all_or_nothing(bench, groups):
    """A volume that is missing, or has a snapshot of that name, leaves the others untouched."""
    bench.engine.snapshots.create("p", "b", "g")
    with pytest.raises(ConflictError) as caught:
        groups.create("p", "g", ["a", "b"])
    assert caught.value.blockers[0].name == "pools/p/volumes/b/snapshots/g"
    with pytest.raises(NotFoundError):
        groups.create("p", "h", ["a", "gone"])
    assert [s.key for s in bench.engine.snapshots.list("p", limit=9)] == ["b/g"]
    assert groups.list("p", limit=9) == []
    for wrong in ([], ["a", "a"], [f"v{index}" for index in range(65)], ["../x"]):
        with pytest.raises(InvalidArgumentError):
            groups.create("p", "h", wrong)


def test_deleting_waits_for_readers(bench, groups):
    """A member that is open keeps the group from going; a repeated call ends it."""
    made = groups.create("p", "g", ["a", "b"])
    member = made.members[1]
    with bench.pool.backend.open_device(
        member.backend_volume_id, member.backend_id, read_only=True
    ) as device:
        with pytest.raises(PreconditionError):
            groups.delete("p", "g")
        assert device.read(0, 1) == b"b"
    groups.delete("p", "g")
    assert bench.engine.snapshots.list("p", limit=9) == []
    assert intents_of(bench.pool) == []


def test_a_pool_that_cannot(bench, groups, monkeypatch):
    """A backend without the power says so, and nothing is recorded."""
    for module in (group_snapshots, pools):
        monkeypatch.setattr(module, "SupportsGroupSnapshot", type("Nobody", (), {}))
    with pytest.raises(NotSupportedError) as caught:
        groups.create("p", "g", ["a", "b"])
    assert caught.value.reason is Reason.CAPABILITY_ABSENT
    assert bench.engine.pools.get("p").group_snapshot is False


def test_lists_go_on_beside_deletions(bench, groups, monkeypatch):
    """Goal: what goes while a list is read hides nothing else. Method: delete between two reads."""
    for name in ("g1", "g2", "g3"):
        groups.create("p", name, ["a", "b"])
    todo = ["g1"]
    real = group_snapshots.members_of

    def slow(pool, group):
        if todo:
            groups.delete("p", todo.pop())
        return real(pool, group)

    monkeypatch.setattr(group_snapshots, "members_of", slow)
    found = groups.list("p", limit=1)
    assert [view.record.name for view in found] == ["g2"]
