"""The driver class against Cinder's own definitions; Cinder is asked in its environment."""

import json
import subprocess

from .rig import VENV

_ASK = """
import inspect, json
from volcore.cinder.driver import VolcoreDriver
from cinder.interface import volume_driver, volume_group_driver, volume_snapshot_revert
from cinder.interface import volume_manageable_driver, volume_snapshotmanagement_driver
from cinder.volume import driver
wrong = []
def shape(function):
    names = inspect.signature(function).parameters.values()
    return [(p.name, p.default is p.empty) for p in names if p.kind is p.POSITIONAL_OR_KEYWORD]
interfaces = (
    volume_driver.VolumeDriverCore,
    volume_group_driver.VolumeGroupDriver,
    volume_snapshot_revert.VolumeSnapshotRevertDriver,
    volume_manageable_driver.VolumeListManageableDriver,
    volume_snapshotmanagement_driver.VolumeSnapshotManagementDriver,
)
for cls in interfaces:
    for name, wanted in inspect.getmembers(cls, inspect.isfunction):
        if name.startswith("_") and name != "_init_vendor_properties":
            continue
        found = getattr(VolcoreDriver, name, None)
        if found is None:
            wrong.append(f"{name} is missing")
        elif name in vars(VolcoreDriver):
            ours, theirs = shape(found), shape(wanted)
            if [n for n, _ in ours[:len(theirs)]] != [n for n, _ in theirs]:
                wrong.append(f"{name}{ours} is not {theirs}")
            if any(required for _, required in ours[len(theirs):]):
                wrong.append(f"{name} wants more than {theirs}")
known = {n for cls in (*interfaces, driver.VolumeDriver) for n, _ in inspect.getmembers(cls)}
own = [n for n, f in vars(VolcoreDriver).items() if inspect.isfunction(f) and n[0] != "_"]
wrong += [f"{n} is nothing that Cinder calls" for n in own if n not in known]
abstract = sorted(VolcoreDriver.__abstractmethods__)
print(json.dumps({"wrong": wrong, "abstract": abstract, "own": len(own)}))
"""


def test_signatures():
    """Goal: every method has the name and the parameters that Cinder calls it with."""
    done = subprocess.run(
        [VENV / "bin" / "python", "-W", "ignore", "-c", _ASK],
        capture_output=True, text=True, cwd=VENV,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["wrong"] == []
    assert told["abstract"] == []
    assert told["own"] > 15


def test_compliance():
    """Goal: Cinder's own compliance test accepts the class."""
    code = (
        "import unittest, volcore.cinder.driver\n"
        "from cinder.tests.compliance import test_volume_drivers as t\n"
        "suite = unittest.defaultTestLoader.loadTestsFromModule(t)\n"
        "result = unittest.TextTestRunner().run(suite)\n"
        "judged = any(d.cls is volcore.cinder.driver.VolcoreDriver for d in t.VOLUME_DRIVERS)\n"
        "raise SystemExit(not (result.wasSuccessful() and judged))\n"
    )
    done = subprocess.run(
        [VENV / "bin" / "python", "-W", "ignore", "-c", code],
        capture_output=True, text=True,
        cwd=next((VENV / "lib").glob("python3*")) / "site-packages",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_librados():
    """Goal: cinder-volume needs no Ceph for us. Method: import the driver where it is absent."""
    code = (
        "import sys\n"
        "sys.modules['rados'] = sys.modules['rbd'] = None\n"
        "import volcore.cinder.driver\n"
        "raise SystemExit('volcore.backends' in sys.modules)\n"
    )
    assert subprocess.run([VENV / "bin" / "python", "-c", code]).returncode == 0
