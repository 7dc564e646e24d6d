"""Calls that wait for a pool which another server may have by now, on a real Ceph that freezes."""

import os
import signal
import time
from contextlib import contextmanager

import grpc
import pytest

from volcore.errors import Reason
from volcore.limits import MIB, SERVER_LEASE_S
from volcore.testing.cluster import own_daemons
from volcore.testing.server import RunningServer
from volcore.v1 import volume_service_pb2, volume_service_pb2_grpc
from volcore.wire.channels import DIRECT_KEY
from volcore.wire.status import from_rpc_error

pytestmark = pytest.mark.ceph
NOTICED_S = 4.0
"""How long after its lease a busy server may notice."""


@contextmanager
def frozen(cluster):
    """The OSDs stand still inside."""
    handles = list(own_daemons(str(cluster.conf_path), "ceph-osd", None))
    assert handles
    try:
        for handle in handles:
            signal.pidfd_send_signal(handle, signal.SIGSTOP)
        yield
    finally:
        for handle in handles:
            signal.pidfd_send_signal(handle, signal.SIGCONT)
            os.close(handle)


def test_who_knows_others_is_sent_on(frail_cluster, short_directory):
    """Goal: nobody hangs who can go elsewhere. Method: freeze all OSDs for longer than the lease.

    A caller with one endpoint waits, and its call succeeds; or, if it comes to its change before
    the lock is renewed, it may be repeated. So may the other one's.
    """
    frail_cluster.create_pool("one")
    lines = (
        f'backend = "rbd"\nceph_conf = "{frail_cluster.conf_path}"\nuser = "admin"\npool = "one"'
    )
    with (
        RunningServer(short_directory / "server", lines) as server,
        grpc.insecure_channel(server.endpoint) as channel,
    ):
        stub = volume_service_pb2_grpc.VolumeServiceStub(channel)

        def create(name, *metadata):
            request = volume_service_pb2.CreateVolumeRequest(
                parent="pools/p", volume_id=name, size_bytes=MIB
            )
            return stub.CreateVolume.future(request, metadata=metadata, timeout=60)

        create("first").result()
        with frozen(frail_cluster):
            began_s = time.monotonic()
            patient, sent_on = create("patient"), create("sent-on", (DIRECT_KEY, "1"))
            with pytest.raises(grpc.RpcError) as caught:
                sent_on.result()
            took_s = time.monotonic() - began_s
            error = from_rpc_error(caught.value)
            assert (error.reason, error.retryable) == (Reason.CLUSTER_UNREACHABLE, True)
            assert error.context["pool"] == "p"
            assert took_s < SERVER_LEASE_S + NOTICED_S
            assert not patient.done()
        try:
            assert patient.result().volume.name == "pools/p/volumes/patient"
        except grpc.RpcError as err:
            error = from_rpc_error(err)
            assert (error.reason, error.retryable) == (Reason.CLUSTER_UNREACHABLE, True)
        with server.client() as client:  # it repeats until the lock is renewed
            for name in ("pools/p/volumes/patient", "pools/p/volumes/sent-on"):
                assert client.create_volume(name, size_bytes=MIB).name == name
            assert len(list(client.list_volumes("pools/p"))) == 3
