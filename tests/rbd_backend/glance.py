"""What Glance's rbd store does, step by step, in a pool of its own: raw image, snapshot `snap`.

Source: glance_store, _drivers/rbd.py.
"""

import json
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from volcore.backends.rbd.header import Parent
from volcore.backends.rbd.opening import settled
from volcore.testing.cluster import CephAccess

SNAPSHOT = "snap"
STORE_ORDER = 23
"""Glance's objects have 8 MiB (`rbd_store_chunk_size`)."""


class GlanceStore:
    """Glance's pool, and the keys of the cluster's users."""

    def __init__(self, pool: str, cluster: Any, ioctx: Any) -> None:
        self.pool, self.cluster, self.ioctx = pool, cluster, ioctx
        self.fsid = cluster.get_fsid()

    def add(self, name: str, size_bytes: int, content: dict[int, bytes], **changes: Any) -> None:
        import rbd

        settings = {"order": STORE_ORDER, "old_format": False, "features": 1} | changes
        rbd.RBD().create(self.ioctx, name, size_bytes, **settings)
        with rbd.Image(self.ioctx, name) as image:
            for offset_bytes, data in content.items():
                image.write(data, offset_bytes)
            image.create_snap(SNAPSHOT)
            image.protect_snap(SNAPSHOT)

    def delete(self, name: str) -> str:
        """Delete as Glance does; return what became of the image."""
        import rbd

        with rbd.Image(self.ioctx, name) as image:
            image.unprotect_snap(SNAPSHOT)
            image.remove_snap(SNAPSHOT)
        try:
            rbd.RBD().remove(self.ioctx, name)
        except rbd.ImageHasSnapshots:
            rbd.RBD().trash_move(self.ioctx, name)
            return "trashed"
        return "removed"

    def purge(self) -> int:
        """Do what `rbd trash purge` does; return how many images stay, for they have clones."""
        import rbd

        for one in list(rbd.RBD().trash_list(self.ioctx)):
            try:
                rbd.RBD().trash_remove(self.ioctx, one["id"], force=True)
            except rbd.ImageHasSnapshots:
                continue
        return len(list(rbd.RBD().trash_list(self.ioctx)))

    def children(self, name: str) -> list[str]:
        """What `rbd children` says of the snapshot."""
        import rbd

        with settled(rbd.Image(self.ioctx, name, snapshot=SNAPSHOT, read_only=True)) as image:
            return [one["image"] for one in image.list_children2()]

    def forget_child(self, parent: Parent, image_id: str, *, pool_id: int) -> None:
        """Do what librbd does first of all when it ends a link: the parent forgets its clone."""
        raw = image_id.encode()
        spec = struct.pack("<qI", pool_id, len(raw)) + raw + bytes(4)
        body = struct.pack("<QBBI", parent.snap, 2, 1, len(spec)) + spec
        self.ioctx.execute(f"rbd_header.{parent.image_id}", "rbd", "child_detach", body)

    def command(self, prefix: str, **arguments: Any) -> Any:
        request = json.dumps({"prefix": prefix, "format": "json", **arguments})
        code, output, text = self.cluster.mon_command(request, b"")
        assert not code, text
        return json.loads(output) if output else None

    def set_rights(self, user: str, osd: str) -> str:
        """Give a user, made if need be, these rights on OSDs and those of clients; return its key.

        They hold from its next connection.
        """
        caps = ["mon", "profile rbd", "osd", osd]
        self.command("auth get-or-create", entity=f"client.{user}")
        self.command("auth caps", entity=f"client.{user}", caps=caps)
        return str(self.command("auth get-key", entity=f"client.{user}")["key"])


@contextmanager
def glance_store(access: CephAccess, pool: str) -> Iterator[GlanceStore]:
    """Glance's pool as `client.admin` sees it, through the bindings alone."""
    import rados

    with (
        rados.Rados(
            conffile=str(access.conf_path),
            rados_id="admin",
            conf={"rbd_default_clone_format": "2"},
        ) as cluster,
        cluster.open_ioctx(pool) as ioctx,
    ):
        yield GlanceStore(pool, cluster, ioctx)
