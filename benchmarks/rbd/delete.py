"""Deleting clones of 1 TiB, never written.

volcore         until the call returns; the work behind it is waited for before the next turn
freed           until nothing is left, seen from the operation
in a row        20 answers, each with the work of those before beside it
rbd.remove      on a connection that stays open
rbd rm          the command, with its process
Cinder's calls  of delete_volume
"""

import time

from benchmarks.rbd import rivals
from benchmarks.rbd.counters import counted
from benchmarks.rbd.site import VOLUMES, Site
from benchmarks.sampling import Turns
from volcore.limits import TIB
from volcore.v1.operation_pb2 import OPERATION_PHASE_RUNNING

ROW = 20
PARENT = "1t"
OURS = ("volcore", "freed")


def run(site: Site) -> None:
    """Measure; see the module."""
    site.parents(PARENT, TIB)
    ready: dict[str, list[str]] = {}

    def prepare(name: str, _: int) -> None:
        _wait(site)
        ready.setdefault(name, []).append(_clone(site, ours=name in OURS))

    def freed(_: int) -> None:
        _delete(site, ready["freed"].pop())
        _wait(site)

    acts = {
        "volcore": lambda _: _delete(site, ready["volcore"].pop()),
        "freed": freed,
        "rbd.remove": lambda _: site.rbd.RBD().remove(site.ioctx, ready["rbd.remove"].pop()),
        "rbd rm": lambda _: site.rbd_tool("rm", "--no-progress", f"plain/{ready['rbd rm'].pop()}"),
        "Cinder's calls": lambda _: rivals.cinder_delete(site, ready["Cinder's calls"].pop()),
    }
    turns = Turns().run(
        acts, rounds=site.count(24, 2), warm_up=2, before=prepare,
        every={"rbd rm": 4, "Cinder's calls": 2, "freed": 2},
    )  # fmt: skip
    _wait(site)
    turns.times_s["in a row"] = _row(site)
    calls = site.count(3, 1)
    for name in ("volcore", "rbd.remove"):
        for _ in range(calls):
            prepare(name, 0)
    requests = {
        "volcore": counted(site.server_socket, acts["volcore"], calls=calls),
        "rbd.remove": counted(site.plain_socket, acts["rbd.remove"], calls=calls),
    }
    found = site.lines("delete", turns, requests)
    for rival, bar in (("rbd.remove", 0.25), ("rbd rm", None), ("Cinder's calls", None)):
        site.figure(
            "delete", "delete of a clone of 1 TiB, acknowledged", found["volcore"],
            rival=rival, theirs=found[rival], at_most=bar,
        )  # fmt: skip
    for name, title in (("in a row", f"the same, {ROW} in a row"), ("freed", "until it is freed")):
        rival = "rbd.remove"
        site.figure("delete", title, found[name], rival=rival, theirs=found[rival])


def _clone(site: Site, *, ours: bool) -> str:
    name = site.fresh("d")
    if ours:
        site.clone(PARENT, name)
    else:
        rivals.librbd_clone(site, PARENT, name)
    return name


def _delete(site: Site, name: str) -> None:
    site.client.delete_volume(f"{VOLUMES}/{name}")


def _wait(site: Site) -> None:
    """Wait until the server has freed all that was deleted."""
    for operation in site.client.list_operations("pools/p"):
        if operation.action == "delete" and operation.phase == OPERATION_PHASE_RUNNING:
            site.client.wait_operation(operation.name)


def _row(site: Site) -> list[float]:
    spent_s = []
    for name in [_clone(site, ours=True) for _ in range(site.count(ROW, 2))]:
        start = time.perf_counter()
        _delete(site, name)
        spent_s.append(time.perf_counter() - start)
    _wait(site)
    return spent_s
