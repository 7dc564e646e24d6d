"""Deleting clones of 1 TiB, until the call returns; what goes on behind it is waited for outside.

volcore         until the delete is durable
rbd.remove      on a connection that stays open
rbd rm          the command, with its process
Cinder's calls  of delete_volume
"""

from benchmarks.rbd import rivals
from benchmarks.rbd.counters import counted
from benchmarks.rbd.site import VOLUMES, Site
from benchmarks.sampling import Turns
from volcore.limits import TIB


def run(site: Site) -> None:
    """Measure; see the module."""
    site.parents("1t", TIB)
    ready: dict[str, list[str]] = {}

    def prepare(name: str, _: int) -> None:
        target = site.fresh("d")
        ready.setdefault(name, []).append(target)
        if name == "volcore":
            site.clone("1t", target)
        else:
            rivals.librbd_clone(site, "1t", target)

    acts = {
        "volcore": lambda _: site.client.delete_volume(f"{VOLUMES}/{ready['volcore'].pop()}"),
        "rbd.remove": lambda _: site.rbd.RBD().remove(site.ioctx, ready["rbd.remove"].pop()),
        "rbd rm": lambda _: site.rbd_tool("rm", "--no-progress", f"plain/{ready['rbd rm'].pop()}"),
        "Cinder's calls": lambda _: rivals.cinder_delete(site, ready["Cinder's calls"].pop()),
    }
    turns = Turns().run(
        acts, rounds=site.count(24, 2), warm_up=2, before=prepare,
        every={"rbd rm": 4, "Cinder's calls": 2},
    )  # fmt: skip
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
