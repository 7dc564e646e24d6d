"""Attachments: which host may use a volume, how, and where it finds it.

Read-write is one host at a time; read-only may be many as long as none may write; read-write-shared
may be many, whose guests agree among themselves. For a live migration of read-write a second host
may be attached on standby: it reads, and writes are refused. A hand-over moves the right to write
from one to the other; there are never two writers.

Invariants (docs/invariants.md):
1. INV-ATT-1 (must): of the exports of a volume at most one lets writes in, and none that the
   catalog has on standby; hosts that share a volume share that one. A hand-over shuts the source's
   export and waits until its writes are durable, then commits, then opens the target's; after a
   crash the catalog decides.
2. INV-ATT-2 (must): the commit of an attachment changes the record of its volume. So of two that
   did not see each other one fails.
"""

from collections.abc import Sequence
from functools import partial

import structlog

from volcore.backends.contract import BlockDevice, RbdConnection, SupportsDirectAttach
from volcore.engine.pool import (
    Known,
    LeavingNewer,
    Pool,
    absent,
    drop,
    host_lock,
    now_ns,
    put,
    volume_lock,
)
from volcore.engine.pools import Pools
from volcore.engine.views import AttachmentView, NbdConnection
from volcore.errors import (
    Blocker,
    ConflictError,
    InvalidArgumentError,
    NotFoundError,
    NotSupportedError,
    OperationPendingError,
    PreconditionError,
    Reason,
)
from volcore.model import names
from volcore.model.addresses import parse_addresses
from volcore.model.fences import FencedHost
from volcore.model.records import AccessMode, Attachment, Volume

_log = structlog.get_logger("volcore.engine")


class Attachments:
    """Use cases of attachments; every call may be repeated blindly."""

    def __init__(self, pools: Pools) -> None:
        self._pools = pools

    def attach(
        self,
        pool: str,
        volume: str,
        host: str,
        mode: AccessMode,
        *,
        hand_over_from: str = "",
        client_addresses: Sequence[str] = (),
    ) -> AttachmentView:
        """Give `host` the right to use `volume`.

        With `hand_over_from`, the host that may write now, the attachment is on standby. Addresses
        are kept for the case that the host is fenced; a repeat with others replaces them.

        Raises:
            NotFoundError: VOLUME_NOT_FOUND.
            ConflictError: the host has it with another mode, or from another host.
            PreconditionError: VOLUME_IN_USE, naming the other hosts; WRONG_STATE, `hand_over_from`
                may not write; HOST_FENCED.
        """
        at = self._pools.open(pool)
        names.check_name(host, field="host")
        names.check_name(volume, field="volume")
        if hand_over_from:
            _check_hand_over(host, mode, hand_over_from)
        addresses = parse_addresses(client_addresses, field="client_addresses")
        with at.locks.hold([volume_lock(volume)], [host_lock(host)]):
            if not hand_over_from and (found := _attach_new(at, volume, host, mode, addresses)):
                return found
            known, (attached,) = at.find_below(
                [(Volume, volume), (FencedHost, host)], [(Attachment, f"{volume}/")]
            )
            record = at.volume(volume, known)
            _check_not_fenced(at, host, known)
            _check_reachable(at)
            others = [one for one in attached if one.volume_id == record.id]
            mine = next((a for a in others if a.host == host), None)
            if mine is None:
                if hand_over_from:
                    _check_source(at, record, others, hand_over_from)
                else:
                    _check_alone(at, record, others, mode)
                mine = _planned(record, host, mode, addresses, hand_over_from)
                at.catalog.commit([put(record.but(), record), put(mine)])
            elif mine.access_mode is not mode:
                raise ConflictError(
                    f"host {host!r} has volume {volume!r} attached as {mine.access_mode}; "
                    "detach it first",
                    reason=Reason.NAME_TAKEN,
                    access_mode=mine.access_mode,
                )
            else:
                _check_same(at, record, mine, others, hand_over_from)
                if addresses and addresses != mine.client_addresses:
                    before, mine = mine, mine.but(client_addresses=addresses)
                    at.catalog.commit([put(mine, before)])
            return _offered(at, record, mine)

    def hand_over(self, pool: str, volume: str, host: str) -> AttachmentView:
        """Move the right to write to `host`; whoever had it is on standby from now on.

        What the source's clients wrote is durable before the target may write; their later writes
        are refused. The host that may write already is no error. Where clients reach the storage
        themselves (rbd), only the records change: there the image's exclusive lock moves by itself.

        Raises:
            NotFoundError: VOLUME_NOT_FOUND; ATTACHMENT_NOT_FOUND.
            PreconditionError: WRONG_STATE, the host is attached read-only; HOST_FENCED.
            DeadlineError: writes of the source are still under way: it keeps the right; repeat.
        """
        at = self._pools.open(pool)
        names.check_name(host, field="host")
        with at.locks.hold([volume_lock(volume)], [host_lock(host)]):
            record = at.volume(names.check_name(volume, field="volume"))
            _check_not_fenced(at, host)
            attached = attachments_of(at, record)
            mine = next((a for a in attached if a.host == host), None)
            if mine is None:
                raise _not_attached(volume, host)
            if mine.access_mode is AccessMode.READ_ONLY:
                raise PreconditionError(
                    f"host {host!r} has volume {volume!r} attached read-only; only a read-write "
                    "attachment can take the right to write over",
                    reason=Reason.WRONG_STATE,
                )
            if mine.standby:
                target = mine.but(standby=False)
                changes = [put(target, mine)]
                writer = next((a for a in attached if not a.standby), None)
                if writer is not None:
                    changes.append(put(writer.but(standby=True), writer))
                try:
                    if writer is not None:
                        _set_writable(at, record, writer, writable=False)
                    at.catalog.commit(changes)
                finally:
                    _settle_rights(at, record)
                mine = target
            else:
                _settle_rights(at, record)
            return AttachmentView(record=mine, connection=_connection(at, record, mine))

    def get(self, pool: str, volume: str, host: str) -> AttachmentView:
        """Return an attachment and how to reach its volume.

        Raises:
            NotFoundError: ATTACHMENT_NOT_FOUND.
        """
        at = self._pools.open(pool)
        record = at.volume(volume)
        found = at.find(Attachment, f"{volume}/{host}")
        if found is None or found.volume_id != record.id:
            raise _not_attached(volume, host)
        return AttachmentView(record=found, connection=_connection(at, record, found))

    def list(
        self, pool: str, volume: str | None = None, *, after: str = "", limit: int
    ) -> list[AttachmentView]:
        """Return up to `limit` attachments with keys (`volume/host`) after `after`, in order."""
        at = self._pools.open(pool)
        if volume is not None:
            at.volume(volume)
        prefix = "" if volume is None else f"{volume}/"
        views: list[AttachmentView] = []

        def wanted(record: Attachment) -> bool:
            found = at.known(Volume, record.volume)
            if found is None or found.id != record.volume_id:
                return False  # detached and deleted since the page was read
            views.append(AttachmentView(record=record, connection=_connection(at, found, record)))
            return True

        at.list(
            Attachment, prefix=prefix, after=after, limit=limit, wanted=wanted, leave_newer=True
        )
        return views

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
            name = export_name(at, mine)
            shared = any(export_name(at, a) == name for a in attached if a is not mine)
            if at.exporter is not None and not shared:
                at.exporter.withdraw(name)
            at.catalog.commit([drop(mine)])
            if at.exporter is not None and shared:
                at.exporter.expel(name)


def republish(at: Pool) -> None:
    """Offer the exports of all attachments again, after a start; not to hosts being fenced."""
    fenced = at.keys(FencedHost)
    for attachment in at.list(
        Attachment, wanted=lambda one: one.host not in fenced, leave_newer=True
    ):
        volume = at.known(Volume, attachment.volume)
        if volume is not None and volume.id == attachment.volume_id:
            _offer(at, volume, attachment)


def shut_out(at: Pool, attachment: Attachment) -> None:
    """Close the connections of a fenced host to a volume; what it has written is durable.

    Other hosts that share the export keep it. The volume's lock is held, and the attachment ends
    right after this.

    Raises:
        DeadlineError: its writes do not end; none follow.
    """
    if at.exporter is None or isinstance(at.backend, SupportsDirectAttach):
        return
    name = export_name(at, attachment)
    beside = at.list(Attachment, prefix=f"{attachment.volume}/", wanted=lambda a: a != attachment)
    if all(export_name(at, other) != name for other in beside):
        at.exporter.withdraw(name)
        return
    at.exporter.set_writable(name, False)
    at.exporter.expel(name)
    at.exporter.set_writable(name, True)


def export_name(at: Pool, attachment: Attachment) -> str:
    """Return the name of an attachment's export; the target of a hand-over has one of its own."""
    shared = f"{at.name}/{attachment.volume}"
    return f"{shared}/{attachment.host}" if attachment.hand_over_from else shared


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


def _attach_new(
    at: Pool, volume: str, host: str, mode: AccessMode, addresses: tuple[str, ...]
) -> AttachmentView | None:
    """Attach a volume that was made lately and that nobody has had; None: look first.

    A commit that finds its record as it was made finds no other attachment (INV-ATT-2).
    *Complexity*: one round trip.
    """
    record = at.made_lately(volume)
    if record is None:
        return None
    _check_reachable(at)
    mine = _planned(record, host, mode, addresses)
    try:
        at.catalog.commit([put(record.but(), record), put(mine), absent(FencedHost, host)])
    except OperationPendingError:
        return None
    return _offered(at, record, mine)


def _planned(
    volume: Volume, host: str, mode: AccessMode, addresses: tuple[str, ...], source: str = ""
) -> Attachment:
    """Return the record of an attachment; on standby if it is to take over from `source`."""
    return Attachment(
        volume=volume.name,
        host=host,
        volume_id=volume.id,
        access_mode=mode,
        create_time_ns=now_ns(),
        hand_over_from=source,
        standby=bool(source),
        client_addresses=addresses,
    )


def _offered(at: Pool, volume: Volume, attachment: Attachment) -> AttachmentView:
    """Make the volume reachable, and return how."""
    _offer(at, volume, attachment)
    return AttachmentView(record=attachment, connection=_connection(at, volume, attachment))


def _check_not_fenced(at: Pool, host: str, known: Known | None = None) -> None:
    """Refuse a host that is fenced, or whose fencing has not ended."""
    if at.find(FencedHost, host, known) is not None:
        raise PreconditionError(
            f"host {host!r} is fenced; restart it, then unfence it",
            reason=Reason.HOST_FENCED,
            blockers=[Blocker("fenced_host", f"pools/{at.name}/fencedHosts/{host}")],
            host=host,
        )


def _check_alone(at: Pool, volume: Volume, others: list[Attachment], mode: AccessMode) -> None:
    """Refuse a second host unless both only read, or both share the right to write."""
    alone = mode is AccessMode.READ_WRITE
    blocking = [a for a in others if alone or a.access_mode is not mode]
    if blocking:
        raise in_use(at, volume, blocking)


def _check_reachable(at: Pool) -> None:
    """Refuse to attach volumes that nobody could reach."""
    if at.exporter is None and not isinstance(at.backend, SupportsDirectAttach):
        raise NotSupportedError(
            f"pool {at.name!r} needs an NBD address to attach volumes; set [nbd] listen",
            reason=Reason.CAPABILITY_ABSENT,
        )


def _check_hand_over(host: str, mode: AccessMode, source: str) -> None:
    """Refuse what can be no hand-over, whatever the state of the volume."""
    names.check_name(source, field="hand_over_from")
    if mode is not AccessMode.READ_WRITE or source == host:
        raise InvalidArgumentError(
            "hand_over_from names another host than the one to attach, which is attached "
            "read-write; correct the request",
            reason=Reason.BAD_FIELD,
            field="hand_over_from",
        )


def _check_source(at: Pool, volume: Volume, others: list[Attachment], source: str) -> None:
    """Refuse a target unless `source` alone has the volume and may write."""
    writer = next((a for a in others if a.host == source), None)
    if writer is None or writer.standby or writer.access_mode is not AccessMode.READ_WRITE:
        raise PreconditionError(
            f"host {source!r} has no right to write to volume {volume.name!r} that it could hand "
            "over; attach it there first",
            reason=Reason.WRONG_STATE,
        )
    rest = [a for a in others if a is not writer]
    if rest:
        raise in_use(at, volume, rest)


def _check_same(
    at: Pool, volume: Volume, mine: Attachment, attached: list[Attachment], source: str
) -> None:
    """Refuse a repeated attachment that asks for more than there is, or from another host."""
    if source and source != mine.hand_over_from:
        raise ConflictError(
            f"host {mine.host!r} has volume {volume.name!r} attached, not to take over from "
            f"{source!r}; detach it first",
            reason=Reason.NAME_TAKEN,
        )
    if mine.standby and not source:
        raise in_use(at, volume, [a for a in attached if a is not mine] or [mine])


def _not_attached(volume: str, host: str) -> NotFoundError:
    return NotFoundError(
        f"volume {volume!r} is not attached to host {host!r}; attach it first",
        reason=Reason.ATTACHMENT_NOT_FOUND,
        volume=volume,
        host=host,
    )


def _connection(at: Pool, volume: Volume, attachment: Attachment) -> NbdConnection | RbdConnection:
    """Return where the volume is."""
    if isinstance(at.backend, SupportsDirectAttach):
        read_only = attachment.access_mode is AccessMode.READ_ONLY
        return at.backend.connection(volume.backend_id, read_only=read_only)
    _check_reachable(at)
    assert at.exporter is not None
    return at.exporter.connection(export_name(at, attachment))


def _offer(at: Pool, volume: Volume, attachment: Attachment) -> None:
    """Make the volume reachable for an attachment, where clients come through this server."""
    if at.exporter is None or isinstance(at.backend, SupportsDirectAttach):
        return
    name = export_name(at, attachment)
    at.exporter.publish(
        name,
        partial(_open, at, volume.backend_id),
        read_only=attachment.access_mode is AccessMode.READ_ONLY,
        hosts=partial(_hosts, at, volume, name),
        writable=not attachment.standby,
    )


def _settle_rights(at: Pool, volume: Volume) -> None:
    """Let in the writes of the host that the catalog names, after shutting the others out."""
    attached = attachments_of(at, volume)
    for attachment in sorted(attached, key=lambda a: not a.standby):
        if attachment.access_mode is AccessMode.READ_WRITE:
            _set_writable(at, volume, attachment, writable=not attachment.standby)


def _set_writable(at: Pool, volume: Volume, attachment: Attachment, *, writable: bool) -> None:
    """Move the gate of an attachment's export, if it has one."""
    if at.exporter is not None and not isinstance(at.backend, SupportsDirectAttach):
        _log.info(
            "right to write",
            pool=at.name,
            volume=volume.name,
            host=attachment.host,
            writable=writable,
        )
        at.exporter.set_writable(export_name(at, attachment), writable)


def _hosts(at: Pool, volume: Volume, name: str) -> list[str]:
    """Return the hosts that may use the export `name`; none that is fenced."""
    attached = at.list(
        Attachment,
        prefix=f"{volume.name}/",
        wanted=lambda a: a.volume_id == volume.id and export_name(at, a) == name,
        leave_newer=True,
    )
    return [one.host for one in attached if not _is_fenced(at, one.host)]


def _is_fenced(at: Pool, host: str) -> bool:
    with LeavingNewer():
        return at.find(FencedHost, host) is not None
    return True


def _open(at: Pool, backend_id: str, read_only: bool) -> BlockDevice:
    return at.backend.open_device(backend_id, read_only=read_only)
