"""Two cinder-volume of one cluster; one is killed, the other does what is left."""

import configparser
import time

import pytest

from .conftest import errors
from .settling import is_gone, survived, unstick, until
from .test_kill import side_by_side

pytestmark = pytest.mark.long
BACKENDS = {"both-rbd": "ours-rbd", "both-local": "ours-local"}
EACH = 8


@pytest.fixture
def pair(site):
    """Their names; each serves both pools, beside the cinder-volume of the other tests."""
    rig, names = site.rig, ("volume-a", "volume-b")
    for name in names:
        conf = configparser.RawConfigParser(default_section="none")
        conf.read(rig.conf)
        own = {"host": name, "cluster": "pair", "enabled_backends": ",".join(BACKENDS)}
        conf["DEFAULT"].update(own)
        for backend, ours in BACKENDS.items():
            conf[backend] = {**conf[ours], "volume_backend_name": backend}
        path = rig.home / f"{name}.conf"
        with path.open("w") as file:
            conf.write(file)
        rig.start(name, path)
    for backend in BACKENDS:
        site.cinder.make_type(backend, backend)

    def are_up():
        listed = site.cinder.call("GET", "/scheduler-stats/get_pools?detail=true")["pools"]
        known = {one["capabilities"]["volume_backend_name"] for one in listed}
        ready = [rig.log(name).count("Driver initialization completed") for name in names]
        return ready == [2, 2] and known >= set(BACKENDS)

    until(are_up)
    yield names
    for name in names:
        if name in rig.processes:
            rig.stop(name)


def test_one_of_two_dies(site, pair):
    """Goal: nothing is lost and nothing leaks. Method: kill -9 one amid a burst of both.

    Every call to volcore stops before its answer: each has done something that Cinder has not
    heard of. The administrator asks for the clean-up of the dead one's work, users repeat the rest.
    """
    cinder, rig = site.cinder, site.rig
    dead, alive = pair

    def prepared(backend):
        made = [
            cinder.create("volume", wait=False, size=1, volume_type=backend)
            for _ in range(2 * EACH)
        ]
        made = [cinder.wait("volume", one["id"])["id"] for one in made]
        snapshots = [cinder.create("snapshot", volume_id=one)["id"] for one in made[:EACH]]
        return made[:EACH], made[EACH:], snapshots

    kept, doomed, cut_off = {}, {}, {}
    for backend in BACKENDS:
        kept[backend], doomed[backend], cut_off[backend] = prepared(backend)
    for name in pair:
        assert "Created volume successfully" in rig.log(name), f"{name} took no request"

    def burst(backend):
        hold = site.holds[BACKENDS[backend]]
        hold.add("end", ["CreateVolume", "CreateSnapshot", "DeleteVolume", "DeleteSnapshot"])
        asked = [*kept[backend], *doomed[backend], *cut_off[backend]]
        made = side_by_side(lambda one: ask(backend, one), asked)
        hold.wait_still()
        return made

    def ask(backend, one):
        if one in doomed[backend]:
            return cinder.call("DELETE", f"/volumes/{one}")
        if one in cut_off[backend]:
            return cinder.call("DELETE", f"/snapshots/{one}")
        made = cinder.create("volume", wait=False, size=1, source_volid=one)
        return made, cinder.create("snapshot", wait=False, volume_id=one)

    try:
        made = {backend: list(filter(None, burst(backend))) for backend in BACKENDS}
        rig.kill(dead)
    finally:
        for hold in site.holds.values():
            hold.release()
    clean_up(site, dead)

    def finish(backend):
        for source, (volume, snapshot) in zip(kept[backend], made[backend], strict=True):
            if not survived(cinder, "volume", volume["id"]):
                volume = cinder.create("volume", size=1, source_volid=source)
            if not survived(cinder, "snapshot", snapshot["id"]):
                snapshot = cinder.create("snapshot", volume_id=source)
            cinder.delete("snapshot", snapshot["id"])
            cinder.delete("volume", volume["id"])
        for one in cut_off[backend]:
            if unstick(cinder, "snapshot", one, "deleting"):
                cinder.delete("snapshot", one)
        for one in doomed[backend]:
            until(lambda one=one: is_gone(cinder, "volume", one))
        for one in kept[backend]:
            cinder.delete("volume", one)

    side_by_side(finish, BACKENDS)
    for backend, ours in BACKENDS.items():
        site.forget_images(ours)
        assert site.leftovers(ours) == [], backend
    assert errors(rig.log(alive)) == []


def clean_up(site, dead):
    """Ask for it as docs/openstack.md says, when Cinder has noticed that a service is down."""
    long_ago = "created_at = '2020-01-01', updated_at = '2020-01-01'"
    site.rig.sql("cinder", f"update services set {long_ago} where host like '{dead}@%'")
    time.sleep(1)
    for backend in BACKENDS:
        asked = {"host": f"{dead}@{backend}", "binary": "cinder-volume"}
        told = site.cinder.call("POST", "/workers/cleanup", asked)
        assert [one["host"] for one in told["cleaning"]] == [asked["host"]], told
        assert told["unavailable"] == []
