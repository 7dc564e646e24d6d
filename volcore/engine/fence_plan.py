"""What fencing a host would hit, from what was declared and from who has its volumes open.

Who has a volume open tells whose client it is only when no other host has the volume attached. What
stays unclear is shown, and is not cut off.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property

from volcore.backends.fencing import Fencing, SupportsFencing
from volcore.engine.pool import Pool
from volcore.engine.pools import Pools
from volcore.errors import PreconditionError, Reason
from volcore.model.addresses import covers, is_whole_ip
from volcore.model.records import AccessMode, Attachment, Volume

_ETAG_DIGITS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class FencedClient:
    """A client of the storage, and how it is known."""

    address: str
    declared: bool
    volumes: tuple[str, ...]
    """Names of the host's volumes that it has open."""


@dataclass(frozen=True, kw_only=True)
class FencePlan:
    """See `FencePlan` in fenced_host.proto."""

    clients: tuple[FencedClient, ...] = ()
    attachments: tuple[str, ...] = ()
    """Keys of the attachments that end."""
    other_volumes: tuple[tuple[str, str], ...] = ()
    """Pool and name."""
    spared_clients: tuple[FencedClient, ...] = ()
    volumes_without_clients: tuple[str, ...] = ()

    @property
    def addresses(self) -> tuple[str, ...]:
        """What will be cut off."""
        return tuple(client.address for client in self.clients)

    @cached_property
    def etag(self) -> str:
        """Stands for all of it."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:_ETAG_DIGITS]


def make_plan(pools: Pools, at: Pool, host: str, declared: Sequence[str]) -> FencePlan:
    """Return what fencing `host` would hit now, with the addresses that the caller named.

    Complexity: some requests for each attached volume of the pools of the cluster.

    Raises:
        PreconditionError: FENCE_HITS_SERVER.
        UnavailableError: the storage cannot be reached.
    """
    attached = _attached(at)
    mine = [one for some in attached.values() for one in some if one.host == host]
    keys = tuple(sorted(one.key for one in mine))
    if not isinstance(at.backend, SupportsFencing):
        return FencePlan(attachments=keys)
    fencing = at.backend.fencing()
    named = {*declared, *(address for one in mine for address in one.client_addresses)}
    if covers(named, fencing.own_address):
        raise PreconditionError(
            f"fencing host {host!r} would cut off {fencing.own_address}, this server itself; name "
            "the host's clients one by one, or do it from a server on another host",
            reason=Reason.FENCE_HITS_SERVER,
            address=fencing.own_address,
        )
    opened = _clients(at, fencing, attached)
    chosen, unclear = set(named), set()
    for one in mine:
        others = [other for other in attached[one.volume] if other.host != host]
        theirs = [address for other in others for address in other.client_addresses]
        for address in opened[one.volume]:
            if not others or covers(named, address):
                chosen.add(address)
            elif not covers(theirs, address):
                unclear.add(address)
    return FencePlan(
        clients=_described(chosen, named, mine, opened),
        attachments=keys,
        other_volumes=_others(pools, at, fencing, chosen, {one.volume for one in mine}, opened),
        spared_clients=_described(unclear - chosen, named, mine, opened),
        volumes_without_clients=tuple(
            sorted(
                one.volume
                for one in mine
                if one.access_mode is not AccessMode.READ_ONLY
                and not any(map(is_whole_ip, named))
                and chosen.isdisjoint(opened[one.volume])
            )
        ),
    )


def _attached(at: Pool) -> dict[str, list[Attachment]]:
    """Return all attachments of a pool by their volumes."""
    found = defaultdict(list)
    for one in at.list(Attachment):
        found[one.volume].append(one)
    return found


def _clients(
    at: Pool, fencing: Fencing, volumes: Iterable[str]
) -> defaultdict[str, frozenset[str]]:
    """Return who has volumes open, by their names; of one that is gone nobody."""
    ids = {name: one.backend_id for name in volumes if (one := at.find(Volume, name)) is not None}
    found = fencing.clients(list(ids.values()))
    return defaultdict(frozenset, {name: found[backend_id] for name, backend_id in ids.items()})


def _described(
    addresses: Collection[str],
    named: Collection[str],
    mine: Sequence[Attachment],
    opened: Mapping[str, frozenset[str]],
) -> tuple[FencedClient, ...]:
    names = sorted(one.volume for one in mine)
    return tuple(
        FencedClient(
            address=address,
            declared=address in named,
            volumes=tuple(
                name for name in names if any(covers((address,), each) for each in opened[name])
            ),
        )
        for address in sorted(addresses)
    )


def _others(
    pools: Pools,
    at: Pool,
    fencing: Fencing,
    chosen: Collection[str],
    mine: Collection[str],
    opened: Mapping[str, frozenset[str]],
) -> tuple[tuple[str, str], ...]:
    """Return the other attached volumes that one of the chosen clients has open."""
    found = [(at.name, name, clients) for name, clients in opened.items() if name not in mine]
    for pool in (pools.open(name) for name in pools.names() if name != at.name):
        if not isinstance(pool.backend, SupportsFencing):
            continue
        beside = pool.backend.fencing()
        if beside.cluster_id == fencing.cluster_id:
            clients = _clients(pool, beside, _attached(pool))
            found += [(pool.name, name, each) for name, each in clients.items()]
    return tuple(
        sorted(
            (pool_name, name)
            for pool_name, name, clients in found
            if any(covers(chosen, address) for address in clients)
        )
    )
