"""Two servers on one pool of a real Ceph: the one that has it dies or freezes, the other goes on.

Nobody is restarted for that: the server that stood by ends or undoes what was begun, and the very
call that was cut off returns the right result through it.
"""

import random
import re
import socket
import threading
import time
from contextlib import ExitStack
from functools import partial

import grpc
import pytest

from e2e.conftest import RbdSite
from volcore.client import Client, ClientTls, RetryPolicy
from volcore.errors import NotFoundError, UnavailableError, VolcoreError
from volcore.limits import MIB, SERVER_LEASE_S
from volcore.testing.certificates import Authority
from volcore.testing.failover import POOL, Pair, Run, judge
from volcore.testing.server import RunningServer
from volcore.v1 import (
    operation_pb2,
    pool_pb2,
    pool_service_pb2,
    pool_service_pb2_grpc,
    volume_pb2,
)
from volcore.wire.channels import DIRECT_KEY
from volcore.wire.status import from_rpc_error

pytestmark = pytest.mark.ceph
TAKEN_S = 20.0
"""How long a take-over may last on a busy machine; a quiet one needs half a second."""
IMAGE = f"{POOL}/images/gold"
NAMES = [f"d{number:02}" for number in range(12)]
ONCE = RetryPolicy(tries_max=1)


@pytest.fixture(scope="module")
def pair(ceph_cluster, ceph_module_pool, tmp_path_factory):
    """Two servers, up again after each test."""
    directory = tmp_path_factory.mktemp("pair")
    more = 'user = "admin"\nwarm_clones = 24\n'
    made = Pair(ceph_cluster, ceph_module_pool, directory, more=more)
    with made.running():
        made.leader.wait_for_short_path()
        yield made


@pytest.fixture
def site(pair, ceph_cluster, ceph_module_pool):
    return RbdSite(pair.leader, ceph_cluster, ceph_module_pool)


@pytest.fixture
def image_path(tmp_path):
    path = tmp_path / "image.raw"
    source = random.Random(3)
    with path.open("wb") as file:
        for _ in range(24):
            file.write(source.randbytes(MIB))
    return path


class Cut:
    """Starts work, kills the server that has the pool in its middle, and checks what is there."""

    def __init__(self, pair: Pair, site: RbdSite) -> None:
        self.pair, self.site = pair, site

    def __call__(self, work, *, after_s: float) -> None:
        """The call under way ends well through the other server, and storage and catalog agree."""
        errors: list[BaseException] = []

        def run() -> None:
            try:
                with self.pair.client() as client:
                    work(client)
            except BaseException as err:
                errors.append(err)

        thread = threading.Thread(target=run)
        thread.start()
        time.sleep(after_s)
        self.pair.kill()
        started_s = time.monotonic()
        thread.join(60)
        took_s = time.monotonic() - started_s
        assert not thread.is_alive()
        assert not errors, errors
        assert took_s < TAKEN_S, took_s
        self.site.server = self.pair.leader
        self.check()
        self.pair.restart()

    def check(self) -> None:
        """`rbd ls` and the catalog agree but for the stock of warm clones."""
        self.site.wait_deleted()
        end_s = time.monotonic() + TAKEN_S
        while True:
            with self.pair.leader.client() as client:
                known = {
                    one.backend_name
                    for one in (*client.list_volumes(POOL), *client.list_images(POOL))
                }
                stock = client.get_pool(POOL).warm_clones.ready_count
            rest = self.site.objects() - known
            if known <= self.site.objects() and len(rest) == stock:
                break
            assert time.monotonic() < end_s, (rest, stock, known)
            time.sleep(0.1)
        assert all(name.startswith("warm-") for name in rest), rest


@pytest.mark.timeout(300)
def test_killed_in_the_middle(pair, site, image_path):
    """Goal: the other one ends or undoes it. Method: kill -9 at a part of each kind of work."""
    cut = Cut(pair, site)
    volumes = f"{POOL}/volumes"
    with pair.client() as client:
        began_s = time.monotonic()
        client.import_image(f"{POOL}/images/first", image_path)
        import_s = time.monotonic() - began_s

    def import_it(client: Client) -> None:
        assert client.import_image(IMAGE, image_path).size_bytes == 24 * MIB

    def deploy(client: Client) -> None:
        made = client.deploy_volumes(IMAGE, NAMES)
        assert [one.name for one in made] == [f"{volumes}/{name}" for name in NAMES]

    def flatten(client: Client) -> None:
        operation = client.flatten_volume(f"{volumes}/{NAMES[0]}")
        ended = client.wait_operation(operation.name)
        assert ended.phase == operation_pb2.OPERATION_PHASE_SUCCEEDED, ended
        shown = client.get_volume(f"{volumes}/{NAMES[0]}", view=volume_pb2.VOLUME_VIEW_FULL)
        assert shown.depth == 0

    def adopt(client: Client) -> None:
        for number in range(4):
            made = client.adopt_volume(f"{volumes}/adopted{number}", f"foreign{number}")
            assert made.backend_name == f"foreign{number}"

    def delete(client: Client) -> None:
        for name in NAMES:
            client.delete_volume(f"{volumes}/{name}")
        with pytest.raises(NotFoundError):
            client.get_volume(f"{volumes}/{NAMES[0]}")

    cut(import_it, after_s=import_s / 2)
    with pair.client() as client:
        digests = {client.get_image(f"{POOL}/images/{name}").digest for name in ("first", "gold")}
        assert len(digests) == 1
        client.deploy_volumes(IMAGE, ["seed"])  # from here on a stock is being filled
    cut(deploy, after_s=0.05)
    cut(flatten, after_s=0.15)
    for number in range(4):
        site.run("rbd", "create", "--size", "4M", f"{site.pool}/foreign{number}")
    cut(adopt, after_s=0.1)
    cut(delete, after_s=0.1)
    with pair.client() as client:
        shown = {one.name.rpartition("/")[2] for one in client.list_volumes(POOL)}
        assert shown == {
            "seed",
            *(f"adopted{number}" for number in range(4)),
        }


@pytest.mark.timeout(300)
def test_frozen_in_the_middle(pair, site):
    """Goal: who wakes up late changes nothing. Method: SIGSTOP amid a deploy, then SIGCONT."""
    image, source = f"{POOL}/images/frozen", f"{POOL}/volumes/source"
    with pair.client() as client:
        client.create_volume(source, size_bytes=8 * MIB)
        client.create_snapshot(f"{source}/snapshots/s")
        client.publish_image(image, f"{source}/snapshots/s")

    errors: list[VolcoreError] = []

    def late() -> None:
        with Client(pair.leader.endpoint) as client:
            try:
                client.deploy_volumes(image, [f"late{number:03}" for number in range(200)])
            except VolcoreError as err:
                errors.append(err)

    frozen, other = pair.leader, pair.other
    thread = threading.Thread(target=late)
    thread.start()
    time.sleep(0.05)
    frozen.freeze()
    started_s = time.monotonic()
    with Client(f"unix:///nowhere.sock,{other.endpoint}") as client:
        assert client.get_pool(POOL).name == POOL
        assert time.monotonic() - started_s < SERVER_LEASE_S + TAKEN_S
        client.create_volume(f"{POOL}/volumes/new", size_bytes=MIB)
        client.delete_volume(source, force=True)
        site.server = other
        site.wait_deleted()
        before = {one.name for one in client.list_volumes(POOL)}
        rows = settled_rows(site)
        frozen.thaw()
        assert frozen.wait() == 1
        thread.join()
        assert errors, "the deployment ended before the server froze"
        assert "pool lost" in frozen.log()
        assert {one.name for one in client.list_volumes(POOL)} == before
        assert rows_of(site) == rows
    pair.leader, pair.other = other, frozen
    pair.restart()


@pytest.mark.timeout(300)
def test_the_one_that_takes_over_dies(pair, site, ceph_cluster, ceph_module_pool, tmp_path):
    """Goal: a recovery that is cut off is done by the next. Method: a third server, two kills."""
    names = [f"twice{number:02}" for number in range(40)]
    with pair.client() as client:
        client.create_volume(f"{POOL}/volumes/base", size_bytes=8 * MIB)
        client.create_snapshot(f"{POOL}/volumes/base/snapshots/s")
        client.publish_image(f"{POOL}/images/base", f"{POOL}/volumes/base/snapshots/s")
    third = Pair(ceph_cluster, ceph_module_pool, tmp_path, more='user = "admin"\n').leader
    results: list[object] = []

    def deploy() -> None:
        with Client(f"{pair.endpoint},{third.endpoint}") as client:
            results.extend(client.deploy_volumes(f"{POOL}/images/base", names))

    try:
        third.start(standby=True)
        first, second = pair.leader, pair.other
        thread = threading.Thread(target=deploy)
        thread.start()
        time.sleep(0.05)
        first.kill()
        time.sleep(0.15)
        second.kill()
        thread.join(60)
        assert not thread.is_alive()
        assert [isinstance(one, volume_pb2.Volume) for one in results] == [True] * len(names)
        site.server = third
        site.wait_deleted()
        with third.client() as client:
            shown = {one.name.rpartition("/")[2] for one in client.list_volumes(POOL)}
            assert set(names) <= shown
        assert third.stop() == 0
        first.start()
        second.start(standby=True)
    finally:
        third.kill()


def settled_rows(site: RbdSite) -> set[str]:
    """The rows once no intent is left, and nothing behind the answers changes them any more."""
    end_s = time.monotonic() + TAKEN_S
    before: set[str] = set()
    while (rows := rows_of(site)) != before or any(row.startswith("intent/") for row in rows):
        assert time.monotonic() < end_s, rows ^ before
        before = rows
        time.sleep(0.5)
    return rows


def rows_of(site: RbdSite) -> set[str]:
    """The names of rbd images, the keys of the catalog and of the directory, but for the stock."""
    rows = site.objects()
    for name in ("volcore_catalog", "volcore_directory"):
        rows |= set(site.run("rados", "-p", site.pool, "listomapkeys", name).splitlines())
    stock = ("warm", "v/warm", "t/", "n/", "s/")
    return {row for row in rows if not row.startswith(stock)}


@pytest.mark.timeout(300)
def test_no_call_fails(pair):
    """Goal: callers do not notice a kill. Method: 16 of them, two kills, then compare it all."""
    run = Run(pair, calls=300, kills=2, callers=16, seed=1)
    report = run.run()
    assert not report.failures, report.failures[0]
    assert report.kills
    assert report.under_way_at_a_kill > 0
    assert judge(pair, run.callers) == []


def test_any_server_answers(pair, image_path, tmp_path):
    """Goal: a caller may know only the one on standby. Method: each form of a call, by it alone."""
    name, copy = f"{POOL}/images/forwarded", tmp_path / "copy.raw"
    with Client(pair.other.endpoint) as client:
        assert client.get_pool(POOL).name == POOL
        assert [one.name for one in client.list_pools()] == [POOL]
        made = client.import_image(name, image_path)  # handed over on this machine, else uploaded
        with image_path.open("rb") as file:
            frames = iter(lambda: file.read(MIB), b"")
            assert client.import_image(name, frames, expected_digest=made.digest) == made
        client.export_image(name, copy)
        assert copy.read_bytes() == image_path.read_bytes()
        deployed = client.deploy_volumes(name, ["forwarded-1", "forwarded-2"])
        with pair.client() as direct:
            assert deployed == [direct.get_volume(one.name) for one in deployed]
        with pytest.raises(NotFoundError) as caught:
            client.get_volume(f"{POOL}/volumes/never")
        assert caught.value.reason == "VOLUME_NOT_FOUND"
        with (
            Client(pair.other.endpoint, retry=ONCE) as impatient,
            pytest.raises(UnavailableError, match=rf"process {pair.leader.pid}\b"),
        ):
            impatient.import_image(f"{POOL}/images/there", server_path=str(image_path))
        for one in deployed:
            client.delete_volume(one.name)
        client.delete_image(name)
        pair.leader.freeze()  # who stood by takes it over, and waits no longer for an answer
        started_s = time.monotonic()
        assert client.get_pool(POOL).name == POOL
        assert time.monotonic() - started_s < SERVER_LEASE_S + TAKEN_S / 2
    pair.kill()
    pair.restart()


def test_forwarded_over_tls(ceph_cluster, ceph_pool, tmp_path):
    """Goal: servers prove who they are. Method: TCP alone, with and without a right to be both."""
    authority = Authority.make(tmp_path / "authority")
    shown = authority.client("caller")
    tls = ClientTls(
        ca=authority.certificate,
        certificate=shown / "client-cert.pem",
        key=shown / "client-key.pem",
    )
    pool = f'backend = "rbd"\npool = "{ceph_pool}"\nceph_conf = "{ceph_cluster.conf_path}"\n'
    servers = []
    for number, peers in enumerate((True, True, False)):
        files = authority.server(f"server{number}", peers=peers)
        lines = f'tls_certificate = "{files.certificate}"\ntls_key = "{files.key}"\n'
        lines += f'tls_client_ca = "{files.client_ca}"\nadvertise_host = "localhost"\n'
        address = f"127.0.0.1:{free_port()}"
        server = RunningServer(
            tmp_path / str(number), pool + 'user = "admin"\n', listen=[address], server_lines=lines
        )
        servers.append((server, address))
    with ExitStack() as undo:
        for number, (server, _) in enumerate(servers):
            undo.callback(server.kill)
            server.start(standby=number > 0)
        with Client(servers[1][1], tls=tls) as client:
            assert client.get_pool(POOL).name == POOL
        end_s = time.monotonic() + 10
        with Client(servers[2][1], tls=tls, retry=ONCE) as client:
            while True:
                with pytest.raises(UnavailableError) as caught:
                    client.get_pool(POOL)
                if "none yet" not in caught.value.message:
                    break
                assert time.monotonic() < end_s, "it has not looked who has the pool"
        assert re.search(rf"process {servers[0][0].pid}\b", caught.value.message)
        port = servers[0][1].rpartition(":")[2]
        assert caught.value.context["endpoint"] == f"localhost:{port}"
        assert "not forwarded" in servers[2][0].log()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_standby_says_who_has_the_pool(pair):
    """Goal: a caller that can go there is sent there. Method: one that says that it knows more."""
    with Client(f"{pair.other.endpoint},{pair.other.endpoint}0") as client:
        assert client.get_pool(POOL).name == POOL  # the second time, and nobody else was there
    with grpc.insecure_channel(pair.other.endpoint) as channel:
        stub = pool_service_pb2_grpc.PoolServiceStub(channel)
        for call in (
            partial(stub.GetPool, pool_service_pb2.GetPoolRequest(name=POOL)),
            partial(stub.ListPools, pool_service_pb2.ListPoolsRequest()),
        ):
            with pytest.raises(grpc.RpcError, match=rf"process {pair.leader.pid}\b") as caught:
                call(metadata=((DIRECT_KEY, "1"),))
            error = from_rpc_error(caught.value)
            assert error.reason == "POOL_ELSEWHERE"
            assert error.context["endpoint"] == pair.leader.endpoint
    with pair.client() as client:
        assert isinstance(client.get_pool(POOL), pool_pb2.Pool)
    pair.leader.stop()
    started_s = time.monotonic()
    with Client(pair.other.endpoint) as client:
        client.get_pool(POOL)
    assert time.monotonic() - started_s < TAKEN_S
    pair.leader, pair.other = pair.other, pair.leader
    pair.restart()
