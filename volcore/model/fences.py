"""The record of a host that is cut off from the volumes of a pool."""

from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

from volcore.model.records import Kind, Record


class FenceState(StrEnum):
    """How far the fencing of a host is."""

    FENCING = "FENCING"
    """To be gone on with by whoever finds it at a start: the record is its own intent."""
    FENCED = "FENCED"


@dataclass(frozen=True, slots=True, kw_only=True)
class FencedHost(Record):
    """A host that may have no attachment until it is unfenced."""

    KIND: ClassVar[Kind] = Kind.FENCED_HOST

    host: str
    state: FenceState
    client_addresses: tuple[str, ...] = ()
    """Cut off from the storage, see `volcore.model.addresses`."""
    volumes: tuple[str, ...] = ()
    """Names of the volumes that it had attached."""
    create_time_ns: int
    revision: int = 1

    @property
    def key(self) -> str:
        """Key of this record within its kind."""
        return self.host
