"""Renaming snapshots, on every kind of pool."""

import pytest

from volcore.engine.views import CreateVolume, SourceRef
from volcore.errors import ConflictError, InvalidArgumentError, NotFoundError
from volcore.limits import MIB
from volcore.model.records import SourceKind

SIZE = 8 * MIB


def test_rename(bench):
    """Goal: another name, the same snapshot. Method: repeat, collide, clone and delete after it."""
    engine = bench.engine
    engine.volumes.create("p", CreateVolume(name="v", size_bytes=SIZE))
    made = engine.snapshots.create("p", "v", "old", labels={"k": "v"})
    for _ in range(2):
        renamed = engine.snapshots.rename("p", "v", "old", "new")
        assert (renamed.id, renamed.backend_id, renamed.labels) == (
            made.id, made.backend_id, {"k": "v"},
        )  # fmt: skip
    assert engine.snapshots.rename("p", "v", "new", "new") == renamed
    with pytest.raises(NotFoundError):
        engine.snapshots.get("p", "v", "old")
    with pytest.raises(NotFoundError):
        engine.snapshots.rename("p", "v", "absent", "new")
    engine.snapshots.create("p", "v", "old")
    with pytest.raises(ConflictError):
        engine.snapshots.rename("p", "v", "old", "new")
    with pytest.raises(InvalidArgumentError):
        engine.snapshots.rename("p", "v", "old", "no/name")
    source = SourceRef(kind=SourceKind.SNAPSHOT, key="v/new")
    engine.volumes.create("p", CreateVolume(name="c", source=source))
    engine.snapshots.delete("p", "v", "new")
    assert [one.name for one in engine.snapshots.list("p", "v", limit=9)] == ["old"]
