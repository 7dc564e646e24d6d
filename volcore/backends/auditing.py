"""The contract of backends whose bookkeeping can contradict itself, as others can change it."""

from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

from volcore.model.faults import Fault


@runtime_checkable
class SupportsAudit(Protocol):
    """The backend can compare what it has written down with what there is, and mend some of it."""

    def audit(self, suspects: Sequence[Fault] | None, *, objects: bool) -> Iterator[Fault]:
        """Yield what looks wrong now; what is under way may look so, too: look again.

        Changes nothing. Complexity: the pool's images, in waves; the names of all of its objects
        with `objects`.

        Args:
            suspects: what an earlier look has found: look at these again only; None: at all.
            objects: look for objects of images that are gone, too.
        """

    def is_shown(self, snapshot_id: str) -> bool:
        """Return False for the snapshots that only hold clones: nobody made them to look at."""

    def mend(self, fault: Fault) -> bool:
        """Mend a fault that is mendable, if it is still there; return whether it was.

        Idempotent. Deletes no byte that somebody wrote and may want.

        Raises:
            PreconditionError: VOLUME_IN_USE.
        """
