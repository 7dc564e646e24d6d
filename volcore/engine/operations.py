"""Operations: durable records of long work, and the threads that do it.

A record is written before the work starts and when it ends; progress in between is written at most
once a second, and told from memory by the server that does the work. At a server's start, work that
can go on is taken up again, and it also waits out a storage that cannot be reached; other work that
was cut off ends as FAILED. What ended is forgotten after a day.
"""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import structlog

from volcore import limits
from volcore.engine.pool import Pool, drop, now_ns, put
from volcore.engine.pools import Pools
from volcore.errors import (
    CancelledError,
    NotFoundError,
    OperationPendingError,
    OutOfRangeError,
    Reason,
    UnavailableError,
    VolcoreError,
)
from volcore.model import names
from volcore.model.checks import Check
from volcore.model.records import Operation, Phase

KEEP_S: Final = 24 * 3600
"""How long finished operations can be looked at."""
WRITE_INTERVAL_S: Final = 1.0
WATCH_INTERVAL_S: Final = 0.1
STOP_WAIT_S: Final = 60.0
RETRY_S: Final = 0.5
"""Pause before work that could not reach its storage is tried again."""
_log = structlog.get_logger("volcore.engine")


@dataclass(slots=True)
class Work:
    """Work being done in this process."""

    pool: Pool
    operation: Operation
    subject_id: str
    watch: Callable[[Operation], None] | None = None
    write_interval_s: float = WRITE_INTERVAL_S
    cancelled: threading.Event = field(default_factory=threading.Event)
    interrupted: threading.Event = field(default_factory=threading.Event)
    """The server is stopping: leave the work as it is, it goes on at the next start."""
    ended: threading.Event = field(default_factory=threading.Event)
    """No thread has it any more; it may go on at the next start."""
    waits: bool = False
    """Its storage could not be reached, which was logged."""
    _written: float = 0.0
    _watched: float = 0.0

    @property
    def target(self) -> str:
        """Resource name that it works on."""
        return self.operation.target

    def progress(self, done_bytes: int, total_bytes: int) -> None:
        """Tell how far it is.

        Raises:
            CancelledError: somebody asked to cancel, or the server is stopping.
        """
        if self.cancelled.is_set() or self.interrupted.is_set():
            raise CancelledError(
                f"{self.operation.action} of {self.target} was cancelled", reason=Reason.CANCELLED
            )
        now = time.monotonic()
        before, after = (
            self.operation,
            self.operation.but(done_bytes=done_bytes, total_bytes=total_bytes),
        )
        if now - self._written >= self.write_interval_s:
            self._written = now
            self.write(after)
        else:
            self.operation = before.but(
                done_bytes=done_bytes, total_bytes=total_bytes, revision=before.revision
            )
        if self.watch is not None and now - self._watched >= WATCH_INTERVAL_S:
            self._watched = now
            self.watch(self.operation)

    def note(self, check: Check) -> None:
        """Take over how far a check is; written with the next progress, and at the end."""
        self.operation = self.operation.but(check=check, revision=self.operation.revision)

    def write(self, operation: Operation) -> None:
        """Make `operation` the durable record."""
        self.pool.catalog.commit(
            [put(operation, _stored(self.pool, operation.id) or self.operation)]
        )
        self.operation = operation


Action = Callable[[Pool, Work], None]


def _stored(pool: Pool, operation_id: str) -> Operation | None:
    return pool.find(Operation, operation_id)


class Operations:
    """Use cases of operations, and the registry of running work."""

    def __init__(self, pools: Pools, *, worker_threads: int = 2) -> None:
        self._pools = pools
        self._running: dict[str, Work] = {}
        self._lock = threading.Lock()
        self._starting = threading.Lock()
        """Held from the search for the same work to its registration."""
        self._resumable: dict[str, Callable[[Work], None]] = {}
        self._firm: set[str] = set()
        self._brief: set[str] = set()
        self._executor = ThreadPoolExecutor(worker_threads, thread_name_prefix="operation")
        self._own_executors: dict[str, ThreadPoolExecutor] = {}

    def resume_with(self, action_name: str, action: Action, *, own_threads: int = 0) -> None:
        """Tell how to go on with work of this kind after a restart.

        With `own_threads` it has so many threads of its own: other work need not wait for it.
        """
        self._resumable[action_name] = partial(self._submit, action=action)
        if own_threads:
            self._own_executors[action_name] = ThreadPoolExecutor(
                own_threads, thread_name_prefix=action_name
            )

    def firm_with(self, action_name: str, take: Callable[[Work], None]) -> None:
        """Tell who goes on with work of this kind after a restart: work that nobody can cancel.

        `take` returns at once and calls `leave` at the end.
        """
        self._resumable[action_name] = take
        self._firm.add(action_name)

    def brief_with(self, action_name: str) -> None:
        """Tell of a kind of work that ends with its server, as FAILED."""
        self._brief.add(action_name)

    def get(self, pool: str, operation_id: str) -> Operation:
        """Return an operation.

        Raises:
            NotFoundError: OPERATION_NOT_FOUND.
        """
        at = self._pools.open(pool)
        with self._lock:
            work = self._running.get(operation_id)
        if work is not None and work.pool is at:
            return work.operation
        found = _stored(at, operation_id)
        if found is None:
            raise NotFoundError(
                f"pool {pool!r} has no operation {operation_id[:64]!r}; "
                "ended ones are kept for a day",
                reason=Reason.OPERATION_NOT_FOUND,
            )
        return found

    def list(self, pool: str, *, after: str = "", limit: int) -> list[Operation]:
        """Return up to `limit` operations with ids after `after`, in the order of their ids."""
        at = self._pools.open(pool)
        found = at.list(Operation, after=after, limit=limit, leave_newer=True)
        with self._lock:
            return [self._running[o.id].operation if o.id in self._running else o for o in found]

    def wait(self, pool: str, operation_id: str, timeout_s: float) -> Operation:
        """Return the operation when it has ended, or as it is after `timeout_s`."""
        if not 0 <= timeout_s <= limits.WAIT_TIMEOUT_S_MAX:
            raise OutOfRangeError(
                f"timeout {timeout_s} must be between 0 and {limits.WAIT_TIMEOUT_S_MAX} seconds",
                reason=Reason.BAD_FIELD,
                field="timeout",
            )
        with self._lock:
            work = self._running.get(operation_id)
        if work is not None:
            work.ended.wait(timeout_s)
        return self.get(pool, operation_id)

    def cancel(self, pool: str, operation_id: str) -> Operation:
        """Ask an operation to stop; one that has ended, or cannot be stopped, is no error."""
        operation = self.get(pool, operation_id)
        with self._lock:
            work = self._running.get(operation_id)
        if work is None or operation.finished or operation.action in self._firm:
            return operation
        work.cancelled.set()
        work.operation = work.operation.but(cancel_requested=True, revision=work.operation.revision)
        return work.operation

    def start(
        self,
        pool: Pool,
        action_name: str,
        target: str,
        subject_id: str,
        action: Action,
        *,
        check: Check | None = None,
    ) -> Operation:
        """Start work in the background; while the same runs already, return that."""
        with self._starting:
            with self._lock:
                for work in self._running.values():
                    if (work.subject_id, work.operation.action) == (subject_id, action_name):
                        return work.operation
            work = self.begin(pool, action_name, target, subject_id, check=check)
        self._submit(work, action)
        return work.operation

    def begin(
        self,
        pool: Pool,
        action_name: str,
        target: str,
        subject_id: str,
        watch: Callable[[Operation], None] | None = None,
        *,
        check: Check | None = None,
    ) -> Work:
        """Record work that the caller does itself; it must call `finish`."""
        operation = draft(action_name, target, subject_id, phase=Phase.RUNNING).but(
            check=check, revision=1
        )
        pool.catalog.commit([put(operation)])
        work = self.track(pool, operation, watch)
        if watch is not None:
            watch(operation)
        return work

    def track(
        self, pool: Pool, operation: Operation, watch: Callable[[Operation], None] | None = None
    ) -> Work:
        """Return recorded work, shown as running here until `finish` or `leave`."""
        work = Work(pool, operation, operation.subject_id, watch)
        with self._lock:
            self._running[operation.id] = work
        return work

    def finish(self, work: Work, error: BaseException | None) -> None:
        """Record the end of work; while its pool cannot be reached that is tried again behind."""
        try:
            if not (isinstance(error, CancelledError) and work.interrupted.is_set()):
                work.write(ended(work.operation, error))
        except UnavailableError:
            return self._later(work, partial(self.finish, work, error))
        except VolcoreError as err:
            _log.warning("operation not recorded", operation=work.operation.id, reason=err.reason)
        except BaseException:
            self.leave(work)
            raise
        return self.leave(work)

    def leave(self, work: Work) -> None:
        """Show work as its record has it from now on."""
        with self._lock:
            self._running.pop(work.operation.id, None)
        work.ended.set()

    def stop(self, pool: Pool, subject_id: str) -> None:
        """Cancel all work on a subject and wait until it has ended.

        Raises:
            OperationPendingError: it did not end in time.
        """
        with self._lock:
            mine = [w for w in self._running.values() if w.subject_id == subject_id]
        for work in mine:
            work.cancelled.set()
        for work in mine:
            if not work.ended.wait(STOP_WAIT_S):
                raise OperationPendingError(
                    f"operation {work.operation.id} on {work.target} is still ending; "
                    "repeat the call",
                    reason=Reason.OPERATION_PENDING,
                    retryable=True,
                )
        del pool

    def forget(self, pool: Pool, time_ns: int) -> None:
        """Delete the records of what had ended long before `time_ns`."""
        too_old = time_ns - KEEP_S * 10**9
        for operation in self._own(pool, lambda o: o.finished and o.end_time_ns < too_old):
            pool.catalog.commit([drop(operation)])

    def recover(self, pool: Pool) -> None:
        """Go on with what was cut off, end what cannot go on, forget what is old.

        What a newer server has begun, which this one does not know, waits for that one.
        """
        self.forget(pool, now_ns())
        for operation in self._own(pool, lambda o: not o.finished):
            if operation.action in self._resumable:
                self._resumable[operation.action](self.track(pool, operation))
            else:
                cut_off = OperationPendingError(
                    "the server was stopped meanwhile and nothing of it is left; start it again",
                    reason=Reason.OPERATION_PENDING,
                    retryable=True,
                )
                pool.catalog.commit([put(ended(operation, cut_off), operation)])

    def _own(self, pool: Pool, wanted: Callable[[Operation], bool]) -> Sequence[Operation]:
        """Return the operations that this server knows wholly."""
        known = self._resumable.keys() | self._brief
        return pool.list(
            Operation,
            wanted=lambda o: o.action in known and not o.added and wanted(o),
            leave_newer=True,
        )

    def close(self, timeout_s: float) -> bool:
        """Interrupt all work and wait so long for it to leave things in order; say if it has."""
        with self._lock:
            works = list(self._running.values())
        deadline = time.monotonic() + timeout_s
        for work in works:
            work.interrupted.set()
        ended = [work.ended.wait(max(0.0, deadline - time.monotonic())) for work in works]
        for executor in (self._executor, *self._own_executors.values()):
            executor.shutdown(wait=False, cancel_futures=True)
        return all(ended)

    def _submit(self, work: Work, action: Action) -> None:
        executor = self._own_executors.get(work.operation.action, self._executor)
        executor.submit(self._run, work, action)

    def _run(self, work: Work, action: Action) -> None:
        error: BaseException | None = None
        try:
            work.progress(work.operation.done_bytes, work.operation.total_bytes)
            action(work.pool, work)
        except UnavailableError as err:
            if err.retryable and work.operation.action in self._resumable:
                if not work.waits:
                    _log.warning(
                        "operation waits for its storage",
                        operation=work.operation.id,
                        reason=err.reason,
                        message=err.message,
                    )
                work.waits = True
                return self._later(work, partial(self._submit, work, action))
            error = err
        except VolcoreError as err:
            error = err
        except BaseException as err:
            _log.exception("operation failed", operation=work.operation.id)
            self.finish(work, err)
            raise
        return self.finish(work, error)

    def _later(self, work: Work, again: Callable[[], None]) -> None:
        """Do `again` after a pause, in no thread that other pools wait for; not at the end."""

        def wait() -> None:
            if work.interrupted.wait(RETRY_S):
                self.leave(work)
            else:
                again()

        threading.Thread(target=wait, name="operation-later", daemon=True).start()


def draft(
    action_name: str, target: str, subject_id: str, *, phase: Phase = Phase.QUEUED
) -> Operation:
    """Return the record of new work."""
    return Operation(
        id=names.new_id(),
        action=action_name,
        target=target,
        subject_id=subject_id,
        phase=phase,
        create_time_ns=now_ns(),
    )


def ended(operation: Operation, error: BaseException | None) -> Operation:
    """Return `operation` in its final phase."""
    if error is None:
        total = max(operation.total_bytes, operation.done_bytes)
        return operation.but(
            phase=Phase.SUCCEEDED, done_bytes=total, total_bytes=total, end_time_ns=now_ns()
        )
    if isinstance(error, CancelledError):
        return operation.but(phase=Phase.CANCELLED, end_time_ns=now_ns())
    if isinstance(error, VolcoreError):
        status, reason, message = error.status, str(error.reason), error.message
    else:
        status, reason = "INTERNAL", str(Reason.INVARIANT_VIOLATION)
        message = "an internal error; look at the server's log"
    return operation.but(
        phase=Phase.FAILED,
        error_status=status,
        error_reason=reason,
        error_message=message,
        end_time_ns=now_ns(),
    )
