"""A lost catalog, made again from the records that the storage carries (`carrier.py`).

What is carried is a copy that may be older than the catalog was by what was changed in its last
moment. So each record is held against the storage, which is never older: what does not fit it, or
what two claim, is told and left out, never guessed.

Order: everything is read before anything is written to the catalog; every line of a commit expects
that nothing is there. So a catalog that is not lost is never changed, and a rebuild that was cut
off goes on when it is repeated: what is there is what would be written.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from volcore.backends.auditing import SupportsAudit
from volcore.backends.carrying import SupportsCarry
from volcore.backends.contract import VolumeFacts
from volcore.catalog.contract import ABSENT, Change
from volcore.engine.exports import KINDS, Contents, refuse_unknown
from volcore.engine.pool import Pool, image_lock, volume_lock
from volcore.engine.pools import Pools
from volcore.errors import (
    IntegrityError,
    NotSupportedError,
    PreconditionError,
    Reason,
    UnavailableError,
)
from volcore.model.faults import Fault, FaultKind
from volcore.model.records import (
    Attachment,
    Image,
    Intent,
    Record,
    Snapshot,
    State,
    TrashedVolume,
    Volume,
)

TOGETHER: Final = 256
"""Volumes read at once."""
COMMIT_RECORDS_MAX: Final = 5000
FLUSH_TIMEOUT_S: Final = 60.0
_MAIN: Final = (Volume, Image, TrashedVolume)
_PAGE: Final = 1000
_OUT: Final = "Not rebuilt:"


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """How much there is; the end of a rebuild."""

    record_count: int
    """Records that the catalog has now."""
    volume_count: int
    """Volumes of the backend that were looked at."""


class Rebuild:
    """Use case of the rebuild; may be repeated blindly."""

    def __init__(self, pools: Pools) -> None:
        self._pools = pools

    def run(self, pool: str) -> Iterator[Fault | Rebuilt]:
        """Make the catalog of a pool again; yield what could not be, then how much there is.

        A catalog with records is left as it is, unless each of them is carried just so: then what
        it lacks is added. *Atomicity*: of COMMIT_RECORDS_MAX records; repeat what was cut off.

        Raises:
            NotFoundError: POOL_NOT_FOUND.
            NotSupportedError: CAPABILITY_ABSENT, the storage carries no records.
            PreconditionError: CATALOG_NOT_EMPTY; RECORD_NEWER, a newer server has been here.
            ExhaustedError: POOL_FULL.
            UnavailableError: the storage cannot be reached.
        """
        at = self._pools.open(pool)
        backend = at.backend
        if at.carrier is None or not isinstance(backend, SupportsCarry):
            raise NotSupportedError(
                f"pool {pool!r} ({backend.caps.kind}) keeps its catalog in one database with its "
                "storage; restore the whole directory from a copy",
                reason=Reason.CAPABILITY_ABSENT,
            )
        refuse_unknown(at)
        at.making.flush()
        _flush(at)
        reading = None
        if present := _present(at):  # before anything is changed
            reading = _Reading(at, backend)
            _refuse_others(at, present, reading.wanted)
        left_out = list(backend.enter_all())
        if reading is None or reading.listed != set(backend.walk()):
            reading = _Reading(at, backend)
        wanted = reading.wanted
        locks = {image_lock(key) for kind, key in wanted if kind == Image.KIND}
        locks |= {volume_lock(key.partition("/")[0]) for kind, key in wanted if kind != Image.KIND}
        with at.locks.hold(locks):
            present = _present(at)
            _refuse_others(at, present, wanted)
            _flush(at)  # what was dropped since it was read is carried no more
            changes = [
                Change(kind=KINDS[kind].KIND, key=key, value=wanted[kind, key], expect=ABSENT)
                for kind, key in reading.still_carried(wanted.keys() - present.keys())
            ]
            for start in range(0, len(changes), COMMIT_RECORDS_MAX):
                at.catalog.commit(changes[start : start + COMMIT_RECORDS_MAX])
        yield from left_out
        yield from reading.faults
        yield Rebuilt(len(present) + len(changes), reading.volume_count)


def _flush(at: Pool) -> None:
    """Let the storage take what calls have changed."""
    assert at.carrier is not None
    if not at.carrier.flush(FLUSH_TIMEOUT_S):
        raise UnavailableError(
            f"the storage of pool {at.name!r} has not taken all records that were changed: it "
            "failed, which the log tells, or much is going on; repeat the call later",
            reason=Reason.OPERATION_PENDING,
            retryable=True,
        )


def _present(at: Pool) -> Contents:
    """Return all records of a catalog that are of the kinds of a rebuild."""
    found: Contents = {}
    for kind, record in KINDS.items():
        after = ""
        while page := at.catalog.list(record.KIND, after=after, limit=_PAGE):
            found |= {(kind, key): raw for key, raw in page}
            after = page[-1][0]
    return found


def _refuse_others(at: Pool, present: Contents, wanted: Contents) -> None:
    """Refuse a catalog with records that a rebuild would not write.

    Raises:
        PreconditionError: CATALOG_NOT_EMPTY.
    """
    others = [place for place, raw in present.items() if wanted.get(place) != raw]
    if others:
        kind, key = others[0]
        raise PreconditionError(
            f"the catalog of pool {at.name!r} has {len(present)} records already, and the storage "
            f"does not carry {len(others)} of them ({kind} {key!r} is one); a rebuild only adds to "
            "what it would write: compare with `volcore admin check`",
            reason=Reason.CATALOG_NOT_EMPTY,
        )


class _Reading:
    """What the storage carries, held against it."""

    def __init__(self, at: Pool, backend: SupportsCarry) -> None:
        self.wanted: Contents = {}
        self.faults: list[Fault] = []
        self.volume_count = 0
        self._at, self._backend = at, backend
        self._kind = at.backend.caps.kind
        self._shown = at.backend.is_shown if isinstance(at.backend, SupportsAudit) else bool
        self._claims: dict[tuple[str, str], str] = {}
        """Which volume of the backend carries a record."""
        busy = {one.backend_volume_id for one in at.list(Intent)}  # all, or it is refused
        self.listed = set(at.backend.walk())
        ids = sorted(self.listed - busy)
        for start in range(0, len(ids), TOGETHER):
            some = ids[start : start + TOGETHER]
            facts, carried = at.backend.describe_many(some), backend.carried(some)
            for one in some:
                if one in facts:
                    self.volume_count += 1
                    self._volume(facts[one], carried.get(one, {}))

    def still_carried(self, places: Collection[tuple[str, str]]) -> list[tuple[str, str]]:
        """Return those of `places` that the same volumes of the backend carry now, in order."""
        ids = sorted({self._claims[place] for place in places})
        rows: dict[str, dict[str, bytes]] = {}
        for start in range(0, len(ids), TOGETHER):
            rows |= self._backend.carried(ids[start : start + TOGETHER])
        return sorted(
            (kind, key)
            for kind, key in places
            if f"{kind}/{key}" in rows.get(self._claims[kind, key], {})
        )

    def _volume(self, facts: VolumeFacts, rows: dict[str, bytes]) -> None:
        """Take what one volume of the backend carries."""
        records = self._decoded(facts, rows)
        mains = [one for one in records if isinstance(one, _MAIN)]
        if len(mains) != 1 or _backend_id(mains[0]) != facts.volume_id:
            self._without_record(facts, len(mains), len(rows))
            return
        main, members = mains[0], []
        parts, volume = _parts(main, records)
        for part in parts:
            if part.backend_id in facts.snapshot_ids:
                members.append(part)
            else:
                self._lost_snapshot(facts, part.key)
        if isinstance(main, TrashedVolume) and len(members) < len(main.snapshots):
            if main.added:  # not ours to write otherwise
                self._unreadable(facts, str(main.KIND), main.key, f"it has {main.added[0]}")
                return
            main = main.but(snapshots=tuple(members))
        self._compare_size(facts, volume or main)
        known = {one.backend_id for one in parts}
        if isinstance(main, Image):
            known.add(main.backend_snapshot_id)
            if main.backend_snapshot_id not in facts.snapshot_ids:
                self._lost_snapshot(facts, main.key)
                return
        for snapshot_id in sorted(filter(self._shown, set(facts.snapshot_ids) - known)):
            self._unknown_snapshot(facts, snapshot_id)
        self._take(facts, main, *([] if isinstance(main, TrashedVolume) else members))
        if isinstance(main, Volume):
            belongs = [one for one in records if isinstance(one, Attachment)]
            self._take(facts, *(one for one in belongs if one.volume_id == main.id))

    def _decoded(self, facts: VolumeFacts, rows: dict[str, bytes]) -> list[Record]:
        """Return what can be read of it and is READY."""
        found = []
        for place, raw in rows.items():
            kind, _, key = place.partition("/")
            try:
                record = KINDS[kind].decode(raw, key)
            except (IntegrityError, PreconditionError, KeyError) as err:
                self._unreadable(facts, kind, key, str(err))
                continue
            if record.key == key and getattr(record, "state", State.READY) is State.READY:
                found.append(record)
        return found

    def _take(self, facts: VolumeFacts, *records: Record) -> None:
        """Take records, unless another volume claims the same name."""
        for record in records:
            place = (str(record.KIND), record.key)
            if place in self._claims:
                self._fault(
                    FaultKind.RECORD_AMBIGUOUS,
                    facts.volume_id,
                    f"It says that it is {record.KIND} {record.key!r}, and so does "
                    f"{self._kind} image {self._claims[place]!r}: one was renamed or deleted just "
                    "before the catalog was lost.",
                    "neither is taken; `volcore admin check --repair` releases both, to be looked "
                    "at and adopted.",
                )
                self.wanted.pop(place, None)
                continue
            self._claims[place] = facts.volume_id
            self.wanted[place] = record.encode()

    def _unreadable(self, facts: VolumeFacts, kind: str, key: str, why: str) -> None:
        self._fault(
            FaultKind.RECORD_UNREADABLE,
            facts.volume_id,
            f"It carries a {kind} record {key!r} that this server cannot read: {why}.",
            "use the newer server if there is one, else adopt the image.",
        )

    def _without_record(self, facts: VolumeFacts, main_count: int, row_count: int) -> None:
        if main_count > 1 or row_count:
            meaning = "It carries records that do not fit each other or it."
        else:
            meaning = (
                "It carries no record: an older server has made it, it is a warm clone, its making "
                "had not ended, or it was deleted and not freed yet."
            )
        self._fault(
            FaultKind.IMAGE_WITHOUT_RECORD,
            facts.volume_id,
            meaning,
            f"`volcore admin check --repair` releases it, then `volcore volume adopt "
            f"{facts.volume_id}` makes it a volume, with all its data and snapshots.",
        )

    def _lost_snapshot(self, facts: VolumeFacts, key: str) -> None:
        self._fault(
            FaultKind.SNAPSHOT_WITHOUT_IMAGE,
            facts.volume_id,
            f"It carries a record of {key!r}, but has no such snapshot: that was deleted.",
            "there is nothing that it could name.",
        )

    def _unknown_snapshot(self, facts: VolumeFacts, snapshot_id: str) -> None:
        self._fault(
            FaultKind.SNAPSHOT_WITHOUT_RECORD,
            facts.volume_id,
            f"It has a snapshot {snapshot_id!r} and carries no record of it: it was made or "
            "deleted just before the catalog was lost, or around volcore.",
            "`volcore admin check --repair` makes it a snapshot of the volume.",
        )

    def _compare_size(self, facts: VolumeFacts, record: Record) -> None:
        size_bytes = getattr(record, "size_bytes", facts.size_bytes)
        if size_bytes != facts.size_bytes:
            self._fault(
                FaultKind.SIZE_MISMATCH,
                facts.volume_id,
                f"Its record says {size_bytes} bytes, it has {facts.size_bytes}: it was resized "
                "just before the catalog was lost, or around volcore.",
                "the record is taken as it is; `volcore admin check --repair` takes the size of "
                "the storage.",
            )

    def _fault(self, kind: FaultKind, volume_id: str, meaning: str, remedy: str) -> None:
        self.faults.append(
            Fault(
                kind=kind,
                concerns=f"{self._kind} image {volume_id}",
                subject=volume_id,
                meaning=meaning,
                remedy=f"{_OUT} {remedy}",
            )
        )


def _parts(
    main: Volume | Image | TrashedVolume, records: Sequence[Record]
) -> tuple[list[Snapshot], Volume | None]:
    """Return the snapshots that are said to be there, and the volume's own record."""
    if isinstance(main, TrashedVolume):
        return list(main.snapshots), main.volume
    if isinstance(main, Image):
        return [], None
    snapshots = [one for one in records if isinstance(one, Snapshot)]
    return [one for one in snapshots if one.volume_id == main.id], main


def _backend_id(record: Volume | Image | TrashedVolume) -> str:
    if isinstance(record, Image):
        return record.backend_volume_id
    return record.volume.backend_id if isinstance(record, TrashedVolume) else record.backend_id
