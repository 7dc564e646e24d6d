"""What a storage backend is.

Words: a *volume* here is anything that holds blocks under a `volume_id`; a golden image is a volume
with a snapshot. Ids are reserved and unique for ever (`volcore.model.names.backend_id`); a backend
invents no names, holds no business rules and knows no request. Backends are strict: they raise on
what is already there or already gone; `volcore.engine` makes calls idempotent.

Story of a deployment: `create` a volume, write it through `open_device`, `create_snapshot`; then
`clone` that snapshot as often as wanted; `delete` any of them in any order.

Invariants every backend keeps (docs/invariants.md):
1. INV-BE-1 (must): what was flushed survives any crash; a clone, snapshot or delete that returned
   is durable.
2. INV-BE-2 (must): a snapshot and what was cloned from it never change by writes elsewhere.
3. INV-BE-3 (must): bytes that cannot be proven right are an IntegrityError, never data, where the
   backend keeps checksums.
4. INV-BE-4 (should): space that nothing refers to any more is freed, whatever the order of deletes.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from types import TracebackType
from typing import Protocol, Self, runtime_checkable

from volcore.errors import NotFoundError, VolcoreError
from volcore.model.extent import Extent

Progress = Callable[[int, int], None]
"""Called as progress(done_bytes, total_bytes); may raise CancelledError to stop the work."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendCaps:
    """What a backend can do and how far; engine asks these, never the type."""

    kind: str
    """`memory`, `local` or `rbd`."""
    block_size_bytes: int
    chunk_size_bytes: int
    depth_max: int
    """Most ancestors that a clone may have."""
    snapshots_max: int
    """Most snapshots of one volume."""
    checksums: bool
    """Reads are verified against stored checksums by the backend itself."""
    joins_catalog: bool
    """Changes made inside `Catalog.transaction` commit or vanish with it: no intents needed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeFacts:
    """What `describe` and `walk` tell about one volume."""

    volume_id: str
    size_bytes: int
    allocated_bytes: int
    """Bytes of storage that this volume's own writes occupy (its snapshots' included)."""
    depth: int
    """Count of ancestors that a read may have to consult."""
    parent_volume_id: str | None
    parent_snapshot_id: str | None
    snapshot_ids: tuple[str, ...]
    """Its snapshots, oldest first."""
    exclusive_bytes: int | None = None
    """Bytes of storage that deleting it with its snapshots would free; None: not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolStats:
    """Figures of a whole pool; O(1) to read."""

    capacity_bytes: int
    available_bytes: int
    allocated_bytes: int


class BlockDevice(ABC):
    """Open access to the blocks of one volume or snapshot.

    Offsets and lengths are in bytes, of any alignment; a range past the end raises OutOfRangeError
    (OFFSET_PAST_END) and changes nothing. All devices open on one volume in this process see each
    other's writes at once. Every method may be called from any thread at any time; overlapping
    writes that run at once land in some order. Buffers are any C-contiguous object with the buffer
    protocol and are not kept after return.
    """

    @property
    @abstractmethod
    def size_bytes(self) -> int:
        """Current size; follows a resize."""

    @property
    @abstractmethod
    def read_only(self) -> bool:
        """Whether writes are refused with PreconditionError READ_ONLY."""

    @abstractmethod
    def read_into(self, offset_bytes: int, buffer: bytearray | memoryview) -> None:
        """Fill all of `buffer`.

        Raises:
            IntegrityError: BAD_CHECKSUM, with context `volume`, `offset_bytes`; the buffer's
                content is then undefined and must not be used.
            BackendIOError: the storage failed.
        """

    @abstractmethod
    def write(
        self, offset_bytes: int, data: bytes | bytearray | memoryview, *, fua: bool = False
    ) -> None:
        """Write `data`; durable at the next `flush`, or at return with `fua`.

        A crash before that leaves each block old or new.

        Raises:
            ExhaustedError: POOL_FULL; nothing flushed before is harmed.
            PreconditionError: READ_ONLY.
        """

    def write_bulk(self, offset_bytes: int, data: memoryview) -> None:
        """Write as `write` does what is much and not read soon; caches may be passed by.

        *Alignment*: fastest for whole blocks, in memory that begins at a page.
        """
        self.write(offset_bytes, data)

    @abstractmethod
    def discard(self, offset_bytes: int, length_bytes: int) -> None:
        """Trim: the range reads as zeroes afterwards and its whole blocks free their space."""

    def write_zeroes(
        self, offset_bytes: int, length_bytes: int, *, may_trim: bool = True, fua: bool = False
    ) -> None:
        """Make the range read as zeroes; space is freed unless `may_trim` is False."""
        del may_trim
        self.discard(offset_bytes, length_bytes)
        if fua:
            self.flush()

    @abstractmethod
    def flush(self) -> None:
        """Return when every write that returned before this call is durable."""

    @abstractmethod
    def extents(self, offset_bytes: int, length_bytes: int) -> list[Extent]:
        """Return ascending, gapless extents that cover exactly the range.

        DATA may hold data; ZERO and ABSENT both read as zeroes here, since parents are already
        taken into account: ABSENT was never written by anybody (a hole), ZERO was trimmed.
        """

    @abstractmethod
    def close(self) -> None:
        """Flush (when writable) and release; idempotent."""

    def read(self, offset_bytes: int, length_bytes: int) -> bytes:
        """Return the bytes of the range; see `read_into`."""
        buffer = bytearray(length_bytes)
        self.read_into(offset_bytes, buffer)
        return bytes(buffer)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class VolumeBackend(ABC):
    """A pool's storage. Every method may be called from any thread, after `open`.

    Precondition of all: ids are well formed (the engine made them). NotFoundError OBJECT_NOT_FOUND
    is raised for an unknown volume or snapshot id, ConflictError NAME_TAKEN for an id that exists.
    Unless said otherwise a call is durable at return, atomic under crashes, and not idempotent.
    """

    @property
    @abstractmethod
    def caps(self) -> BackendCaps:
        """Fixed abilities."""

    @abstractmethod
    def open(self) -> None:
        """Make ready; recovers from an unclean stop.

        Raises:
            PreconditionError: POOL_LOCKED (another server uses it), POOL_UNUSABLE.
            PermissionDeniedError: the place may not be used with these rights.
            UnavailableError: CLUSTER_UNREACHABLE.
        """

    @abstractmethod
    def close(self) -> None:
        """Close every device and release the place; idempotent."""

    @abstractmethod
    def create(self, volume_id: str, size_bytes: int) -> None:
        """Make a blank volume; `size_bytes` is a multiple of the block size."""

    @abstractmethod
    def delete(self, volume_id: str) -> None:
        """Delete a volume and all its snapshots; clones made from them keep working.

        Space is freed at once, or when the last clone that shares it goes.

        Raises:
            PreconditionError: VOLUME_IN_USE, a device is open on it (or a client elsewhere).
        """

    def refuse_if_open(self, volume_id: str, snapshot_id: str | None = None) -> None:
        """Refuse when this process has a device open on the volume or one of its snapshots.

        With `snapshot_id`, only one that is open on that counts. Costs no access to the storage,
        and knows nothing of clients elsewhere. One that does not exist is not open.

        Raises:
            PreconditionError: VOLUME_IN_USE.
            UnavailableError: this server may not change the pool now.
        """
        del volume_id, snapshot_id

    @abstractmethod
    def resize(self, volume_id: str, size_bytes: int) -> None:
        """Grow to `size_bytes`; new bytes read as zeroes; the same size again changes nothing.

        Raises:
            OutOfRangeError: SHRINK_REFUSED.
        """

    @abstractmethod
    def describe(self, volume_id: str) -> VolumeFacts:
        """Return the facts of one volume."""

    def describe_many(self, volume_ids: Sequence[str]) -> dict[str, VolumeFacts]:
        """Return the facts of those volumes that exist; backends override it for speed."""
        found: dict[str, VolumeFacts] = {}
        for volume_id in volume_ids:
            with suppress(NotFoundError):
                found[volume_id] = self.describe(volume_id)
        return found

    @abstractmethod
    def walk(self) -> Iterator[str]:
        """Yield the id of every volume that exists, once, in any order; deleted ones not."""

    @abstractmethod
    def create_snapshot(self, volume_id: str, snapshot_id: str, *, attached: bool = False) -> None:
        """Freeze the volume's content at one instant of this call; open devices go on.

        `attached`: a client that reaches the storage itself may be opening the volume just now.
        """

    @abstractmethod
    def delete_snapshot(self, volume_id: str, snapshot_id: str) -> None:
        """Delete a snapshot; clones made from it keep working."""

    @abstractmethod
    def clone(
        self, volume_id: str, snapshot_id: str | None, target_id: str, size_bytes: int
    ) -> None:
        """Make volume `target_id` from a snapshot, or from the volume's content of this instant.

        `size_bytes` is at least the source's size; the rest reads as zeroes.

        Raises:
            PreconditionError: DEPTH_LIMIT.
            OutOfRangeError: SHRINK_REFUSED.
        """

    @abstractmethod
    def open_device(
        self, volume_id: str, snapshot_id: str | None = None, *, read_only: bool
    ) -> BlockDevice:
        """Open a volume, or a snapshot (read-only only). Many may be open at once."""

    @abstractmethod
    def stats(self) -> PoolStats:
        """Return the pool's figures."""


class ShortPathState(StrEnum):
    """Whether volumes are made in fewer round trips than the storage's own library needs."""

    OFF = "OFF"
    """The configuration says so, or the pool has no lock."""
    PROVING = "PROVING"
    """It is being compared with the library's own; the library is used meanwhile."""
    ON = "ON"
    REFUSED = "REFUSED"
    """It makes something else than the library on this cluster; the library is used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShortPath:
    """The state of the short path; `detail` is the reason, or for what it was proven."""

    state: ShortPathState
    detail: str


@runtime_checkable
class SupportsShortPath(Protocol):
    """A short path to new volumes, which is used only after it proved itself."""

    @property
    def short_path(self) -> ShortPath:
        """Whether the short path is used. Costs no access to the storage."""


Records = Mapping[str, Mapping[str, bytes]]
"""What volumes of the backend carry: bytes by `<kind>/<key>`, by volume id."""


def no_reserve() -> None:
    """Write nothing down."""


@runtime_checkable
class SupportsMakeMany(Protocol):
    """Making many volumes in a time that hardly grows with their number."""

    def create_many(
        self,
        sizes_bytes: Mapping[str, int],
        *,
        reserve: Callable[[], None] = no_reserve,
        records: Records | None = None,
    ) -> dict[str, VolcoreError]:
        """Make a blank volume for each (id: size in bytes); else as `clone_many`."""

    def clone_many(
        self,
        volume_id: str,
        snapshot_id: str | None,
        targets: Mapping[str, int],
        *,
        reserve: Callable[[], None] = no_reserve,
        records: Records | None = None,
        attached: bool = False,
    ) -> dict[str, VolcoreError]:
        """Make a clone for each (target id: size in bytes), as `clone` does.

        `records`: what volumes, by id, carry from the beginning where that costs no time
        (`SupportsCarry`). `attached`: of the source, as in `create_snapshot`.

        Without a snapshot, clones show the volume at an instant of this call, most often the same.
        Atomicity: of each volume. Returns the errors of those that failed; they left nothing.

        `reserve` is called once, in this thread: it makes durable what the caller needs to know of
        the volumes after a crash. Before it returns, nothing is made but names, beside it; a crash
        until then leaves what `open` and `collect` delete by themselves. When it raises, nothing
        was made. Not called when this raises for a wrong source.
        """


@runtime_checkable
class SupportsLookFor(Protocol):
    """Asking whether volumes are still there, on storage that others can reach too."""

    def look_for(self, volume_ids: Sequence[str]) -> Callable[[], set[str]]:
        """Ask for volumes; return what waits for the answers: the ids of those that are gone.

        One round trip for all, beside what the caller does before it waits; the first look at a
        volume takes one more, and that at once.

        Raises:
            UnavailableError: the storage cannot be reached; what waits may raise it, too.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """A way to ask one part of a storage for a sign of life."""

    part: str
    ask: Callable[[], None]
    """Costs a round trip; blocks while there is no answer, minutes if need be, and raises
    UnavailableError, or PreconditionError POOL_LOCKED: it answers, but serves this server no more.
    Calls of one look do not overlap."""
    silence_s_max: float
    """For how long the part may be silent before it counts as out of reach."""


@runtime_checkable
class SupportsLook(Protocol):
    """Storage elsewhere, which may be out of reach."""

    def looks(self) -> Sequence[Look]:
        """Return what to ask for signs of life; all parts are needed."""

    def is_ours(self) -> bool:
        """Return whether no other server can have the pool; no round trip."""


@runtime_checkable
class SupportsFlatten(Protocol):
    """Copying what is shared, so that the volume stands alone."""

    def flatten(self, volume_id: str, progress: Progress) -> None:
        """Copy what is shared with ancestors, then cut the link; content does not change.

        Idempotent: repeat after a crash or a cancel to go on. Devices may stay open.
        """


@runtime_checkable
class SupportsRevert(Protocol):
    """Going back to a snapshot in place."""

    def revert(self, volume_id: str, snapshot_id: str) -> None:
        """Make the volume equal to its snapshot, size included; all snapshots stay.

        Idempotent. Raises PreconditionError VOLUME_IN_USE when a device is open on the volume.
        """


@runtime_checkable
class SupportsGroupSnapshot(Protocol):
    """Freezing several volumes at one instant."""

    def create_group_snapshot(self, members: Sequence[tuple[str, str]]) -> None:
        """Make a snapshot of each (volume_id, snapshot_id), all of one instant of this call.

        No write to any of the volumes lands between them: what is in one snapshot was issued
        before every write that is in none. Volumes are named once; open devices go on. All or
        nothing, also under crashes. Raises what `create_snapshot` raises.
        """


@runtime_checkable
class SupportsSyncAhead(Protocol):
    """Making the pause of a snapshot short."""

    def sync_ahead(self, volume_ids: Sequence[str]) -> None:
        """Sync what was written to the volumes, so that freezing them soon has little to wait for.

        Changes no content and promises nothing; not inside a transaction of the catalog.
        """


@runtime_checkable
class SupportsDiff(Protocol):
    """Listing what changed without reading data."""

    def diff(
        self, volume_id: str, from_snapshot_id: str | None, to_snapshot_id: str | None
    ) -> Sequence[Extent]:
        """Return ascending extents that may differ between two points of one volume.

        `from_snapshot_id` None: from the beginning (everything that is not a hole).
        `to_snapshot_id` None: to the volume's present content.
        """


@runtime_checkable
class SupportsCollect(Protocol):
    """Freeing what could not be freed at once."""

    def collect(self) -> int:
        """Free deleted volumes that no clone needs any more; return how many. Idempotent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RbdConnection:
    """Where an rbd image is, for QEMU's own librbd, libvirt, Nova or `rbd map`."""

    cluster_fsid: str
    monitors: tuple[str, ...]
    """`host:port` of each monitor (v1 addresses when the monitor has them)."""
    pool: str
    image: str
    user: str
    """Ceph user without the `client.` prefix."""
    conf_path: str
    """Configuration file on the server, empty if none; a client may use its own."""
    secret_uuid: str
    """libvirt secret that holds the user's key; empty if not configured."""
    read_only: bool


@runtime_checkable
class SupportsDirectAttach(Protocol):
    """Volumes that a client can reach without passing through this server."""

    def connection(self, volume_id: str, *, read_only: bool) -> RbdConnection:
        """Return where the volume is. Costs no access to the volume."""
