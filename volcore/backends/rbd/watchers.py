"""Who has an image open, and getting rid of those who are dead.

A client that has an image open for writing watches its header; a watch ends with its client, at the
latest 30 s later, and at once when the client is fenced. But an OSD that finishes a watch request
whose connection broke meanwhile writes the watcher down and never times it out (Ceph 16.2: the
session is gone, so nothing is set up in memory; it ends when the placement group peers again). Such
a phantom would keep its image from being deleted for ever.
"""

from typing import Any, Final

from volcore.backends.rbd.bindings import bindings
from volcore.backends.rbd.connection import Cluster
from volcore.backends.rbd.errmap import translated
from volcore.backends.rbd.opening import open_image
from volcore.errors import Blocker, OperationPendingError, PreconditionError, Reason

_LOCK_XATTR: Final = "lock.rbd_lock"
_PAGE_ROWS: Final = 1000


class Watchers:
    """The clients that watch image headers of one pool."""

    def __init__(self, cluster: Cluster, ioctx: Any) -> None:
        self._cluster = cluster
        self._ioctx = ioctx

    def refuse_if_in_use(self, volume_id: str, image_id: str) -> None:
        """Refuse when a client that lives has the volume open for writing.

        Raises:
            PreconditionError: VOLUME_IN_USE; the blockers are the clients' addresses.
        """
        addresses = self._others(volume_id, image_id)
        if not addresses:
            return
        living = [address for address in addresses if address not in self._cluster.blocklist()]
        if living:
            raise PreconditionError(
                f"volume {volume_id} is in use by {', '.join(living)}; stop what has it open,"
                " then repeat the call",
                reason=Reason.VOLUME_IN_USE,
                blockers=[Blocker(kind="client", name=address) for address in living],
                volume=volume_id,
            )
        self.forget_all(image_id)

    def forget_dead(self, volume_id: str, image_id: str) -> bool:
        """Drop the watches of fenced clients if there are no others; return whether there were."""
        addresses = self._others(volume_id, image_id)
        if not addresses or addresses - self._cluster.blocklist():
            return False
        self.forget_all(image_id)
        return True

    def _others(self, volume_id: str, image_id: str) -> set[str]:
        """Return the addresses of the other clients that watch an image."""
        with (
            translated(f"look who uses volume {volume_id}"),
            open_image(self._ioctx, image_id, read_only=True) as image,
        ):
            own = self._cluster.instance_id
            return {found["addr"] for found in image.watchers_list() if found["id"] != own}

    def forget_all(self, image_id: str) -> None:
        """Drop all watches of an image, and its exclusive lock, by writing its header anew.

        Atomicity: one RADOS operation, done only if nobody changed the header meanwhile. A client
        that opens the image at this moment is told of the loss of its watch and watches again.

        Raises:
            OperationPendingError: somebody did.
        """
        name = f"rbd_header.{image_id}"
        rados, ioctx = bindings().rados, self._ioctx
        changed = OperationPendingError(
            f"rbd image {image_id} was changed meanwhile; repeat the call",
            reason=Reason.OPERATION_PENDING,
            retryable=True,
        )
        with translated(f"drop the watches of {name}", range_error=changed):
            rows = self._page(name, "")
            version = ioctx.get_last_version()
            while page := self._page(name, list(rows)[-1] if rows else ""):
                rows |= page
            xattrs = dict(ioctx.get_xattrs(name))
            with rados.WriteOpCtx() as op:
                op.assert_version(version)
                op.remove()
                op.new(rados.LIBRADOS_CREATE_IDEMPOTENT)
                for key, value in xattrs.items():
                    if key != _LOCK_XATTR:
                        op.set_xattr(key, value)
                ioctx.set_omap(op, tuple(rows), tuple(rows.values()))
                ioctx.operate_write_op(op, name)

    def _page(self, name: str, after: str) -> dict[str, bytes]:
        """Return some rows of a header."""
        with bindings().rados.ReadOpCtx() as op:
            found, _ = self._ioctx.get_omap_vals(op, after, "", _PAGE_ROWS)
            self._ioctx.operate_read_op(op, name)
            return dict(found)
