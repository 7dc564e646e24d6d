"""What goes on when a call has its answer: checks in a thread, and locks that outlive the call."""

import threading
from functools import partial

import pytest

from volcore.engine import behind
from volcore.engine.behind import Behind
from volcore.engine.locks import KeyedLocks
from volcore.errors import OperationPendingError, UnavailableError


def test_begun_together():
    """Goal: many cost one round trip. Method: what comes while the thread is busy."""
    checks, begun, ended = Behind(), [], []

    def check(number: int):
        def begin():
            begun.append(number)

            def end() -> None:
                ended.append((number, len(begun)))

            return end

        return begin

    running, block = threading.Event(), threading.Event()

    def busy() -> None:
        running.set()
        block.wait(60)

    checks.add(lambda: busy)
    assert running.wait(60)
    for number in range(5):
        checks.add(check(number))
    assert not checks.wait(0)
    block.set()
    assert checks.wait(60)
    assert begun == list(range(5))
    assert ended == [(number, 5) for number in range(5)]
    checks.close()
    checks.close()


def test_tried_again(monkeypatch):
    """Goal: a failure is repeated, and holds nothing else up. Method: fail at each place."""
    monkeypatch.setattr(behind, "RETRY_S", 0.01)
    checks, tries, others = Behind(), [], []

    def fail() -> None:
        raise UnavailableError("no", reason="CLUSTER_UNREACHABLE")

    def begin():
        tries.append(len(tries))
        if len(tries) == 1:
            fail()
        return fail if len(tries) == 2 else lambda: None

    checks.add(begin)
    checks.add(lambda: lambda: others.append(1))
    assert checks.wait(60)
    assert tries == [0, 1, 2]
    assert others == [1]
    checks.close()


def test_a_bug_ends_nothing(monkeypatch):
    """Goal: what a bug breaks is tried again, and locks do not stay. Method: raise what is none."""
    monkeypatch.setattr(behind, "RETRY_S", 0.01)
    checks, tries = Behind(), []

    def begin():
        tries.append(1)
        assert len(tries) > 1
        return partial(int, "no number") if len(tries) == 2 else lambda: None

    checks.add(begin)
    assert checks.wait(60)
    assert len(tries) == 3
    checks.close()


def test_a_failure_delays_no_other(monkeypatch):
    """Goal: what waits for its next try holds nothing up. Method: one that fails, then another."""
    monkeypatch.setattr(behind, "RETRY_S", 600)
    checks, tries, done = Behind(), [], threading.Event()

    def fail():
        tries.append(1)
        raise UnavailableError("no", reason="CLUSTER_UNREACHABLE")

    checks.add(fail)
    while not tries:
        assert not checks.wait(0.01)
    checks.add(lambda: done.set)
    assert done.wait(60)
    checks.close()
    assert len(tries) == 2


def test_closing_does_what_is_left_once():
    """Goal: an end in time. Method: close with a check that waits and one that always fails."""
    checks, done = Behind(), []

    def fail():
        done.append("failed")
        raise UnavailableError("no", reason="CLUSTER_UNREACHABLE")

    checks.add(fail)
    checks.add(lambda: lambda: done.append("done"))
    checks.close()
    assert done.count("done") == 1
    assert 1 <= done.count("failed") <= 2


def test_kept_locks():
    """Goal: keys stay locked until both ends. Method: either end first; shared ones, too."""
    locks = KeyedLocks()

    def is_free(**keys) -> bool:
        try:
            with locks.hold(**keys, timeout_s=0.01):
                return True
        except OperationPendingError:
            return False

    with locks.hold(["a", "b"], ["s"]):
        end = locks.keep(["a"], ["s"])
    assert is_free(exclusive=["b"], shared=["s"])
    assert not is_free(exclusive=["a"])
    assert not is_free(shared=["a"])
    assert not is_free(exclusive=["s"])
    end()
    assert is_free(exclusive=["a", "b", "s"])
    with locks.hold(["a"]):
        locks.keep(["a"])()
        assert not is_free(exclusive=["a"])
        with pytest.raises(AssertionError):
            locks.keep(["c"])
    assert is_free(exclusive=["a"])
