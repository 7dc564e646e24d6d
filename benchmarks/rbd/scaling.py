"""What must not grow: each pair differs in one thing, samples taken in turn.

depth     clones of a volume with seven ancestors, and of one with none
size      clones of blank volumes of 10 GiB, 1 TiB and 16 TiB: what grows is the object map
count     clones of an image with ten children in a pool of 10,000 volumes, and in one with few
children  clones of an image with 8,000 children, and of one with ten, in the same pool
"""

from benchmarks.rbd import rivals
from benchmarks.rbd.site import Site
from benchmarks.sampling import Turns
from volcore.limits import GIB, TIB

DEPTH = 8


def run(site: Site) -> None:
    """Measure; see the module."""
    _depth(site)
    _size(site)
    _crowd(site)


def _depth(site: Site) -> None:
    site.parents("flat", 10 * GIB)
    depth = site.count(DEPTH, 2)
    site.parents("deep", 10 * GIB, depth=depth - 1)
    turns = Turns().run(
        {
            "depth 8": lambda _: site.clone("deep"),
            "depth 1": lambda _: site.clone("flat"),
            "rbd.clone, depth 8": lambda _: rivals.librbd_clone(site, "deep", site.fresh()),
            "rbd.clone, depth 1": lambda _: rivals.librbd_clone(site, "flat", site.fresh()),
        },
        rounds=site.count(50, 2),
        warm_up=3,
    )
    found = site.lines("scaling: depth", turns)
    _pair(site, found, "clone at depth 8", "depth 8", "depth 1", 1.15)
    _pair(site, found, "clone at depth 8", "depth 8", "rbd.clone, depth 8")


def _size(site: Site) -> None:
    for name, size_bytes in (("flat", 10 * GIB), ("1t", TIB), ("16t", 16 * TIB)):
        site.parents(name, size_bytes)
    turns = Turns().run(
        {
            "10 GiB": lambda _: site.clone("flat"),
            "1 TiB": lambda _: site.clone("1t"),
            "16 TiB": lambda _: site.clone("16t"),
            "rbd.clone, 1 TiB": lambda _: rivals.librbd_clone(site, "1t", site.fresh()),
            "rbd.clone, 16 TiB": lambda _: rivals.librbd_clone(site, "16t", site.fresh()),
        },
        rounds=site.count(30, 2),
        warm_up=2,
        every={"rbd.clone, 16 TiB": 3},
    )
    found = site.lines("scaling: size", turns)
    _pair(site, found, "clone of 1 TiB", "1 TiB", "10 GiB", 1.5)
    _pair(site, found, "clone of 16 TiB", "16 TiB", "rbd.clone, 16 TiB", 0.25)


def _crowd(site: Site) -> None:
    total, children = site.crowd()
    path = str(site.write_image("few"))
    site.client.import_image("pools/p/images/few", server_path=path)
    few = [site.fresh("few") for _ in range(10)]
    site.client.deploy_volumes("pools/p/images/few", few)
    turns = Turns().run(
        {
            "in a large pool": lambda _: _deploy(site, "pools/many/images/small"),
            "in a small pool": lambda _: _deploy(site, "pools/p/images/few"),
            "of a popular image": lambda _: _deploy(site, "pools/many/images/crowd"),
        },
        rounds=site.count(60, 2),
        warm_up=3,
    )
    found = site.lines("scaling: count", turns)
    name = f"clone among {total:,} volumes"
    _pair(site, found, name, "in a large pool", "in a small pool", 1.2)
    name = f"clone of an image with {children:,} children"
    _pair(site, found, name, "of a popular image", "in a large pool", 1.3)


def _deploy(site: Site, image: str) -> None:
    volumes = image.partition("/images/")[0] + "/volumes"
    site.client.create_volume(f"{volumes}/{site.fresh('x')}", image=image)


def _pair(
    site: Site, found: dict, name: str, ours: str, rival: str, at_most: float | None = None
) -> None:
    site.figure("scaling", name, found[ours], rival=rival, theirs=found[rival], at_most=at_most)
