"""Deletes: answered when they are durable, done behind the answer.

Where a backend shares the catalog's store, a delete is one commit and done with it. On others that
commit drops the records, so that the name is free at once, and writes an intent, which alone tells
from now on what is to be freed, and an operation to look at. A few threads free it in any order;
whatever is in the way is tried again, here and after the next start.

Invariants:
1. INV-DEL-1 (must): nothing is freed while a living client has it open: the backend refuses, and
   the delete waits for the client.
2. INV-DEL-2 (must): a delete that was answered is carried out: its intent is dropped in the commit
   that ends its operation, after the backend has said that nothing is left.
"""

import heapq
import itertools
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

import structlog

from volcore.catalog.contract import ANYTHING, Change
from volcore.engine.operations import Operations, Work, draft, ended
from volcore.engine.pool import Pool, drop, put, storage_lock
from volcore.errors import ExhaustedError, NotFoundError, Reason, VolcoreError
from volcore.limits import (
    DELETE_RETRY_S_MAX,
    DELETE_RETRY_S_MIN,
    DELETE_SNAPSHOT_DELAY_S,
    DELETES_AT_ONCE,
    DELETES_KEPT_MAX,
    DELETES_WAITING_MAX,
)
from volcore.model.records import Intent, IntentAction, Operation, Phase, Record

DELETE: Final = "delete"
_CHARACTERS_MAX: Final = 250
"""Of an obstacle: at most 1000 bytes."""
_log = structlog.get_logger("volcore.engine")


@dataclass(slots=True, order=True)
class _Waiting:
    """Work that waits for its turn, or for its next attempt."""

    due_s: float
    number: int
    work: Work = field(compare=False)
    pause_s: float = field(compare=False, default=DELETE_RETRY_S_MIN)


class Deletions:
    """What is deleted and not yet freed, of all pools of one server; any thread."""

    def __init__(self, operations: Operations) -> None:
        self._operations = operations
        self._changed = threading.Condition()
        self._queue: list[_Waiting] = []
        self._numbers = itertools.count()
        self._busy = 0
        self._threads = 0
        self._closing = False
        self._kept: dict[str, deque[str]] = {}
        operations.firm_with(DELETE, self._take)

    def delete(
        self, at: Pool, intent: Intent, target: str, records: Sequence[Record]
    ) -> Operation | None:
        """Delete what `intent` names; call with its lock held.

        Durability: at return it is gone from the catalog, and will be freed whatever happens.
        Returns the operation that frees it; None when that is done.

        Raises:
            PreconditionError: VOLUME_IN_USE, this server has it open; RECORD_NEWER, a record, or
                what a newer server has begun with the subject.
            OperationPendingError: one of the records has changed, or the subject has an intent.
            ExhaustedError: TOO_MANY_REQUESTS, too much waits already.
        """
        gone = list(map(drop, records))
        if at.backend.caps.joins_catalog:
            at.find(Intent, intent.id)  # one of a newer server is in the way
            with at.catalog.transaction():
                at.catalog.commit(gone)
                _free(at, intent)
            return None
        at.backend.refuse_if_open(intent.backend_volume_id, intent.backend_snapshot_id or None)
        self._check_room()
        operation = draft(DELETE, target, intent.subject_id)
        try:
            at.catalog.commit([*gone, put(intent), put(operation)])
        except VolcoreError as err:
            if err.reason is not Reason.CATALOG_CONFLICT:  # perhaps it is there all the same
                self._take(self._operations.track(at, operation), delay_s=DELETE_RETRY_S_MIN)
            else:
                at.find(Intent, intent.id)  # one of a newer server never goes away here
            raise
        work = self._operations.track(at, operation)
        is_snapshot = intent.action is IntentAction.DELETE_SNAPSHOT
        self._take(work, delay_s=DELETE_SNAPSHOT_DELAY_S if is_snapshot else 0.0)
        return work.operation

    def wait(self, timeout_s: float) -> bool:
        """Wait until everything is freed; return whether it is."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._queue and not self._busy, timeout_s)

    def close(self, timeout_s: float) -> bool:
        """Begin no more, and wait so long for what is being freed; say whether that has ended.

        The next start does the rest.
        """
        with self._changed:
            self._closing = True
            left, self._queue = self._queue, []
            self._changed.notify_all()
        for waiting in left:
            self._operations.leave(waiting.work)
        with self._changed:
            return self._changed.wait_for(lambda: not self._busy, timeout_s)

    def _check_room(self) -> None:
        if len(self._queue) >= DELETES_WAITING_MAX:
            raise ExhaustedError(
                f"{DELETES_WAITING_MAX} deletes wait to be freed, the most allowed; "
                "repeat the call in a minute",
                reason=Reason.TOO_MANY_REQUESTS,
                retryable=True,
            )

    def _take(self, work: Work, delay_s: float = 0.0) -> None:
        """Put work into the queue."""
        self._enqueue(_Waiting(time.monotonic() + delay_s, next(self._numbers), work))

    def _enqueue(self, waiting: _Waiting) -> None:
        with self._changed:
            if not self._closing:
                heapq.heappush(self._queue, waiting)
                if self._threads < DELETES_AT_ONCE:
                    self._threads += 1
                    name = f"delete-{self._threads}"
                    threading.Thread(target=self._run, name=name, daemon=True).start()
                self._changed.notify_all()
                return
        self._operations.leave(waiting.work)

    def _run(self) -> None:
        """Do what is due, one after another, until nothing waits; a thread of its own."""
        while (waiting := self._next()) is not None:
            try:
                self._do(waiting)
            finally:
                with self._changed:
                    self._busy -= 1
                    self._changed.notify_all()

    def _do(self, waiting: _Waiting) -> None:
        """Make one attempt; whatever is in its way, another one follows."""
        try:
            self._attempt(waiting.work)
        except VolcoreError as err:
            self._postpone(waiting, _sentence(err))
        except Exception:
            _log.exception("delete failed", operation=waiting.work.operation.id)
            self._postpone(waiting, "an internal error; look at the server's log")
        else:
            self._operations.leave(waiting.work)

    def _next(self) -> _Waiting | None:
        """Return work when it is due, then busy; None when this thread may end."""
        with self._changed:
            while self._queue:  # empty, too, when the server closes
                left_s = self._queue[0].due_s - time.monotonic()
                if left_s <= 0:
                    self._busy += 1
                    return heapq.heappop(self._queue)
                self._changed.wait(left_s)
            self._threads -= 1
        return None

    def _attempt(self, work: Work) -> None:
        """Free one thing and say so in the catalog. Idempotent.

        The intent may be missing when a commit of unknown outcome did not take effect, or when a
        repeated call has made the same delete.
        """
        at = work.pool
        work.operation = work.operation.but(phase=Phase.RUNNING, revision=work.operation.revision)
        intent = at.find(Intent, work.subject_id)
        if intent is not None:
            lock = storage_lock(intent.backend_volume_id)
            with at.locks.hold([lock]), suppress(NotFoundError):
                _free(at, intent)
        stored = at.find(Operation, work.operation.id)
        end = [] if intent is None else [drop(intent)]
        if stored is None or stored.finished:
            at.catalog.commit(end)
            return
        kept = self._kept_ids(at)
        with self._changed:
            old = [kept.popleft() for _ in range(len(kept) + 1 - DELETES_KEPT_MAX)]
        done = ended(stored.but(obstacle=""), None)
        at.catalog.commit([*end, put(done, stored), *map(_forget, old)])
        work.operation = done
        with self._changed:
            kept.append(done.id)

    def _kept_ids(self, at: Pool) -> deque[str]:
        """Return the ids of the ended deletes that can be looked at, the oldest first."""
        with self._changed:
            if at.name in self._kept:
                return self._kept[at.name]
        found = at.list(
            Operation,
            wanted=lambda o: o.action == DELETE and o.finished and not o.added,
            leave_newer=True,
        )
        ids = deque(o.id for o in sorted(found, key=lambda o: o.end_time_ns))
        with self._changed:
            return self._kept.setdefault(at.name, ids)

    def _postpone(self, waiting: _Waiting, obstacle: str) -> None:
        """Try again later, and let everybody see why."""
        work = waiting.work
        queued = work.operation.but(phase=Phase.QUEUED, revision=work.operation.revision)
        if work.operation.obstacle != obstacle:
            _log.warning("delete waits", pool=work.pool.name, target=work.target, why=obstacle)
            queued = work.operation.but(phase=Phase.QUEUED, obstacle=obstacle)
            with suppress(VolcoreError):
                stored = work.pool.find(Operation, queued.id)
                if stored is not None:
                    work.pool.catalog.commit([put(queued, stored)])
        work.operation = queued
        pause_s = min(waiting.pause_s * 2, DELETE_RETRY_S_MAX)
        due_s = time.monotonic() + waiting.pause_s
        self._enqueue(_Waiting(due_s, next(self._numbers), work, pause_s))


def _free(at: Pool, intent: Intent) -> None:
    """Delete in the backend what the intent names."""
    if intent.action is IntentAction.DELETE_SNAPSHOT:
        at.backend.delete_snapshot(intent.backend_volume_id, intent.backend_snapshot_id)
    else:
        at.backend.delete(intent.backend_volume_id)


def _forget(operation_id: str) -> Change:
    return Change(kind=Operation.KIND, key=operation_id, value=None, expect=ANYTHING)


def _sentence(err: VolcoreError) -> str:
    """Return what is in the way, for somebody who has nothing to repeat."""
    if err.reason is not Reason.VOLUME_IN_USE:
        return err.message[:_CHARACTERS_MAX]
    clients = ", ".join(blocker.name for blocker in err.blockers[:3]) or "a client"
    return f"in use by {clients}; freed when nobody has it open any more"
