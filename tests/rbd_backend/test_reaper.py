"""What could not be freed when its time came is freed later, without a new start."""

import time

import pytest

from rbd_backend.pools import leftovers
from volcore.backends.rbd import reaper
from volcore.errors import Reason, UnavailableError
from volcore.limits import MIB

SIZE = 8 * MIB
FREED_S = 30


@pytest.fixture
def away(backend, monkeypatch):
    """Names of images whose removal fails once; the next try is soon."""
    monkeypatch.setattr(reaper, "RETRY_S", 0.2)
    names, remove = set(), backend._session().reaper._remove

    def fail(image_id, name):
        if name in names:
            names.remove(name)
            raise UnavailableError("away", reason=Reason.CLUSTER_UNREACHABLE)
        remove(image_id, name)

    monkeypatch.setattr(backend._session().reaper, "_remove", fail)
    return names


@pytest.mark.parametrize("failing", ["root", "clone", "both"])
def test_what_failed_is_tried_again(backend, ceph_cluster, ceph_pool, away, failing):
    """Goal: no leak. Method: OSDs are away when a deleted family is freed, at each of its images.

    The deletion itself has succeeded.
    """
    backend.create("root", SIZE)
    backend.create_snapshot("root", "s")
    backend.clone("root", "s", "clone", SIZE)
    backend.delete("root")
    away |= {"root", "clone"} if failing == "both" else {failing}
    backend.delete("clone")
    assert not list(backend.walk())
    deadline = time.monotonic() + FREED_S
    while leftovers(ceph_cluster, ceph_pool):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert not away
