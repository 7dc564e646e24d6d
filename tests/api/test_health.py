"""The health service against real storage that comes and goes."""

import json
import subprocess
import threading
import time

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from volcore.backends.rbd.lease import LOCK_NAME, LOCK_OBJECT
from volcore.engine.reach import Reach, is_serving
from volcore.testing.cluster import stop_daemons
from volcore.testing.server import RunningServer

SERVICES = ["", "volcore.v1.VolumeService", "pools/p"]
WITHIN_S = 30
MODULE = "volcore.testing.hasty_server"


class Watched:
    """Everything that a Watch of one service has said, and a Check beside it."""

    def __init__(self, endpoint, service):
        self.service = service
        self.said = []
        self._channel = grpc.insecure_channel(endpoint)
        self._stub = health_pb2_grpc.HealthStub(self._channel)
        self._watch = self._stub.Watch(health_pb2.HealthCheckRequest(service=service))
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self):
        try:
            for answer in self._watch:
                self.said.append(answer.status)
        except grpc.RpcError:
            pass

    def check(self):
        return self._stub.Check(
            health_pb2.HealthCheckRequest(service=self.service), timeout=5
        ).status

    def becomes(self, good):
        wanted = {True: 1, False: 2}[good]
        deadline_s = time.monotonic() + WITHIN_S
        while not self.said or self.said[-1] != wanted:
            assert time.monotonic() < deadline_s, (self.service, self.said)
            time.sleep(0.02)
        assert self.check() == wanted, self.service

    def close(self):
        self._channel.close()
        self._thread.join(10)


@pytest.mark.parametrize(
    ("seen", "serving"),
    [
        ({"a": Reach.HERE, "b": Reach.HERE}, True),
        ({"a": Reach.HERE, "b": Reach.AWAY}, True),
        ({"a": Reach.AWAY, "b": Reach.AWAY}, False),
        ({"a": Reach.HERE, "b": Reach.LOST}, False),
        ({}, False),
    ],
)
def test_several_pools(seen, serving):
    """Goal: one dead cluster takes no other pool along; a server that lost a pool goes."""
    assert is_serving(seen) is serving


def test_storage_comes_and_goes(frail_cluster, short_directory):
    """Goal: SERVING is the truth. Method: stop and start OSD and monitor, fence, end; watch."""
    cluster = frail_cluster
    for pool in ("one", "two"):
        cluster.create_pool(pool)
    lines = f'backend = "rbd"\nceph_conf = "{cluster.conf_path}"\nuser = "volcore"\npool = '
    both = lines + '"two"\n[pools.q]\nbackend = "memory"\n'
    with (
        RunningServer(short_directory / "h1", f'{lines}"one"\n', module=MODULE) as first,
        RunningServer(short_directory / "h2", both, module=MODULE) as second,
    ):
        mine = [Watched(first.endpoint, service) for service in SERVICES]
        others = [Watched(second.endpoint, service) for service in ("", "pools/p", "pools/q")]

        def all_are(good):
            for one in mine:
                one.becomes(good)
            for one in others:
                one.becomes(good or one.service != "pools/p")

        all_are(True)
        stop_daemons(cluster.conf_path, daemon=("ceph-osd", "0"))
        all_are(False)
        cluster._run("ceph-osd", "-i", "0")
        all_are(True)
        stop_daemons(cluster.conf_path, daemon=("ceph-mon", "a"), hard=True)
        all_are(False)
        cluster._run("ceph-mon", "-i", "a")
        all_are(True)
        assert {status for one in others if one.service != "pools/p" for status in one.said} == {1}

        fence(cluster, "one")
        deadline_s = time.monotonic() + WITHIN_S
        while "POOL_LOCKED" not in first.log():
            assert time.monotonic() < deadline_s, first.log()
            time.sleep(0.02)
        for one in mine:
            one.becomes(False)
        before = len(others[0].said)
        assert second.stop() == 0
        assert others[0].said[before:] == [2]
        for one in [*mine, *others]:
            one.close()
        first.stop()
        assert "Traceback" not in first.log() + second.log()


def fence(cluster, pool):
    """Put the Ceph client of the server of a pool on the blocklist, as its successor would."""
    import rados

    told = subprocess.run(
        ["rados", "-c", cluster.conf_path, "-n", "client.admin", "-p", pool, "--format", "json",
         "lock", "info", LOCK_OBJECT, LOCK_NAME],
        check=True, capture_output=True,
    )  # fmt: skip
    (locker,) = json.loads(told.stdout)["lockers"]
    with rados.Rados(conffile=str(cluster.conf_path), rados_id="admin") as admin:
        admin.blocklist_add(json.loads(locker["description"])["address"], 600)
