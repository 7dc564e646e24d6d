"""cinder-volume as a process: it lives on while volcore is silent, and needs no eventlet."""

import os
import signal
import time

from .conftest import wait_up


def test_a_silent_server_blocks_nothing(site):
    """Goal: grpc never stops the green threads. Method: freeze the server during a create.

    Reports of the service every five seconds are the proof; a blocked hub sends none.
    """
    cinder, server = site.cinder, site.servers["ours-rbd"]

    def reports():
        services = cinder.call("GET", "/os-services?binary=cinder-volume")["services"]
        return next(s["updated_at"] for s in services if s["host"] == "rig@ours-rbd")

    os.kill(server.pid, signal.SIGSTOP)
    try:
        made = cinder.create("volume", wait=False, size=1, volume_type="ours-rbd")
        time.sleep(2)
        before = reports()
        time.sleep(12)
        assert reports() > before
    finally:
        os.kill(server.pid, signal.SIGCONT)
    cinder.wait("volume", made["id"])
    cinder.delete("volume", made["id"])


def test_native_threads(site):
    """Goal: it works without eventlet, too. Method: start cinder-volume again that way."""
    cinder, rig = site.cinder, site.rig
    kept = cinder.create("volume", size=1, volume_type="ours-rbd")
    rig.stop("volume")
    rig.native = True
    since = len(rig.log("volume"))
    rig.start("volume")
    wait_up(cinder, rig, since=since)
    assert "native threading" in rig.log("volume")[since:]
    clones = [
        cinder.create("volume", wait=False, size=1, source_volid=kept["id"]) for _ in range(5)
    ]
    for one in clones:
        cinder.wait("volume", one["id"])
    for one in [kept, *clones]:
        cinder.delete("volume", one["id"])
