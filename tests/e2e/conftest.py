"""A real server in its own process, over a local pool and over a pool of a real Ceph."""

import os
import random
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from rbd_backend.pools import has_head, raw_pool

from volcore.limits import MIB
from volcore.testing import local_judge
from volcore.testing.cluster import CephAccess
from volcore.testing.server import RunningServer
from volcore.v1 import operation_pb2

IMAGE_BYTES = 64 * MIB
REAPED_S = 20.0
"""How long space may stay behind after the calls that free it."""


class Site:
    """A server, and how to look at its storage without it."""

    def __init__(self, server: RunningServer) -> None:
        self.server = server

    def objects(self) -> set[str]:
        """Names of everything that the storage holds, trash included."""
        raise NotImplementedError

    def leftovers(self) -> list[str]:
        """What the storage holds besides whole objects; empty when nothing leaked."""
        raise NotImplementedError

    def wait_deleted(self) -> None:
        """All that was deleted is freed."""
        with self.server.client() as client:
            for operation in client.list_operations("pools/p"):
                if operation.action == "delete":
                    ended = client.wait_operation(operation.name, timeout_s=60)
                    assert ended.phase == operation_pb2.OPERATION_PHASE_SUCCEEDED, ended

    def wait_clean(self) -> None:
        """Nothing leaked: what is freed behind the calls is gone in time."""
        self.wait_deleted()
        end_s = time.monotonic() + REAPED_S
        while left := self.leftovers():
            assert time.monotonic() < end_s, f"left behind: {left}"
            time.sleep(0.1)


class LocalSite(Site):
    def objects(self) -> set[str]:
        return local_judge.volumes(self.server.pool_directory)

    def leftovers(self) -> list[str]:
        return local_judge.leftovers(self.server.pool_directory)


class RbdSite(Site):
    def __init__(self, server: RunningServer, access: CephAccess, pool: str) -> None:
        super().__init__(server)
        self.access = access
        self.pool = pool

    def run(self, *words: str) -> str:
        return subprocess.run(
            [words[0], "-c", str(self.access.conf_path), *words[1:]],
            check=True,
            capture_output=True,
            text=True,
        ).stdout

    def objects(self) -> set[str]:
        import rbd

        with raw_pool(self.access, self.pool) as ioctx:
            return set(rbd.RBD().list(ioctx))

    def leftovers(self) -> list[str]:
        """Trash, and rados objects of rbd images that are not listed."""
        import rbd

        prefixes = ("rbd_header.", "rbd_object_map.", "rbd_data.")
        with raw_pool(self.access, self.pool) as ioctx:
            trash = [entry["name"] for entry in rbd.RBD().trash_list(ioctx)]
            names = [f"rbd_id.{name}" for name in rbd.RBD().list(ioctx)]
            known = {ioctx.read(name)[4:].decode() for name in names}  # behind its length
            strays = {
                item.key.split(".")[1]
                for item in ioctx.list_objects()
                if item.key.startswith(prefixes) and has_head(ioctx, item.key)
            } - known
        return [f"trash {entry}" for entry in trash] + [f"rados {stray}" for stray in strays]


@pytest.fixture(params=["local", "rbd"])
def site(request, tmp_path) -> Iterator[Site]:
    if request.param == "local":
        server = RunningServer(tmp_path)
        made: Site = LocalSite(server)
    else:
        cluster = request.getfixturevalue("ceph_cluster")
        pool = request.getfixturevalue("ceph_pool")
        server = RunningServer(
            tmp_path,
            f'backend = "rbd"\npool = "{pool}"\nceph_conf = "{cluster.conf_path}"\n'
            'user = "admin"\n',
        )
        made = RbdSite(server, cluster, pool)
    with server:
        if isinstance(made, RbdSite):
            server.wait_for_short_path()
        yield made


@pytest.fixture(scope="session")
def golden(tmp_path_factory) -> Path:
    """A raw disk with random data, holes and zeroes."""
    path = tmp_path_factory.mktemp("golden") / "golden.raw"
    source = random.Random(7)
    with path.open("wb") as file:
        file.truncate(IMAGE_BYTES)
        for offset in (0, 5 * MIB, 20 * MIB, 63 * MIB):
            file.seek(offset)
            file.write(source.randbytes(MIB))
        file.seek(30 * MIB)
        file.write(bytes(MIB))
        file.seek(40 * MIB + 512)
        file.write(source.randbytes(5 * MIB + 77))
    return path


@pytest.fixture
def golden_qcow2(golden, tmp_path) -> Path:
    """The same disk as qcow2, where the server may read it."""
    path = tmp_path / "golden.qcow2"
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", golden, path], check=True)
    os.chmod(path, 0o644)
    return path
