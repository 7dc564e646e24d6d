"""Fencing a host whose client is a process with librbd on a real Ceph, cut off with SIGSTOP."""

import contextlib
import signal
import subprocess
import sys
import time

import pytest
from rbd_backend.pools import raw_pool

from engine.test_volumes import blank
from volcore.errors import PermissionDeniedError, PreconditionError, Reason, VolcoreError
from volcore.limits import MIB
from volcore.model.fences import FencedHost, FenceState
from volcore.model.records import AccessMode, Attachment

RW, RO, SHARED = AccessMode.READ_WRITE, AccessMode.READ_ONLY, AccessMode.READ_WRITE_SHARED
pytestmark = [pytest.mark.ceph, pytest.mark.parametrize("bench", ["rbd"], indirect=True)]

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
number, failed = 0, None
while failed is None:
    number += 1
    pending = []
    for block in range(64):  # spread over all objects, so over all placement groups
        data = number.to_bytes(8, "little") * 512
        for image in opened:
            pending.append(image.aio_write(data, block * (1 << 18), lambda *_: None))
    for each in pending:
        each.wait_for_complete_and_cb()
        if each.get_return_value() < 0:
            failed = each.get_return_value()
    if number == 3:
        print("writing", flush=True)
print("failed", failed, number, flush=True)
"""


class Guest:
    """A process that has volumes open with librbd, and writes all the time once told to."""

    def __init__(self, bench, *volumes: str) -> None:
        backends = [bench.pool.backend.connection(_id(bench, v), read_only=False) for v in volumes]
        self.process = subprocess.Popen(
            [sys.executable, "-c", CLIENT, backends[0].conf_path, backends[0].pool]
            + [one.image for one in backends],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
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


@pytest.fixture
def guests():
    with contextlib.ExitStack() as stack:

        def start(*arguments):
            guest = Guest(*arguments)

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
    print(f"fenced after {time.monotonic() - begin_s:.3f} s")  # noqa: T201 - measured
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
