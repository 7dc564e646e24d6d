"""Warm clones through a real server: a guest boots from one, and kill -9 leaves all or nothing."""

import contextlib
import random
import time
from pathlib import Path

import pytest

from e2e.conftest import RbdSite
from e2e.test_kill import Killer
from e2e.test_main_job import attached, qemu_img
from volcore.cli.connection import as_qemu
from volcore.client import Client
from volcore.testing.guest import BOOTED_LINE, WRITTEN_LINE, boot, build_guest
from volcore.testing.server import RunningServer
from volcore.v1 import volume_pb2
from volcore.v1.pool_pb2 import PoolWarmClones

IMAGE = "pools/p/images/gold"
FILLED_S = 30.0
KILLS = 4


def server(directory: Path, conf_path: Path, pool: str, count: int) -> RunningServer:
    return RunningServer(
        directory,
        f'backend = "rbd"\npool = "{pool}"\nceph_conf = "{conf_path}"\nwarm_clones = {count}\n',
    )


@pytest.fixture
def site(ceph_cluster, ceph_pool, tmp_path):
    """A server with up to 24 warm clones."""
    running = server(tmp_path, ceph_cluster.conf_path, ceph_pool, 24)
    with running:
        running.wait_for_short_path()
        yield RbdSite(running, ceph_cluster, ceph_pool)


def stock(client: Client) -> PoolWarmClones:
    return client.get_pool("pools/p").warm_clones


def wait_filled(client: Client) -> None:
    """There is more than the low mark."""
    end_s = time.monotonic() + FILLED_S
    while not 0 < (found := stock(client)).target_count < 2 * found.ready_count:
        assert time.monotonic() < end_s, found
        time.sleep(0.05)


def wait_whole(site: RbdSite, client: Client) -> None:
    """What the storage has beyond volumes and images is the stock, once a refill has ended."""
    end_s = time.monotonic() + FILLED_S
    while True:
        count = stock(client).ready_count
        shown = [volume.backend_name for volume in client.list_volumes("pools/p")]
        shown += [image.backend_name for image in client.list_images("pools/p")]
        assert len(shown) == len(set(shown))
        rest = site.objects() - set(shown)
        assert all(name.startswith("warm-gold.") for name in rest)
        if len(rest) == count:
            return
        assert time.monotonic() < end_s, (rest, count)
        time.sleep(0.1)


def deployed(client: Client, *names: str) -> list[volume_pb2.Volume]:
    made = client.deploy_volumes(IMAGE, list(names))
    assert all(isinstance(one, volume_pb2.Volume) for one in made), made
    return [one for one in made if isinstance(one, volume_pb2.Volume)]


def test_a_guest_boots_from_a_warm_clone(site, pytestconfig, tmp_path):
    """Goal: a claimed clone is a VM's disk. Method: boot from one, compare its twin's bytes."""
    files = build_guest(pytestconfig.rootpath / ".cache" / "guest")
    with site.server.client() as client:
        client.import_image(IMAGE, files.disk_raw)
        deployed(client, "seed")
        wait_filled(client)
        vm, twin = deployed(client, "vm", "twin")
        assert [one.backend_name[:10] for one in (vm, twin)] == ["warm-gold."] * 2
        made = client.attach_volume(vm.name, "host")
        assert made.rbd.image == vm.backend_name in site.objects()
        words = as_qemu(made).replace("'", "").split()
        said = boot(files, words)
        assert f"{BOOTED_LINE}golden" in said
        assert "serial=vm" in said
        assert WRITTEN_LINE in said
        client.detach_volume(vm.name, "host")
        for name, wanted in (("twin", True), ("seed", True), ("vm", False)):
            disk = attached(client, name, "judge")
            same = ["compare", "-f", "raw", "-F", "raw", files.disk_raw, disk]
            if wanted:
                assert "identical" in qemu_img(*same)
            else:
                with pytest.raises(AssertionError, match="mismatch"):
                    qemu_img(*same)
            client.detach_volume(f"pools/p/volumes/{name}", "judge")


@pytest.mark.timeout(600)
def test_killed_while_claiming_and_refilling(site, golden_qcow2, tmp_path):
    """Goal: all or nothing, no leak. Method: kill at random times, compare; then turn it off."""
    source = random.Random(11)
    killer = Killer(site)
    with site.server.client() as client:
        client.import_image(IMAGE, golden_qcow2)
        deployed(client, "seed0", "seed1", "seed2")
        wait_filled(client)
    names = iter(range(1000))
    for _ in range(KILLS):

        def deploy(client: Client) -> None:
            for _ in range(8):
                deployed(client, *(f"v{next(names)}" for _ in range(source.choice((1, 1, 3)))))

        killer.killed(deploy, source.uniform(0.01, 0.35))
        with site.server.client() as client:
            wait_whole(site, client)
            deployed(client, f"v{next(names)}")  # the demand may be forgotten with the last clone
            wait_filled(client)
    with site.server.client() as client:
        volumes = [volume.name for volume in client.list_volumes("pools/p")]
        warm = [v for v in client.list_volumes("pools/p") if v.backend_name.startswith("warm-")]
        assert len(warm) >= KILLS
        disk = attached(client, warm[-1].name.rpartition("/")[2], "judge")
        assert "identical" in qemu_img("compare", "-F", "qcow2", "-f", "raw", disk, golden_qcow2)
        client.detach_volume(warm[-1].name, "judge")
        client.delete_image(IMAGE)
        for name in volumes:
            client.delete_volume(name)
    site.server.kill()
    with (
        server(tmp_path / "off", site.access.conf_path, site.pool, 0) as off,
        off.client() as client,
    ):
        assert not client.get_pool("pools/p").HasField("warm_clones")
        end_s = time.monotonic() + FILLED_S
        while site.objects():
            assert time.monotonic() < end_s, site.objects()
            time.sleep(0.1)
        with contextlib.suppress(StopIteration):
            assert next(client.list_volumes("pools/p")) is None
        RbdSite(off, site.access, site.pool).wait_clean()
