"""One volume after the other, of 10 GiB, claimed from the stock of an image.

The stock holds more than are claimed, so that none is made while the clock runs. The floor is one
write of 64 bytes and an empty call.
"""

import time

from benchmarks.rbd import rivals
from benchmarks.rbd.counters import counted
from benchmarks.rbd.site import WARM_CLONES, Site, sum_of
from benchmarks.sampling import Turns
from volcore.limits import GIB

SIZE_BYTES = 10 * GIB
IMAGE = "pools/warm/images/image"
FILLED_S = 300


def run(site: Site) -> None:
    """Measure; see the module."""
    site.parents("flat", SIZE_BYTES)
    site.client.import_image(IMAGE, server_path=str(site.write_image("warm")))
    _fill(site)
    acts = {
        "claimed": lambda _: _claim(site),
        "rbd.clone": lambda _: rivals.librbd_clone(site, "flat", site.fresh()),
        "64 B write": lambda _: site.ioctx.write_full("floor", b"x" * 64),
        "empty call": lambda _: site.empty_call(),
    }
    turns = Turns().run(acts, rounds=site.count(60, 2), warm_up=3)
    calls = site.count(5, 1)
    requests = {"claimed": counted(site.server_socket, acts["claimed"], calls=calls)}
    found = site.lines("warm", turns, requests)
    ours, title = found["claimed"], "one clone, claimed warm"
    site.figure("warm", title, ours, rival="rbd.clone", theirs=found["rbd.clone"], at_most=0.15)
    floor = sum_of(found["64 B write"], found["empty call"])
    site.figure("warm", title, ours, rival="one small write and an empty call", theirs=floor)


def _fill(site: Site) -> None:
    """Ask for so many that the stock reaches its bound, and wait for that."""
    names = [site.fresh("seed") for _ in range(WARM_CLONES // 2)]
    site.client.deploy_volumes(IMAGE, names, size_bytes=SIZE_BYTES)
    deadline = time.monotonic() + FILLED_S
    while site.client.get_pool("pools/warm").warm_clones.ready_count < WARM_CLONES:
        assert time.monotonic() < deadline, "the stock does not fill"
        time.sleep(0.1)


def _claim(site: Site) -> None:
    made = site.client.create_volume(
        f"pools/warm/volumes/{site.fresh()}", image=IMAGE, size_bytes=SIZE_BYTES
    )
    assert made.backend_name.startswith("warm-")
