"""The trash: deleted volumes that can come back, until their time is over.

In a pool with a retention time a delete moves the volume's records, snapshots included, into one
record of the trash: one commit, and no call of the backend. The name is free at once; coming back
is the same commit the other way round. What is purged is deleted as it is without a trash.

Invariants:
1. INV-TRASH-1 (must): a volume is either shown or in the trash, never both and never neither,
   until it is purged.
2. INV-TRASH-2 (must): nothing is purged before its `purge_time_ns` but on request.
"""

import threading
from collections.abc import Callable, Sequence
from typing import Final

import structlog

from volcore.engine.changes import settle_leftover
from volcore.engine.deletions import Deletions
from volcore.engine.pool import Pool, absent, drop, now_ns, put, volume_lock
from volcore.engine.pools import Pools
from volcore.errors import ConflictError, NotFoundError, Reason, VolcoreError
from volcore.model import names
from volcore.model.records import (
    Intent,
    IntentAction,
    Operation,
    Snapshot,
    State,
    TrashedVolume,
    Volume,
)

LOOK_INTERVAL_S: Final = 60.0
_log = structlog.get_logger("volcore.engine")


class Trash:
    """Use cases of deleted volumes, and the thread that purges them; any thread."""

    def __init__(self, pools: Pools, deletions: Deletions) -> None:
        self._pools = pools
        self._deletions = deletions
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="trash", daemon=True)

    def start(self) -> None:
        """Purge what is over from now on; once."""
        self._thread.start()

    def close(self, timeout_s: float) -> bool:
        """Purge no more, and wait so long for a call that is in the storage; say if it has ended.

        Idempotent.
        """
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def list(
        self,
        pool: str,
        *,
        after: str = "",
        limit: int,
        wanted: Callable[[Volume], bool] | None = None,
    ) -> list[TrashedVolume]:
        """Return up to `limit` deleted volumes with keys (`name/id`) after `after`, in order."""
        return self._pools.open(pool).list(
            TrashedVolume,
            after=after,
            limit=limit,
            wanted=lambda trashed: wanted is None or wanted(trashed.volume),
            leave_newer=True,
        )

    def put(self, at: Pool, volume: Volume, snapshots: Sequence[Snapshot]) -> TrashedVolume:
        """Move a volume with its snapshots to the trash; call with its lock held.

        Raises:
            PreconditionError: VOLUME_IN_USE, this server has it open.
            OperationPendingError: one of the records has changed, or a change of the volume was cut
                off and is to be settled first.
        """
        at.backend.refuse_if_open(volume.backend_id)
        now = now_ns()
        trashed = TrashedVolume(
            volume=volume,
            snapshots=tuple(snapshots),
            delete_time_ns=now,
            purge_time_ns=now + int(at.trash_retention_s * 10**9),
        )
        settled = absent(Intent, volume.id)
        at.catalog.commit([settled, *map(drop, [volume, *snapshots]), put(trashed)])
        return trashed

    def undelete(self, pool: str, name: str, *, uid: str = "", new_name: str = "") -> Volume:
        """Bring a deleted volume back with its snapshots: the latest of this name, or by `uid`.

        It gets `new_name`, or its old one. The same call again returns the volume.

        Raises:
            NotFoundError: VOLUME_NOT_FOUND, it is not in the trash (any more).
            ConflictError: NAME_TAKEN, by another volume.
        """
        at = self._pools.open(pool)
        names.check_name(name, field="volume")
        target = names.check_name(new_name, field="volume_id") if new_name else name
        with at.locks.hold([volume_lock(target)]):
            standing = at.find(Volume, target)
            if standing is not None and standing.state is not State.READY:
                settle_leftover(at, standing.id)
                standing = at.find(Volume, target)
            if standing is not None and _is_it(standing, name, uid):
                return standing
            trashed = self._find(at, name, uid)
            if trashed is None:
                raise NotFoundError(
                    f"pool {pool!r} has no deleted volume {name!r}"
                    f"{f' with uid {uid[:64]!r}' if uid else ''}; it was purged, or never deleted",
                    reason=Reason.VOLUME_NOT_FOUND,
                    pool=pool,
                    volume=name,
                )
            if standing is not None:
                raise ConflictError(
                    f"there is another volume {target!r} now; undelete it under a new name, or "
                    "delete the other first",
                    reason=Reason.NAME_TAKEN,
                    name=target,
                )
            volume = trashed.volume.but(name=target, undeleted_from=name)
            snapshots = [snapshot.but(volume=target) for snapshot in trashed.snapshots]
            at.catalog.commit([drop(trashed), put(volume), *map(put, snapshots)])
            return volume

    def purge(self, at: Pool, name: str, uid: str) -> Operation | None:
        """Delete a volume of the trash for good; one that is gone is no error.

        Returns what `Deletions.delete` returns.
        """
        trashed = self._find(at, name, uid)
        return None if trashed is None else self._purge(at, trashed)

    def look(self, time_ns: int) -> int:
        """Purge what is over at `time_ns`; return how many volumes were."""
        count = 0
        for name in self._pools.names():
            at = self._pools.open(name)
            try:
                over = at.list(
                    TrashedVolume,
                    wanted=lambda t: t.purge_time_ns <= time_ns and not t.added,
                    leave_newer=True,
                )
                for trashed in over:
                    self._purge(at, trashed)
                    count += 1
            except VolcoreError as err:
                _log.warning("trash not purged", pool=name, reason=err.reason, message=err.message)
        return count

    def _purge(self, at: Pool, trashed: TrashedVolume) -> Operation | None:
        volume = trashed.volume
        intent = Intent(
            id=volume.id,
            action=IntentAction.DELETE_VOLUME,
            subject_key=volume.key,
            subject_id=volume.id,
            backend_volume_id=volume.backend_id,
            owner=at.server_id,
            create_time_ns=now_ns(),
        )
        target = f"pools/{at.name}/volumes/{volume.name}"
        operation = self._deletions.delete(at, intent, target, [trashed])
        _log.info("volume purged", pool=at.name, volume=volume.name, uid=volume.id)
        return operation

    def _find(self, at: Pool, name: str, uid: str) -> TrashedVolume | None:
        """Return the volume with `uid`, or the one of this name that was deleted last."""
        found = at.list(TrashedVolume, prefix=f"{name}/")
        chosen = [one for one in found if uid in {"", one.volume.id}]
        return max(chosen, key=lambda one: one.delete_time_ns, default=None)

    def _run(self) -> None:
        while not self._closing.is_set():
            self.look(now_ns())
            self._closing.wait(LOOK_INTERVAL_S)


def _is_it(standing: Volume, name: str, uid: str) -> bool:
    """Tell whether the same call has undeleted this volume before."""
    return standing.id == uid if uid else standing.undeleted_from == name
