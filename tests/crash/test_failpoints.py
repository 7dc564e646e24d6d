"""A real server dies by SIGKILL at chosen steps of real calls: all or nothing, and nothing is lost.

Here are a few points, others each day; `scripts/soak failpoints` goes through all of them.
"""

import datetime
import importlib
import pkgutil
import random
import secrets
import signal
import subprocess
import sys
from contextlib import ExitStack

import pytest

import volcore.v1
from volcore.testing import failpoint
from volcore.testing.failpoint_scenarios import READING, SCENARIOS
from volcore.testing.failpoint_sites import LocalSite
from volcore.testing.failpoints import Run, rbd_site, scenarios_of

SEED = datetime.datetime.now(datetime.UTC).date().toordinal()
LOCAL_COUNT, RBD_COUNT = 4, 2
"""Points: each costs a call undisturbed, a kill, and an audit, 2 to 4 s."""
SLOW = {"CheckPool"}
"""Waits for seconds in each of its calls."""


def calls() -> set[str]:
    """Names of all calls of the API."""
    found = set()
    for module in pkgutil.iter_modules(volcore.v1.__path__):
        if module.name.endswith("_service_pb2"):
            file = importlib.import_module(f"volcore.v1.{module.name}").DESCRIPTOR
            for service in file.services_by_name.values():
                found |= {method.name for method in service.methods}
    return found


def test_every_call_is_known():
    """Goal: no new call is forgotten. Method: each of the services reads, or has a scenario."""
    killed = {scenario.rpc for scenario in SCENARIOS}
    assert not killed & READING
    assert calls() == killed | READING


def test_names_of_steps():
    """Goal: the same name in each run. Method: what libc and Ceph say, with numbers of a run."""
    named = failpoint.step_name
    assert named("pwrite64 layers/17.data") == "pwriteN layers/N.data"
    request = (
        "osd_op(unknown.0.0:37 2.3 2:c1b2:::rbd_header.10a2b3c4d5e6:head [call rbd.set_features"
        " in=16b,omap-set-vals in=12b] snapc 0=[] ondisk+write+known_if_redirected e12)"
    )
    assert named(request) == "rbd_header: call rbd.set_features,omap-set-vals"
    command = 'mon_command({"prefix": "osd blocklist", "addr": "192.0.2.1"} v 0)'
    assert named(command) == "monitor: osd blocklist"


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return failpoint.build(tmp_path_factory.mktemp("failpoints"))


def kill_at_random(site, count):
    """Kill at points drawn by the day; a failure names the step."""
    dice = random.Random(SEED)
    scenarios = [one for one in scenarios_of(site) if one.rpc not in SLOW]
    for number, scenario in enumerate(dice.sample(scenarios, count)):
        outcome = Run(site, scenario, number).run(
            lambda steps: [(dice.randint(1, len(steps)), True)] if steps else []
        )
        assert not outcome.failures, (SEED, outcome.failures)
        assert outcome.kills == bool(outcome.steps)


@pytest.mark.timeout(120)
def test_local(tmp_path, library):
    """Goal: all or nothing. Method: die after a step of some calls, and start again."""
    with LocalSite(tmp_path, library).running() as site:
        kill_at_random(site, LOCAL_COUNT)


@pytest.mark.timeout(180)
def test_rbd(tmp_path, library, ceph_cluster):
    """Goal: all or nothing. Method: die after a step of some calls, another server takes over."""
    with ExitStack() as undo:
        site = undo.enter_context(rbd_site(ceph_cluster, tmp_path, library, undo))
        kill_at_random(site, RBD_COUNT)


def test_requests_are_seen(tmp_path, library, ceph_cluster, ceph_pool):
    """Goal: librbd's own requests count. Method: kill a process inside of librbd's create."""
    points = failpoint.Failpoints(tmp_path / "points", None)
    words = [f"LD_PRELOAD={library}", f"VOLCORE_FAILPOINTS={points.path}", sys.executable, "-c"]
    script = (
        "import ctypes, sys, rados, rbd\n"
        "assert not ctypes.CDLL(None).failpoints_watch_ceph()\n"
        "cluster = rados.Rados(conffile=sys.argv[1], rados_id='admin')\n"
        "cluster.connect()\n"
        "ioctx = cluster.open_ioctx(sys.argv[2])\n"
        "rbd.RBD().create(ioctx, sys.argv[3], 8 << 20, old_format=False, features=61)\n"
    )

    def run() -> int:
        command = ["env", *words, script, str(ceph_cluster.conf_path), ceph_pool]
        return subprocess.run([*command, f"image{secrets.token_hex(4)}"], check=False).returncode

    points.watch()
    assert run() == 0
    steps = points.steps()
    for act in ("rbd_header: create,call rbd.create", "call rbd.dir_add_image", "rbd_object_map"):
        assert [step for step in steps if act in step], (act, steps)
    points.arm(len(steps) // 2, after=True)
    assert run() == -signal.SIGKILL
    assert points.steps() == steps[: points.passed]
    assert points.passed == len(steps) // 2
