"""A kill -9 of cinder-volume amid a group. Late in the run: its reports stop for a while."""

import os
import signal
import time

from .conftest import wait_up
from .test_groups import CONSISTENT, make_group


def test_cinder_dies(site):
    """Goal: what a kill -9 of cinder-volume cuts off can be deleted in Cinder, and is gone then.

    Method: freeze the server, ask for copies of a group, kill cinder-volume, and make what it has
    made after no step, one, two and three. Cinder leaves such groups in `creating` until their
    status is reset.
    """
    backend = "ours-local"
    cinder, rig, server = site.cinder, site.rig, site.servers[backend]
    group_type = cinder.make_group_type("cut-off", **CONSISTENT)
    group, volumes = make_group(cinder, backend, group_type)
    source = {"create-from-src": {"source_group_id": group["id"]}}
    os.kill(server.pid, signal.SIGSTOP)
    copies = [cinder.call("POST", "/groups/action", source)["group"] for _ in range(4)]
    time.sleep(1)
    since = len(rig.log("volume"))
    rig.stop("volume", hard=True)
    os.kill(server.pid, signal.SIGCONT)
    rig.start("volume")
    wait_up(cinder, rig, since=since)
    sources = [site.name(volume) for volume in volumes]
    with server.client() as client:
        for steps, copy in enumerate(copies):
            instant = f"group-{copy['id']}"
            if steps:
                client.create_group_snapshot(f"pools/p/groupSnapshots/{instant}", sources)
            for volume in cinder.volumes_of(copy["id"])[: max(0, steps - 1)]:
                of = next(v for v in volumes if v["id"] == volume["source_volid"])
                client.create_volume(
                    site.name(volume), snapshot=f"{site.name(of)}/snapshots/{instant}"
                )
    for copy in copies:
        assert cinder.get("group", copy["id"])["status"] == "creating"
        cinder.act("group", copy["id"], "reset_status", {"status": "error"})
    for one in (*copies, group):
        cinder.delete("group", one["id"])
    site.forget_images(backend)
    assert site.leftovers(backend) == []
