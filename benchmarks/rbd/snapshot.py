"""Snapshots, with a monitor as Ceph comes: a second between two snapshot numbers.

detached  one after the other, of a volume that nobody has open; librbd's on an open image
deleted   one after the other; until the call returns
attached  100 volumes that clients have open, all at once
volume    a volume from a volume; Cinder's create_cloned_volume
"""

import contextlib
import time
from concurrent.futures import ThreadPoolExecutor

from benchmarks.rbd import rivals
from benchmarks.rbd.counters import counted
from benchmarks.rbd.site import VOLUMES, Site
from benchmarks.report import Sample
from benchmarks.sampling import Turns
from volcore.limits import GIB, MIB
from volcore.v1 import attachment_pb2

TOGETHER = 100


def run(site: Site) -> None:
    """Measure; see the module."""
    site.parents("flat", 10 * GIB)
    for name in ("detached", "source"):
        site.client.create_volume(f"{VOLUMES}/{name}", snapshot=f"{VOLUMES}/flat/snapshots/s")
        rivals.librbd_clone(site, "flat", name)
    rivals.librbd_clone(site, "flat", "open")
    with site.usual_pace():
        _detached(site)
        _deleted(site)
        _volume(site)
        _attached(site)


def _detached(site: Site) -> None:
    with site.rbd.Image(site.ioctx, "open") as image:
        image.write(b"x", 0)  # takes the lock
        acts = {
            "volcore": lambda _: site.client.create_snapshot(
                f"{VOLUMES}/detached/snapshots/{site.fresh('s')}"
            ),
            "create_snap": lambda _: image.create_snap(site.fresh("s")),
            "Cinder's calls": lambda _: rivals.cinder_snapshot(site, "detached", site.fresh("s")),
            "rbd snap create": lambda _: site.rbd_tool(
                "snap", "create", "--no-progress", f"plain/detached@{site.fresh('s')}"
            ),
        }
        turns = Turns().run(
            acts, rounds=site.count(8, 1), warm_up=1,
            every={"Cinder's calls": 4, "rbd snap create": 4},
        )  # fmt: skip
        calls = site.count(3, 1)
        requests = {
            "volcore": counted(site.server_socket, acts["volcore"], calls=calls),
            "create_snap": counted(site.plain_socket, acts["create_snap"], calls=calls),
        }
    found = site.lines("snapshot", turns, requests)
    site.figure(
        "snapshot", "snapshot of a detached volume", found["volcore"],
        rival="create_snap, back to back", theirs=found["create_snap"], at_most=0.02,
    )  # fmt: skip
    site.figure(
        "snapshot", "snapshot of a detached volume", found["volcore"],
        rival="Cinder's calls", theirs=found["Cinder's calls"],
    )  # fmt: skip


def _deleted(site: Site) -> None:
    count = site.count(6, 1) + 1
    names = {who: [site.fresh("s") for _ in range(count)] for who in ("volcore", "remove_snap")}
    with site.rbd.Image(site.ioctx, "open") as image:
        for name in names["remove_snap"]:
            image.create_snap(name)
        for name in names["volcore"]:
            site.client.create_snapshot(f"{VOLUMES}/detached/snapshots/{name}")
        turns = Turns().run(
            {
                "volcore": lambda _: site.client.delete_snapshot(
                    f"{VOLUMES}/detached/snapshots/{names['volcore'].pop()}"
                ),
                "remove_snap": lambda _: image.remove_snap(names["remove_snap"].pop()),
            },
            rounds=count - 1,
            warm_up=1,
        )
    found = site.lines("delete of a snapshot", turns)
    site.figure(
        "snapshot", "delete of a snapshot, acknowledged", found["volcore"],
        rival="remove_snap", theirs=found["remove_snap"],
    )  # fmt: skip


def _volume(site: Site) -> None:
    turns = Turns().run(
        {
            "volcore": lambda _: site.client.create_volume(
                f"{VOLUMES}/{site.fresh()}", volume=f"{VOLUMES}/source"
            ),
            "Cinder's calls": lambda _: rivals.cinder_from_volume(site, "source", site.fresh()),
        },
        rounds=site.count(6, 1),
        warm_up=1,
    )
    found = site.lines("volume from volume", turns)
    site.figure(
        "snapshot", "volume from volume", found["volcore"],
        rival="Cinder's calls", theirs=found["Cinder's calls"], at_most=0.10,
    )  # fmt: skip


def _attached(site: Site) -> None:
    count = site.count(TOGETHER, 4)
    image = "pools/p/images/attached"
    site.client.import_image(image, server_path=str(site.write_image("attached")))
    names = [site.fresh("a") for _ in range(count)]
    site.client.deploy_volumes(image, names)
    mode = attachment_pb2.ACCESS_MODE_READ_WRITE
    with contextlib.ExitStack() as undo:
        # Of their own: a client that loses a lock is shut out with all that it has open.
        cluster = undo.enter_context(site.connection())
        ioctx = undo.enter_context(cluster.open_ioctx("few"))
        for name in names:
            made = site.client.attach_volume(f"{VOLUMES}/{name}", "host", access_mode=mode)
            opened = undo.enter_context(site.rbd.Image(ioctx, made.rbd.image))
            opened.write(bytes(4096), MIB)
        pool = undo.enter_context(ThreadPoolExecutor(count))
        spent_s = []
        for turn in range(site.count(3, 1)):
            start = time.perf_counter()
            list(pool.map(
                lambda name, turn=turn: site.client.create_snapshot(
                    f"{VOLUMES}/{name}/snapshots/t{turn}"
                ),
                names,
            ))  # fmt: skip
            spent_s.append(time.perf_counter() - start)
    title = f"{TOGETHER} attached volumes together"
    site.figure("snapshot", title, Sample(tuple(spent_s)), unit="s", at_most=3.0)
