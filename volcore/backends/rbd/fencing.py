"""Cutting clients off by the cluster's blocklist, until no OSD takes a write of theirs any more.

The blocklist is part of the map of the OSDs, which travels from one to the next: an OSD that has
not heard of it still writes for the client. But an OSD that gets a request from a client with a
newer map fetches that first. So after the monitors have the entry, we learn their map and ask an
object of each placement group; what the OSDs answer after that, they answer with the entry.

The monitors never change the time of an entry that is there (Ceph 16.2). One that librbd made for
an hour, to break the lock of a dead client, runs out; who looks after it makes it anew.

Source: Ceph, OSDMonitor::prepare_command (`osd blocklist`), OSDMap::is_blocklisted, MonCap
(profile rbd), librbd/managed_lock/BreakRequest.
"""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from functools import partial
from typing import Any, Final

from volcore.backends.rbd.errmap import translated
from volcore.backends.rbd.lease import break_lock
from volcore.backends.rbd.opening import open_image
from volcore.backends.rbd.reads import Wave
from volcore.backends.rbd.session import Session
from volcore.errors import (
    NotFoundError,
    PermissionDeniedError,
    Reason,
    UnavailableError,
    VolcoreError,
)
from volcore.model.addresses import covers, is_whole_ip

FENCE_HOST_S: Final = 365 * 24 * 3600
"""How long an entry lasts, and that of a client also after its host is let in: nobody sleeps longer
and then writes; and the list, which all clients and OSDs carry, does not grow for ever."""
_PROBES_PER_GROUP: Final = 24
"""Names hit placement groups at random: one of them is missed with a probability of e^-24."""
_PROBES_AT_ONCE: Final = 512
_IMAGES_AT_ONCE: Final = 16
_LOCK: Final = "rbd_lock"


class Fencing:
    """The clients of an open pool; see `volcore.backends.fencing`."""

    def __init__(self, session: Session) -> None:
        self._session = session

    @property
    def cluster_id(self) -> str:
        """See `Fencing.cluster_id`."""
        return self._session.cluster.fsid

    @property
    def own_address(self) -> str:
        """See `Fencing.own_address`."""
        return self._session.cluster.addresses

    def clients(self, volume_ids: Sequence[str]) -> dict[str, frozenset[str]]:
        """See `Fencing.clients`."""
        with ThreadPoolExecutor(_IMAGES_AT_ONCE, thread_name_prefix="clients") as threads:
            found = threads.map(partial(_clients_of, self._session), volume_ids)
            return dict(zip(volume_ids, found, strict=True))

    def blocked(self) -> set[str]:
        """See `Fencing.blocked`."""
        return self._session.cluster.blocklist()

    def block(self, addresses: Sequence[str], volume_ids: Sequence[str]) -> None:
        """See `Fencing.block`. Complexity: 24 requests for each placement group."""
        session = self._session
        if not addresses:
            return
        pools = {session.pool, *_data_pools(session, volume_ids)}
        groups = {pool: _group_count(session, pool) for pool in pools}
        session.cluster.block(addresses, duration_s=FENCE_HOST_S)
        for pool, group_count in groups.items():
            _tell_osds(session, pool, group_count)
        for volume_id in volume_ids:
            _drop_locks(session, volume_id, addresses)

    def unblock(self, addresses: Sequence[str]) -> None:
        """See `Fencing.unblock`."""
        cluster = self._session.cluster
        for ip in cluster.blocklist() & {one for one in addresses if is_whole_ip(one)}:
            try:
                cluster.mon_command("osd blocklist", blocklistop="rm", addr=ip)
            except PermissionDeniedError as err:
                raise PermissionDeniedError(
                    f"cannot take {ip} off the blocklist; give the Ceph user, besides what it has, "
                    "mon 'allow command \"osd blocklist\" with blocklistop=rm', then restart the "
                    "server and repeat the call",
                    reason=Reason.PERMISSION_DENIED,
                ) from err


def _clients_of(session: Session, volume_id: str) -> frozenset[str]:
    """Return who watches an image or has its lock, but this server."""
    own, number = session.cluster.addresses, session.cluster.instance_id
    entry = session.directory.find(volume_id)
    if entry is None or not entry.image_id:
        return frozenset()
    with (
        suppress(NotFoundError),
        translated(f"look who uses volume {volume_id}"),
        open_image(session.ioctx, entry.image_id, read_only=True) as image,
    ):
        found = {each["addr"] for each in image.watchers_list() if each["id"] != number}
        found.update(address for _, _, address in _lockers(image))
        return frozenset(found - {own})
    return frozenset()


def _lockers(image: Any) -> list[tuple[str, str, str]]:
    """Return (client, cookie, address) of each that has a lock on an image."""
    found: list[tuple[str, str, str]] = (image.list_lockers() or {}).get("lockers", [])
    return found


def _drop_locks(session: Session, volume_id: str, addresses: Sequence[str]) -> None:
    """Drop the locks that clients who are cut off have on an image."""
    entry = session.directory.find(volume_id)
    if entry is None or not entry.image_id:
        return
    with (
        suppress(NotFoundError),
        translated(f"drop the lock of volume {volume_id}"),
        open_image(session.ioctx, entry.image_id, read_only=True) as image,
    ):
        for client, cookie, address in _lockers(image):
            if covers(addresses, address):
                name = f"rbd_header.{entry.image_id}"
                break_lock(session.ioctx, name, _LOCK, int(client.rpartition(".")[2]), cookie)


def _data_pools(session: Session, volume_ids: Sequence[str]) -> Iterable[str]:
    """Yield the pools with the data of images that were made with a pool of their own for it."""
    for volume_id in volume_ids:
        entry = session.directory.find(volume_id)
        if entry is None or not entry.image_id:
            continue
        with (
            suppress(NotFoundError),
            translated(f"look where the data of volume {volume_id} is"),
            open_image(session.ioctx, entry.image_id, read_only=True) as image,
        ):
            number = int(image.data_pool_id())
            if number not in {-1, session.headers.pool_id}:
                with closing(session.cluster.open_ioctx_of(number)) as ioctx:
                    yield str(ioctx.name)


def _group_count(session: Session, pool: str) -> int:
    return int(session.cluster.mon_command("osd pool get", pool=pool, var="pg_num")["pg_num"])


def _tell_osds(session: Session, pool: str, group_count: int) -> None:
    """Return when each OSD that leads a placement group of `pool` has the map that we have."""
    count = _PROBES_PER_GROUP * group_count
    with (
        translated(f"tell the OSDs of pool {pool}"),
        closing(session.cluster.open_ioctx_of(pool)) as ioctx,
    ):
        for first in range(0, count, _PROBES_AT_ONCE):
            numbers = range(first, min(first + _PROBES_AT_ONCE, count))
            with Wave(ioctx) as wave:
                names = (f"volcore.fence.{number}" for number in numbers)
                answers = [wave.content(name, 1) for name in names]
            for answer in answers:
                _check_answer(pool, answer)


def _check_answer(pool: str, answer: Callable[[], bytes]) -> None:
    """Let pass that there is no such object, and nothing else."""
    try:
        answer()
    except NotFoundError:
        return
    except VolcoreError as err:
        raise UnavailableError(
            f"the OSDs of pool {pool} do not all answer ({err}), so they may not know yet who is"
            " cut off; repeat the call",
            reason=Reason.CLUSTER_UNREACHABLE,
            retryable=True,
        ) from err
