"""The audit of a pool: records, storage and its bookkeeping compared, contradictions explained.

A look reads records and storage one after another, while both are being changed. So what looks
wrong is a suspicion only, and looked at again, and again after pauses that are longer than what
goes on behind answers. A fault is what looks wrong in the same way every time and what no intent
and no running operation explains.

Mending looks once more, with the locks that calls hold. It commits only against the records that it
has read, and never deletes bytes that somebody may want (docs/operations.md, Audit).
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

import structlog

from volcore.backends.auditing import SupportsAudit
from volcore.engine import audit_mending
from volcore.engine.audit_look import Look
from volcore.engine.pool import Pool
from volcore.engine.pools import Pools
from volcore.errors import VolcoreError
from volcore.limits import AUDIT_FAULTS_MAX
from volcore.model.faults import Fault

PAUSES_S: Final = (0.3, 1.0, 3.0)
"""Before each further look at what is suspected; intents of what was made go after 1 s at most."""
FLUSH_TIMEOUT_S: Final = 1.0
_log = structlog.get_logger("volcore.engine")


@dataclass(frozen=True, slots=True)
class Looked:
    """How much was compared; the end of an audit."""

    record_count: int
    volume_count: int
    """Volumes of the backend: images, warm clones and those in the trash included."""
    is_cut: bool
    """More looked wrong than one audit takes up; mend, then repeat."""


class Audit:
    """Use case of the audit; changes nothing unless asked to."""

    def __init__(self, pools: Pools, pauses_s: Sequence[float] = PAUSES_S) -> None:
        """`pauses_s`: before each further look."""
        self._pools = pools
        self._pauses_s = pauses_s

    def run(
        self,
        pool: str,
        *,
        repair: bool = False,
        objects: bool = False,
        sleep: Callable[[float], None] = time.sleep,
    ) -> Iterator[Fault | Looked]:
        """Yield every fault of a pool, then how much was compared.

        With `repair` each that can be is mended before it is yielded. With `objects` the names of
        all objects are read, to find what images have left that are gone. Memory: ids and sizes of
        all volumes and snapshots, and at most AUDIT_FAULTS_MAX suspicions.

        Raises:
            NotFoundError: POOL_NOT_FOUND.
            UnavailableError: the storage cannot be reached.
        """
        at = self._pools.open(pool)
        _flush(at)
        look = Look(at)
        suspected: dict[tuple[str, ...], Fault] = {}
        is_cut = False
        for fault in look.faults(None, objects=objects):
            if len(suspected) == AUDIT_FAULTS_MAX:
                is_cut = True
                break
            suspected[fault.identity] = fault
        looked = Looked(look.record_count, look.volume_count, is_cut)
        for pause_s in self._pauses_s:
            if not suspected:
                break
            sleep(pause_s)
            _flush(at)
            suspects = list(suspected.values())
            again = {fault.identity for fault in Look(at).faults(suspects, objects=objects)}
            suspected = {key: fault for key, fault in suspected.items() if key in again}
        for fault in suspected.values():
            yield _mended(at, fault) if repair and fault.mendable else fault
        yield looked


def _flush(at: Pool) -> None:
    """Let the storage take the records that calls have changed, if that is done soon."""
    if at.carrier is not None:
        at.carrier.flush(FLUSH_TIMEOUT_S)


def _mended(at: Pool, fault: Fault) -> Fault:
    """Mend a fault; one that cannot be mended now says why."""
    try:
        mender = audit_mending.MENDERS.get(fault.kind)
        if mender is not None:
            done = mender(at, fault)
        else:
            assert isinstance(at.backend, SupportsAudit)
            done = audit_mending.mend_storage(at, at.backend, fault)
    except VolcoreError as err:
        return replace(fault, remedy=f"Not repaired now: {err.message}.")
    if not done:
        return replace(fault, remedy="It has gone meanwhile, nothing was changed.", mendable=False)
    _log.warning("repaired", pool=at.name, kind=fault.kind, concerns=fault.concerns)
    return replace(fault, mended=True)
