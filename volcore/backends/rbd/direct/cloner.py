"""Making direct clones, one or many of a snapshot at once, in two waves whatever their number."""

import errno
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from volcore.backends.contract import no_reserve
from volcore.backends.rbd.direct import wire
from volcore.backends.rbd.direct.facts import Facts, FactsCache
from volcore.backends.rbd.direct.finishing import Finisher
from volcore.backends.rbd.direct.plan import (
    IMAGE_WRITES,
    Plan,
    listing,
    new_image_id,
    trashing,
    unlisting,
)
from volcore.backends.rbd.direct.recovery import DirectRecovery
from volcore.backends.rbd.direct.snapshotter import Outcome
from volcore.backends.rbd.direct.waves import Waves, Write
from volcore.backends.rbd.directory import OBJECT_NAME, Directory, Link
from volcore.backends.rbd.errmap import error_of_code
from volcore.backends.refusals import depth_limit, id_taken, shrink_refused, snapshot_missing
from volcore.errors import OperationPendingError, Reason, UnavailableError, VolcoreError
from volcore.limits import RBD_DEPTH_MAX

BATCH_MAX: Final = 128
"""Clones in one wave: half a thousand writes under way."""
_EXISTS: Final = (-errno.EEXIST, -errno.ECANCELED)
_UNKNOWN: Final = (-errno.ETIMEDOUT, -errno.ESHUTDOWN, -errno.ENOTCONN)
"""The write may still be done, or cannot be undone from here; recovery will look."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A snapshot to clone."""

    volume_id: str
    snapshot_id: str


class Once:
    """A function that does its work at the first call that ends well."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._work = work
        self._done = False

    def __call__(self) -> None:
        """Do the work, unless it is done."""
        if not self._done:
            self._work()
            self._done = True


class StaleFactsError(Exception):
    """The parent is not any more what it was; nothing was made."""


class Cloner:
    """Makes direct clones in one pool; any thread.

    The caller has claimed the ids of the clones: nobody else makes or deletes them meanwhile.
    """

    def __init__(
        self,
        waves: Waves,
        directory: Directory,
        recovery: DirectRecovery,
        facts: FactsCache,
        finisher: Finisher,
        *,
        order: int,
        features: int,
    ) -> None:
        self._waves = waves
        self._directory = directory
        self._recovery = recovery
        self._facts = facts
        self._finisher = finisher
        self._order = order
        self._features = features
        self._pool_id = int(waves.ioctx.get_pool_id())

    def clone(
        self,
        source: Source,
        facts: Facts,
        targets: Mapping[str, int],
        reserve: Callable[[], None],
    ) -> dict[str, VolcoreError]:
        """Make a clone for each (volume id: size in bytes); return the errors of those that failed.

        What failed has left nothing, unless the cluster did not answer. Durability: at return all
        is on the OSDs but the word "complete" in the clones' rows, which follows; a crash
        before it lets recovery find the clones whole. `reserve` runs beside wave 1.

        Raises:
            StaleFactsError: the parent has changed; nothing was made.
        """
        failed: dict[str, VolcoreError] = {}
        plans = []
        for volume_id, size_bytes in targets.items():
            if size_bytes < facts.size_bytes:
                failed[volume_id] = shrink_refused(
                    volume_id, size_bytes=size_bytes, size_bytes_min=facts.size_bytes
                )
            elif facts.depth >= RBD_DEPTH_MAX:
                failed[volume_id] = depth_limit(source.volume_id, RBD_DEPTH_MAX)
            else:
                plans.append(self._plan(facts, volume_id, size_bytes))
        for start in range(0, len(plans), BATCH_MAX):
            batch = plans[start : start + BATCH_MAX]
            named = self._name_all(batch, failed, reserve)
            facts = self._clone_batch(source, facts, named, failed)
            facts = self._facts.latest(source.volume_id, source.snapshot_id, facts)
        reserve()
        return failed

    def clone_hidden(
        self,
        source: Source,
        facts: Facts,
        target: tuple[str, int],
        make_snapshot: Callable[[], Outcome],
    ) -> bool:
        """Make a clone (volume id, size in bytes) of a snapshot that is made for it only.

        The snapshot of `facts` does not exist yet: `make_snapshot` makes it when the names are
        ours. Returns False when that was refused; then, and when this raises, nothing is left
        unless the cluster did not answer. Durability: as `clone`.

        Raises:
            ConflictError: NAME_TAKEN.
            OperationPendingError: the source was changed meanwhile.
        """
        volume_id, size_bytes = target
        plan = self._plan(facts, volume_id, size_bytes, hidden=True)
        failed: dict[str, VolcoreError] = {}
        if not self._name_all([plan], failed, no_reserve):
            raise failed[volume_id]
        try:
            outcome = make_snapshot()
        except UnavailableError:  # recovery will look
            raise
        except VolcoreError:
            self._recovery.undo(volume_id, plan.link)
            raise
        if outcome is not Outcome.MADE:
            self._recovery.undo(volume_id, plan.link)
            return False
        codes = self._waves.run(plan.image(self._waves.ioctx, parent_features=facts.features))
        if any(codes):
            raise self._failure(source, plan, codes)
        (code,) = self._waves.run([trashing(plan.link.parent_id, plan.link.snap)])
        if code:
            raise self._failure(source, plan, [code, 0, 0, 0])
        self._finisher.add({volume_id: plan.link})
        return True

    def _plan(self, facts: Facts, volume_id: str, size_bytes: int, *, hidden: bool = False) -> Plan:
        """Return what to write for one clone."""
        return Plan(
            volume_id=volume_id,
            link=Link(
                image_id=new_image_id(volume_id),
                parent_id=facts.parent_id,
                snap=facts.snap,
                hidden=hidden,
            ),
            pool_id=self._pool_id,
            size_bytes=size_bytes,
            overlap_bytes=facts.size_bytes,
            order=self._order,
            features=self._features,
        )

    def _clone_batch(
        self, source: Source, facts: Facts, plans: list[Plan], failed: dict[str, VolcoreError]
    ) -> Facts:
        """Make clones; add to `failed`; return the facts as they are afterwards."""
        if not plans:
            return facts
        writes: list[Write] = []
        for plan in plans:
            writes += plan.image(self._waves.ioctx, parent_features=facts.features)
            facts = replace(facts, features=facts.features | wire.OPERATIONS)
        codes = self._waves.run(writes)
        done, stale = [], False
        for number, plan in enumerate(plans):
            four = codes[IMAGE_WRITES * number : IMAGE_WRITES * (number + 1)]
            if not any(four):
                done.append(plan)
                continue
            stale = stale or four[2] in (-errno.ECANCELED, -errno.ENOENT)
            failed[plan.volume_id] = self._failure(source, plan, four)
        if done:
            self._finisher.add({plan.volume_id: plan.link for plan in done})
        if stale:
            self._facts.forget(source.volume_id)
            if not done and codes[2] == -errno.ECANCELED:
                for plan in plans:
                    failed.pop(plan.volume_id, None)
                raise StaleFactsError
        elif done:
            self._facts.cloned(source.volume_id, source.snapshot_id, facts, len(done))
        return facts

    def _name_all(
        self, plans: list[Plan], failed: dict[str, VolcoreError], reserve: Callable[[], None]
    ) -> list[Plan]:
        """Write the names of all; return the plans whose names are ours now."""
        if self._try_names(plans, failed if len(plans) == 1 else None, reserve):
            return plans
        if len(plans) == 1:
            return []
        return [plan for plan in plans if self._try_names([plan], failed, reserve)]

    def _try_names(
        self,
        plans: Sequence[Plan],
        failed: dict[str, VolcoreError] | None,
        reserve: Callable[[], None],
    ) -> bool:
        """Write the names of some, all or none; return whether they are written.

        With `failed` None the caller tries again one by one.
        """
        links = {plan.volume_id: plan.link for plan in plans}

        def fill(op: Any) -> None:
            self._directory.reserving(op, links)

        try:
            row = self._finisher.send(fill)
            codes = self._waves.run([listing(plans)], beside=reserve, sent=[row])
        except VolcoreError:
            self._take_back_together(plans)
            raise
        bad = [code for code in codes if code < 0]
        if not bad:
            return True
        if codes[0] < 0:
            self._finisher.refused(row)
        if not any(code in _UNKNOWN for code in bad):
            self._take_back(plans, row=codes[0], entry=codes[1])
        if failed is not None:
            failed[plans[0].volume_id] = (
                id_taken(plans[0].volume_id)
                if any(code in _EXISTS for code in bad)
                else _error(bad[0], plans[0])
            )
        return False

    def _take_back_together(self, plans: Sequence[Plan]) -> None:
        """Delete the names of all plans in one wave if all were written, else one by one."""
        links = {plan.volume_id: plan.link for plan in plans}

        def unfill(op: Any) -> None:
            self._directory.unreserving(op, links)

        if any(self._waves.run([Write(OBJECT_NAME, unfill), unlisting(plans)])):
            self._take_back(plans)

    def _take_back(self, plans: Sequence[Plan], *, row: int = 1, entry: int = 1) -> None:
        """Delete those names of plans that were written; 1 for a code: not known."""
        for plan in plans:
            if entry >= 0:
                self._recovery.delete_name(plan.volume_id, plan.link.image_id)
            if row >= 0:
                self._recovery.forget(plan.volume_id, plan.link)

    def _failure(self, source: Source, plan: Plan, codes: Sequence[int]) -> VolcoreError:
        """Undo one clone whose wave 2 failed; return why it did."""
        bad = [code for code in codes if code < 0]
        if any(code in _UNKNOWN for code in bad):
            return _error(next(code for code in bad if code in _UNKNOWN), plan)
        try:
            self._recovery.undo(plan.volume_id, plan.link, image=-errno.EEXIST not in codes[:2])
        except UnavailableError as err:
            return err
        if codes[3] == -errno.EEXIST:
            return id_taken(plan.volume_id)
        if codes[2] == -errno.ENOENT:
            return snapshot_missing(source.volume_id, source.snapshot_id)
        if codes[2] == -errno.ECANCELED:
            return OperationPendingError(
                f"the source of volume {plan.volume_id} was changed meanwhile; repeat the call",
                reason=Reason.OPERATION_PENDING,
                retryable=True,
            )
        return _error(bad[0], plan)


def _error(code: int, plan: Plan) -> VolcoreError:
    """Return the error for a negative errno."""
    return error_of_code(-code, f"clone volume {plan.volume_id}", f"error {-code}")
