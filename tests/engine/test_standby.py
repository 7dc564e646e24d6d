"""A server on standby tells its callers who has the pool, whatever it has seen."""

import threading
import time

import pytest

from volcore.engine.pools import Pools
from volcore.engine.standby import Standby
from volcore.errors import PreconditionError, Reason, UnavailableError
from volcore.limits import TAKE_OVER_WAIT_S


class Lock:
    """Shows a row of holders, and the last one for good."""

    def __init__(self, *holders):
        self.holders = list(holders)
        self.shown = threading.Event()

    endpoint = ""

    def holder(self):
        if len(self.holders) > 1:
            return self.holders.pop(0)
        self.shown.set()
        return self.holders[0]

    def close(self):
        pass


@pytest.mark.parametrize("other", ["one", "two"])
def test_who_was_late_has_it_again(other):
    """Goal: nobody waits then. Method: the lock runs out; who had it is faster, or a third one."""
    lock, taken = Lock("one", "", other), []

    def take(name):
        taken.append(name)
        raise PreconditionError("somebody else was first", reason=Reason.POOL_LOCKED)

    pools = Pools()
    standby = Standby(
        pools, ["p"], watch=lambda _: lock, take=take, on_all_taken=lambda: taken.append("all")
    )
    try:
        assert lock.shown.wait(10)
        began_s = time.monotonic()
        with pytest.raises(UnavailableError, match=rf"another server \({other}\)") as caught:
            pools.open("p")
        assert caught.value.reason is Reason.POOL_ELSEWHERE
        assert time.monotonic() - began_s < TAKE_OVER_WAIT_S / 2
        assert taken == ["p"]
    finally:
        standby.close()
