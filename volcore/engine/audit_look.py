"""One look of an audit: what seems to be wrong with a pool at this moment.

Records are read a page at a time, and of each only what is compared is kept.
"""

import hashlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from typing import Final

from volcore.backends.adopting import SupportsAdopt
from volcore.backends.auditing import SupportsAudit
from volcore.backends.carrying import SupportsCarry
from volcore.backends.contract import VolumeFacts
from volcore.engine.audit_records import Records, Reference
from volcore.engine.carrier import loads_of
from volcore.engine.pool import Pool
from volcore.model.faults import Fault, FaultKind
from volcore.model.names import is_name

TOGETHER: Final = 256
"""Volumes that are described at once."""
_NO_REPAIR: Final = "Not repaired:"


class Look:
    """Looks at one pool, once."""

    def __init__(self, at: Pool) -> None:
        self._at = at
        self.record_count = 0
        self.volume_count = 0

    def faults(self, suspects: Sequence[Fault] | None, *, objects: bool) -> Iterator[Fault]:
        """Yield what looks wrong; with `suspects` look at the storage of these only."""
        backend = self._at.backend
        only = None if suspects is None else {fault.subject for fault in suspects}
        records = Records(self._at)
        yield from records.faults()
        unlisted: set[str] = set()
        if isinstance(backend, SupportsAudit):
            for fault in backend.audit(suspects, objects=objects):
                if fault.kind is FaultKind.IMAGE_WITHOUT_ROW:
                    unlisted.add(fault.subject)
                yield from _judged(records, fault)
        yield from self._compared(records, only, unlisted)
        yield from records.newer_faults()
        self.record_count = records.count

    def _compared(
        self, records: Records, only: Collection[str] | None, unlisted: Collection[str]
    ) -> Iterator[Fault]:
        """Compare what the storage holds with the records; what is `unlisted` is there."""
        backend = self._at.backend
        stored = set(backend.walk()) if only is None else set(only)
        self.volume_count = len(stored)
        wanted = records.references.keys() | stored
        if only is not None:
            wanted &= set(only)
        order = sorted(wanted - records.busy - {""})
        for start in range(0, len(order), TOGETHER):
            ids = order[start : start + TOGETHER]
            facts = backend.describe_many(ids)
            for backend_id in ids:
                reference, found = records.references.get(backend_id), facts.get(backend_id)
                if reference is None:
                    if found is not None and not records.is_named_unread(backend_id):
                        yield self._without_record(records, backend_id)
                elif found is None:
                    if reference.is_needed and backend_id not in unlisted:
                        yield _without_image(reference, backend_id)
                else:
                    yield from self._differences(records, reference, found)
            yield from self._not_carried(records, sorted(facts))

    def _not_carried(self, records: Records, backend_ids: Sequence[str]) -> Iterator[Fault]:
        """Compare what volumes carry with what they should."""
        at, found = self._at, records.references
        if not isinstance(at.backend, SupportsCarry):
            return
        known = [(one, found[one]) for one in backend_ids if one in found]
        subjects = [(one.kind, one.key) for _, one in known if one.kind is not None]
        loads, _ = loads_of(at.catalog.below, subjects, at.making.hides)
        carried = at.backend.carried(sorted(loads))
        for backend_id, reference in known:
            load = loads.get(backend_id)
            if load is None or load.is_carried(carried.get(backend_id, {})):
                continue
            digest = hashlib.sha256(repr(sorted(load.records.items())).encode()).hexdigest()
            yield Fault(
                kind=FaultKind.RECORD_NOT_CARRIED,
                concerns=reference.resource,
                subject=backend_id,
                part=f"{reference.kind} {digest[:16]}",
                key=reference.key,
                meaning="Its storage does not carry the records of it as they are, from which a "
                "lost catalog would be rebuilt.",
                remedy="They are written; no data is touched.",
                mendable=True,
            )

    def _without_record(self, records: Records, backend_id: str) -> Fault:
        """Return the fault of a volume that no record names."""
        is_lost = not records.references
        able = isinstance(self._at.backend, SupportsAdopt) and not is_lost and records.is_sure
        return Fault(
            kind=FaultKind.IMAGE_WITHOUT_RECORD,
            concerns=f"{self._at.backend.caps.kind} image {backend_id}",
            subject=backend_id,
            meaning="It is marked as volcore's and holds data, but no volume, image, warm clone or "
            "trash record names it, so nobody can use or delete it.",
            remedy="It is released, with all its data and snapshots, so that `volcore volume "
            f"adopt {backend_id}` can make it a volume; nothing is deleted."
            if able
            else f"{_NO_REPAIR} nothing has a record, so the catalog may be lost: put an export "
            "back with `volcore admin import`; without one, create a volume, then repair."
            if is_lost
            else f"{_NO_REPAIR} a record of a newer server may name it; check with that server."
            if not records.is_sure
            else f"{_NO_REPAIR} it may hold data that somebody wants; restore the record from a "
            "backup of the pool.",
            mendable=able,
        )

    def _differences(
        self, records: Records, reference: Reference, found: VolumeFacts
    ) -> Iterator[Fault]:
        """Compare one volume with its record."""
        size_bytes, real_bytes = reference.size_bytes, found.size_bytes
        if reference.is_needed and size_bytes is not None and size_bytes != real_bytes:
            grew = real_bytes > size_bytes
            yield Fault(
                kind=FaultKind.SIZE_MISMATCH,
                concerns=reference.resource,
                subject=found.volume_id,
                part=f"{size_bytes} {real_bytes}",
                key=reference.key,
                meaning=f"The record says {size_bytes} bytes, the storage has {real_bytes}: "
                "somebody resized it around volcore.",
                remedy="The record takes the size of the storage; no data is touched."
                if grew and reference.is_volume
                else f"{_NO_REPAIR} data beyond the end may be lost; copy what is left, or resize "
                f"{found.volume_id!r} in the storage to {size_bytes} bytes.",
                mendable=grew and reference.is_volume,
            )
        known = records.snapshots.get(found.volume_id, {})
        present = set(found.snapshot_ids)
        for snapshot_id, resource in known.items():
            if snapshot_id not in present:
                yield Fault(
                    kind=FaultKind.SNAPSHOT_WITHOUT_IMAGE,
                    concerns=resource,
                    subject=found.volume_id,
                    part=snapshot_id,
                    meaning="There is a record of it, but the storage has no such snapshot: "
                    "somebody deleted it around volcore.",
                    remedy=f"{_NO_REPAIR} the record is the only trace of it; delete it with "
                    "volcore once nobody needs to know.",
                )
        backend = self._at.backend
        shown = backend.is_shown if isinstance(backend, SupportsAudit) else bool
        for snapshot_id in sorted(filter(shown, present - known.keys())):
            if records.is_named_unread(snapshot_id):
                continue
            yield self._unknown_snapshot(reference, found.volume_id, snapshot_id)

    def _unknown_snapshot(self, reference: Reference, backend_id: str, snapshot_id: str) -> Fault:
        mendable = reference.is_volume and is_name(snapshot_id)
        return Fault(
            kind=FaultKind.SNAPSHOT_WITHOUT_RECORD,
            concerns=reference.resource,
            subject=backend_id,
            part=snapshot_id,
            key=reference.key,
            meaning=f"The storage has a snapshot {snapshot_id!r} of it that no record names: "
            "somebody made it around volcore.",
            remedy=f"It becomes the snapshot {snapshot_id!r} of the volume; nothing is deleted."
            if mendable
            else f"{_NO_REPAIR} nobody knows whether it is needed; whoever made it may delete it.",
            mendable=mendable,
        )


def _without_image(reference: Reference, backend_id: str) -> Fault:
    """Return the fault of a record whose storage is gone."""
    if reference.is_warm:
        return Fault(
            kind=FaultKind.WARM_CLONE_WITHOUT_IMAGE,
            concerns=reference.resource,
            subject=backend_id,
            key=reference.key,
            meaning="The storage of this clone, which no volume uses yet, is gone.",
            remedy="Its record is deleted; another clone is made when one is wanted.",
            mendable=True,
        )
    return Fault(
        kind=FaultKind.RECORD_WITHOUT_IMAGE,
        concerns=reference.resource,
        subject=backend_id,
        key=reference.key,
        meaning=f"Its storage {backend_id!r} is gone: somebody deleted it around volcore, or it is "
        "damaged.",
        remedy=f"{_NO_REPAIR} the record may be the only trace of lost data; restore the storage, "
        "else delete the record with volcore.",
    )


def _judged(records: Records, fault: Fault) -> Iterator[Fault]:
    """Yield a fault of the backend as the records let it appear."""
    if fault.subject in records.busy or (fault.subject and records.is_named_unread(fault.subject)):
        return
    reference = records.references.get(fault.subject)
    if reference is None:
        yield fault
    elif fault.kind is FaultKind.IMAGE_WITHOUT_ROW:
        yield replace(
            fault,
            meaning=f"It is the storage of {reference.resource}, but the list of volcore's images "
            "does not name it, so nobody can use it.",
            remedy="It is entered into the list again.",
            mendable=True,
        )
    elif fault.kind not in {FaultKind.ROW_WITHOUT_IMAGE, FaultKind.HALF_MADE}:
        yield replace(fault, concerns=f"{reference.resource}, {fault.concerns}")
