"""The engine: all use cases over all pools of one server."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import structlog

from volcore.backends.contract import SupportsCollect, VolumeBackend
from volcore.catalog.contract import Catalog
from volcore.engine.adoption import Adoption
from volcore.engine.attachments import Attachments, republish
from volcore.engine.audit import Audit
from volcore.engine.changes import settle
from volcore.engine.checks import Checks
from volcore.engine.deletions import DELETE, Deletions
from volcore.engine.diffs import Diffs
from volcore.engine.exports import Exports
from volcore.engine.fencing import Fences, settle_fences
from volcore.engine.figures import CountedCatalog
from volcore.engine.group_snapshots import GroupSnapshots
from volcore.engine.images import Images, ImageSettings
from volcore.engine.operations import Operations
from volcore.engine.pool import Exporter, Pool, storage_lock
from volcore.engine.pools import Pools
from volcore.engine.reach import Lookout
from volcore.engine.rebuild import Rebuild
from volcore.engine.schedule import Schedule, ScrubSettings
from volcore.engine.snapshots import Snapshots
from volcore.engine.stock import Stock
from volcore.engine.trash import Trash
from volcore.engine.volumes import Volumes
from volcore.engine.warm import Keeper, load
from volcore.errors import PreconditionError
from volcore.limits import RECOVERIES_AT_ONCE, RECOVERY_WAIT_S
from volcore.model.records import Intent, IntentAction, Operation

_log = structlog.get_logger("volcore.engine")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """What the engine needs to know about its server."""

    server_id: str
    worker_threads: int = 2
    images: ImageSettings = field(default_factory=ImageSettings)
    scrub: ScrubSettings = field(default_factory=ScrubSettings)


class Engine:
    """All use cases; thread-safe, blocking."""

    def __init__(self, settings: EngineSettings) -> None:
        self._server_id = settings.server_id
        self.pools = Pools()
        self.operations = Operations(self.pools, worker_threads=settings.worker_threads)
        self.deletions = Deletions(self.operations)
        self.trash = Trash(self.pools, self.deletions)
        self.volumes = Volumes(self.pools, self.operations, self.deletions, self.trash)
        self.adoption = Adoption(self.pools, self.operations)
        self.snapshots = Snapshots(self.pools, self.deletions)
        self.diffs = Diffs(self.pools)
        self.group_snapshots = GroupSnapshots(self.pools)
        self.images = Images(self.pools, self.operations, self.deletions, settings.images)
        self.attachments = Attachments(self.pools)
        self.fences = Fences(self.pools)
        self.checks = Checks(self.pools, self.operations, settings.images.directories)
        self.audit = Audit(self.pools)
        self.exports = Exports(self.pools)
        self.rebuild = Rebuild(self.pools)
        self.schedule = Schedule(self.pools, self.operations, self.checks, settings.scrub)
        self.warm = Keeper(self.pools)
        self.lookout = Lookout()

    def add_pool(
        self,
        name: str,
        backend: VolumeBackend,
        catalog: Catalog,
        exporter: Exporter | None,
        *,
        warm_clones_max: int = 0,
        trash_retention_s: float = 0,
    ) -> None:
        """Recover a pool whose backend is open, and serve it.

        Raises:
            VolcoreError: recovery did not succeed; the pool is not served.
        """
        stock = Stock(warm_clones_max, on_work=self.warm.wake)
        pool = Pool(
            name,
            backend,
            CountedCatalog(catalog),
            exporter,
            self._server_id,
            trash_retention_s=trash_retention_s,
            stock=stock,
        )
        recover(pool)
        load(pool)
        settle_fences(pool)
        republish(pool)
        self.pools.add(pool)
        if pool.carrier is not None:
            pool.carrier.compare_all()
        self.operations.recover(pool)
        self.lookout.add(pool)

    def start(self) -> None:
        """Begin what goes on by itself: scrubs, purges of the trash, the stock; once."""
        self.schedule.start()
        self.trash.start()
        self.warm.start()
        self.fences.start()

    def close(self, timeout_s: float) -> bool:
        """Interrupt background work so that it goes on at the next start; pools stay open.

        Returns:
            Whether all of it has ended; else threads are still at work in the storage.
        """
        self.warm.close()
        self.schedule.close()
        ended = [
            self.trash.close(timeout_s),
            self.fences.close(timeout_s),
            self.deletions.close(timeout_s),
            self.operations.close(timeout_s),
        ]
        self.lookout.close(timeout_s)
        for name in self.pools.names():
            self.pools.open(name).behind.close()
            self.pools.open(name).making.close()
            if (carrier := self.pools.open(name).carrier) is not None:
                carrier.close()
        return all(ended)


def recover(pool: Pool) -> None:
    """Settle every change that was cut off, then free what nothing needs any more. Idempotent.

    Deletes that have an operation are left to that, so that a pool is served however many wait.
    Changes of different volumes are settled beside each other where each waits for a cluster.
    A change that the backend refuses to settle now (a client still has the half-made volume open)
    keeps its intent: it stays invisible, and the next call or start tries again. It must not keep
    the pool, and all other volumes, from being served. Neither must what a newer server has begun,
    which that one ends.
    """
    deletes = pool.list(
        Operation, wanted=lambda o: o.action == DELETE and not o.finished, leave_newer=True
    )
    waiting = {operation.subject_id for operation in deletes}
    intents = pool.list(Intent, wanted=lambda i: i.id not in waiting, leave_newer=True)
    pool.making.begin([one for one in intents if one.action is IntentAction.MAKE_VOLUME])
    at_once = 1 if pool.backend.caps.joins_catalog else min(len(intents), RECOVERIES_AT_ONCE)
    if at_once <= 1:
        for intent in intents:
            _settle(pool, intent)
    else:
        with ThreadPoolExecutor(at_once, thread_name_prefix="recover") as threads:
            for done in [threads.submit(_settle, pool, intent) for intent in intents]:
                done.result()
    if isinstance(pool.backend, SupportsCollect):
        freed = pool.backend.collect()
        if freed:
            _log.info("deleted volumes freed", pool=pool.name, count=freed)


def _settle(pool: Pool, intent: Intent) -> None:
    """Settle a change if the backend lets us, beside changes of other volumes; errors as above."""
    try:
        with pool.locks.hold([storage_lock(intent.backend_volume_id)], timeout_s=RECOVERY_WAIT_S):
            settle(pool, intent)
    except PreconditionError as err:
        _log.warning(
            "change not settled",
            pool=pool.name,
            action=intent.action,
            subject=intent.subject_key,
            reason=err.reason,
            message=err.message,
        )
