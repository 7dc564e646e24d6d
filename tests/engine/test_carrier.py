"""Records that volumes carry: what `flush` promises."""

import time

import pytest

from engine.test_audit import make, only_rbd
from volcore.backends.carrying import Load
from volcore.engine.carrier import VOLUME_KINDS, Carrier
from volcore.errors import Reason, UnavailableError
from volcore.model.records import Kind


@pytest.fixture
def hidden():
    return set()


@pytest.fixture
def carrier(bench, hidden):
    """A carrier beside the pool's own, and a volume `v` that carries nothing."""
    volume = make(bench, "v")
    assert bench.pool.carrier.flush(10)
    bench.pool.backend.carry({volume.backend_id: Load(kinds=VOLUME_KINDS)})
    hidden.add(volume.id)
    carrier = Carrier(bench.pool.backend, bench.pool.catalog.below, hidden.__contains__)
    yield carrier
    carrier.close()


def carries(bench):
    backend_id = bench.pool.volume("v").backend_id
    return bool(bench.pool.backend.carried([backend_id])[backend_id])


@only_rbd
def test_what_was_being_made(bench, carrier, hidden):
    """Goal: at return of `flush` it is written. Method: made while something else is compared."""
    carrier.compare([(Kind.VOLUME, "v")])
    end_s = time.monotonic() + 10
    while not carrier._later:
        assert time.monotonic() < end_s
        time.sleep(0.001)
    carrier.compare([(Kind.VOLUME, "other")])
    time.sleep(0.05)  # it waits for more by now
    hidden.clear()
    assert carrier.flush(10)
    assert carries(bench)


@only_rbd
def test_what_is_being_made(bench, carrier):
    """Goal: `flush` waits for no creation. Method: one that does not end."""
    carrier.compare([(Kind.VOLUME, "v")])
    assert carrier.flush(10)
    assert not carries(bench)


@only_rbd
def test_a_failure(bench, carrier, hidden, monkeypatch):
    """Goal: what was not written is not said to be. Method: storage that does not answer."""
    hidden.clear()

    def fail(_loads):
        raise UnavailableError("no answer", reason=Reason.CLUSTER_UNREACHABLE)

    with monkeypatch.context() as patch:
        patch.setattr(bench.pool.backend, "carry", fail)
        carrier.compare([(Kind.VOLUME, "v")])
        assert not carrier.flush(10)
    assert carrier.flush(10)
    assert carries(bench)
