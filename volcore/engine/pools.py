"""The pools that are open, and their figures."""

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
from volcore.errors import NotFoundError, Reason
from volcore.model.records import Health


class Pools:
    """Pools by name."""

    def __init__(self) -> None:
        self._pools: dict[str, Pool] = {}

    def add(self, pool: Pool) -> None:
        """Make an open pool known."""
        assert pool.name not in self._pools
        self._pools[pool.name] = pool

    def names(self) -> list[str]:
        """Return the names of all pools, in order."""
        return sorted(self._pools)

    def open(self, name: str) -> Pool:
        """Return a pool.

        Raises:
            NotFoundError: POOL_NOT_FOUND.
        """
        try:
            return self._pools[name]
        except KeyError:
            known = ", ".join(self.names()) or "none"
            raise NotFoundError(
                f"there is no pool {name[:100]!r}; this server has: {known}",
                reason=Reason.POOL_NOT_FOUND,
                pool=name[:100],
            ) from None

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
            health=pool.find(Health, Health.KEY),
            short_path=backend.short_path if isinstance(backend, SupportsShortPath) else None,
            warm_clones=pool.stock.figures(),
        )

    def list(self) -> list[PoolView]:
        """Return all pools with their figures, in the order of their names."""
        return [self.get(name) for name in self.names()]
