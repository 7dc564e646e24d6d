"""One volume after the other, of 10 GiB, cloned from a snapshot with 64 MiB in it.

volcore         a server in a process of its own, asked over its socket
backend         the same path in this process, without server and catalog: two rounds
rbd.clone       librbd on a connection that stays open
rbd clone       the command, with its process
Cinder's calls  of create_volume_from_snapshot
qcow2 overlay   `qemu-img create -b` on a local disk, with its process
full copy       librbd copies all; some rounds only
the floor       a write of 64 bytes, a stat, an empty call of gRPC
"""

from functools import partial

from benchmarks.rbd import rivals
from benchmarks.rbd.counters import Requests, counted
from benchmarks.rbd.site import Site, sum_of
from benchmarks.sampling import Turns
from volcore.limits import GIB, MIB

SIZE_BYTES = 10 * GIB
DATA_BYTES = 64 * MIB
SMALL = b"x" * 64


def run(site: Site) -> None:
    """Measure; see the module."""
    site.parents("gold", SIZE_BYTES, data_bytes=site.count(DATA_BYTES, MIB))
    site.ioctx.write_full("floor", SMALL)
    acts = {
        "volcore": lambda _: site.clone("gold"),
        "backend": lambda _: site.backend.clone("gold", "s", site.fresh(), SIZE_BYTES),
        "rbd.clone": lambda _: rivals.librbd_clone(site, "gold", site.fresh()),
        "rbd clone": lambda _: rivals.tool_clone(site, "gold", site.fresh()),
        "Cinder's calls": lambda _: rivals.cinder_from_snapshot(site, "gold", site.fresh()),
        "qcow2 overlay": lambda _: rivals.overlay(site, site.fresh()),
        "full copy": lambda _: rivals.full_copy(site, "gold", site.fresh()),
        "64 B write": lambda _: site.ioctx.write_full("floor", SMALL),
        "64 B write again": lambda _: site.ioctx.write_full("floor", SMALL),
        "object stat": lambda _: site.ioctx.stat("floor"),
        "empty call": lambda _: site.empty_call(),
    }
    rounds = site.count(60, 2)
    turns = Turns().run(
        acts, rounds=rounds, warm_up=3,
        every={"rbd clone": 3, "Cinder's calls": 2, "qcow2 overlay": 3, "full copy": 20},
    )  # fmt: skip
    calls = partial(counted, calls=site.count(5, 1))
    backend = site.backend._session().direct.waves
    before = backend.wave_count
    site.backend.clone("gold", "s", site.fresh(), SIZE_BYTES)
    site.outcome.notes[f"rounds of a clone by the backend, {site.store}"] = str(
        backend.wave_count - before
    )
    requests: dict[str, Requests] = {
        "volcore": calls(site.server_socket, acts["volcore"]),
        "rbd.clone": calls(site.plain_socket, acts["rbd.clone"]),
        "full copy": calls(site.plain_socket, acts["full copy"], calls=1),
        "64 B write": Requests(0, 1, 0),
        "object stat": Requests(1, 0, 0),
    }
    found = site.lines("clone", turns, requests)
    floor = sum_of(found["64 B write"], found["64 B write again"], found["empty call"])
    ours = found["volcore"]
    site.figure(
        "clone", "one clone", ours, rival="rbd.clone", theirs=found["rbd.clone"], at_most=0.40
    )
    site.figure(
        "clone",
        "one clone",
        ours,
        rival="two small writes and an empty call",
        theirs=floor,
        at_most=2.5,
    )
    for rival in ("rbd clone", "Cinder's calls", "qcow2 overlay", "full copy"):
        site.figure("clone", "one clone", ours, rival=rival, theirs=found[rival])
    site.figure(
        "clone", "the backend alone", found["backend"], rival="rbd.clone", theirs=found["rbd.clone"]
    )
