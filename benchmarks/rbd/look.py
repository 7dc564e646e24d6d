"""Looking at volumes.

get   a clone: its record; with its figures (view FULL); librbd's open, stat and close; `rbd info`
list  10,000 volumes in pages of 1,000
"""

import time

from benchmarks.rbd import rivals
from benchmarks.rbd.counters import counted
from benchmarks.rbd.site import VOLUMES, Site
from benchmarks.report import Sample
from benchmarks.sampling import Turns
from volcore.limits import GIB
from volcore.v1 import volume_pb2

PAGE = 1000


def run(site: Site) -> None:
    """Measure; see the module."""
    site.parents("flat", 10 * GIB)
    name = f"{VOLUMES}/looked-at"
    site.client.create_volume(name, snapshot=f"{VOLUMES}/flat/snapshots/s")
    rivals.librbd_clone(site, "flat", "looked-at")
    acts = {
        "get": lambda _: site.client.get_volume(name),
        "get, with figures": lambda _: site.client.get_volume(
            name, view=volume_pb2.VOLUME_VIEW_FULL
        ),
        "open, stat, close": lambda _: rivals.look(site, "looked-at"),
        "rbd info": lambda _: site.rbd_tool("info", "plain/looked-at"),
        "empty call": lambda _: site.empty_call(),
    }
    turns = Turns().run(acts, rounds=site.count(60, 2), warm_up=2, every={"rbd info": 6})
    calls = site.count(5, 1)
    requests = {
        "get": counted(site.server_socket, acts["get"], calls=calls),
        "get, with figures": counted(site.server_socket, acts["get, with figures"], calls=calls),
        "open, stat, close": counted(site.plain_socket, acts["open, stat, close"], calls=calls),
    }
    found = site.lines("look", turns, requests)
    for ours, bar in (("get", 0.25), ("get, with figures", None)):
        site.figure(
            "look", ours, found[ours],
            rival="open, stat, close", theirs=found["open, stat, close"], at_most=bar,
        )  # fmt: skip
    total, _ = site.crowd()
    spent_s = []
    for _ in range(site.count(4, 1)):
        start = time.perf_counter()
        count = sum(1 for _ in site.client.list_volumes("pools/many", page_size=PAGE))
        spent_s.append(time.perf_counter() - start)
        assert count >= total
    site.figure("look", f"list of {total:,} volumes", Sample(tuple(spent_s)), unit="s", at_most=1.0)
