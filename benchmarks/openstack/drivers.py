"""Calls of two drivers in turn, in one process: ours, and the stock RBD driver beside it.

Runs in the environment that has Cinder, with the rig's cinder.conf; no API, no queue, no database.
Writes `{"what": {"ours-rbd": [seconds...], "stock": [...]}}` to its standard output.

Each round has a volume and a snapshot of its own, so that no call waits for what an earlier one has
left to do behind its answer, and begins with a rest: after its last delete the stock driver keeps
this process busy for some seconds, and nobody pays for what another one left. What each line
isolates:
  snapshot     of a detached volume
  from         a volume from a snapshot of another one
  clone        a volume from a volume
  image        a volume of an image that was used before: for the rival a clone of the volume in
               Cinder's own image cache, which is the best that it has
  connection   initialize_connection of a volume
  delete       of a volume that was made from a snapshot
"""

import json
import logging
import sys
import time
import uuid
from collections.abc import Callable
from typing import Any

from cinder import context, coordination, objects
from cinder.common import config  # noqa: F401 - registers the options
from oslo_config import cfg
from oslo_utils import importutils

objects.register_all()  # before the modules that annotate with them

from cinder.volume import configuration, manager  # noqa: E402

CONNECTOR = {"host": "bench", "ip": "127.0.0.1", "multipath": False, "initiator": "iqn.bench"}
SIZE_GB = 1
REST_S = 3


class Contender:
    """One driver, and a volume of the image."""

    def __init__(self, name: str, image_id: str) -> None:
        section = configuration.Configuration(manager.volume_backend_opts, config_group=name)
        self.driver = importutils.import_object(
            section.volume_driver, configuration=section, host=f"bench@{name}", cluster_name=None,
            is_vol_db_empty=False, active_backend_id=None,
        )  # fmt: skip
        self.context = context.get_admin_context()
        self.driver.do_setup(self.context)
        self.driver.check_for_setup_error()
        self.images = manager.glance.get_default_image_service()
        self.image = self.images.show(self.context, image_id)
        self.cached = self.volume()
        if name == "stock":
            self.driver.create_volume(self.cached)  # its content takes no part in a clone
        else:
            assert self.of_image(self.cached)[1]

    def volume(self) -> Any:
        return objects.Volume(
            self.context, id=str(uuid.uuid4()), _name_id=None, size=SIZE_GB, volume_type_id=None,
            encryption_key_id=None, multiattach=False, status="available", use_quota=True,
            display_name="bench", host="bench", migration_status=None, provider_id=None,
        )  # fmt: skip

    def snapshot_of(self, volume: Any) -> Any:
        return objects.Snapshot(
            self.context, id=str(uuid.uuid4()), volume_id=volume.id, volume=volume,
            volume_size=SIZE_GB, encryption_key_id=None, provider_id=None,
        )  # fmt: skip

    def of_image(self, volume: Any) -> Any:
        return self.driver.clone_image(self.context, volume, None, self.image, self.images)

    def new(self, make: Callable[[Any], Any]) -> tuple[Any, float]:
        """Make a volume; return it with the time."""
        volume = self.volume()
        start = time.perf_counter()
        make(volume)
        return volume, time.perf_counter() - start

    def round(self, stock: bool) -> dict[str, float]:
        """Do each thing once, and take it back outside of the clock."""
        driver, spent = self.driver, {}
        source = self.volume()
        driver.create_volume(source)
        snapshot = self.snapshot_of(source)
        spent["snapshot"] = timed(lambda: driver.create_snapshot(snapshot))
        made, spent["from"] = self.new(lambda v: driver.create_volume_from_snapshot(v, snapshot))
        spent["connection"] = timed(lambda: driver.initialize_connection(made, CONNECTOR))
        driver.terminate_connection(made, CONNECTOR)
        spent["delete"] = timed(lambda: driver.delete_volume(made))
        clone, spent["clone"] = self.new(lambda v: driver.create_cloned_volume(v, source))
        of_image, spent["image"] = self.new(
            (lambda v: driver.create_cloned_volume(v, self.cached)) if stock else self.of_image
        )
        for volume in (clone, of_image):
            driver.delete_volume(volume)
        driver.delete_snapshot(snapshot)
        driver.delete_volume(source)
        return spent


def timed(act: Callable[[], Any]) -> float:
    start = time.perf_counter()
    act()
    return time.perf_counter() - start


def main() -> None:
    conf_path, image_id, rounds = sys.argv[1], sys.argv[2], int(sys.argv[3])
    cfg.CONF(["--config-file", conf_path], project="cinder")
    logging.disable(logging.INFO)
    coordination.COORDINATOR.start()
    contenders = {name: Contender(name, image_id) for name in ("ours-rbd", "stock")}
    found: dict[str, dict[str, list[float]]] = {}
    for number in range(-1, rounds):
        names = list(contenders)
        for name in names if number % 2 else reversed(names):
            time.sleep(REST_S)
            for what, spent_s in contenders[name].round(name == "stock").items():
                if number >= 0:
                    found.setdefault(what, {}).setdefault(name, []).append(spent_s)
    for contender in contenders.values():
        contender.driver.delete_volume(contender.cached)
    coordination.COORDINATOR.stop()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
