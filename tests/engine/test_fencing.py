"""Fencing a host whose client is a process with librbd on a real Ceph, cut off with SIGSTOP."""

import contextlib
import os
import signal
import subprocess
import sys
import time

import pytest
from crash.test_adoption import around, started
from rbd_backend.pools import new_backend, options, raw_pool

from engine.test_volumes import blank
from volcore.backends.rbd import Cluster, RbdBackend, fencing
from volcore.backends.rbd.omap import OmapObject
from volcore.catalog.omap import OmapCatalog
from volcore.engine.fencing import look_after
from volcore.errors import PermissionDeniedError, PreconditionError, Reason, VolcoreError
from volcore.limits import MIB
from volcore.model.fences import FencedHost, FenceState
from volcore.model.records import AccessMode, Attachment
from volcore.testing.crash import Crash, CrashingCatalog, CrashSwitch

from .conftest import Bench, new_bench

RW, RO, SHARED = AccessMode.READ_WRITE, AccessMode.READ_ONLY, AccessMode.READ_WRITE_SHARED
STEPS = ((Cluster, "block"), (fencing, "_tell_osds"), (fencing, "_drop_locks"))
pytestmark = pytest.mark.ceph

CLIENT = """
import rados, rbd, sys, time
conf, pool, *images = sys.argv[1:]
cluster = rados.Rados(conffile=conf, rados_id="admin")
cluster.connect()
ioctx = cluster.open_ioctx(pool)
opened = [rbd.Image(ioctx, name) for name in images]
for image in opened:
    image.write(b"0" * 4096, 0)
print(cluster.get_addrs(), flush=True)
sys.stdin.readline()
number, failed, last_s = 0, None, 0.0
while failed is None:
    number += 1
    pending = []
    for block in range(64):  # spread over all objects, so over all placement groups
        data = number.to_bytes(8, "little") * 512
        for image in opened:
            begin_s = time.monotonic()
            write = image.aio_write(data, block * (1 << 18), lambda *_: None)
            pending.append((begin_s, write))
    for begin_s, each in pending:
        each.wait_for_complete_and_cb()
        if each.get_return_value() < 0:
            failed = each.get_return_value()
        else:
            last_s = max(last_s, begin_s)
    if number == 3:
        print("writing", flush=True)
print("failed", failed, last_s, flush=True)
"""


BIND = """
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/socket.h>
int connect(int fd, const struct sockaddr *to, socklen_t length)
{
    int (*real)(int, const struct sockaddr *, socklen_t) = dlsym(RTLD_NEXT, "connect");
    struct sockaddr_in from = {.sin_family = AF_INET};
    if (to->sa_family == AF_INET && inet_pton(AF_INET, getenv("BIND_IP"), &from.sin_addr) == 1)
        bind(fd, (struct sockaddr *)&from, sizeof from);
    return real(fd, to, length);
}
"""
"""Lets a process have another IP of loopback."""


COLLECTING = """
import gc, sys, threading, types
from volcore.backends.rbd import fencing
from volcore.backends.rbd.connection import Cluster, ClusterOptions

cluster = Cluster(ClusterOptions(conf_path=sys.argv[1]))
cluster.acquire()
sys.setswitchinterval(1e-5)
over = threading.Event()

def spin():
    while not over.is_set():
        sum(range(100))

spinners = [threading.Thread(target=spin) for _ in range(3)]
for each in spinners:
    each.start()
for _ in range(30):
    fencing._tell_osds(types.SimpleNamespace(cluster=cluster), sys.argv[2], 8)
    gc.collect()
over.set()
"""
"""Threads want the interpreter, so callbacks come late; a collection follows each question."""


class Guest:
    """A process that has volumes open with librbd, and writes all the time once told to."""

    def __init__(self, bench, *volumes: str, **environment: str) -> None:
        backends = [bench.pool.backend.connection(_id(bench, v), read_only=False) for v in volumes]
        self.process = subprocess.Popen(
            [sys.executable, "-c", CLIENT, backends[0].conf_path, backends[0].pool]
            + [one.image for one in backends],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | environment,
        )
        self.address = self.process.stdout.readline().strip()

    def write(self) -> None:
        """Begin to write."""
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "writing\n"

    def freeze(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def wake(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def end(self) -> list[str]:
        """Return what it said when its writes failed."""
        return self.process.communicate(timeout=30)[0].split()


def _id(bench, volume: str) -> str:
    return bench.pool.volume(volume).backend_id


@pytest.fixture(params=["rbd"])
def bench(request, tmp_path):
    yield from new_bench(request, tmp_path)


@pytest.fixture
def guests():
    with contextlib.ExitStack() as stack:

        def start(*arguments, **environment):
            guest = Guest(*arguments, **environment)

            def kill():
                guest.process.kill()
                guest.process.communicate()

            stack.callback(kill)
            return guest

        yield start


def content(bench, volume: str) -> bytes:
    with bench.pool.backend.open_device(_id(bench, volume), read_only=True) as device:
        return device.read(0, 16 * MIB)


def attach(bench, *pairs, **more) -> None:
    for volume, host in pairs:
        if bench.pool.find(Attachment, f"{volume}/{host}") is None:
            with contextlib.suppress(VolcoreError):
                bench.engine.volumes.create("p", blank(volume, size_bytes=16 * MIB))
        bench.engine.attachments.attach("p", volume, host, RW, **more)
    bench.pool.making.flush()


def fence(bench, host: str, **more) -> FencedHost:
    addresses = more.pop("addresses", ())
    _, plan = bench.engine.fences.plan("p", host, addresses)
    return bench.engine.fences.fence("p", host, addresses, etag=plan.etag, **more)


def test_late_writes_never_land(bench, guests):
    """Goal: the volume belongs to the next host. Method: freeze a busy writer, fence, wake it."""
    attach(bench, ("v", "a"), ("w", "b"))
    guest, other = guests(bench, "v"), guests(bench, "w")
    guest.write()
    other.write()
    guest.freeze()
    found, plan = bench.engine.fences.plan("p", "a")
    assert found is None
    assert plan.addresses == (guest.address,)
    assert plan.attachments == ("v/a",)
    assert (plan.other_volumes, plan.spared_clients, plan.volumes_without_clients) == ((), (), ())
    begin_s = time.monotonic()
    fenced = bench.engine.fences.fence("p", "a", etag=plan.etag)
    print(f"fenced after {time.monotonic() - begin_s:.3f} s")
    assert fenced.state is FenceState.FENCED
    assert fenced.volumes == ("v",)
    assert bench.engine.fences.fence("p", "a", etag=plan.etag) == fenced
    attach(bench, ("v", "c"))
    before = content(bench, "v")
    guest.wake()
    assert guest.end()[:2] == ["failed", "-108"]
    assert content(bench, "v") == before
    guests(bench, "v").write()  # the next host, at the same address of another client
    assert other.process.poll() is None, "others are not hit"
    with pytest.raises(PreconditionError) as caught:
        attach(bench, ("v", "a"))
    assert caught.value.reason is Reason.HOST_FENCED


def test_time_to_lose_access(bench, guests):
    """Goal: no write that begins after the call is acknowledged. Method: a writer that runs."""
    attach(bench, ("v", "a"))
    guest = guests(bench, "v")
    guest.write()
    plan = bench.engine.fences.plan("p", "a")[1]
    begin_s = time.monotonic()
    bench.engine.fences.fence("p", "a", etag=plan.etag)
    end_s = time.monotonic()
    word, code, last_s = guest.end()
    print(f"last write begun after {float(last_s) - begin_s:.3f} s, call {end_s - begin_s:.3f} s")
    assert (word, code) == ("failed", "-108")
    assert begin_s < float(last_s) < end_s


def closed(image) -> None:
    import rbd

    with contextlib.suppress(rbd.Error):
        image.close()


@contextlib.contextmanager
def opened(bench, ceph_cluster, ceph_pool, *volumes):
    """A client of its own in this process that has volumes open, and has written to each."""
    import rbd

    with raw_pool(ceph_cluster, ceph_pool) as ioctx, contextlib.ExitStack() as stack:
        images = [rbd.Image(ioctx, _id(bench, volume)) for volume in volumes]
        for image in images:
            stack.callback(closed, image)
            image.write(b"mine", 0)
        yield images


def refused(call) -> Reason:
    with pytest.raises(VolcoreError) as caught:
        call()
    return caught.value.reason


def may_write(image) -> bool:
    import rbd

    try:
        image.write(b"late", 0)
    except rbd.Error as err:
        refusal = err.errno
    else:
        return True
    assert refusal in (108, 30), "fenced, or without the lock that was dropped"
    return False


@pytest.fixture
def client(bench, ceph_cluster, ceph_pool):
    return lambda *volumes: opened(bench, ceph_cluster, ceph_pool, *volumes)


def test_only_what_was_looked_at(bench, client):
    """What is hit is what was shown: no plan, another volume, another client; nothing changes."""
    attach(bench, ("v", "a"), ("w", "b"), ("x", "a"))
    fences = bench.engine.fences
    with client("v", "w") as (image, _), client("x"):
        plan = fences.plan("p", "a")[1]
        assert [one.volumes for one in plan.clients] in ([("v",), ("x",)], [("x",), ("v",)])
        assert plan.other_volumes == (("p", "w"),)
        assert refused(lambda: fences.fence("p", "a", etag="")) is Reason.FENCE_UNCONFIRMED
        with client("v"):
            late = refused(lambda: fences.fence("p", "a", etag=plan.etag))
            assert late is Reason.FENCE_UNCONFIRMED
        assert fences.list("p", limit=9) == []
        assert may_write(image)
        assert bench.pool.find(Attachment, "v/a")
        assert fence(bench, "a").volumes == ("v", "x")
        assert not may_write(image)
        assert bench.pool.find(Attachment, "w/b")


def test_shared_volume(bench, client):
    """Whose client it is is not guessed: both hosts' are spared until they are named."""
    for host in ("a", "b"):
        bench.pool.find(Attachment, "v/a") or bench.engine.volumes.create("p", blank("v"))
        bench.engine.attachments.attach("p", "v", host, SHARED)
    fences = bench.engine.fences
    with client("v") as (mine,), client("v") as (theirs,):
        plan = fences.plan("p", "a")[1]
        assert (plan.clients, plan.volumes_without_clients) == ((), ("v",))
        both = [one.address for one in plan.spared_clients]
        assert len(both) == 2
        assert refused(lambda: fence(bench, "a")) is Reason.CLIENTS_UNKNOWN
        own = next(one["addr"] for one in mine.watchers_list() if may_write(mine))
        for address in both:
            plan = fences.plan("p", "a", [address])[1]
            assert plan.addresses == (address,)
            assert [one.address for one in plan.spared_clients] == [
                one for one in both if one != address
            ]
        owner = next(iter(mine.lock_get_owners()))["owner"]
        assert owner in both
        assert own in both
        fence(bench, "a", addresses=[owner])
        assert not may_write(mine)
        assert may_write(theirs)
        assert bench.pool.find(Attachment, "v/b")


def test_client_unknown(bench):
    """A host whose clients nobody knows is freed only on the word that it is off, or by its IP."""
    attach(bench, ("v", "a"), ("w", "b"), client_addresses=["127.0.0.9"])
    attach(bench, ("x", "c"))
    backend = bench.pool.backend
    assert refused(lambda: fence(bench, "c")) is Reason.CLIENTS_UNKNOWN
    assert fence(bench, "c", host_is_off=True).client_addresses == ()
    fenced = [fence(bench, host).client_addresses for host in ("a", "b")]
    assert fenced == [("127.0.0.9:0/0",)] * 2
    bench.engine.fences.unfence("p", "a")
    assert backend.fencing().blocked() >= {"127.0.0.9:0/0"}, "the other one needs it"
    bench.engine.fences.unfence("p", "b")
    bench.engine.fences.unfence("p", "b")
    assert not backend.fencing().blocked() & {"127.0.0.9:0/0"}
    assert refused(lambda: bench.engine.fences.get("p", "b")) is Reason.FENCED_HOST_NOT_FOUND
    attach(bench, ("v", "a"))


def test_whole_ip(bench, guests, tmp_path):
    """Goal: an IP is cut off with all that comes later. Method: clients on two IPs of loopback."""
    source, library = tmp_path / "bind.c", tmp_path / "bind.so"
    source.write_text(BIND)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    there = {"LD_PRELOAD": str(library), "BIND_IP": "127.0.0.9"}
    attach(bench, ("v", "a"), client_addresses=["127.0.0.9"])
    attach(bench, ("w", "b"))
    guest, other = guests(bench, "v", **there), guests(bench, "w")
    assert guest.address.startswith("127.0.0.9:")
    guest.write()
    other.write()
    assert fence(bench, "a").client_addresses == ("127.0.0.9:0/0", guest.address)
    assert guest.end()[:2] == ["failed", "-108"]
    assert guests(bench, "v", **there).address == "", "what comes later is cut off, too"
    assert other.process.poll() is None
    bench.engine.fences.unfence("p", "a")
    attach(bench, ("v", "a"))
    guests(bench, "v", **there).write()
    assert guest.address in bench.pool.backend.fencing().blocked()


@pytest.mark.parametrize("form", ["{ip}", "{own}"])
def test_never_itself(bench, form):
    """A server does not cut itself off, and changes nothing then."""
    attach(bench, ("v", "a"))
    own = bench.pool.backend.fencing().own_address
    address = form.format(ip=own.partition(":")[0], own=own)
    assert refused(lambda: fence(bench, "a", addresses=[address])) is Reason.FENCE_HITS_SERVER
    assert bench.pool.find(Attachment, "v/a")


def test_unfenced(bench, client):
    """After a restart the host writes again: with a new session, never with the old one."""
    attach(bench, ("v", "a"))
    with client("v") as (old,):
        address = fence(bench, "a").client_addresses[0]
        bench.engine.fences.unfence("p", "a")
        attach(bench, ("v", "a"))
        assert not may_write(old)
        with client("v") as (new,):
            assert may_write(new)
        assert address in bench.pool.backend._session().cluster.blocklist()


def test_looked_after(bench, ceph_cluster, client):
    """What somebody else lets in, or whose time is over, is cut off again."""
    attach(bench, ("v", "a"))
    with client("v"):
        (address,) = fence(bench, "a").client_addresses
        with ceph_cluster._connect() as admin:
            ceph_cluster._command(admin, "osd blocklist", blocklistop="rm", addr=address)
        assert address not in bench.pool.backend.fencing().blocked()
        look_after(bench.pool, "a")
        assert address in bench.pool.backend.fencing().blocked()


def test_answers_come_before_the_end(ceph_cluster, ceph_pool):
    """librados calls nothing back that was collected: that ended the process, now and then."""
    done = subprocess.run(
        [sys.executable, "-c", COLLECTING, ceph_cluster.conf_path, ceph_pool],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")


@contextlib.contextmanager
def user(ceph_cluster, ceph_pool, directory, mon: str):
    """A bench whose Ceph user has these rights on the monitors."""
    name = f"client.poor-{ceph_pool}"
    caps = ["mon", mon, "osd", f"profile rbd pool={ceph_pool}"]
    with ceph_cluster._connect() as admin, contextlib.ExitStack() as stack:
        text = ceph_cluster._command(admin, "auth get-or-create", entity=name, caps=caps)
        stack.callback(ceph_cluster._command, admin, "auth rm", entity=name)
        keyring = directory / "keyring"
        keyring.write_bytes(text)
        chosen = options(ceph_cluster, user=name.partition(".")[2], keyring_path=str(keyring))
        backend = RbdBackend(Cluster(chosen), ceph_pool)
        backend.open()
        stack.callback(backend.close)
        catalog = OmapCatalog(OmapObject.opened(Cluster(chosen), ceph_pool, "volcore_catalog"))
        stack.callback(catalog.close)
        yield Bench(started(backend, catalog))


def test_without_the_right(ceph_cluster, ceph_pool, tmp_path):
    """A Ceph user who may not change the blocklist: one sentence, and nothing changed."""
    with user(ceph_cluster, ceph_pool, tmp_path, "allow r") as bench:
        attach(bench, ("v", "a"))
        with opened(bench, ceph_cluster, ceph_pool, "v") as (image,):
            with pytest.raises(PermissionDeniedError, match="profile rbd"):
                fence(bench, "a")
            assert bench.engine.fences.list("p", limit=9) == []
            assert bench.pool.find(Attachment, "v/a")
            assert may_write(image)


def test_without_the_right_to_unblock(ceph_cluster, ceph_pool, tmp_path):
    """To unfence an IP takes a right more, and says so; the host stays fenced."""
    with user(ceph_cluster, ceph_pool, tmp_path, "profile rbd") as bench:
        attach(bench, ("v", "a"))
        fenced = fence(bench, "a", addresses=["127.0.0.8"])
        with pytest.raises(PermissionDeniedError, match="blocklistop=rm"):
            bench.engine.fences.unfence("p", "a")
        assert bench.engine.fences.get("p", "a") == fenced


def test_killed_at_each_step(ceph_cluster, ceph_pool, monkeypatch):
    """Goal: all or nothing, by whoever starts next. Method: die before and after each write."""
    backend = new_backend(ceph_cluster, ceph_pool)
    backend.open()
    catalog = OmapCatalog(
        OmapObject.opened(Cluster(options(ceph_cluster)), ceph_pool, "volcore_catalog")
    )
    with contextlib.closing(catalog), contextlib.closing(backend):
        for step in range(1, 99):
            switch = CrashSwitch(step)
            engine = started(backend, CrashingCatalog(catalog, CrashSwitch()))
            bench = Bench(engine)
            attach(bench, (f"v{step}", f"a{step}"))
            with opened(bench, ceph_cluster, ceph_pool, f"v{step}") as (image,):
                dying = Bench(started(backend, CrashingCatalog(catalog, switch)))
                with monkeypatch.context() as patch:
                    for owner, name in STEPS:
                        patch.setattr(owner, name, around(getattr(owner, name), switch))
                    with contextlib.suppress(Crash):
                        fence(dying, f"a{step}")
                bench = Bench(started(backend, catalog))
                found = bench.pool.find(FencedHost, f"a{step}")
                free = bench.pool.find(Attachment, f"v{step}/a{step}") is None
                assert (found is not None) == free == (not may_write(image))
                assert free == (step > 1)
                assert fence(bench, f"a{step}") == (
                    found or bench.pool.find(FencedHost, f"a{step}")
                )
            if not switch.crashed:
                break
    assert step == 2 * (2 + len(STEPS)) + 1
