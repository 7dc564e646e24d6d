"""What others notice of an image that is imported through the Cinder driver: cinder-volume's waits.

What it isolates: one cinder-volume of one backend of ours, once quiet and once while it makes a
volume of a Glance image for the first time: fetch, hash, import, clone. `heartbeat_prober` says
what is asked. A heartbeat is late by what passes between two of them beyond report_interval, 1 s.
The image is raw, each second MiB of random bytes, the others holes. Everything is on this machine:
Glance, Cinder, RabbitMQ, MariaDB, volcore, and Ceph where the pool is there. Asserts nothing.

    python -m benchmarks heartbeat --size-gib 10 --backend rbd --directory DIR
"""

import argparse
import contextlib
import itertools
import json
import os
import random
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.report import Sample
from tests.openstack.cinder_api import CinderApi
from tests.openstack.glance_api import GlanceApi
from tests.openstack.rig import VENV, Rig
from volcore.limits import GIB, MIB
from volcore.testing.cluster import CephCluster
from volcore.testing.server import RunningServer

REPORT_S = 1
QUIET_S = 60
START_S = 90
IMPORT_S = 3600
BACKEND = "ours"
PROBER = Path(__file__).with_name("heartbeat_prober.py")


@contextlib.contextmanager
def site(home: Path, backend: str) -> Iterator[Rig]:
    """A Cinder with one backend."""
    with contextlib.ExitStack() as undo:
        pool = ""
        if backend == "rbd":
            ceph = undo.enter_context(CephCluster(home / "ceph"))
            ceph.create_pool("ours")
            pool = (
                f'backend = "rbd"\npool = "ours"\nceph_conf = "{ceph.conf_path}"\nuser = "admin"\n'
            )
        server = undo.enter_context(RunningServer(home / "server", pool))
        options = {
            "volume_driver": "volcore.cinder.driver.VolcoreDriver",
            "volcore_endpoint": server.endpoint,
            "volcore_pool": "p",
        }
        rig = Rig(home / "rig", {BACKEND: options}, report_interval_s=REPORT_S)
        yield undo.enter_context(rig)


def wait_up(cinder: CinderApi) -> None:
    deadline = time.monotonic() + START_S
    while not cinder.call("GET", "/scheduler-stats/get_pools?detail=true")["pools"]:
        assert time.monotonic() < deadline, "the backend is not up"
        time.sleep(0.5)


def make_image(path: Path, size_bytes: int) -> None:
    dice = random.Random(1)
    with path.open("wb") as file:
        for _ in range(0, size_bytes, 2 * MIB):
            file.write(dice.randbytes(MIB))
            file.seek(MIB, os.SEEK_CUR)
        file.truncate(size_bytes)


def measure(cinder: CinderApi, rig: Rig, image: str, size_gib: int) -> dict[str, Any]:
    """Return what the prober has seen, and `at`: begin and end of the import."""
    command = [VENV / "bin" / "python", PROBER, rig.conf, f"rig@{BACKEND}", str(rig.maria)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as prober:
        assert prober.stdin is not None
        assert prober.stdout is not None
        assert prober.stdout.readline() == "ready\n"
        time.sleep(QUIET_S)
        begin = time.monotonic()
        made = cinder.create(
            "volume", wait=False, size=size_gib, volume_type=BACKEND, imageRef=image
        )
        while (now := cinder.get("volume", made["id"]))["status"] in ("creating", "downloading"):
            assert time.monotonic() < begin + IMPORT_S, now
            time.sleep(1)
        assert now["status"] == "available", now
        end = time.monotonic()
        prober.stdin.close()
        seen: dict[str, Any] = json.loads(prober.stdout.read())
    cinder.delete("volume", made["id"])
    return seen | {"at": [begin, end]}


def waits(seen: dict[str, Any], begin: float, end: float) -> dict[str, dict[float, float]]:
    """Return the waits in ms of what began in a span of time, by kind and seconds in the span."""
    found = {
        kind: {start - begin: 1e3 * spent for start, spent in seen[kind] if begin <= start < end}
        for kind in ("rpc", "list")
    }
    beats = [at for at in seen["beats"] if begin <= at < end]
    found["beats"] = {
        before - begin: max(0.0, 1e3 * (after - before - REPORT_S))
        for before, after in itertools.pairwise(beats)
    }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size-gib", type=int, default=10)
    parser.add_argument("--backend", choices=("rbd", "local"), default="rbd")
    parser.add_argument("--directory", type=Path, default=Path("/var/tmp"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.directory, prefix="volcore-b-") as place:
        home = Path(place)
        with site(home, options.backend) as rig:
            cinder = CinderApi(rig.api)
            cinder.make_type(BACKEND, BACKEND)
            wait_up(cinder)
            path = home / "image.raw"
            make_image(path, options.size_gib * GIB)
            image = GlanceApi(rig.glance).upload(path, "raw")
            path.unlink()
            seen = measure(cinder, rig, image, options.size_gib)
        print("; ".join(machine.facts(home)))
    begin, end = seen["at"]
    print(
        f"{options.size_gib} GiB raw, half of it holes, into {options.backend}: {end - begin:.0f} s"
    )
    names = {
        "rpc": "get_capabilities over RabbitMQ",
        "list": "get_manageable_volumes, with volcore",
        "beats": "lateness of a heartbeat",
    }
    for phase, span in (("quiet", (begin - QUIET_S, begin)), ("importing", (begin, end))):
        for kind, values in waits(seen, *span).items():
            sample = Sample(tuple(values.values()))
            at = max(values, key=lambda one: values[one])
            print(
                f"{phase:<10} {names[kind]:<38} p50 {sample.median:6.1f} ms  "
                f"p99 {sample.percentile(99):6.1f} ms  max {values[at]:6.1f} ms at {at:.0f} s  "
                f"({len(values)})"
            )


if __name__ == "__main__":
    main()
