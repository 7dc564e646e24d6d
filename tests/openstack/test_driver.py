"""The driver at work in Cinder's environment, without Cinder's services: any release has this."""

import json
import subprocess

import pytest

from volcore.testing.server import RunningServer

from .rig import VENV

_DRIVER = """
import json, logging, sys, uuid
from cinder import context, objects
from cinder.common import config
from oslo_config import cfg
from oslo_utils import importutils
objects.register_all()
from cinder.volume import configuration, manager
cfg.CONF(["--config-file", sys.argv[1]], project="cinder")
section = configuration.Configuration(manager.volume_backend_opts, config_group="ours")
driver = importutils.import_object(
    section.volume_driver, configuration=section, host="h@ours", cluster_name=None,
    is_vol_db_empty=False, active_backend_id=None)
admin = context.get_admin_context()
driver.do_setup(admin)
driver.check_for_setup_error()
def volume(size, **more):
    return objects.Volume(
        admin, id=str(uuid.uuid4()), size=size, encryption_key_id=None,
        multiattach=False, status="available", use_quota=True, display_name="v", host="h@ours",
        migration_status=None, provider_id=None,
        **({"volume_type_id": None, "_name_id": None} | more))
"""
_WORK = """
made = volume(1)
driver.create_volume(made)
snapshot = objects.Snapshot(
    admin, id=str(uuid.uuid4()), volume_id=made.id, volume=made, volume_size=1,
    encryption_key_id=None, provider_id=None)
driver.create_snapshot(snapshot)
driver.extend_volume(made, 2)
driver.revert_to_snapshot(admin, made, snapshot)
of_snapshot, clone = volume(3), volume(2)
driver.create_volume_from_snapshot(of_snapshot, snapshot)
driver.create_cloned_volume(clone, made)
there = driver.get_volume_stats(refresh=True)
driver.delete_snapshot(snapshot)
for one in (made, of_snapshot, clone, clone):
    driver.delete_volume(one)
left = driver.get_volume_stats(refresh=True)
print(json.dumps([there["backend_state"], there["provisioned_capacity_gb"],
                  left["provisioned_capacity_gb"]]))
"""

_ATTACHED = """
from cinder import exception
told = []
for host, attachments in (("h", 0), ("h", 1), ("other", 0)):
    known = [objects.VolumeAttachment(admin, connector=None)] * attachments
    made = volume(1, volume_attachment=objects.VolumeAttachmentList(objects=known))
    driver.create_volume(made)
    name = f"pools/p/volumes/{made.name}"
    driver._service.call(lambda c: c.attach_volume(name, host))
    try:
        driver.delete_volume(made)
    except exception.VolumeIsBusy:
        told.append(host)
print(json.dumps(told))
"""


_MIGRATED = """
class Stored(objects.Snapshot):
    def obj_load_attr(self, name):
        loads.append(name)
        self.volume = made
loads = []
driver.create_volume(made := volume(1, _name_id=sys.argv[2] or None))
snapshot = Stored(admin, id=str(uuid.uuid4()), volume_id=made.id, volume_size=1, provider_id=None)
driver.create_snapshot(snapshot)
del snapshot._obj_volume, loads[:]
driver.create_volume_from_snapshot(volume(1), snapshot)
print(json.dumps(loads))
"""


@pytest.mark.parametrize("name_id", ["", "8f1cb6a3-1b6b-4d7a-9d55-6b6a7f5c9d10"])
def test_volume_of_a_snapshot_is_read_if_need_be(tmp_path, name_id):
    """Goal: Cinder's database is asked only for a volume of another name, as of a migration."""
    with RunningServer(tmp_path / "s") as server:
        loads = driver_at_work(tmp_path, server, _MIGRATED, name_id)
        assert loads == (["volume"] if name_id else [])
        with server.client() as client:
            assert len(list(client.list_volumes("pools/p"))) == 2


@pytest.mark.long
def test_ends_only_its_own(tmp_path):
    """Goal: a volume goes that only a dead cinder-volume had, to copy it; and no other.

    Method: attach volumes to this host and another one, with and without Cinder's knowledge.
    """
    with RunningServer(tmp_path / "s") as server:
        assert driver_at_work(tmp_path, server, _ATTACHED) == ["h", "other"]
        with server.client() as client:
            assert len(list(client.list_volumes("pools/p"))) == 2


def test_works(tmp_path):
    """Goal: the driver fits this Cinder. Method: volumes and a snapshot of a real server."""
    with RunningServer(tmp_path / "s") as server:
        assert driver_at_work(tmp_path, server, _WORK) == ["up", 6, 0]
        with server.client() as client:
            assert list(client.list_volumes("pools/p")) == []


def driver_at_work(tmp_path, server, code, *more):
    """Return what code prints that has a driver: `driver`, `admin` and `volume(size_gib)`."""
    conf = tmp_path / "cinder.conf"
    conf.write_text(
        f"[DEFAULT]\nenabled_backends = ours\nstate_path = {tmp_path}\n"
        "[ours]\nvolume_driver = volcore.cinder.driver.VolcoreDriver\n"
        f"volcore_endpoint = {server.endpoint}\nvolcore_pool = p\n"
    )
    words = [VENV / "bin" / "python", "-W", "ignore", "-c", _DRIVER + code, conf, *more]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, timeout=200)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])
