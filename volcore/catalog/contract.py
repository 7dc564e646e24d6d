"""What a catalog is: an ordered map (kind, key) -> bytes with atomic compare-and-set batches.

Invariants (docs/invariants.md):
1. INV-CAT-1 (must): a commit takes effect wholly or not at all, also when the power goes.
2. INV-CAT-2 (must): a commit whose expectation does not hold changes nothing.
3. INV-CAT-3 (must): what `commit` returned from is durable.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Final

from volcore.errors import OperationPendingError, Reason
from volcore.model.records import Kind, Record


@dataclass(frozen=True, slots=True)
class Anything:
    """Expectation that always holds."""


@dataclass(frozen=True, slots=True)
class Absent:
    """Expectation that there is no such record."""


ANYTHING: Final = Anything()
ABSENT: Final = Absent()
Rows = list[tuple[str, bytes]]
"""Keys and bytes of records of one kind."""
Gathered = tuple[list[bytes | None], list[Rows]]
_PAGE: Final = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One line of a commit.

    `expect` is what must be there now: exact bytes, ABSENT, or ANYTHING. `value` is what shall be
    there: bytes to put, None to delete. With `check_only` nothing is written: the line is only an
    expectation (another record must not have changed).
    """

    kind: Kind
    key: str
    value: bytes | None
    expect: bytes | Absent | Anything = ANYTHING
    check_only: bool = False
    record: Record | None = field(default=None, compare=False, repr=False)
    """What `value` is the form of, if that is known: nobody has to decode it again."""


class Catalog(ABC):
    """An open catalog; every method may be called from any thread."""

    @abstractmethod
    def find(self, kind: Kind, key: str) -> bytes | None:
        """Return the record's bytes, or None.

        Raises:
            UnavailableError: the store cannot be reached.
        """

    @abstractmethod
    def list(
        self, kind: Kind, *, prefix: str = "", after: str = "", limit: int = 1000
    ) -> list[tuple[str, bytes]]:
        """Return up to `limit` (key, bytes) with `prefix`, ascending by key bytes, keys > `after`.

        Raises:
            UnavailableError: the store cannot be reached.
        """

    def count(self, kind: Kind, *, prefix: str, limit: int) -> int:
        """Return how many records have `prefix`, or `limit` if there are more.

        Raises:
            UnavailableError: the store cannot be reached.
        """
        return len(self.list(kind, prefix=prefix, limit=limit))

    def gather(
        self, keys: Sequence[tuple[Kind, str]], prefixes: Sequence[tuple[Kind, str]]
    ) -> Gathered:
        """Return the records at `keys`, and all (key, bytes) below each of `prefixes`.

        As several calls of `find` and `list`, but in one round trip where the store is far away
        and has nothing below the prefixes.

        Raises:
            UnavailableError: the store cannot be reached.
        """
        found = [self.find(kind, key) for kind, key in keys]
        return found, [self._below(kind, prefix) for kind, prefix in prefixes]

    def _below(self, kind: Kind, prefix: str) -> Rows:
        found: Rows = []
        while True:
            after = found[-1][0] if found else ""
            page = self.list(kind, prefix=prefix, after=after, limit=_PAGE)
            found += page
            if len(page) < _PAGE:
                return found

    @abstractmethod
    def unknown(self, limit: int) -> Sequence[tuple[str, str, bytes]]:
        """Return up to `limit` records of kinds that only newer servers know: kind, key, bytes.

        Raises:
            UnavailableError: the store cannot be reached.
        """

    @abstractmethod
    def commit(self, changes: Sequence[Change]) -> None:
        """Apply all `changes` atomically and durably, if every expectation holds.

        Not idempotent by itself: repeat only after reading again.

        Raises:
            OperationPendingError: CATALOG_CONFLICT; nothing was changed.
            ExhaustedError: POOL_FULL; nothing was changed.
            UnavailableError: the store cannot be reached; the outcome is unknown.
        """

    def transaction(self) -> AbstractContextManager[None]:
        """Join commits: all inside become durable together at the end, or none on an exception.

        Only for catalogs that share a store with their backend (`BackendCaps.joins_catalog`); the
        default joins nothing. Re-entrant within a thread; other threads' commits wait.
        """
        return nullcontext()

    @abstractmethod
    def close(self) -> None:
        """Release the store; idempotent."""


def conflict(change: Change) -> OperationPendingError:
    """Return the error for a line whose expectation does not hold."""
    return OperationPendingError(
        f"{change.kind} {change.key!r} was changed by another call meanwhile; repeat the call",
        reason=Reason.CATALOG_CONFLICT,
        retryable=True,
        kind=change.kind,
        key=change.key,
    )
