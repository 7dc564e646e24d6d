"""Attachments: which host may use a volume, how, and where it finds it.

Read-write is one host at a time; read-only may be many as long as none may write.
"""

from functools import partial

from volcore.backends.contract import BlockDevice, RbdConnection, SupportsDirectAttach
from volcore.engine.pool import Pool, drop, now_ns, put, volume_lock
from volcore.engine.pools import Pools
from volcore.engine.views import AttachmentView, NbdConnection
from volcore.errors import (
    Blocker,
    ConflictError,
    NotFoundError,
    NotSupportedError,
    PreconditionError,
    Reason,
)
from volcore.model import names
from volcore.model.records import AccessMode, Attachment, Volume


class Attachments:
    """Use cases of attachments; every call may be repeated blindly."""

    def __init__(self, pools: Pools) -> None:
        self._pools = pools

    def attach(self, pool: str, volume: str, host: str, mode: AccessMode) -> AttachmentView:
        """Give `host` the right to use `volume`.

        Raises:
            NotFoundError: VOLUME_NOT_FOUND.
            ConflictError: the host has it with another mode.
            PreconditionError: VOLUME_IN_USE, naming the other hosts.
        """
        at = self._pools.open(pool)
        names.check_name(host, field="host")
        with at.locks.hold([volume_lock(volume)]):
            record = at.volume(names.check_name(volume, field="volume"))
            _check_reachable(at)
            others = attachments_of(at, record)
            mine = next((a for a in others if a.host == host), None)
            if mine is None:
                _check_alone(at, record, others, mode)
                mine = Attachment(
                    volume=volume,
                    host=host,
                    volume_id=record.id,
                    access_mode=mode,
                    create_time_ns=now_ns(),
                )
                at.catalog.commit([put(record.but(), record), put(mine)])
            elif mine.access_mode is not mode:
                raise ConflictError(
                    f"host {host!r} has volume {volume!r} attached as {mine.access_mode}; "
                    "detach it first",
                    reason=Reason.NAME_TAKEN,
                    access_mode=mine.access_mode,
                )
            return AttachmentView(record=mine, connection=_connect(at, record, mode))

    def get(self, pool: str, volume: str, host: str) -> AttachmentView:
        """Return an attachment and how to reach its volume.

        Raises:
            NotFoundError: ATTACHMENT_NOT_FOUND.
        """
        at = self._pools.open(pool)
        record = at.volume(volume)
        found = at.find(Attachment, f"{volume}/{host}")
        if found is None or found.volume_id != record.id:
            raise NotFoundError(
                f"volume {volume!r} is not attached to host {host!r}; attach it first",
                reason=Reason.ATTACHMENT_NOT_FOUND,
                volume=volume,
                host=host,
            )
        return AttachmentView(record=found, connection=_connect(at, record, found.access_mode))

    def list(
        self, pool: str, volume: str | None = None, *, after: str = "", limit: int
    ) -> list[AttachmentView]:
        """Return up to `limit` attachments with keys (`volume/host`) after `after`, in order."""
        at = self._pools.open(pool)
        if volume is not None:
            at.volume(volume)
        prefix = "" if volume is None else f"{volume}/"
        return [
            AttachmentView(
                record=record,
                connection=_connect(at, at.volume(record.volume), record.access_mode),
            )
            for record in at.list(Attachment, prefix=prefix, after=after, limit=limit)
        ]

    def detach(self, pool: str, volume: str, host: str) -> None:
        """End a host's right to use a volume; not being attached is no error.

        Raises:
            NotFoundError: VOLUME_NOT_FOUND.
        """
        at = self._pools.open(pool)
        names.check_name(host, field="host")
        with at.locks.hold([volume_lock(volume)]):
            record = at.volume(names.check_name(volume, field="volume"))
            attached = attachments_of(at, record)
            mine = next((a for a in attached if a.host == host), None)
            if mine is None:
                return
            if len(attached) == 1 and at.exporter is not None:
                at.exporter.withdraw(export_name(at, record))
            at.catalog.commit([drop(mine)])


def republish(at: Pool) -> None:
    """Offer the exports of all attachments again, after a start."""
    for attachment in at.list(Attachment):
        volume = at.find(Volume, attachment.volume)
        if volume is not None and volume.id == attachment.volume_id:
            _connect(at, volume, attachment.access_mode)


def export_name(at: Pool, volume: Volume) -> str:
    """Return the name of a volume's export."""
    return f"{at.name}/{volume.name}"


def attachments_of(at: Pool, volume: Volume) -> list[Attachment]:
    """Return all attachments of a volume, in the order of the hosts."""
    return at.list(Attachment, prefix=f"{volume.name}/", wanted=lambda a: a.volume_id == volume.id)


def in_use(at: Pool, volume: Volume, attached: list[Attachment]) -> PreconditionError:
    """Return the error for a volume that the hosts of `attached` have."""
    hosts = ", ".join(attachment.host for attachment in attached)
    parent = f"pools/{at.name}/volumes/{volume.name}"
    return PreconditionError(
        f"volume {volume.name!r} is attached to {hosts}; detach it there first",
        reason=Reason.VOLUME_IN_USE,
        blockers=[Blocker("attachment", f"{parent}/attachments/{a.host}") for a in attached],
    )


def _check_alone(at: Pool, volume: Volume, others: list[Attachment], mode: AccessMode) -> None:
    """Refuse a second host where one of them may write."""
    writers = [a for a in others if a.access_mode is AccessMode.READ_WRITE]
    blocking = others if mode is AccessMode.READ_WRITE else writers
    if blocking:
        raise in_use(at, volume, blocking)


def _check_reachable(at: Pool) -> None:
    """Refuse to attach volumes that nobody could reach."""
    if at.exporter is None and not isinstance(at.backend, SupportsDirectAttach):
        raise NotSupportedError(
            f"pool {at.name!r} needs an NBD address to attach volumes; set [nbd] listen",
            reason=Reason.CAPABILITY_ABSENT,
        )


def _connect(at: Pool, volume: Volume, mode: AccessMode) -> NbdConnection | RbdConnection:
    """Return where the volume is, offering it first where that is needed."""
    read_only = mode is AccessMode.READ_ONLY
    if isinstance(at.backend, SupportsDirectAttach):
        return at.backend.connection(volume.backend_id, read_only=read_only)
    _check_reachable(at)
    assert at.exporter is not None
    opener = partial(_open, at, volume.backend_id)
    return at.exporter.publish(export_name(at, volume), opener, read_only=read_only)


def _open(at: Pool, backend_id: str, read_only: bool) -> BlockDevice:
    return at.backend.open_device(backend_id, read_only=read_only)
