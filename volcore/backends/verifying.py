"""The contract of backends that can prove what they have stored, and mend some of it."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, runtime_checkable


class DamageKind(StrEnum):
    """What is wrong with stored bytes, or with what leads to them."""

    CHECKSUM = "CHECKSUM"
    """The bytes are not those that were written."""
    MISSING = "MISSING"
    """The bytes are not there: a file is gone or too short."""
    UNREADABLE = "UNREADABLE"
    """The disk refuses to read them."""
    MAP = "MAP"
    """The map of the range is damaged; none of its bytes can be found."""
    CHAIN = "CHAIN"
    """The ancestors of a volume or snapshot cannot be followed."""
    DATABASE = "DATABASE"
    """The pool's database is damaged, or points nowhere."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """Neighbouring blocks that are wrong in the same way.

    The range is empty for CHAIN and DATABASE, and for a layer that has lost maps; `detail` tells
    what was found.
    """

    kind: DamageKind
    layer: int
    """Layer that holds the blocks, a number of the backend's own; 0: none."""
    offset_bytes: int
    length_bytes: int
    points: tuple[tuple[str, str | None], ...]
    """Who sees it: volume and snapshot id (None: the volume itself); a bounded selection."""
    point_count: int
    """How many see it in all."""
    healed: bool
    detail: str = ""


def no_source(volume_ids: Sequence[str], offset_bytes: int) -> Iterable[bytes]:
    """Know no source of any volume."""
    del volume_ids, offset_bytes
    return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyRequest:
    """What to verify: one volume, one snapshot, or (`volume_id` None) everything once."""

    volume_id: str | None = None
    snapshot_id: str | None = None
    heal: bool = False
    """Rewrite bad blocks where their right content is found elsewhere."""
    bytes_per_s_max: int = 0
    """Most bytes to read in a second; 0: as fast as it goes."""
    cursor: str = ""
    """Where an earlier call of the same request was stopped, see `VerifyWatcher.progress`."""
    source: Callable[[Sequence[str], int], Iterable[bytes]] = no_source
    """Called as source(volume_ids, offset_bytes): gives what the block of one of these volumes may
    have been when it was imported. What it gives is proven before it is used."""


class VerifyWatcher(Protocol):
    """Told how a verify goes on; called in the thread that verifies."""

    def progress(
        self, done_bytes: int, total_bytes: int, *, checked_bytes: int, cursor: str
    ) -> None:
        """Take note of how far it is; may raise CancelledError to stop.

        `checked_bytes` were compared since the call began. All that lies before `cursor` has been
        reported: a repeated request with it goes on there.
        """

    def found(self, damage: Damage) -> None:
        """Take note of damage."""


@runtime_checkable
class SupportsVerify(Protocol):
    """Reading all stored bytes back from the disk and proving them right."""

    def verify(self, request: VerifyRequest, watcher: VerifyWatcher) -> None:
        """Verify what is durable, and heal it if asked; volumes may be written meanwhile.

        Idempotent. Durability: what is reported as healed is on the disk, read back and proven.
        Concurrency: beside everything else; blocks that change meanwhile are never reported.

        Raises:
            NotFoundError: OBJECT_NOT_FOUND, no such volume or snapshot.
            CancelledError: raised by the watcher.
        """
