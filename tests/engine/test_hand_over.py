"""Use cases of live migration: attach a target, hand over, go back, clean up; dying in between."""

import contextlib
from dataclasses import replace

import pytest
from nbd.client import EPERM, WRITE, RawClient

from engine.test_volumes import blank
from volcore.catalog.sqlite import SqliteCatalog
from volcore.engine.engine import Engine, EngineSettings
from volcore.engine.pool import put
from volcore.errors import (
    ConflictError,
    InvalidArgumentError,
    NotFoundError,
    PreconditionError,
    Reason,
    VolcoreError,
)
from volcore.model.records import AccessMode
from volcore.nbd import ExportTable, NbdServer, TcpAddress

from .conftest import TableExporter

RW, RO = AccessMode.READ_WRITE, AccessMode.READ_ONLY
pytestmark = pytest.mark.parametrize("bench", ["memory", "local"], indirect=True)


@pytest.fixture
def attachments(served):
    served.engine.volumes.create("p", blank("v"))
    made = served.engine.attachments
    made.attach("p", "v", "a", RW)
    return made


def standby(attachments) -> dict[str, bool]:
    return {v.record.host: v.record.standby for v in attachments.list("p", "v", limit=9)}


def may_write(exporter) -> list[str]:
    """Names of the exports that let a client write now."""
    found = []
    for name in exporter.exports.names():
        address = exporter.server.addresses[0]
        with RawClient((address.host, address.port)).go(name) as client:
            errno = client.call(WRITE, 0, data=b"x" * 4096).errno
            assert errno in (0, EPERM)
            if not errno:
                found.append(name)
    return found


def test_life(served, attachments):
    """Every step ten times over: prepare, switch, back, switch, clean up."""
    exporter = served.pool.exporter

    def target():
        return attachments.attach("p", "v", "b", RW, hand_over_from="a")

    first = target()
    assert first.record.standby
    assert first.connection.export_name == "p/v/b"
    assert [target() for _ in range(9)] == [first] * 9
    assert may_write(exporter) == ["p/v"]
    for host, export in (("b", "p/v/b"), ("a", "p/v"), ("b", "p/v/b")):
        for _ in range(10):
            assert not attachments.hand_over("p", "v", host).record.standby
        assert may_write(exporter) == [export]
        assert standby(attachments) == {"a": host != "a", "b": host != "b"}
    assert not target().record.standby
    with pytest.raises(PreconditionError) as caught:
        attachments.attach("p", "v", "a", RW)
    assert caught.value.blockers[0].name.endswith("/b")
    for _ in range(10):
        attachments.detach("p", "v", "a")
    assert exporter.exports.names() == ["p/v/b"]
    assert attachments.attach("p", "v", "b", RW).record.hand_over_from == "a"
    attachments.attach("p", "v", "a", RW, hand_over_from="b")
    attachments.hand_over("p", "v", "a")
    attachments.detach("p", "v", "b")
    assert may_write(exporter) == ["p/v/a"]
    attachments.detach("p", "v", "a")
    assert exporter.exports.names() == []
    served.engine.volumes.delete("p", "v")


def test_given_up_before_the_switch(served, attachments):
    """The target is detached: nothing changed for the source. A source that died is replaced."""
    attachments.attach("p", "v", "b", RW, hand_over_from="a")
    attachments.detach("p", "v", "b")
    assert may_write(served.pool.exporter) == ["p/v"]
    attachments.attach("p", "v", "b", RW, hand_over_from="a")
    attachments.detach("p", "v", "a")
    assert may_write(served.pool.exporter) == []
    assert standby(attachments) == {"b": True}
    attachments.hand_over("p", "v", "b")
    assert may_write(served.pool.exporter) == ["p/v/b"]


def test_refusals(served, attachments):
    """What is no hand-over is refused, and nothing changes."""
    served.engine.volumes.create("p", blank("r"))
    attachments.attach("p", "r", "a", RO)
    attachments.attach("p", "v", "b", RW, hand_over_from="a")
    cases = [
        (lambda: attachments.attach("p", "v", "c", RO, hand_over_from="a"), Reason.BAD_FIELD),
        (lambda: attachments.attach("p", "v", "c", RW, hand_over_from="c"), Reason.BAD_FIELD),
        (lambda: attachments.attach("p", "v", "c", RW, hand_over_from="a"), Reason.VOLUME_IN_USE),
        (lambda: attachments.attach("p", "v", "c", RW, hand_over_from="x"), Reason.WRONG_STATE),
        (lambda: attachments.attach("p", "v", "c", RW, hand_over_from="b"), Reason.WRONG_STATE),
        (lambda: attachments.attach("p", "r", "c", RW, hand_over_from="a"), Reason.WRONG_STATE),
        (lambda: attachments.attach("p", "v", "b", RW, hand_over_from="x"), Reason.NAME_TAKEN),
        (lambda: attachments.attach("p", "v", "b", RW), Reason.VOLUME_IN_USE),
        (lambda: attachments.attach("p", "v", "c", RO), Reason.VOLUME_IN_USE),
        (lambda: attachments.hand_over("p", "v", "c"), Reason.ATTACHMENT_NOT_FOUND),
        (lambda: attachments.hand_over("p", "x", "a"), Reason.VOLUME_NOT_FOUND),
        (lambda: attachments.hand_over("p", "r", "a"), Reason.WRONG_STATE),
    ]
    kinds = (ConflictError, InvalidArgumentError, NotFoundError, PreconditionError)
    for call, reason in cases:
        with pytest.raises(kinds) as caught:
            call()
        assert caught.value.reason is reason
    assert standby(attachments) == {"a": False, "b": True}
    assert may_write(served.pool.exporter) == ["p/v"]


@pytest.mark.parametrize("step", ["shut", "commit", "committed", "open"])
def test_server_dies_in_between(served, attachments, monkeypatch, step):
    """Goal: never two writers, API and exports agree. Method: die at each step, start again."""

    class DeathError(BaseException):
        pass

    pool, exporter = served.pool, served.pool.exporter
    attachments.attach("p", "v", "b", RW, hand_over_from="a")
    dead = []
    set_writable, commit = exporter.set_writable, pool.catalog._catalog.commit

    def die():
        dead.append(step)
        raise DeathError

    def gated(name, writable):
        if dead or (step == "open" and writable):
            die()
        set_writable(name, writable)
        if step == "shut":
            die()

    def committed(changes):
        if step == "commit":
            die()
        commit(changes)
        if step == "committed":
            die()

    with monkeypatch.context() as patch:
        patch.setattr(exporter, "set_writable", gated)
        patch.setattr(SqliteCatalog, "commit", lambda _self, changes: committed(changes))
        with contextlib.suppress(DeathError):
            attachments.hand_over("p", "v", "b")
    assert dead
    assert may_write(exporter) in ([], ["p/v"])
    exports = ExportTable()
    server = NbdServer(TcpAddress("127.0.0.1", 0), exports=exports)
    server.start()
    restarted = TableExporter(exports, server)
    engine = Engine(EngineSettings(server_id="again"))
    engine.add_pool("p", pool.backend, pool.catalog, restarted)
    switched = step in ("committed", "open")
    assert standby(engine.attachments) == {"a": switched, "b": not switched}
    assert may_write(restarted) == (["p/v/b"] if switched else ["p/v"])
    engine.attachments.hand_over("p", "v", "b")
    assert may_write(restarted) == ["p/v/b"]
    engine.close(5)
    server.stop(5)


def test_catalog_refuses(served, attachments, monkeypatch):
    """A switch that cannot be recorded is taken back: the source writes on."""
    attachments.attach("p", "v", "b", RW, hand_over_from="a")
    with monkeypatch.context() as patch:

        def full(_self, _changes):
            raise VolcoreError("the pool is full", reason=Reason.POOL_FULL)

        patch.setattr(SqliteCatalog, "commit", full)
        with pytest.raises(VolcoreError):
            attachments.hand_over("p", "v", "b")
    assert may_write(served.pool.exporter) == ["p/v"]


def test_list_goes_on_beside_deletions(served, attachments):
    """Goal: a volume that goes while a list is read fails it not. Method: a record it had left."""
    mine = attachments.list("p", limit=9)
    (view,) = mine
    gone = replace(view.record, volume="u", volume_id="gone", revision=1)
    served.pool.catalog.commit([put(gone)])
    assert attachments.list("p", limit=1) == mine
