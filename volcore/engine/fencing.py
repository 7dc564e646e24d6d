"""Fenced hosts: cut off from their volumes, which are free then, until they are unfenced.

The caller looks at a plan and confirms it by its etag. Then: a record that says FENCING; the host's
clients are cut off, or its connections closed; one commit that ends its attachments and says
FENCED. The record is its own intent: whoever finds FENCING goes on from the top, which repeats
what was done. While it is there the host gets no attachment, and no right to write.

Invariants:
1. INV-FENCE-1 (must): the attachments of a fenced host end only after nothing that its clients
   send changes the volumes any more.
2. INV-FENCE-2 (must): nobody is cut off whom the caller has not confirmed.
"""

import threading
from collections.abc import Sequence

import structlog

from volcore.backends.fencing import SupportsFencing
from volcore.catalog.contract import ABSENT
from volcore.engine.attachments import shut_out
from volcore.engine.fence_plan import FencePlan, make_plan
from volcore.engine.pool import Pool, drop, host_lock, now_ns, put, volume_lock
from volcore.engine.pools import Pools
from volcore.errors import (
    NotFoundError,
    PermissionDeniedError,
    PreconditionError,
    Reason,
    VolcoreError,
)
from volcore.limits import FENCE_LOOK_PERIOD_S
from volcore.model import names
from volcore.model.addresses import parse_addresses
from volcore.model.fences import FencedHost, FenceState
from volcore.model.records import Attachment, Volume

_log = structlog.get_logger("volcore.engine")


class Fences:
    """Use cases of fenced hosts; every call may be repeated blindly."""

    def __init__(self, pools: Pools) -> None:
        self._pools = pools
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="volcore-fences", daemon=True)

    def start(self) -> None:
        """Begin to look after what is cut off; once."""
        self._thread.start()

    def close(self, timeout_s: float) -> bool:
        """Stop looking after it; return whether that has ended."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _watch(self) -> None:
        while not self._stop.wait(FENCE_LOOK_PERIOD_S):
            for name in self._pools.names():
                try:
                    at = self._pools.open(name)
                    for host in [one.host for one in at.list(FencedHost, leave_newer=True)]:
                        with at.locks.hold([host_lock(host)]):
                            look_after(at, host)
                except VolcoreError as err:  # it is looked at again
                    _log.info("fenced hosts not looked after", pool=name, reason=err.reason)
                except Exception:  # a bug: entries that nobody renews let hosts in again
                    _log.exception("fenced hosts not looked after", pool=name)

    def plan(
        self, pool: str, host: str, addresses: Sequence[str] = ()
    ) -> tuple[FencedHost | None, FencePlan]:
        """Return the fenced host, if it is one, and what `fence` would hit now.

        Raises: what `make_plan` raises, and what bad arguments do.
        """
        at = self._pools.open(pool)
        names.check_name(host, field="host")
        declared = parse_addresses(addresses, field="client_addresses")
        return at.find(FencedHost, host), make_plan(self._pools, at, host, declared)

    def fence(
        self,
        pool: str,
        host: str,
        addresses: Sequence[str] = (),
        *,
        etag: str,
        host_is_off: bool = False,
    ) -> FencedHost:
        """Cut a host off and free its volumes; of one that is fenced nothing changes.

        Raises:
            PreconditionError: FENCE_UNCONFIRMED, FENCE_HITS_SERVER, CLIENTS_UNKNOWN.
            PermissionDeniedError: nothing was changed.
            UnavailableError: repeat.
            DeadlineError: writes of the host do not end; repeat.
        """
        at = self._pools.open(pool)
        names.check_name(host, field="host")
        declared = parse_addresses(addresses, field="client_addresses")
        with at.locks.hold([host_lock(host)]):
            found = at.find(FencedHost, host)
            if found is not None and found.state is FenceState.FENCING:
                found = _settle(at, found)
            plan = make_plan(self._pools, at, host, declared)
            before = () if found is None else found.client_addresses
            if found and not plan.attachments and set(plan.addresses) <= set(before):
                return found
            _check(host, plan, etag, host_is_off=host_is_off)
            volumes = {key.partition("/")[0] for key in plan.attachments}
            record = FencedHost(
                host=host,
                state=FenceState.FENCING,
                client_addresses=tuple(sorted({*before, *plan.addresses})),
                volumes=tuple(sorted(volumes)) or (found.volumes if found else ()),
                create_time_ns=now_ns(),
            )
            at.catalog.commit([put(record, found or ABSENT)])
            try:
                return _settle(at, record)
            except PermissionDeniedError:
                at.catalog.commit([put(found, record) if found else drop(record)])
                raise

    def unfence(self, pool: str, host: str) -> None:
        """Let a host have attachments again; its clients of before stay cut off.

        Raises:
            PreconditionError: WRONG_STATE, its fencing has not ended.
        """
        at = self._pools.open(pool)
        names.check_name(host, field="host")
        with at.locks.hold([host_lock(host)]):
            found = at.find(FencedHost, host)
            if found is None:
                return
            if found.state is FenceState.FENCING:
                raise PreconditionError(
                    f"the fencing of host {host!r} has not ended; fence it again first",
                    reason=Reason.WRONG_STATE,
                )
            if isinstance(at.backend, SupportsFencing):
                kept = self._kept(at, host)
                at.backend.fencing().unblock([a for a in found.client_addresses if a not in kept])
            at.catalog.commit([drop(found)])
            _log.info("host unfenced", pool=at.name, host=host)

    def _kept(self, at: Pool, host: str) -> set[str]:
        """Return the addresses that must stay cut off: other hosts', or of the same elsewhere."""
        kept: set[str] = set()
        for name in self._pools.names():
            pool = self._pools.open(name)
            if isinstance(pool.backend, SupportsFencing):
                for other in pool.list(FencedHost):
                    if pool is not at or other.host != host:
                        kept.update(other.client_addresses)
        return kept

    def get(self, pool: str, host: str) -> FencedHost:
        """Return a fenced host.

        Raises:
            NotFoundError: FENCED_HOST_NOT_FOUND.
        """
        found = self._pools.open(pool).find(FencedHost, host)
        if found is None:
            raise NotFoundError(
                f"host {host!r} is not fenced in pool {pool!r}; check the name",
                reason=Reason.FENCED_HOST_NOT_FOUND,
                pool=pool,
                host=host,
            )
        return found

    def list(self, pool: str, *, after: str = "", limit: int) -> list[FencedHost]:
        """Return up to `limit` fenced hosts after `after`, in order."""
        return self._pools.open(pool).list(FencedHost, after=after, limit=limit, leave_newer=True)


def settle_fences(at: Pool) -> None:
    """Look after all fenced hosts of a pool that is not served yet."""
    for host in [one.host for one in at.list(FencedHost, leave_newer=True)]:
        look_after(at, host)


def look_after(at: Pool, host: str) -> None:
    """End what was begun, and cut off again who was let in, or whose entry has run out.

    What cannot be done now keeps its record, and does not keep the pool from being served. The
    host's lock is held, or the pool is not served yet.
    """
    record = at.find(FencedHost, host)
    try:
        if record is None:
            return
        if record.state is FenceState.FENCING:
            _settle(at, record)
        elif record.client_addresses and isinstance(at.backend, SupportsFencing):
            fencing = at.backend.fencing()
            if lost := sorted({*record.client_addresses} - {*fencing.blocked()}):
                fencing.block(lost, [])
                _log.warning("host fenced again", pool=at.name, host=host, clients=lost)
    except VolcoreError as err:
        _log.warning(
            "host not fenced", pool=at.name, host=host, reason=err.reason, message=err.message
        )


def _settle(at: Pool, record: FencedHost) -> FencedHost:
    """Go on with a fencing from the top. Idempotent; the host has no new attachment meanwhile."""
    mine = _attachments(at, record.host)
    if isinstance(at.backend, SupportsFencing):
        volumes = [at.find(Volume, one.volume) for one in mine]
        ids = [volume.backend_id for volume in volumes if volume is not None]
        at.backend.fencing().block(record.client_addresses, ids)
    with at.locks.hold(map(volume_lock, {one.volume for one in mine})):
        mine = _attachments(at, record.host)
        for one in mine:
            shut_out(at, one)
        done = record.but(state=FenceState.FENCED)
        at.catalog.commit([*map(drop, mine), put(done, record)])
    _log.info(
        "host fenced",
        pool=at.name,
        host=record.host,
        clients=record.client_addresses,
        volumes=record.volumes,
    )
    return done


def _attachments(at: Pool, host: str) -> list[Attachment]:
    return at.list(Attachment, wanted=lambda one: one.host == host)


def _check(host: str, plan: FencePlan, etag: str, *, host_is_off: bool) -> None:
    """Refuse what the caller has not looked at, and what may not be enough."""
    if etag != plan.etag:
        what = "has changed since" if etag else "was not looked at yet"
        raise PreconditionError(
            f"what fencing host {host!r} will hit {what}; ask with validate_only, look at it, and "
            "repeat the call with its etag",
            reason=Reason.FENCE_UNCONFIRMED,
            host=host,
        )
    if plan.volumes_without_clients and not host_is_off:
        raise PreconditionError(
            f"no client of host {host!r} is known for {', '.join(plan.volumes_without_clients)}, "
            "so one that comes back could write; name the host's IP in client_addresses, or make "
            "sure that it is off and say host_is_off",
            reason=Reason.CLIENTS_UNKNOWN,
            host=host,
        )
