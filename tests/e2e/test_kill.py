"""kill -9 of the server in the middle of long and short work: all or nothing, and no orphan.

Each round starts the work, kills the server after a part of the time that the work takes when it is
left alone, starts it again, and compares API, catalog and storage.
"""

import contextlib
import random
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from e2e.test_main_job import READ_WRITE
from volcore.client import Client
from volcore.client.retry import RetryPolicy
from volcore.errors import NotFoundError, VolcoreError
from volcore.limits import MIB
from volcore.testing.nbd_disk import NbdDisk
from volcore.v1 import operation_pb2, volume_pb2

PARTS = (0.02, 0.3, 0.6, 0.9)
"""Fractions of the undisturbed time at which the server is killed."""
LENGTHS = (4096, 8192, 512 * 1024)
VOLUMES = [f"d{index:02}" for index in range(12)]


@pytest.fixture
def big_qcow2(tmp_path):
    """An image large enough to be killed in the middle of."""
    raw, path = tmp_path / "big.raw", tmp_path / "big.qcow2"
    with raw.open("wb") as file:
        for index in range(160):
            file.write(bytes([index % 250 + 1]) * MIB)
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, path], check=True)
    return path


class Killer:
    """Runs work against a site and kills the server in its middle."""

    def __init__(self, site) -> None:
        self.site = site

    def timed(self, work: Callable[[Client], object]) -> float:
        started = time.monotonic()
        with self.site.server.client() as client:
            work(client)
        return time.monotonic() - started

    def killed(self, work: Callable[[Client], object], delay_s: float) -> None:
        """Start `work`, kill the server after `delay_s`, and start it again."""
        endpoint, once = self.site.server.endpoint, RetryPolicy(tries_max=1)

        def run() -> None:
            with contextlib.suppress(VolcoreError), Client(endpoint, retry=once) as client:
                work(client.with_options(timeout_s=20))

        thread = threading.Thread(target=run)
        thread.start()
        time.sleep(delay_s)
        self.site.server.kill()
        thread.join(60)
        assert not thread.is_alive(), "the client hangs after its server died"
        self.site.server.start()

    def check(self) -> dict[str, volume_pb2.Volume]:
        """The storage holds exactly what the API shows; return the volumes by short name."""
        self.site.wait_deleted()
        with self.site.server.client() as client:
            volumes = list(client.list_volumes("pools/p"))
            images = list(client.list_images("pools/p"))
            expected = {thing.backend_name for thing in (*volumes, *images)}
        assert self.site.objects() == expected
        self.site.wait_clean()
        return {volume.name.rpartition("/")[2]: volume for volume in volumes}


@pytest.fixture
def killer(site) -> Killer:
    return Killer(site)


@pytest.mark.timeout(600)
def test_import(killer, big_qcow2):
    """An image is there, whole, or not at all."""
    name = "pools/p/images/big"
    took = killer.timed(lambda c: c.import_image(name, big_qcow2))
    with killer.site.server.client() as client:
        digest = client.get_image(name).digest
        client.delete_image(name)
    for part in PARTS:
        killer.killed(lambda c: c.import_image(name, big_qcow2), part * took)
        killer.check()
        with killer.site.server.client() as client:
            with contextlib.suppress(NotFoundError):
                assert client.get_image(name).digest == digest
            phases = {o.phase for o in client.list_operations("pools/p")}
            assert operation_pb2.OPERATION_PHASE_RUNNING not in phases
            client.delete_image(name)
    with killer.site.server.client() as client:
        assert client.import_image(name, big_qcow2).digest == digest


@pytest.mark.timeout(600)
def test_deploy_and_delete(killer, golden_qcow2):
    """Each volume of a killed deployment is there or not; each of a killed deletion gone or not."""
    image = "pools/p/images/gold"

    def deploy(client: Client) -> None:
        client.deploy_volumes(image, VOLUMES)

    def delete(client: Client) -> None:
        for name in VOLUMES:
            client.delete_volume(f"pools/p/volumes/{name}")

    with killer.site.server.client() as client:
        client.import_image(image, golden_qcow2)
    deploy_s, delete_s = killer.timed(deploy), killer.timed(delete)
    for part in PARTS:
        killer.killed(deploy, part * deploy_s)
        killer.check()
        killer.timed(deploy)
        assert set(killer.check()) == set(VOLUMES)
        killer.killed(delete, part * delete_s)
        killer.check()
        killer.timed(delete)
        assert killer.check() == {}


@pytest.mark.timeout(600)
def test_flatten(killer, big_qcow2):
    """A killed flatten goes on after the restart, and the content never changes."""
    image, volume = "pools/p/images/big", "pools/p/volumes/v"

    def flatten(client: Client) -> None:
        operation = client.flatten_volume(volume)
        ended = client.wait_operation(operation.name)
        assert ended.phase == operation_pb2.OPERATION_PHASE_SUCCEEDED, ended

    with killer.site.server.client() as client:
        client.import_image(image, big_qcow2)
        client.create_volume(volume, image=image)
    took = killer.timed(flatten)
    for part in PARTS:
        with killer.site.server.client() as client:
            client.delete_volume(volume)
            client.create_volume(volume, image=image)
        killer.killed(flatten, part * took)
        assert set(killer.check()) == {"v"}
        with killer.site.server.client() as client:
            for operation in list(client.list_operations("pools/p")):
                client.wait_operation(operation.name)
            flatten(client)
            shown = client.get_volume(volume, view=volume_pb2.VOLUME_VIEW_FULL)
            assert shown.depth == 0
            client.create_snapshot(f"{volume}/snapshots/s")
            client.publish_image("pools/p/images/check", f"{volume}/snapshots/s")
            assert client.get_image("pools/p/images/check").digest == client.get_image(image).digest
            client.delete_image("pools/p/images/check")
            client.delete_volume(volume, force=True)
            client.create_volume(volume, image=image)


@pytest.mark.parametrize("site", ["local"], indirect=True)
def test_answered(site, golden_qcow2):
    """Goal: INV-LOCAL-12. Method: kill while a clone is written, flushed never; connect, flush."""
    dice, held, under_way = random.Random(5), {}, {}
    with site.server.client() as client:
        image = client.import_image("pools/p/images/gold", golden_qcow2)
        client.deploy_volumes(image.name, ["v"])
    for round_number in range(4):
        with site.server.client() as client:
            made = client.attach_volume("pools/p/volumes/v", "h", access_mode=READ_WRITE)
        with NbdDisk(Path(made.nbd.socket_path), made.nbd.export_name) as disk:
            disk.flush()  # what was answered before, says the guest, is on its disk now
            if round_number % 2:
                site.server.kill()
                site.server.start()
        with NbdDisk(Path(made.nbd.socket_path), made.nbd.export_name) as disk:
            for block, number in held.items():
                found = disk.read(block * MIB, LENGTHS[block % 3])
                allowed = {number, under_way.get(block, number)}
                assert set(found) <= allowed, (block, number, round_number)
            killer = threading.Timer(dice.uniform(0.05, 0.3), site.server.kill)
            killer.start()
            with contextlib.suppress(ConnectionError):
                while True:
                    block, number = dice.randrange(30), dice.choice((0, dice.randrange(256)))
                    under_way = {block: number}
                    length = LENGTHS[block % 3]
                    if number:
                        disk.write(block * MIB, bytes([number]) * length)
                    else:
                        disk.discard(block * MIB, length)
                    held[block] = number
            killer.join()
        site.server.start()
    assert len(held) > 10
