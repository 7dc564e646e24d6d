"""Making images without librbd, one or many at once, in two waves whatever their number.

Clones of one snapshot, or blank images.
"""

import errno
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Final

from volcore.backends.rbd.direct import wire
from volcore.backends.rbd.direct.facts import Facts, FactsCache
from volcore.backends.rbd.direct.finishing import Finisher
from volcore.backends.rbd.direct.plan import (
    LINK_WRITE,
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
"""Images in one wave: half a thousand writes under way."""
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
    """Makes images in one pool; any thread.

    The caller has claimed their ids: nobody else makes or deletes them meanwhile.
    """

    def __init__(
        self,
        waves: Waves,
        directory: Directory,
        recovery: DirectRecovery,
        facts: FactsCache,
        finisher: Finisher,
        records_of: Callable[[str], Mapping[str, bytes]],
        *,
        order: int,
        features: int,
    ) -> None:
        self._waves = waves
        self._directory = directory
        self._recovery = recovery
        self._facts = facts
        self._finisher = finisher
        self._records_of = records_of
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
        plans = self._plans(source, facts, targets, failed)
        for start in range(0, len(plans), BATCH_MAX):
            batch = plans[start : start + BATCH_MAX]
            named = self._name_all(batch, failed, reserve)
            facts = self._clone_batch(source, facts, named, failed)
            facts = self._facts.latest(source.volume_id, source.snapshot_id, facts)
        reserve()
        return failed

    def make_blank(
        self, targets: Mapping[str, int], reserve: Callable[[], None]
    ) -> dict[str, VolcoreError]:
        """Make a blank image for each (volume id: size in bytes), else as `clone` does."""
        failed: dict[str, VolcoreError] = {}
        plans = [
            self._planned(volume_id, Link(image_id=new_image_id(volume_id)), size_bytes)
            for volume_id, size_bytes in targets.items()
        ]
        for start in range(0, len(plans), BATCH_MAX):
            named = self._name_all(plans[start : start + BATCH_MAX], failed, reserve)
            done = {}
            for plan, codes in zip(named, self._make_all(named), strict=True):
                if any(codes):
                    failed[plan.volume_id] = self._failure(plan, codes)
                else:
                    done[plan.volume_id] = plan.link
            if done:
                self._finisher.add(done)
        reserve()
        return failed

    def clone_hidden(
        self,
        source: Source,
        facts: Facts,
        targets: Mapping[str, int],
        reserve: Callable[[], None],
        make_snapshot: Callable[[], Outcome],
    ) -> dict[str, VolcoreError] | None:
        """Make clones, as `clone` does, of a snapshot that is made for them only.

        The snapshot of `facts` does not exist yet: `make_snapshot` makes it when the names are
        ours. At most BATCH_MAX. Returns None when that was refused; then, and when this raises,
        nothing is left unless the cluster did not answer.

        Raises:
            NotFoundError: the source has gone.
        """
        failed: dict[str, VolcoreError] = {}
        plans = self._plans(source, facts, targets, failed, hidden=True)
        assert len(plans) <= BATCH_MAX
        named = self._name_all(plans, failed, reserve)
        reserve()
        if not named:
            return failed
        try:
            outcome = make_snapshot()
        except UnavailableError:  # recovery will look
            raise
        except VolcoreError:
            self._undo_hidden(named)
            raise
        if outcome is not Outcome.MADE:
            self._undo_hidden(named)
            return None
        self._make_hidden(source, facts, named, failed)
        return failed

    def _make_hidden(
        self, source: Source, facts: Facts, plans: list[Plan], failed: dict[str, VolcoreError]
    ) -> None:
        """Make clones of their snapshot, which is out of sight as soon as one is made."""
        codes = dict(zip(plans, self._make_all(plans, facts.features), strict=True))
        done = [plan for plan, four in codes.items() if not any(four)]
        if done:
            (code,) = self._waves.run([trashing(facts.parent_id, facts.snap)])
            if code:
                codes |= {plan: [code, 0, 0, 0] for plan in done}
                done = []
        for plan, four in codes.items():
            if any(four):
                failed[plan.volume_id] = self._failure(plan, four, source)
        if done:
            self._finisher.add({plan.volume_id: plan.link for plan in done})
        elif not any(code in _UNKNOWN for four in codes.values() for code in four):
            self._recovery.drop_hidden(plans[0].link)

    def _undo_hidden(self, plans: Sequence[Plan]) -> None:
        """Take the names of clones back, and their snapshot, if it was made."""
        for plan in plans:
            self._recovery.undo(plan.volume_id, plan.link, snapshot=False)
        self._recovery.drop_hidden(plans[0].link)

    def _plans(
        self,
        source: Source,
        facts: Facts,
        targets: Mapping[str, int],
        failed: dict[str, VolcoreError],
        *,
        hidden: bool = False,
    ) -> list[Plan]:
        """Return a plan for each (volume id: size in bytes) that may be made; add to `failed`."""
        plans = []
        for volume_id, size_bytes in targets.items():
            if size_bytes < facts.size_bytes:
                failed[volume_id] = shrink_refused(
                    volume_id, size_bytes=size_bytes, size_bytes_min=facts.size_bytes
                )
            elif facts.depth >= RBD_DEPTH_MAX:
                failed[volume_id] = depth_limit(source.volume_id, RBD_DEPTH_MAX)
            else:
                plans.append(self._plan(facts, volume_id, size_bytes, hidden=hidden))
        return plans

    def _plan(self, facts: Facts, volume_id: str, size_bytes: int, *, hidden: bool = False) -> Plan:
        """Return what to write for one clone."""
        link = Link(
            image_id=new_image_id(volume_id),
            parent_id=facts.parent_id,
            snap=facts.snap,
            hidden=hidden,
        )
        return self._planned(volume_id, link, size_bytes, overlap_bytes=facts.size_bytes)

    def _planned(
        self, volume_id: str, link: Link, size_bytes: int, *, overlap_bytes: int = 0
    ) -> Plan:
        """Return what to write for one image."""
        return Plan(
            volume_id=volume_id,
            link=link,
            pool_id=self._pool_id,
            size_bytes=size_bytes,
            overlap_bytes=overlap_bytes,
            order=self._order,
            features=self._features,
            records=self._records_of(volume_id),
        )

    def _clone_batch(
        self, source: Source, facts: Facts, plans: list[Plan], failed: dict[str, VolcoreError]
    ) -> Facts:
        """Make clones; add to `failed`; return the facts as they are afterwards."""
        if not plans:
            return facts
        codes = self._make_all(plans, facts.features)
        facts = replace(facts, features=facts.features | wire.OPERATIONS)
        done, stale = [], False
        for plan, four in zip(plans, codes, strict=True):
            if not any(four):
                done.append(plan)
                continue
            stale = stale or four[LINK_WRITE] in (-errno.ECANCELED, -errno.ENOENT)
            failed[plan.volume_id] = self._failure(plan, four, source)
        if done:
            self._finisher.add({plan.volume_id: plan.link for plan in done})
        if stale:
            self._facts.forget(source.volume_id)
            if not done and codes[0][LINK_WRITE] == -errno.ECANCELED:
                for plan in plans:
                    failed.pop(plan.volume_id, None)
                raise StaleFactsError
        elif done:
            self._facts.cloned(source.volume_id, source.snapshot_id, facts, len(done))
        return facts

    def _make_all(self, plans: Sequence[Plan], features: int = 0) -> list[Sequence[int]]:
        """Do wave 2 for all; return the codes of each plan's writes. `features`: the parent's."""
        writes: list[Write] = []
        ends = [0]
        for plan in plans:
            writes += plan.image(self._waves.ioctx, parent_features=features)
            ends.append(len(writes))
            features |= wire.OPERATIONS
        codes = self._waves.run(writes)
        return [codes[start:end] for start, end in pairwise(ends)]

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

    def _failure(
        self, plan: Plan, codes: Sequence[int], source: Source | None = None
    ) -> VolcoreError:
        """Undo one image, a clone if it has a source, whose wave 2 failed; return why it did."""
        bad = [code for code in codes if code < 0]
        if any(code in _UNKNOWN for code in bad):
            return _error(next(code for code in bad if code in _UNKNOWN), plan)
        try:
            self._recovery.undo(
                plan.volume_id,
                plan.link,
                image=-errno.EEXIST not in codes[:2],
                snapshot=not plan.link.hidden,
            )
        except UnavailableError as err:
            return err
        if codes[-1] == -errno.EEXIST:
            return id_taken(plan.volume_id)
        if source is not None and codes[LINK_WRITE] == -errno.ENOENT:
            return snapshot_missing(source.volume_id, source.snapshot_id)
        if source is not None and codes[LINK_WRITE] == -errno.ECANCELED:
            return OperationPendingError(
                f"the source of volume {plan.volume_id} was changed meanwhile; repeat the call",
                reason=Reason.OPERATION_PENDING,
                retryable=True,
            )
        return _error(bad[0], plan)


def _error(code: int, plan: Plan) -> VolcoreError:
    """Return the error for a negative errno."""
    return error_of_code(-code, f"make volume {plan.volume_id}", f"error {-code}")
