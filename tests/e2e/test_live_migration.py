"""A guest that writes all the while moves between two QEMU processes; nobody writes twice."""

import json
import subprocess
import time

import pytest

from volcore.cli.connection import blockdev
from volcore.limits import GIB
from volcore.testing import sequence
from volcore.testing.guest import SEQUENCE_LINE, build_guest, missing_packages
from volcore.testing.qemu import Qemu
from volcore.v1 import attachment_pb2

VOLUME = "pools/p/volumes/v"
BLOCKS_BEFORE = 200
BLOCKS_AFTER = 200
WAIT_S = 60
pytestmark = [
    pytest.mark.qemu,
    pytest.mark.skipif(bool(missing_packages()), reason="needs QEMU and tools to build a guest"),
]


@pytest.fixture(scope="session")
def guest(pytestconfig):
    return build_guest(pytestconfig.rootpath / ".cache" / "guest")


def written(machine: Qemu) -> int:
    """Blocks that the guest says it has flushed, on this machine's console."""
    lines = [x for x in machine.console().splitlines()[:-1] if x.startswith(SEQUENCE_LINE)]
    return int(lines[-1].removeprefix(SEQUENCE_LINE)) if lines else 0


def wait_written(machine: Qemu, least: int) -> int:
    end_s = time.monotonic() + WAIT_S
    while (now := written(machine)) < least:
        assert time.monotonic() < end_s, machine.console()
        time.sleep(0.05)
    return now


def device(attachment) -> dict:
    options = blockdev(attachment)
    if options["driver"] == "nbd":
        options["reconnect-delay"] = 30
    return options


def file_name(attachment) -> str:
    return "json:" + json.dumps({"driver": "raw", "file": blockdev(attachment)})


def try_write(attachment) -> str:
    """What qemu-io says when it writes to where the sequence will not come."""
    words = ["qemu-io", "-c", f"write -P 0x77 {GIB - 65536} 64k", file_name(attachment)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=WAIT_S)
    return done.stdout + done.stderr


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kill", [False, True], ids=["", "server killed"])
def test_live_migration(site, guest, tmp_path, kill):
    """Goal: no lost, wrong or second-hand byte. Method: migrate, hand over, then read all of it.

    The server may die while the guest stands still; both machines connect again.
    """
    local = site.server.pool_directory.exists()
    with site.server.client() as client:
        client.create_volume(VOLUME, size_bytes=GIB)
        a = client.attach_volume(VOLUME, "host-a")
        b = client.attach_volume(VOLUME, "host-b", hand_over_from="host-a")
        with Qemu(guest, tmp_path, "a", device(a)) as source:
            wait_written(source, BLOCKS_BEFORE)
            if local:
                assert "Operation not permitted" in try_write(b)
            with Qemu(guest, tmp_path, "b", device(b), incoming=True) as target:
                migrate(client, site, source, target, tmp_path, kill=kill)
                if local:
                    assert "Operation not permitted" in try_write(a)
                at_switch = written(source)
                last = wait_written(target, at_switch + BLOCKS_AFTER)
                target.call("stop")
                target.call("quit")
        assert client.get_attachment(a.name).state == attachment_pb2.ATTACHMENT_STATE_STANDBY
        client.detach_volume(VOLUME, "host-a")
        raw = tmp_path / "all.raw"
        convert = ["qemu-img", "convert", "-f", "raw", "-O", "raw", file_name(b), raw]
        subprocess.run(convert, check=True, timeout=WAIT_S)
        assert sequence.length(raw) >= last
        client.detach_volume(VOLUME, "host-b")
        client.delete_volume(VOLUME)


def migrate(client, site, source: Qemu, target: Qemu, directory, *, kill: bool) -> None:
    """Move the guest; the hand-over comes while it stands still."""
    uri = f"unix:{directory}/migration"
    pause = [{"capability": "pause-before-switchover", "state": True}]
    for machine in (source, target):
        machine.call("migrate-set-capabilities", capabilities=pause)
    target.call("migrate-incoming", uri=uri)
    source.call("migrate", uri=uri)
    source.wait_for("query-migrate", ["pre-switchover"])
    if kill:
        site.server.kill()
        site.server.start()
    start_s = time.monotonic()
    assert client.hand_over_volume(VOLUME, "host-b").host == "host-b"
    took_s = time.monotonic() - start_s
    source.call("migrate-continue", state="pre-switchover")
    source.wait_for("query-migrate", ["completed"])
    target.wait_for("query-status", ["running"])
    downtime_s = target.event_time_s("RESUME") - source.event_time_s("STOP")
    print(f"hand-over {took_s * 1e3:.1f} ms, guest stood still for {downtime_s * 1e3:.0f} ms")
