"""One rig for the session: three backends of ours, and the stock RBD driver as rival.

`ours-beside` is another pool of the server of `ours-rbd`.
"""

import contextlib
import re
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from volcore.backends.rbd.opening import settled
from volcore.testing import held_server
from volcore.testing.nbd_disk import NbdDisk
from volcore.testing.server import RunningServer

from .cinder_api import CinderApi
from .glance_api import GlanceApi
from .nova_rig import NovaRig
from .rest import ApiError
from .rig import Rig

DRIVER = "volcore.cinder.driver.VolcoreDriver"
GLANCE_POOL = "volcore-test-glance"
POOLS = ("volcore-test-cinder", "volcore-test-stock", GLANCE_POOL)


class Site:
    """Cinder, the servers behind it, and the contents of volumes."""

    def __init__(self, cinder, rig, rbd, local, conf_path, pool):
        self.cinder, self.rig, self.conf_path, self.pool = cinder, rig, conf_path, pool
        self.glance = GlanceApi(rig.glance)
        self.servers = {"ours-rbd": rbd, "ours-local": local}
        self.holds = {
            name: held_server.Hold(server.directory) for name, server in self.servers.items()
        }
        self.expected: list[str] = []  # parts of errors in Cinder's logs that a test has caused

    def name(self, volume: dict) -> str:
        """The resource name of Cinder's volume."""
        name_id = volume.get("os-vol-mig-status-attr:name_id") or volume["id"]
        return f"pools/p/volumes/volume-{name_id}"

    @contextlib.contextmanager
    def disk(self, backend: str, volume: dict):
        """A disk with read(offset, length) and write(offset, data)."""
        with self.servers[backend].client() as client:
            name = self.name(volume)
            if backend == "ours-rbd":
                with self._image(client.get_volume(name).backend_name) as image:
                    yield SimpleNamespace(
                        read=image.read, write=lambda offset, data: image.write(data, offset)
                    )
                return
            nbd = client.attach_volume(name, "tests").nbd
            try:
                with NbdDisk(nbd.socket_path, nbd.export_name) as disk:
                    yield disk
                    disk.flush()
            finally:
                client.detach_volume(name, "tests")

    @contextlib.contextmanager
    def _image(self, name: str):
        import rados
        import rbd

        with (
            rados.Rados(conffile=str(self.conf_path), name="client.admin") as cluster,
            cluster.open_ioctx(self.pool) as ioctx,
            rbd.Image(ioctx, name) as image,
        ):
            yield image

    def images(self, backend: str) -> list[str]:
        """The images of Glance that a backend has imported."""
        with self.servers[backend].client() as client:
            return [image.name for image in client.list_images("pools/p")]

    def forget_images(self, backend: str) -> None:
        """Delete them."""
        with self.servers[backend].client() as client:
            for image in list(client.list_images("pools/p")):
                assert image.name.startswith("pools/p/images/glance-"), image
                client.delete_image(image.name)

    def leftovers(self, backend: str) -> list[str]:
        """What the catalog of a backend still has, deletes behind the answer awaited."""
        deadline = time.monotonic() + 60
        with self.servers[backend].client() as client:
            while True:
                left = [v.name for v in client.list_volumes("pools/p", show_deleted=True)]
                left += [s.name for s in client.list_snapshots("pools/p/volumes/-")]
                left += [g.name for g in client.list_group_snapshots("pools/p")]
                left += [a.name for a in client.list_attachments("pools/p/volumes/-")]
                left += [i.name for i in client.list_images("pools/p")]
                if backend == "ours-rbd":
                    left += [v.name for v in client.list_volumes("pools/q", show_deleted=True)]
                    left += [i.name for i in client.list_images("pools/q")]
                    left += self._in_pool()
                if not left or time.monotonic() > deadline:
                    return left
                time.sleep(0.5)

    def data_objects(self) -> set[str]:
        """The objects with data in the rbd pool, of volumes and images that are not deleted."""
        import rados
        import rbd

        with (
            rados.Rados(conffile=str(self.conf_path), name="client.admin") as cluster,
            cluster.open_ioctx(self.pool) as ioctx,
        ):
            prefixes = []
            for name in rbd.RBD().list(ioctx):
                with settled(rbd.Image(ioctx, name, read_only=True)) as image:
                    prefixes.append(image.block_name_prefix())
            keys = {item.key for item in ioctx.list_objects()}
        return {key for key in keys if key.startswith(tuple(prefixes))}

    def _in_pool(self) -> list[str]:
        import rados
        import rbd

        with (
            rados.Rados(conffile=str(self.conf_path), name="client.admin") as cluster,
            cluster.open_ioctx(self.pool) as ioctx,
        ):
            trashed = [entry["name"] for entry in rbd.RBD().trash_list(ioctx)]
            return [*rbd.RBD().list(ioctx), *trashed]


def pytest_addoption(parser):
    parser.addoption(
        "--kill-seed", type=int, default=1, help="draws the instants at which tests kill services"
    )


@pytest.fixture
def kill_seed(pytestconfig):
    """What draws the instants of kills."""
    return pytestconfig.getoption("--kill-seed")


@pytest.fixture(scope="session")
def ceph_conf_lines():
    """A client says that it lives every 5 s, and is late when services start beside it.

    Ceph's own default, 30 s, would make an evacuated guest wait as long for the disk of a dead one.
    """
    return "[osd.0]\nosd client watch timeout = 15\n"


@pytest.fixture(scope="session")
def site(ceph_cluster, tmp_path_factory):
    home = tmp_path_factory.mktemp("rig")
    conf_path = ceph_cluster.conf_path
    for pool in POOLS:
        ceph_cluster.create_pool(pool)
    rbd = RunningServer(
        home / "rbd",
        f'backend = "rbd"\npool = "volcore-test-cinder"\nceph_conf = "{conf_path}"\n'
        f'user = "admin"\n[pools.q]\nbackend = "local"\ndirectory = "{home}/q"\n',
        module=held_server.MODULE,
    )
    local = RunningServer(home / "local", module=held_server.MODULE)
    ours = {
        name: {
            "volume_driver": DRIVER,
            "volcore_endpoint": server.endpoint,
            "volcore_pool": pool,
            "volcore_timeout": "300",  # calls that a test holds wait for slow machines
            "volcore_image_cache_size_gb": "4",
        }
        for name, server, pool in (
            ("ours-rbd", rbd, "p"), ("ours-local", local, "p"), ("ours-beside", rbd, "q")
        )
    }  # fmt: skip
    stock = {
        "volume_driver": "cinder.volume.drivers.rbd.RBDDriver",
        "rbd_pool": "volcore-test-stock",
        "rbd_user": "admin",
        "rbd_ceph_conf": str(conf_path),
    }
    backends = {**ours, "stock": stock}
    glance_rbd = (conf_path, GLANCE_POOL)
    with rbd, local, Rig(home / "cinder", backends, glance_rbd=glance_rbd) as rig:
        cinder = CinderApi(rig.api)
        for name in backends:
            cinder.make_type(name, name)
        wait_up(cinder, rig)
        yield Site(cinder, rig, rbd, local, conf_path, "volcore-test-cinder")
    for pool in POOLS:
        ceph_cluster.delete_pool(pool)


@pytest.fixture(scope="session", autouse=True)
def nova_begun(request, tmp_path_factory):
    """Nova's rig, a future: its dozen services start beside the first tests, if a test wants it."""
    if not any("nova" in item.fixturenames for item in request.session.items):
        yield None
        return
    site, home = request.getfixturevalue("site"), tmp_path_factory.mktemp("nova") / "rig"
    with contextlib.ExitStack() as started, ThreadPoolExecutor() as beside:
        yield beside.submit(lambda: started.enter_context(NovaRig(home, site.rig, secrets(site))))


def secrets(site):
    """libvirt's secret that volcore names to Nova, by default the cluster's fsid, and its key."""

    def ceph(*words):
        words = ["ceph", "--conf", site.conf_path, *words]
        return subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()

    return {ceph("fsid"): ceph("auth", "get-key", "client.admin")}


def wait_up(cinder, rig, *, since=0):
    """Wait until all backends are initialized, after `since` in the log, and known for it."""
    deadline = time.monotonic() + 150
    wanted = {"ours-rbd", "ours-local", "ours-beside", "stock"}
    while True:
        said = rig.log("volume")[since:]
        pools = []
        with contextlib.suppress(ApiError):  # what is asked before the scheduler listens is lost
            pools = cinder.call("GET", "/scheduler-stats/get_pools?detail=true")["pools"]
        up = {p["name"].split("@")[1].split("#")[0] for p in pools}
        if wanted <= up and said.count("Driver initialization completed") >= len(wanted):
            return
        assert time.monotonic() < deadline, f"only {up} are up:\n{said[-6000:]}"
        time.sleep(0.5)


def errors(text: str) -> list[str]:
    """The errors in a Cinder log, each with its traceback: what has one time and process."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if told := re.match(r"(\S+ \S+ \d+) (ERROR|CRITICAL) ", line):
            found.setdefault(told[1], []).append(line)
    return ["\n".join(lines) for lines in found.values()]
