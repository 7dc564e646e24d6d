"""Checks: verify a volume, a snapshot or an image; scrub a whole pool.

A check is an operation; what it finds is in its record, bounded, and unhealed damage in the pool's
health as well. It goes on after a restart: the cursor and what was found before it are written
together. A check reads with threads of its own, so that a gentle scrub of days delays nothing.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Final

import structlog

from volcore.backends.verifying import Damage, SupportsVerify, VerifyRequest
from volcore.engine.operations import WRITE_INTERVAL_S, Operations, Work
from volcore.engine.pool import Pool, now_ns, put
from volcore.engine.pools import Pools
from volcore.errors import (
    NotFoundError,
    NotSupportedError,
    OperationPendingError,
    OutOfRangeError,
    Reason,
    VolcoreError,
)
from volcore.images.reread import SourceBlocks
from volcore.model import names
from volcore.model.checks import FINDINGS_MAX, Check, Finding, same, without
from volcore.model.records import (
    Health,
    Image,
    Operation,
    Snapshot,
    State,
    TrashedVolume,
    Volume,
)

VERIFY: Final = "verify"
SCRUB: Final = "scrub"
VERIFY_THREADS: Final = 2
SCRUB_THREADS: Final = 8
"""One scrub at a time per pool; pools beyond these wait for their turn."""
SCRUB_WRITE_INTERVAL_S: Final = 10.0
"""A scrub takes hours: its place is written seldom, and at once when it has found something."""
NAMES_AGE_S_MAX: Final = 5.0
"""How old the list of names may be with which findings are told."""
HEALTH_LOCK: Final = "health"
_log = structlog.get_logger("volcore.engine")


class Checks:
    """Use cases of checks; every call may be repeated blindly."""

    def __init__(
        self, pools: Pools, operations: Operations, directories: Sequence[Path] = ()
    ) -> None:
        """Heal images from files in `directories` too."""
        self._pools = pools
        self._operations = operations
        self._directories = directories
        operations.resume_with(VERIFY, self._verify, own_threads=VERIFY_THREADS)
        operations.resume_with(SCRUB, self._scrub, own_threads=SCRUB_THREADS)

    def verify_volume(self, pool: str, name: str, *, heal: bool = False) -> Operation:
        """Start to verify what a volume shows; while that runs, return the running operation.

        Raises:
            NotFoundError: VOLUME_NOT_FOUND.
            NotSupportedError: the pool cannot.
            OperationPendingError: one that does not heal runs, and this one shall.
        """
        at = self._able(pool)
        volume = at.volume(names.check_name(name, field="volume"))
        return self._start(at, VERIFY, f"pools/{pool}/volumes/{name}", volume.id, Check(heal=heal))

    def verify_snapshot(
        self, pool: str, volume: str, name: str, *, heal: bool = False
    ) -> Operation:
        """Start to verify a snapshot; see `verify_volume`."""
        at = self._able(pool)
        snapshot = at.snapshot(volume, name)
        target = f"pools/{pool}/volumes/{volume}/snapshots/{name}"
        return self._start(at, VERIFY, target, snapshot.id, Check(heal=heal))

    def verify_image(self, pool: str, name: str, *, heal: bool = False) -> Operation:
        """Start to verify an image; see `verify_volume`."""
        at = self._able(pool)
        image = at.image(names.check_name(name, field="image"))
        return self._start(at, VERIFY, f"pools/{pool}/images/{name}", image.id, Check(heal=heal))

    def scrub(self, pool: str, *, heal: bool = False, bytes_per_s_max: int = 0) -> Operation:
        """Start to read everything in a pool once; while that runs, return the running operation.

        `bytes_per_s_max` 0: as fast as it goes. Raises as `verify_volume`, and OutOfRangeError.
        """
        at = self._able(pool)
        if bytes_per_s_max < 0:
            raise OutOfRangeError(
                f"the rate is {bytes_per_s_max}; give bytes per second, or 0 for no limit",
                reason=Reason.BAD_FIELD,
                field="max_rate_bytes",
            )
        check = Check(heal=heal, bytes_per_s_max=bytes_per_s_max)
        return self._start(at, SCRUB, f"pools/{pool}", f"{SCRUB} {pool}", check)

    def _able(self, pool: str) -> Pool:
        at = self._pools.open(pool)
        if not isinstance(at.backend, SupportsVerify):
            raise NotSupportedError(
                f"volcore keeps no checksums in pool {pool!r} ({at.backend.caps.kind}): its "
                "storage checks itself (Ceph scrubs by itself, see 'ceph health')",
                reason=Reason.CAPABILITY_ABSENT,
            )
        return at

    def _start(
        self, at: Pool, action: str, target: str, subject_id: str, check: Check
    ) -> Operation:
        run = self._verify if action == VERIFY else self._scrub
        operation = self._operations.start(at, action, target, subject_id, run, check=check)
        running = operation.check
        if check.heal and running is not None and not running.heal:
            raise OperationPendingError(
                f"operation {operation.id} checks {target} without healing; wait for its end or "
                "cancel it, then repeat",
                reason=Reason.OPERATION_PENDING,
                retryable=True,
            )
        return operation

    # The work, in a thread of its own

    def _verify(self, at: Pool, work: Work) -> None:
        """Verify what `work` names; resumable."""
        point = _point(at, work)
        if point is None:
            raise NotFoundError(
                f"{work.target} is gone; nothing is left to verify", reason=Reason.OBJECT_NOT_FOUND
            )
        try:
            self._read(at, work, *point)
        finally:
            _note_findings(at, work)

    def _scrub(self, at: Pool, work: Work) -> None:
        """Scrub the pool; resumable."""
        work.write_interval_s = SCRUB_WRITE_INTERVAL_S
        try:
            self._read(at, work, None, None)
        except VolcoreError:
            _note_findings(at, work)
            raise
        check = work.operation.check
        assert check is not None
        damage = tuple(finding for finding in check.findings if not finding.healed)
        _update_health(
            at,
            lambda health: health.but(
                scrub_begin_ns=work.operation.create_time_ns,
                scrub_end_ns=now_ns(),
                scrub_checked_bytes=check.checked_bytes,
                damaged_blocks=check.damaged_blocks,
                damage=damage,
            ),
        )
        _log.info(
            "scrub ended",
            pool=at.name,
            checked_bytes=check.checked_bytes,
            bad_blocks=check.bad_blocks,
            healed_blocks=check.healed_blocks,
        )

    def _read(self, at: Pool, work: Work, volume_id: str | None, snapshot_id: str | None) -> None:
        """Let the backend check, from where it was stopped."""
        check = work.operation.check
        assert check is not None, "a check's operation has its request"
        assert isinstance(at.backend, SupportsVerify)
        watcher = Watcher(at, work, check)
        with closing(SourceBlocks(self._directories)) as blocks:
            request = VerifyRequest(
                volume_id=volume_id,
                snapshot_id=snapshot_id,
                heal=check.heal,
                bytes_per_s_max=check.bytes_per_s_max,
                cursor=check.cursor,
                source=lambda volume_ids, at_bytes: _candidates(at, blocks, volume_ids, at_bytes),
            )
            at.backend.verify(request, watcher)


class Watcher:
    """Writes down and logs what a check finds; see `VerifyWatcher`."""

    def __init__(self, at: Pool, work: Work, check: Check) -> None:
        self._at = at
        self._work = work
        self._check = check
        self._before_bytes = check.checked_bytes
        self._names: dict[tuple[str, str | None], str] = {}
        self._names_time_s = float("-inf")

    def progress(
        self, done_bytes: int, total_bytes: int, *, checked_bytes: int, cursor: str
    ) -> None:
        """See `VerifyWatcher.progress`."""
        self._check = replace(
            self._check, checked_bytes=self._before_bytes + checked_bytes, cursor=cursor
        )
        self._work.note(self._check)
        self._work.progress(done_bytes, total_bytes)

    def found(self, damage: Damage) -> None:
        """See `VerifyWatcher.found`."""
        seen_by = self._named(damage.points)
        hidden = damage.point_count - len(damage.points)
        finding = Finding(
            kind=damage.kind,
            layer=damage.layer,
            offset_bytes=damage.offset_bytes,
            length_bytes=damage.length_bytes,
            names=seen_by,
            name_count=len(seen_by) + hidden,
            healed=damage.healed,
            detail=damage.detail,
        )
        self._check = self._check.plus(finding)
        self._work.note(self._check)
        self._work.write_interval_s = WRITE_INTERVAL_S
        if self._check.finding_count > FINDINGS_MAX:
            return
        (_log.warning if finding.healed else _log.error)(
            "damage healed" if finding.healed else "damage found",
            pool=self._at.name,
            kind=finding.kind,
            names=list(seen_by),
            name_count=finding.name_count,
            offset_bytes=finding.offset_bytes,
            length_bytes=finding.length_bytes,
            layer=finding.layer,
            detail=finding.detail,
        )

    def _named(self, points: Sequence[tuple[str, str | None]]) -> tuple[str, ...]:
        """Return the resource names of volumes and snapshots; those in the making have none."""
        if time.monotonic() - self._names_time_s > NAMES_AGE_S_MAX:
            self._names, self._names_time_s = _all_names(self._at), time.monotonic()
        found = [self._names[point] for point in points if point in self._names]
        return tuple(dict.fromkeys(found))


def _all_names(at: Pool) -> dict[tuple[str, str | None], str]:
    """Return the resource name of each volume, snapshot and image, by its ids in the backend."""
    pool = f"pools/{at.name}"
    found: dict[tuple[str, str | None], str] = {}
    for volume in at.list(Volume, leave_newer=True):
        found[volume.backend_id, None] = f"{pool}/volumes/{volume.name}"
    for snapshot in at.list(Snapshot, leave_newer=True):
        name = f"{pool}/volumes/{snapshot.volume}/snapshots/{snapshot.name}"
        found[snapshot.backend_volume_id, snapshot.backend_id] = name
    for trashed in at.list(TrashedVolume, leave_newer=True):
        name = f"{pool}/volumes/{trashed.volume.name}"
        found[trashed.volume.backend_id, None] = name
        for snapshot in trashed.snapshots:
            point = snapshot.backend_volume_id, snapshot.backend_id
            found[point] = f"{name}/snapshots/{snapshot.name}"
    for image in at.list(Image, leave_newer=True):
        for snapshot_id in (None, image.backend_snapshot_id):
            found[image.backend_volume_id, snapshot_id] = f"{pool}/images/{image.name}"
    return found


def _candidates(
    at: Pool, blocks: SourceBlocks, volume_ids: Sequence[str], offset_bytes: int
) -> Iterator[bytes]:
    """Yield what the block was in the files that these images, or images like them, came from."""
    images = at.list(Image, wanted=lambda i: i.state is State.READY, leave_newer=True)
    digests = {image.digest for image in images if image.backend_volume_id in volume_ids}
    for image in images:
        if image.source_path and image.digest in digests:
            block = blocks.read(image.source_path, image.source_format, offset_bytes)
            if block is not None:
                yield block


def _point(at: Pool, work: Work) -> tuple[str, str | None] | None:
    """Return volume and snapshot id of what is to be verified, if it is still there."""
    parts = work.target.split("/")
    record: Volume | Snapshot | Image | None
    point: tuple[str, str | None] | None = None
    if parts[2] == "images":
        record = at.find(Image, parts[3])
        if record is not None:
            point = record.backend_volume_id, record.backend_snapshot_id
    elif len(parts) > 4:
        record = at.find(Snapshot, f"{parts[3]}/{parts[5]}")
        if record is not None:
            point = record.backend_volume_id, record.backend_id
    else:
        record = at.find(Volume, parts[3])
        if record is not None:
            point = record.backend_id, None
    if record is None or record.id != work.subject_id or record.state is not State.READY:
        return None
    return point


def health_of(at: Pool) -> Health:
    """Return what is known about a pool; the clock of its schedule begins with the first look."""
    with at.locks.hold([HEALTH_LOCK]):
        return _health(at)


def _health(at: Pool) -> Health:
    health = at.find(Health, Health.KEY)
    if health is None:
        health = Health(first_time_ns=now_ns())
        at.catalog.commit([put(health)])
    return health


def _update_health(at: Pool, change: Callable[[Health], Health]) -> None:
    """Change the record of a pool's health; checks that end at once take turns."""
    with at.locks.hold([HEALTH_LOCK]):
        health = _health(at)
        at.catalog.commit([put(change(health), health)])


def _note_findings(at: Pool, work: Work) -> None:
    """Add what a check of a part, or part of a check, has found; not when it goes on later."""
    check = work.operation.check
    if check is not None and check.findings and not work.interrupted.is_set():
        _update_health(at, lambda health: _with_findings(health, check.findings))


def _with_findings(health: Health, findings: Sequence[Finding]) -> Health:
    """Return a pool's health after a verify: new damage comes to it, healed damage goes."""
    healed = [finding for finding in findings if finding.healed]
    fresh = [
        finding
        for finding in findings
        if not finding.healed and not any(same(finding, known) for known in health.damage)
    ]
    # What is known already may be told in other pieces now.
    known = without(health.damage, [*healed, *fresh])
    counted = sum(finding.block_count for finding in health.damage)
    damage = [*known, *fresh]
    more = sum(finding.block_count for finding in damage) - counted
    return health.but(
        damage=tuple(damage[:FINDINGS_MAX]), damaged_blocks=max(0, health.damaged_blocks + more)
    )
