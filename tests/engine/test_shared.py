"""Attachments that share the right to write, whatever else a host may ask for meanwhile."""

import pytest
from nbd.client import READ, WRITE, RawClient

from engine.test_volumes import blank
from volcore.errors import PreconditionError, Reason
from volcore.model.records import AccessMode

RW, RO, SHARED = AccessMode.READ_WRITE, AccessMode.READ_ONLY, AccessMode.READ_WRITE_SHARED
pytestmark = pytest.mark.parametrize("bench", ["memory", "local"], indirect=True)


@pytest.mark.parametrize(
    ("first", "second"), [(SHARED, RW), (SHARED, RO), (RW, SHARED), (RO, SHARED)]
)
def test_no_other_mode_beside_it(served, first, second):
    """Who shares shares with all. Method: each other mode before and after."""
    served.engine.volumes.create("p", blank("v"))
    attachments = served.engine.attachments
    attachments.attach("p", "v", "a", first)
    with pytest.raises(PreconditionError, match="attached to a") as caught:
        attachments.attach("p", "v", "b", second)
    assert caught.value.reason is Reason.VOLUME_IN_USE
    attachments.detach("p", "v", "a")
    attachments.attach("p", "v", "b", second)


def test_hosts_write_at_a_time(served):
    """Each host reads what the other one wrote, and keeps that right when the other one goes."""
    served.engine.volumes.create("p", blank("v"))
    attachments = served.engine.attachments
    for _ in range(2):
        views = [attachments.attach("p", "v", host, SHARED) for host in ("a", "b")]
    assert not any(view.record.standby for view in views)
    assert attachments.hand_over("p", "v", "b").record == views[1].record
    with pytest.raises(PreconditionError) as caught:
        attachments.attach("p", "v", "c", RW, hand_over_from="a")
    assert caught.value.reason is Reason.WRONG_STATE
    exporter = served.pool.exporter
    (name,) = exporter.exports.names()
    address = exporter.server.addresses[0]
    where = (address.host, address.port)
    with RawClient(where).go(name) as one, RawClient(where).go(name) as other:
        for writer, reader, byte in ((one, other, b"1"), (other, one, b"2")):
            assert writer.call(WRITE, 0, data=byte * 4096).errno == 0
            assert reader.call(READ, 0, 4096).data(0, 4096) == byte * 4096
    attachments.detach("p", "v", "a")
    with RawClient(where).go(name) as left:
        assert left.call(WRITE, 0, data=b"3" * 4096).errno == 0
    attachments.detach("p", "v", "b")
    assert not exporter.exports.names()
