"""The contract of backends whose volumes carry the records that say what they are.

A catalog that was lost is made again from these records alone. They are copies: the catalog is the
truth as long as there is one.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from volcore.model.faults import Fault
from volcore.model.records import Kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What one volume of the backend is to carry."""

    kinds: tuple[Kind, ...]
    """Records of other kinds that it carries are left alone."""
    records: Mapping[str, bytes] = field(default_factory=dict)
    """Bytes by `<kind>/<key>`; all that it is to carry of `kinds`."""

    def is_carried(self, present: Mapping[str, bytes]) -> bool:
        """Return whether a volume that carries `present` carries just this."""
        ours = {key: raw for key, raw in present.items() if key.partition("/")[0] in self.kinds}
        return ours == self.records


@runtime_checkable
class SupportsCarry(Protocol):
    """A volume can carry records, which die with it and are no part of its content."""

    def carry(self, loads: Mapping[str, Load]) -> None:
        """Let volumes (by id) carry these records; ids without a volume are passed over.

        Idempotent. Durability: at return. *Concurrency*: one call at a time for each volume.
        Complexity: three rounds for each 64 volumes.

        Raises:
            UnavailableError: the storage cannot be reached; some may carry theirs.
        """

    def carried(self, volume_ids: Sequence[str]) -> dict[str, dict[str, bytes]]:
        """Return the records of those volumes that exist, by `<kind>/<key>`."""

    def enter_all(self) -> Iterator[Fault]:
        """Enter every volume into the backend's list that this lacks; yield what is left out.

        For a list that was lost. Idempotent; deletes nothing. What is half made, or deleted
        perhaps, is not entered.
        """
