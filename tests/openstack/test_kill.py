"""A server that dies in the middle of Cinder's requests: they end right, and nothing leaks."""

import random
import threading
import time

import pytest


@pytest.mark.parametrize("backend", ["ours-rbd", "ours-local"])
def test_server_dies_in_a_create(site, backend):
    """Goal: requests under way survive a kill -9. Method: kill at random instants of ten creates.

    The driver repeats each request until the server is back; each volume is there once.
    """
    cinder, server = site.cinder, site.servers[backend]
    source = cinder.create("volume", size=1, volume_type=backend)
    snapshot = cinder.create("snapshot", volume_id=source["id"])
    seed = random.randrange(1 << 32)
    dice = random.Random(seed)
    made = []

    def create():
        for _ in range(10):
            made.append(cinder.create("volume", wait=False, size=1, snapshot_id=snapshot["id"]))

    caller = threading.Thread(target=create)
    caller.start()
    for _ in range(3):
        time.sleep(dice.uniform(0.1, 0.8))
        server.kill()
        time.sleep(dice.uniform(0, 0.5))
        server.start()
    caller.join()
    assert len(made) == 10, seed
    for one in made:
        cinder.wait("volume", one["id"])
    with server.client() as client:
        there = {volume.name for volume in client.list_volumes("pools/p")}
    assert there == {site.name(one) for one in [*made, source]}, seed
    cinder.call("DELETE", f"/volumes/{made[0]['id']}")
    server.kill()
    server.start()
    for one in made[1:]:
        cinder.delete("volume", one["id"])
    cinder.delete("snapshot", snapshot["id"])
    cinder.delete("volume", source["id"])
