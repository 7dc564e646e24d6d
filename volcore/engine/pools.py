"""The pools that are open, those that another server has, and their figures.

A pool that this server stands by for is served by another one: calls are told so, and go there.
While it is being taken over, calls wait for it.
"""

import threading
from collections.abc import Sequence
from typing import Final

from volcore.backends.adopting import SupportsAdopt
from volcore.backends.contract import (
    SupportsDiff,
    SupportsDirectAttach,
    SupportsFlatten,
    SupportsGroupSnapshot,
    SupportsRevert,
    SupportsShortPath,
)
from volcore.backends.verifying import SupportsVerify
from volcore.engine.pool import Pool
from volcore.engine.views import PoolView
from volcore.errors import NotFoundError, Reason, UnavailableError
from volcore.limits import TAKE_OVER_WAIT_S
from volcore.model.records import Health

_NOBODY: Final = ("", "")


class Pools:
    """Pools by name."""

    def __init__(self) -> None:
        self._pools: dict[str, Pool] = {}
        self._elsewhere: dict[str, tuple[str, str]] = {}
        """Who has the pools that this server stands by for, and where; empty: being taken over."""
        self._changed = threading.Condition()

    def add(self, pool: Pool) -> None:
        """Make an open pool known."""
        assert pool.name not in self._pools
        with self._changed:
            self._pools = {**self._pools, pool.name: pool}
            self._elsewhere.pop(pool.name, None)
            self._changed.notify_all()

    def stand_by(self, names: Sequence[str], holder: str, endpoint: str = "") -> None:
        """Tell callers of these pools who serves them, and where if that is known.

        With an empty holder they wait.
        """
        with self._changed:
            self._elsewhere |= dict.fromkeys(names, (holder, endpoint))
            self._changed.notify_all()

    def names(self) -> list[str]:
        """Return the names of all pools that are open here, in order."""
        return sorted(self._pools)

    def all_names(self) -> list[str]:
        """Return the names of all pools, in order; never waits.

        Raises:
            UnavailableError: POOL_ELSEWHERE, not all of them are open here.
        """
        with self._changed:
            for name, place in self._elsewhere.items():
                raise _elsewhere(name, *place)
        return self.names()

    def endpoint(self, name: str) -> str:
        """Return where the server is that has a pool; empty if that is this one, or not known."""
        return self._elsewhere.get(name, _NOBODY)[1]

    def open(self, name: str) -> Pool:
        """Return a pool; blocks for up to TAKE_OVER_WAIT_S while it is being taken over.

        Raises:
            NotFoundError: POOL_NOT_FOUND.
            UnavailableError: POOL_ELSEWHERE, another server has it.
        """
        found = self._pools.get(name)
        return self._awaited(name) if found is None else found

    def _awaited(self, name: str) -> Pool:
        """Return a pool that was not open a moment ago; errors as `open`."""
        with self._changed:
            self._changed.wait_for(lambda: self._elsewhere.get(name) != _NOBODY, TAKE_OVER_WAIT_S)
            if name in self._pools:
                return self._pools[name]
            if name in self._elsewhere:
                raise _elsewhere(name, *self._elsewhere[name])
        known = ", ".join(self.names()) or "none"
        raise NotFoundError(
            f"there is no pool {name[:100]!r}; this server has: {known}",
            reason=Reason.POOL_NOT_FOUND,
            pool=name[:100],
        )

    def get(self, name: str) -> PoolView:
        """Return a pool and its figures.

        Raises:
            NotFoundError: POOL_NOT_FOUND.
            UnavailableError: its storage cannot be reached.
        """
        pool = self.open(name)
        backend = pool.backend
        figures = pool.catalog.figures()
        return PoolView(
            name=name,
            caps=backend.caps,
            flatten=isinstance(backend, SupportsFlatten),
            revert=isinstance(backend, SupportsRevert),
            adopt=isinstance(backend, SupportsAdopt),
            group_snapshot=isinstance(backend, SupportsGroupSnapshot),
            connection="rbd" if isinstance(backend, SupportsDirectAttach) else "nbd",
            stats=backend.stats(),
            provisioned_bytes=figures.provisioned_bytes,
            deleted_volume_count=figures.deleted_volume_count,
            trash_retention_s=pool.trash_retention_s,
            volume_count=figures.volume_count,
            image_count=figures.image_count,
            verify=isinstance(backend, SupportsVerify),
            diff=isinstance(backend, SupportsDiff),
            health=pool.known(Health, Health.KEY),
            short_path=backend.short_path if isinstance(backend, SupportsShortPath) else None,
            warm_clones=pool.stock.figures(),
        )

    def list(self) -> list[PoolView]:
        """Return all pools with their figures, in the order of their names."""
        return [self.get(name) for name in self.names()]


def _elsewhere(name: str, holder: str, endpoint: str) -> UnavailableError:
    """Return the error for a pool that this server stands by for."""
    words = f"is served by another server ({holder})" if holder else "is being taken over"
    refusal = UnavailableError(
        f"pool {name!r} {words}; repeat the call there: name all servers in the endpoint",
        reason=Reason.POOL_ELSEWHERE,
        retryable=True,
        pool=name,
    )
    if endpoint:
        refusal.context["endpoint"] = endpoint
    return refusal
