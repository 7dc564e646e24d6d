"""Real Cinder services on loopback: ours on Ceph, the stock RBD driver, and one that does nothing.

Ceph keeps its own pace: a monitor commits once a second, as on a cluster of a user.
"""

import contextlib
import os
import subprocess
import time
from pathlib import Path

from tests.openstack.cinder_api import CinderApi
from tests.openstack.glance_api import GlanceApi
from tests.openstack.rest import ApiError
from tests.openstack.rig import Rig
from volcore.limits import MIB
from volcore.testing.cluster import CephCluster, stop_daemons
from volcore.testing.server import RunningServer

QUICK = "paxos propose interval = 0.02\npaxos min wait = 0.01\n"
OURS, STOCK, NOTHING = "ours-rbd", "stock", "fake"  # it tells the scheduler that name
IMAGE_BYTES = 64 * MIB
START_S = 150


class Site:
    """Everything ends with `undo`."""

    def __init__(self, home: Path, undo: contextlib.ExitStack) -> None:
        self.ceph = undo.enter_context(CephCluster(home / "ceph"))
        for pool in ("ours", "stock"):
            self.ceph.create_pool(pool)
        self._keep_pace()
        conf = self.ceph.conf_path
        self.server = undo.enter_context(
            RunningServer(
                home / "server",
                f'backend = "rbd"\npool = "ours"\nceph_conf = "{conf}"\nuser = "admin"\n',
            )
        )
        ours = {
            "volume_driver": "volcore.cinder.driver.VolcoreDriver",
            "volcore_endpoint": self.server.endpoint,
            "volcore_pool": "p",
        }
        stock = {
            "volume_driver": "cinder.volume.drivers.rbd.RBDDriver",
            "rbd_pool": "stock",
            "rbd_user": "admin",
            "rbd_ceph_conf": str(conf),
            "image_volume_cache_enabled": "True",  # the best that it has
        }
        nothing = {"volume_driver": "cinder.tests.fake_driver.FakeLoggingVolumeDriver"}
        backends = {OURS: ours, STOCK: stock, NOTHING: nothing}
        self.rig = undo.enter_context(Rig(home / "rig", backends))
        self.cinder = CinderApi(self.rig.api)
        self.glance = GlanceApi(self.rig.glance)
        for name in backends:
            self.cinder.make_type(name, name)
        self._wait_up()
        self.server.wait_for_short_path()
        image = home / "image.raw"
        image.write_bytes(bytes(range(256)) * (IMAGE_BYTES // 256))
        self.image = self.glance.upload(image, "raw")

    def _keep_pace(self) -> None:
        """Start the monitor anew with the settings that Ceph comes with."""
        conf = self.ceph.conf_path
        text = conf.read_text()
        assert QUICK in text, text
        conf.write_text(text.replace(QUICK, ""))
        stop_daemons(conf, daemon=("ceph-mon", "a"))
        command = ["ceph-mon", "-i", "a", "-c", str(conf)]
        subprocess.run(command, check=True, capture_output=True, env=os.environ | {"CEPH_ARGS": ""})

    def _wait_up(self) -> None:
        deadline = time.monotonic() + START_S
        while True:
            said = self.rig.log("volume")
            pools = []
            with contextlib.suppress(ApiError):  # while the scheduler starts
                pools = self.cinder.call("GET", "/scheduler-stats/get_pools?detail=true")["pools"]
            up = {pool["name"].split("@")[1].split("#")[0] for pool in pools}
            if {OURS, STOCK, NOTHING} <= up and said.count("Driver initialization completed") >= 3:
                return
            assert time.monotonic() < deadline, f"only {up} are up:\n{said[-6000:]}"
            time.sleep(0.5)
