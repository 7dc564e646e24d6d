"""How others make, look at and delete volumes: each does a whole job, as its users get it.

Cinder's calls are those of its RBD driver, in their order, each step on a connection of its own as
there. Source: OpenStack Cinder, cinder/volume/drivers/rbd.py.
"""

import contextlib
import subprocess
from collections.abc import Iterator
from typing import Any

from benchmarks.rbd.site import FEATURES, ORDER, Site

CLONE_DEPTH_MAX = 5
"""Cinder's `rbd_max_clone_depth`; the walk that looks for it is part of each clone."""


def librbd_clone(site: Site, parent: str, target: str) -> None:
    """`rbd.clone` on a connection that stays open."""
    site.rbd.RBD().clone(site.ioctx, parent, "s", site.ioctx, target, FEATURES, ORDER)


def librbd_create(site: Site, target: str, size_bytes: int) -> None:
    """`rbd.create` on a connection that stays open."""
    site.rbd.RBD().create(site.ioctx, target, size_bytes, ORDER, False, FEATURES)


def tool_clone(site: Site, parent: str, target: str) -> None:
    site.rbd_tool("clone", f"plain/{parent}@s", f"plain/{target}")


def cinder_create(site: Site, target: str, size_bytes: int) -> None:
    """create_volume, blank."""
    with _connected(site) as ioctx:
        site.rbd.RBD().create(ioctx, target, size_bytes, ORDER, False, FEATURES)


def cinder_from_snapshot(site: Site, parent: str, target: str) -> None:
    """create_volume_from_snapshot, of the same size."""
    with _connected(site) as ioctx:
        with site.rbd.Image(ioctx, parent, read_only=True) as image:
            image.stripe_unit()
        with _connected(site) as place:
            site.rbd.RBD().clone(ioctx, parent, "s", place, target, FEATURES, ORDER)


def cinder_from_volume(site: Site, source: str, target: str) -> None:
    """create_cloned_volume: a snapshot, protected; the clone; the walk up its ancestors."""
    with _connected(site) as ioctx, site.rbd.Image(ioctx, source) as image:
        snapshot = f"{target}.clone_snap"
        image.create_snap(snapshot)
        image.protect_snap(snapshot)
        site.rbd.RBD().clone(ioctx, source, snapshot, ioctx, target, FEATURES, ORDER)
        name, depth = source, 0
        while depth < CLONE_DEPTH_MAX:
            with site.rbd.Image(ioctx, name, read_only=True) as ancestor:
                try:
                    _, name, _ = ancestor.parent_info()
                except site.rbd.ImageNotFound:
                    break
            depth += 1


def cinder_snapshot(site: Site, volume: str, snapshot: str) -> None:
    """create_snapshot."""
    with _connected(site) as ioctx, site.rbd.Image(ioctx, volume) as image:
        image.create_snap(snapshot)
        image.protect_snap(snapshot)


def cinder_delete(site: Site, volume: str) -> None:
    """delete_volume of a clone that has no snapshots."""
    with _connected(site) as ioctx:
        with site.rbd.Image(ioctx, volume) as image:
            list(image.list_snaps())
            image.parent_info()
        site.rbd.RBD().remove(ioctx, volume)


def overlay(site: Site, target: str) -> None:
    """A qcow2 file on a local disk with a raw one behind it."""
    path = site.directory / f"{target}.qcow2"
    words = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", str(site.base_file)]
    subprocess.run([*words, str(path)], check=True)


def full_copy(site: Site, parent: str, target: str) -> None:
    """All bytes, by librbd."""
    with site.rbd.Image(site.ioctx, parent, "s", read_only=True) as image:
        image.copy(site.ioctx, target, FEATURES, ORDER)


def look(site: Site, volume: str) -> None:
    """Open, stat, close."""
    with site.rbd.Image(site.ioctx, volume, read_only=True) as image:
        image.stat()


@contextlib.contextmanager
def _connected(site: Site) -> Iterator[Any]:
    with site.connection() as cluster, cluster.open_ioctx("plain") as ioctx:
        yield ioctx
