"""Multi-step changes: either one transaction, or intent, act, result.

A backend that shares its store with the catalog (`joins_catalog`) needs no intents: the change and
its records commit together. For the others each change is written down before it starts, and
settled by the same code whether the call fails, the client repeats it, or a server finds it at its
start: creations are rolled back, everything else is rolled forward. `making` has another order for
volumes.

Invariants:
1. INV-ENG-1 (must): no backend object is made before its intent is durable, but names that the
   backend deletes by itself (`SupportsMakeMany`).
2. INV-ENG-2 (must): only READY records are visible.
3. INV-ENG-3 (must): settling twice does what settling once does.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace

import structlog

from volcore.backends.adopting import SupportsAdopt
from volcore.backends.contract import SupportsRevert
from volcore.catalog.contract import ANYTHING, Change
from volcore.engine.making import erased
from volcore.engine.pool import Pool, drop, put
from volcore.errors import ConflictError, NotFoundError, PreconditionError, Reason, VolcoreError
from volcore.model.records import (
    GroupSnapshot,
    Image,
    Intent,
    IntentAction,
    Kind,
    Record,
    Snapshot,
    State,
    Volume,
)

_log = structlog.get_logger("volcore.engine")
_SUBJECTS: dict[IntentAction, type[Volume] | type[Snapshot] | type[GroupSnapshot] | type[Image]] = {
    IntentAction.CREATE_VOLUME: Volume,
    IntentAction.MAKE_VOLUME: Volume,
    IntentAction.DELETE_VOLUME: Volume,
    IntentAction.RESIZE_VOLUME: Volume,
    IntentAction.REVERT_VOLUME: Volume,
    IntentAction.ADOPT_VOLUME: Volume,
    IntentAction.RELEASE_VOLUME: Volume,
    IntentAction.CREATE_SNAPSHOT: Snapshot,
    IntentAction.DELETE_SNAPSHOT: Snapshot,
    IntentAction.CREATE_GROUP_SNAPSHOT: GroupSnapshot,
    IntentAction.DELETE_GROUP_SNAPSHOT: GroupSnapshot,
    IntentAction.CREATE_IMAGE: Image,
    IntentAction.DELETE_IMAGE: Image,
}
_CREATIONS = {
    IntentAction.CREATE_VOLUME,
    IntentAction.MAKE_VOLUME,
    IntentAction.CREATE_SNAPSHOT,
    IntentAction.CREATE_GROUP_SNAPSHOT,
    IntentAction.CREATE_IMAGE,
    IntentAction.ADOPT_VOLUME,
}
_ONE_WAY = _CREATIONS | {
    IntentAction.DELETE_GROUP_SNAPSHOT,
    IntentAction.DELETE_VOLUME,
    IntentAction.DELETE_IMAGE,
}
"""Not restored when the backend refuses: members of the group may be gone already, and the records
of a deleted volume or image are."""

_REFUSALS = {Reason.VOLUME_IN_USE, Reason.NAME_TAKEN}
"""What a backend says before it has changed anything."""


@contextmanager
def change(
    pool: Pool,
    intent: Intent,
    *,
    begin: Sequence[Change],
    end: Sequence[Change],
    joined: bool | None = None,
) -> Iterator[None]:
    """Run the block as the act of `intent`: `begin` and the intent, the block, `end`.

    `joined` False demands an intent also where one transaction would do: for acts too long to hold
    a transaction open. When the block fails, creations leave nothing; other changes leave the
    object as it was if the backend refused, and otherwise an intent that is settled later; so does
    the deletion of a group, which takes several steps.
    """
    if pool.backend.caps.joins_catalog and joined is not False:
        begin, end = _collapsed(begin, end)
        with pool.catalog.transaction():
            pool.catalog.commit(begin)
            yield
            pool.catalog.commit(end)
        return
    pool.catalog.commit([*begin, put(intent)])
    try:
        yield
        pool.catalog.commit([*end, drop(intent)])
    except BaseException as err:
        _settle_after(pool, intent, err)
        raise


@contextmanager
def creation(
    pool: Pool, record: Snapshot, intent: Callable[[], Intent], *, check: Sequence[Change]
) -> Iterator[None]:
    """Run the block as the act that makes what `record` says; like `change`, and cheaper."""
    if pool.backend.caps.joins_catalog:
        with pool.catalog.transaction():
            pool.catalog.commit([*check, put(record)])
            yield
        return
    creating = record.but(state=State.CREATING, revision=0)
    begin, end = [*check, put(creating)], [put(record, creating)]
    with change(pool, intent(), begin=begin, end=end):
        yield


def _collapsed(begin: Sequence[Change], end: Sequence[Change]) -> tuple[list[Change], list[Change]]:
    """Return the same without what nobody can see: records that the same transaction replaces."""
    replaced = {(each.kind, each.key) for each in end}
    passing = {(each.kind, each.key) for each in begin if not each.check_only} & replaced
    return (
        [
            replace(each, check_only=True) if (each.kind, each.key) in passing else each
            for each in begin
        ],
        [
            replace(each, expect=ANYTHING) if (each.kind, each.key) in passing else each
            for each in end
        ],
    )


def _settle_after(pool: Pool, intent: Intent, err: BaseException) -> None:
    """Settle a failed change as far as that is possible now; the rest is left to recovery."""
    try:
        if intent.action in _CREATIONS:
            settle(pool, intent)
        elif isinstance(err, PreconditionError | ConflictError) and intent.action not in _ONE_WAY:
            restore(pool, intent)
    except VolcoreError as second:
        _log.warning(
            "change not settled",
            pool=pool.name,
            action=intent.action,
            subject=intent.subject_key,
            reason=second.reason,
        )


def settle_leftover(pool: Pool, subject_id: str) -> bool:
    """Settle an earlier change of the same subject that was cut off; return whether there was one.

    Call with the subject's lock held: then whatever is found is nobody's work any more.
    """
    intent = pool.making.intent_of(subject_id) or pool.find(Intent, subject_id)
    if intent is None:
        return False
    settle(pool, intent)
    return True


def settle(pool: Pool, intent: Intent) -> None:
    """Roll `intent` back (creations) or forward (all others). Idempotent.

    MAKE_VOLUME goes forward, too, when the backend has the volume and its creation has not failed.

    Raises:
        PreconditionError: RECORD_NEWER, nothing was done; or the backend refuses.
    """
    intent.check_known()
    record = pool.written(_SUBJECTS[intent.action], intent.subject_key)
    if record is not None and record.id != intent.subject_id:
        record = None
    try:
        end = _ACTIONS[intent.action](pool, intent, record)
    except (PreconditionError, ConflictError) as err:
        if intent.action in _ONE_WAY or err.reason not in _REFUSALS:
            raise
        restore(pool, intent)
        return
    if intent.action is IntentAction.MAKE_VOLUME:
        pool.catalog.commit([*end, erased(intent)])
        pool.making.settled(intent, taken_back=bool(end))
    else:
        pool.catalog.commit([*end, drop(intent)])
    _log.info("change settled", pool=pool.name, action=intent.action, subject=intent.subject_key)


def restore(pool: Pool, intent: Intent) -> None:
    """Undo the begin of a change that the backend refused: the subject is READY again."""
    record = pool.find(_SUBJECTS[intent.action], intent.subject_key)
    changes = [drop(intent)]
    if record is not None and record.id == intent.subject_id and record.state is not State.READY:
        changes.append(put(record.but(state=State.READY), record))
    pool.catalog.commit(changes)


def snapshots_of(pool: Pool, volume: str, volume_id: str) -> list[Snapshot]:
    """Return all snapshot records of a volume, whatever their state."""
    return pool.list(Snapshot, prefix=f"{volume}/", wanted=lambda s: s.volume_id == volume_id)


def members_of(pool: Pool, group: GroupSnapshot) -> list[Snapshot]:
    """Return the snapshots of a group in the order of its volumes, whatever their state."""
    found = (pool.find(Snapshot, key) for key in group.member_keys)
    return [member for member in found if member is not None and member.group_id == group.id]


# Each says first what it will commit: what a newer server has made is refused before it is touched.


def _drop_all(records: Sequence[Record | None]) -> list[Change]:
    return [drop(record) for record in records if record is not None]


def _delete_volume(pool: Pool, intent: Intent, record: Record | None) -> list[Change]:
    end = _drop_all([record, *snapshots_of(pool, intent.subject_key, intent.subject_id)])
    with suppress(NotFoundError):
        pool.backend.delete(intent.backend_volume_id)
    return end


def _make_volume(pool: Pool, intent: Intent, record: Record | None) -> list[Change]:
    if record is None:  # deleted meanwhile, or in the trash
        return []
    if not pool.making.has_failed(intent.subject_id):
        with suppress(NotFoundError):
            pool.backend.describe(intent.backend_volume_id)
            return []
    return _delete_volume(pool, intent, record)


def _delete_image(pool: Pool, intent: Intent, record: Record | None) -> list[Change]:
    end = _drop_all([record])
    with suppress(NotFoundError):
        pool.backend.delete(intent.backend_volume_id)
    return end


def _delete_snapshot(pool: Pool, intent: Intent, record: Record | None) -> list[Change]:
    end = _drop_all([record])
    with suppress(NotFoundError):
        pool.backend.delete_snapshot(intent.backend_volume_id, intent.backend_snapshot_id)
    return end


def _delete_group_snapshot(pool: Pool, intent: Intent, record: Record | None) -> list[Change]:
    if not isinstance(record, GroupSnapshot):
        return []
    members = members_of(pool, record)
    end = _drop_all([*members, record])
    for member in members:
        with suppress(NotFoundError):
            pool.backend.delete_snapshot(member.backend_volume_id, member.backend_id)
    return end


def _resize_volume(pool: Pool, intent: Intent, record: Record | None) -> list[Change]:
    if not isinstance(record, Volume):
        return []
    end = [put(record.but(size_bytes=intent.size_bytes), record)]
    pool.backend.resize(intent.backend_volume_id, intent.size_bytes)
    return end


def _revert_volume(pool: Pool, intent: Intent, record: Record | None) -> list[Change]:
    if not isinstance(record, Volume):
        return []
    assert isinstance(pool.backend, SupportsRevert)
    end = [put(record.but(size_bytes=intent.size_bytes), record)]
    pool.backend.revert(intent.backend_volume_id, intent.backend_snapshot_id)
    return end


def _unadopt_volume(pool: Pool, intent: Intent, record: Record | None) -> list[Change]:
    assert isinstance(pool.backend, SupportsAdopt)
    end = _drop_all([record, *snapshots_of(pool, intent.subject_key, intent.subject_id)])
    with suppress(NotFoundError):
        pool.backend.release(intent.backend_volume_id, intent.backend_volume_id, {})
    return end


def _release_volume(pool: Pool, intent: Intent, record: Record | None) -> list[Change]:
    assert isinstance(pool.backend, SupportsAdopt)
    snapshots = snapshots_of(pool, intent.subject_key, intent.subject_id)
    end = _drop_all([record, *snapshots])
    renames = {one.backend_id: one.name for one in snapshots}
    with suppress(NotFoundError):
        pool.backend.release(intent.backend_volume_id, intent.target_name, renames)
    return end


_ACTIONS = {
    IntentAction.CREATE_VOLUME: _delete_volume,
    IntentAction.MAKE_VOLUME: _make_volume,
    IntentAction.DELETE_VOLUME: _delete_volume,
    IntentAction.CREATE_IMAGE: _delete_image,
    IntentAction.DELETE_IMAGE: _delete_image,
    IntentAction.CREATE_SNAPSHOT: _delete_snapshot,
    IntentAction.DELETE_SNAPSHOT: _delete_snapshot,
    IntentAction.CREATE_GROUP_SNAPSHOT: _delete_group_snapshot,
    IntentAction.DELETE_GROUP_SNAPSHOT: _delete_group_snapshot,
    IntentAction.RESIZE_VOLUME: _resize_volume,
    IntentAction.REVERT_VOLUME: _revert_volume,
    IntentAction.ADOPT_VOLUME: _unadopt_volume,
    IntentAction.RELEASE_VOLUME: _release_volume,
}
assert _ACTIONS.keys() == _SUBJECTS.keys()
assert all(kind.KIND in Kind for kind in _SUBJECTS.values())
