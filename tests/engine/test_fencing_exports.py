"""Fencing a host that reaches its volumes over NBD, through this server."""

import contextlib
import threading

import pytest
from nbd.client import EPERM, WRITE, HungUpError, RawClient

from engine.test_volumes import blank
from volcore.engine import fencing
from volcore.engine.attachments import republish
from volcore.engine.fencing import settle_fences
from volcore.errors import PreconditionError, Reason
from volcore.model.fences import FencedHost, FenceState
from volcore.model.records import AccessMode, Attachment

RW, SHARED = AccessMode.READ_WRITE, AccessMode.READ_WRITE_SHARED
pytestmark = pytest.mark.parametrize("bench", ["memory", "local"], indirect=True)


def connected(served, name: str) -> RawClient:
    address = served.pool.exporter.server.addresses[0]
    return RawClient((address.host, address.port)).go(name)


def fence(served, host: str) -> FencedHost:
    plan = served.engine.fences.plan("p", host)[1]
    assert plan.clients == ()
    return served.engine.fences.fence("p", host, etag=plan.etag)


def content(served, volume: str) -> bytes:
    backend_id = served.pool.volume(volume).backend_id
    with served.pool.backend.open_device(backend_id, read_only=True) as device:
        return device.read(0, 4096)


def test_late_writes_never_land(served):
    """Goal: the next host has it alone. Method: write before, and after, on the same connection."""
    attachments = served.engine.attachments
    for volume, host in (("v", "a"), ("w", "b")):
        served.engine.volumes.create("p", blank(volume))
        attachments.attach("p", volume, host, RW)
    with connected(served, "p/v") as mine, connected(served, "p/w") as other:
        assert mine.call(WRITE, 0, data=b"1" * 4096).errno == 0
        fenced = fence(served, "a")
        assert (fenced.state, fenced.volumes) == (FenceState.FENCED, ("v",))
        assert fence(served, "a") == fenced
        attachments.attach("p", "v", "c", RW)
        with pytest.raises(HungUpError):
            mine.call(WRITE, 0, data=b"2" * 4096)
        assert content(served, "v") == b"1" * 4096
        assert other.call(WRITE, 0, data=b"3" * 4096).errno == 0
    with connected(served, "p/v") as new:
        assert new.call(WRITE, 0, data=b"4" * 4096).errno == 0
    with pytest.raises(PreconditionError) as caught:
        attachments.attach("p", "v", "a", RW)
    assert caught.value.reason is Reason.HOST_FENCED
    served.engine.fences.unfence("p", "a")
    attachments.detach("p", "v", "c")
    attachments.attach("p", "v", "a", RW)


def test_target_of_a_hand_over(served):
    """The source of a live migration is fenced: its target may take over, and nobody else."""
    attachments = served.engine.attachments
    served.engine.volumes.create("p", blank("v"))
    attachments.attach("p", "v", "a", RW)
    attachments.attach("p", "v", "b", RW, hand_over_from="a")
    fence(served, "a")
    assert served.pool.exporter.exports.names() == ["p/v/b"]
    with connected(served, "p/v/b") as target:
        assert target.call(WRITE, 0, data=b"1" * 4096).errno == EPERM
        attachments.hand_over("p", "v", "b")
        assert target.call(WRITE, 0, data=b"1" * 4096).errno == 0


def test_shared_export(served):
    """Who shares a volume with a fenced host keeps it."""
    attachments = served.engine.attachments
    served.engine.volumes.create("p", blank("v"))
    for host in ("a", "b"):
        attachments.attach("p", "v", host, SHARED)
    fence(served, "a")
    with connected(served, "p/v") as left:
        assert left.call(WRITE, 0, data=b"1" * 4096).errno == 0
    assert [one.host for one in served.pool.list(Attachment)] == ["b"]


@pytest.mark.parametrize("step", ["begun", "shut", "commit", "committed"])
def test_server_dies_in_between(served, monkeypatch, step):
    """Goal: fenced or not begun, never free too soon. Method: die at each step, start again."""

    class DeathError(BaseException):
        pass

    served.engine.volumes.create("p", blank("v"))
    served.engine.attachments.attach("p", "v", "a", RW)
    pool, exporter = served.pool, served.pool.exporter
    withdraw, commit = exporter.withdraw, pool.catalog._catalog.commit
    commits = []

    def dying(changes):
        commits.append(changes)
        if len(commits) == 2 and step == "commit":
            raise DeathError
        commit(changes)
        if (len(commits), step) in ((1, "begun"), (2, "committed")):
            raise DeathError

    def shutting(name):
        withdraw(name)
        if step == "shut":
            raise DeathError

    with monkeypatch.context() as patch:
        patch.setattr(pool.catalog._catalog, "commit", dying)
        patch.setattr(exporter, "withdraw", shutting)
        with pytest.raises(DeathError):
            fence(served, "a")
    found = pool.find(FencedHost, "a")
    assert found.state is (FenceState.FENCED if step == "committed" else FenceState.FENCING)
    assert (pool.find(Attachment, "v/a") is None) == (step == "committed")
    with contextlib.suppress(PreconditionError):
        served.engine.attachments.attach("p", "v", "c", RW)
        assert step == "committed"
    settle_fences(pool)
    republish(pool)
    assert pool.find(FencedHost, "a").state is FenceState.FENCED
    assert pool.find(Attachment, "v/a") is None
    assert served.pool.exporter.exports.names() == (["p/v"] if step == "committed" else [])


def test_bugs_do_not_end_the_look(served, monkeypatch):
    """Goal: what is cut off stays looked after. Method: a look that fails, then one that counts."""
    served.engine.volumes.create("p", blank("v"))
    served.engine.attachments.attach("p", "v", "a", RW)
    fence(served, "a")
    looks, again = [], threading.Event()

    def look(at, host):
        looks.append((at.name, host))
        if len(looks) == 1:
            raise RuntimeError("a bug")
        again.set()

    monkeypatch.setattr(fencing, "FENCE_LOOK_PERIOD_S", 0.01)
    monkeypatch.setattr(fencing, "look_after", look)
    served.engine.fences.start()
    assert again.wait(30)
    assert served.engine.fences.close(30)
    assert set(looks) == {("p", "a")}
