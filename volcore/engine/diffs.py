"""What changed between two snapshots of a volume."""

from bisect import bisect_right
from collections.abc import Sequence

from volcore.backends.contract import SupportsDiff
from volcore.engine.pool import Pool, undisturbed, volume_lock
from volcore.engine.pools import Pools
from volcore.engine.views import SnapshotDiff
from volcore.errors import InvalidArgumentError, NotSupportedError, OutOfRangeError, Reason
from volcore.model.extent import Extent
from volcore.model.records import Snapshot


class Diffs:
    """Use cases of diffs; they change nothing."""

    def __init__(self, pools: Pools) -> None:
        self._pools = pools

    def diff_snapshot(
        self, pool: str, volume: str, name: str, *, base: str | None = None, start_bytes: int = 0
    ) -> SnapshotDiff:
        """Return where a snapshot may differ from `base` (None: what holds data in it).

        Both cannot be deleted through this server before the list is made. *Units*: extents that
        end after `start_bytes`, the first one cut there.

        Raises:
            NotFoundError: SNAPSHOT_NOT_FOUND; OBJECT_NOT_FOUND, the storage has lost it.
            NotSupportedError: CAPABILITY_ABSENT.
            InvalidArgumentError: BAD_FIELD, the base is newer than the snapshot.
            OutOfRangeError: OFFSET_PAST_END.
        """
        at = self._pools.open(pool)
        backend = at.backend
        if not isinstance(backend, SupportsDiff):
            raise NotSupportedError(
                f"pool {at.name!r} ({backend.caps.kind}) cannot tell what changed between "
                "snapshots; read and compare them",
                reason=Reason.CAPABILITY_ABSENT,
            )
        with at.locks.hold(shared=[volume_lock(volume)]):
            snapshot = at.snapshot(volume, name)
            source = None if base is None else at.snapshot(volume, base)
            _check_start(snapshot, start_bytes)
            if source == snapshot:
                return SnapshotDiff(size_bytes=snapshot.size_bytes, extents=[])
            if source is not None:
                _check_order(at, source, snapshot)
            with undisturbed(at, snapshot.backend_volume_id):
                extents = backend.diff(
                    snapshot.backend_volume_id,
                    None if source is None else source.backend_id,
                    snapshot.backend_id,
                )
        return SnapshotDiff(size_bytes=snapshot.size_bytes, extents=_since(extents, start_bytes))


def _check_start(snapshot: Snapshot, start_bytes: int) -> None:
    if not 0 <= start_bytes <= snapshot.size_bytes:
        raise OutOfRangeError(
            f"starting_offset_bytes is {start_bytes}; snapshot {snapshot.name!r} has offsets from "
            f"0 to {snapshot.size_bytes}",
            reason=Reason.OFFSET_PAST_END,
            field="starting_offset_bytes",
        )


def _check_order(at: Pool, base: Snapshot, snapshot: Snapshot) -> None:
    """Refuse a base that is newer; the storage knows the order, clocks of servers may differ.

    What was deleted around this service is the backend's to tell.
    """
    ids = at.backend.describe(snapshot.backend_volume_id).snapshot_ids
    order = {snapshot_id: number for number, snapshot_id in enumerate(ids)}
    if order.get(base.backend_id, -1) > order.get(snapshot.backend_id, len(ids)):
        raise InvalidArgumentError(
            f"base_snapshot {base.name!r} is newer than snapshot {snapshot.name!r}; exchange them",
            reason=Reason.BAD_FIELD,
            field="base_snapshot",
        )


def _since(extents: Sequence[Extent], start_bytes: int) -> Sequence[Extent]:
    """Return the extents without what is before an offset."""
    if not start_bytes:
        return extents
    at = bisect_right(extents, start_bytes, key=lambda one: one.end_bytes)
    found = list(extents[at:])
    if found and found[0].offset_bytes < start_bytes:
        first = found[0]
        found[0] = Extent(start_bytes, first.end_bytes - start_bytes, first.kind)
    return found
