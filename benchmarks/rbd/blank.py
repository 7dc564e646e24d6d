"""One blank volume of 10 GiB after the other.

volcore         a server in a process of its own, asked over its socket
rbd.create      librbd on a connection that stays open
Cinder's calls  of create_volume, on a connection of its own
the floor       a write of 64 bytes, an empty call of gRPC
"""

from benchmarks.rbd import rivals
from benchmarks.rbd.counters import counted
from benchmarks.rbd.site import VOLUMES, Site, sum_of
from benchmarks.sampling import Turns
from volcore.limits import GIB

SIZE_BYTES = 10 * GIB
SMALL = b"x" * 64


def run(site: Site) -> None:
    """Measure; see the module."""
    acts = {
        "volcore": lambda _: site.client.create_volume(
            f"{VOLUMES}/{site.fresh()}", size_bytes=SIZE_BYTES
        ),
        "rbd.create": lambda _: rivals.librbd_create(site, site.fresh(), SIZE_BYTES),
        "Cinder's calls": lambda _: rivals.cinder_create(site, site.fresh(), SIZE_BYTES),
        "64 B write": lambda _: site.ioctx.write_full("floor", SMALL),
        "64 B write again": lambda _: site.ioctx.write_full("floor", SMALL),
        "empty call": lambda _: site.empty_call(),
    }
    turns = Turns().run(
        acts, rounds=site.count(60, 2), warm_up=3, every={"Cinder's calls": site.count(2, 1)}
    )
    calls = site.count(5, 1)
    found = site.lines(
        "blank",
        turns,
        {
            "volcore": counted(site.server_socket, acts["volcore"], calls=calls),
            "rbd.create": counted(site.plain_socket, acts["rbd.create"], calls=calls),
        },
    )
    floor = sum_of(found["64 B write"], found["64 B write again"], found["empty call"])
    for rival, theirs in (
        ("rbd.create", found["rbd.create"]),
        ("Cinder's calls", found["Cinder's calls"]),
        ("two small writes and an empty call", floor),
    ):
        site.figure("blank", "one blank volume", found["volcore"], rival=rival, theirs=theirs)
