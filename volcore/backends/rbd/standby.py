"""Who has a pool, seen by a server that waits for it."""

from typing import Any

from volcore.backends.rbd.connection import Cluster
from volcore.backends.rbd.lease import endpoint_of, living_holder, name_of


class PoolWatch:
    """A look at the lock of a pool, over a connection that is kept for taking it over.

    Concurrency: one thread.
    """

    def __init__(self, cluster: Cluster, pool: str) -> None:
        """Connect nothing yet."""
        self._cluster = cluster
        self._pool = pool
        self._ioctx: Any = None
        self.endpoint = ""
        """Where the last `holder` is reached from here; empty: nowhere."""

    def holder(self) -> str:
        """Return the name of the server that has the pool; empty if nobody that lives has it.

        Raises:
            UnavailableError: CLUSTER_UNREACHABLE.
            PreconditionError: POOL_UNUSABLE.
        """
        if self._ioctx is None:
            self._cluster.acquire()
            try:
                self._ioctx = self._cluster.open_ioctx(self._pool)
            except BaseException:
                self._cluster.release()
                raise
        found = living_holder(self._ioctx, self._pool)
        self.endpoint = "" if found is None else endpoint_of(found)
        return "" if found is None else name_of(found)

    def close(self) -> None:
        """Disconnect, until the next look, if nobody else needs the connection; idempotent."""
        if self._ioctx is not None:
            self._ioctx.close()
            self._ioctx = None
            self._cluster.release()
