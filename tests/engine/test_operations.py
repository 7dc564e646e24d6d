"""Long work when its storage, or the place of its record, cannot be reached for a while."""

import threading

import pytest
from structlog.testing import capture_logs

from volcore.engine import operations
from volcore.engine.operations import Work
from volcore.errors import Reason, UnavailableError
from volcore.model.records import Operation, Phase

ACTION = "test"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(operations, "RETRY_S", 0.01)


def unreachable() -> UnavailableError:
    return UnavailableError("gone", reason=Reason.CLUSTER_UNREACHABLE, retryable=True)


class Failing:
    """Work that cannot reach its storage a few times."""

    def __init__(self, times: int) -> None:
        self.times = times
        self.tries = 0
        self.tried = threading.Event()

    def __call__(self, pool, work: Work) -> None:
        self.tries += 1
        if self.tries > 1:
            self.tried.set()
        if self.tries <= self.times:
            raise unreachable()


def start(bench, action) -> Operation:
    return bench.engine.operations.start(bench.pool, ACTION, "pools/p", "s", action)


def test_goes_on(bench):
    """Goal: an outage fails nothing that a restart would not. Method: fail twice, both kinds."""
    firm, loose = Failing(2), Failing(2)
    ended = bench.engine.operations.wait("p", start(bench, loose).id, 30)
    assert (ended.phase, ended.error_reason) == (Phase.FAILED, Reason.CLUSTER_UNREACHABLE)
    bench.engine.operations.resume_with(ACTION, firm)
    with capture_logs() as logs:
        ended = bench.engine.operations.wait("p", start(bench, firm).id, 30)
    assert [line["event"] for line in logs] == ["operation waits for its storage"]
    assert (ended.phase, firm.tries, loose.tries) == (Phase.SUCCEEDED, 3, 1)


def test_cancelled_while_it_waits(bench):
    """Goal: waiting work can be cancelled. Method: cancel work whose storage never comes back."""
    action = Failing(10**9)
    bench.engine.operations.resume_with(ACTION, action)
    begun = start(bench, action)
    assert action.tried.wait(30)
    bench.engine.operations.cancel("p", begun.id)
    assert bench.engine.operations.wait("p", begun.id, 30).phase is Phase.CANCELLED


def test_left_at_the_end(bench):
    """Goal: it goes on at the next start. Method: close while it waits, and read its record."""
    action = Failing(10**9)
    bench.engine.operations.resume_with(ACTION, action)
    begun = start(bench, action)
    assert action.tried.wait(30)
    assert bench.engine.operations.close(30)
    stored = bench.pool.find(Operation, begun.id)
    assert stored is not None
    assert not stored.finished


def test_end_recorded_late(bench, monkeypatch):
    """Goal: what has ended is not shown as running. Method: refuse its record for a while."""
    write, refused = Work.write, []

    def refuse(work: Work, operation: Operation) -> None:
        if operation.finished and len(refused) < 3:
            refused.append(operation)
            raise unreachable()
        write(work, operation)

    monkeypatch.setattr(Work, "write", refuse)
    begun = start(bench, Failing(0))
    ended = bench.engine.operations.wait("p", begun.id, 30)
    assert (ended.phase, len(refused)) == (Phase.SUCCEEDED, 3)
    assert bench.pool.find(Operation, begun.id) == ended
