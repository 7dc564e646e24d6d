"""One pool at work: its backend, its catalog, and typed access to the records."""

import time
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import lru_cache
from types import TracebackType
from typing import Protocol, TypeVar

from volcore import limits
from volcore.backends.carrying import SupportsCarry
from volcore.backends.contract import (
    BlockDevice,
    SupportsLookFor,
    SupportsMakeMany,
    SupportsSyncAhead,
    VolumeBackend,
)
from volcore.catalog.contract import ABSENT, Absent, Change
from volcore.engine.behind import Behind
from volcore.engine.carrier import Carrier
from volcore.engine.combine import Combiner
from volcore.engine.figures import CountedCatalog
from volcore.engine.locks import KeyedLocks
from volcore.engine.making import Making
from volcore.engine.stock import Stock
from volcore.engine.views import NbdConnection
from volcore.errors import NotFoundError, PreconditionError, Reason, VolcoreError
from volcore.model.records import (
    Attachment,
    GroupSnapshot,
    Image,
    Record,
    Snapshot,
    State,
    Volume,
)

R = TypeVar("R", bound=Record)
WholeVolume = tuple[Volume | None, list[Attachment], list[Snapshot]]
Known = dict[tuple[type[Record], str], Record | None]
"""What was looked up already, by kind and key."""
_PAGE = 1000


class Exporter(Protocol):
    """Makes devices reachable over the network; all calls are idempotent."""

    def publish(
        self,
        name: str,
        opener: Callable[[bool], BlockDevice],
        *,
        read_only: bool,
        hosts: Callable[[], Collection[str]],
        writable: bool,
    ) -> None:
        """Offer `name` to `hosts()`; both callables are called when a client comes.

        `writable` holds for a new export; what is offered already is changed by `set_writable`.
        """

    def connection(self, name: str) -> NbdConnection:
        """Return how clients reach `name`, offered or not."""

    def set_writable(self, name: str, writable: bool) -> None:
        """Let clients of `name` write from now on, or not any more; reads go on.

        When they may not, what they wrote is durable at return, and nothing follows.

        Raises:
            DeadlineError: writes are still under way; no more are let in.
        """

    def expel(self, name: str) -> None:
        """Disconnect clients of `name` that its `hosts()` does not name any more; does not wait."""

    def withdraw(self, name: str) -> None:
        """Stop offering `name`: clients are disconnected, the device is flushed and closed."""


@dataclass(frozen=True, slots=True)
class Pool:
    """A pool that is open."""

    name: str
    backend: VolumeBackend
    catalog: CountedCatalog
    exporter: Exporter | None
    server_id: str
    trash_retention_s: float = 0
    """How long deleted volumes stay in the trash; 0: there is none."""
    locks: KeyedLocks = field(default_factory=KeyedLocks)
    stock: Stock = field(default_factory=Stock)
    """Warm clones; none unless the configuration says so."""
    behind: Behind = field(default_factory=Behind)
    """What is looked at behind answers."""
    combiner: Combiner[Volume, Volume | VolcoreError] = field(
        default_factory=lambda: Combiner(items_max=limits.DEPLOY_VOLUMES_MAX)
    )
    """For the volumes that several calls make of one source, or blank."""
    syncs_ahead: SupportsSyncAhead | None = field(init=False)
    """The backend, if it can: to ask a protocol takes longer than a statement of SQL."""

    looks_for: SupportsLookFor | None = field(init=False)
    """The backend, if others can reach its volumes and it can look for them."""

    makes_many: SupportsMakeMany | None = field(init=False)
    """The backend, if it can."""

    making: Making = field(init=False)
    """Volumes that are not to be shown yet."""

    carrier: Carrier | None = field(init=False)
    """Writes copies of the records into the storage, if that can carry them."""

    def __post_init__(self) -> None:
        """Look at the backend once."""
        able = self.backend if isinstance(self.backend, SupportsSyncAhead) else None
        object.__setattr__(self, "syncs_ahead", able)
        looks = self.backend if isinstance(self.backend, SupportsLookFor) else None
        object.__setattr__(self, "looks_for", looks)
        many = self.backend if isinstance(self.backend, SupportsMakeMany) else None
        object.__setattr__(self, "makes_many", many)
        object.__setattr__(self, "making", Making(self.catalog.commit))
        carrier = None
        if isinstance(self.backend, SupportsCarry):
            carrier = Carrier(self.backend, self.catalog.below, self.making.hides)
            self.catalog.follower = carrier.follow
        object.__setattr__(self, "carrier", carrier)

    def find(self, record: type[R], key: str, known: Known | None = None) -> R | None:
        """Return the record, whatever its state, or None; as `known` says, if it does."""
        if known and (record, key) in known:
            found = known[record, key]
            assert found is None or isinstance(found, record)
            return found
        found = self.written(record, key)
        return None if found is None else self._shown(found)

    def written(self, record: type[R], key: str) -> R | None:
        """Return the record as the catalog has it; it may say READY of what is not whole yet."""
        raw = self.catalog.find(record.KIND, key)
        return None if raw is None else _decoded(record, key, raw)  # type: ignore[arg-type]

    def known(self, record: type[R], key: str) -> R | None:
        """Return the record as `find` does; None, too, if it is of a newer server."""
        with LeavingNewer():
            return self.find(record, key)
        return None

    def find_many(self, places: Sequence[tuple[type[Record], str]]) -> Known:
        """Look several records up at once; of a newer server's nothing is told: `find` raises."""
        return self.find_below(places, [])[0]

    def find_below(
        self, places: Sequence[tuple[type[Record], str]], prefixes: Sequence[tuple[type[R], str]]
    ) -> tuple[Known, list[list[R]]]:
        """Look several records up, as `find_many`, and list all with a prefix, as `list`, at once.

        Complexity: one round trip as long as there are few.
        """
        raws, below = self.catalog.gather(
            [(record.KIND, key) for record, key in places],
            [(record.KIND, prefix) for record, prefix in prefixes],
        )
        found: Known = {}
        for (record, key), raw in zip(places, raws, strict=True):
            if raw is None:
                found[record, key] = None
                continue
            with LeavingNewer():
                found[record, key] = self._shown(_decoded(record, key, raw))  # type: ignore[arg-type]
        return found, [
            [self._shown(record.decode(raw, key)) for key, raw in rows]
            for (record, _), rows in zip(prefixes, below, strict=True)
        ]

    def lately(self, record: type[R], key: str) -> R | None:
        """Return an image or a snapshot that was READY when last seen; a commit must check it."""
        raw = self.catalog.lately.source(record.KIND, key)
        if raw is None:
            return None
        found: R = _decoded(record, key, raw)  # type: ignore[arg-type]
        return found if getattr(found, "state", None) is State.READY else None

    def note_made(self, volumes: Iterable[Volume]) -> None:
        """Remember new volumes for `made_lately`; nobody was given them, and they are locked."""
        for volume in volumes:
            self.catalog.lately.note_made(volume.name, volume.encode())

    def made_lately(self, name: str) -> Volume | None:
        """Return a READY volume of `note_made` that had not changed when last seen.

        A commit must check it. If it holds, nobody has ever been given the volume.
        """
        raw = self.catalog.lately.made(name)
        found = None if raw is None else self._shown(_decoded(Volume, name, raw))
        return found if found is not None and found.state is State.READY else None

    def list(
        self,
        record: type[R],
        *,
        prefix: str = "",
        after: str = "",
        limit: int | None = None,
        wanted: Callable[[R], bool] = lambda _: True,
        leave_newer: bool = False,
    ) -> list[R]:
        """Return up to `limit` records (None: all) that are `wanted`, ordered by key.

        With `leave_newer` those of a newer server are left out: for lists and for what goes on by
        itself, never where what is missing would permit something.

        Raises:
            PreconditionError: RECORD_NEWER, without `leave_newer`.
        """
        found: list[R] = []
        size = _PAGE if limit is None else min(limit, _PAGE)
        while True:
            page = self.catalog.list(record.KIND, prefix=prefix, after=after, limit=size)
            for key, raw in page:
                after = key
                try:
                    decoded = self._shown(record.decode(raw, key))
                except PreconditionError:
                    if leave_newer:
                        continue
                    raise
                if wanted(decoded):
                    found.append(decoded)
                    if limit is not None and len(found) >= limit:
                        return found
            if len(page) < size:
                return found
            size = _PAGE  # few are wanted, it seems

    def keys(self, record: type[Record]) -> set[str]:
        """Return the keys of all records of a kind, those of newer servers included."""
        found: set[str] = set()
        after = ""
        while page := self.catalog.list(record.KIND, after=after, limit=_PAGE):
            after = page[-1][0]
            found.update(key for key, _ in page)
        return found

    def _shown(self, record: R) -> R:
        """Return a record as callers may know it: CREATING until the volume is whole."""
        if isinstance(record, Volume) and self.making.hides(record.id):
            return replace(record, state=State.CREATING)
        return record

    def volume(self, name: str, known: Known | None = None) -> Volume:
        """Return the volume `name`, which is ready.

        Raises:
            NotFoundError: VOLUME_NOT_FOUND.
        """
        found = self.find(Volume, name, known)
        if found is None or found.state is not State.READY:
            raise NotFoundError(
                f"pool {self.name!r} has no volume {name!r}; check the name",
                reason=Reason.VOLUME_NOT_FOUND,
                pool=self.name,
                volume=name,
            )
        return found

    def whole_volume(self, name: str) -> WholeVolume:
        """Return a volume with its attachments and snapshots, whatever their state.

        Complexity: one round trip for a volume that has neither.
        """
        (raw,), (attached, frozen) = self.catalog.gather(
            [(Volume.KIND, name)], [(Attachment.KIND, f"{name}/"), (Snapshot.KIND, f"{name}/")]
        )
        if raw is None:
            return None, [], []
        volume = self._shown(Volume.decode(raw, name))
        attachments = [Attachment.decode(value, key) for key, value in attached]
        snapshots = [Snapshot.decode(value, key) for key, value in frozen]
        return (
            volume,
            [one for one in attachments if one.volume_id == volume.id],
            [one for one in snapshots if one.volume_id == volume.id],
        )

    def snapshot(self, volume: str, name: str, known: Known | None = None) -> Snapshot:
        """Return the snapshot `name` of `volume`, which is ready.

        Raises:
            NotFoundError: SNAPSHOT_NOT_FOUND.
        """
        found = self.find(Snapshot, f"{volume}/{name}", known)
        if found is None or found.state is not State.READY:
            raise NotFoundError(
                f"volume {volume!r} of pool {self.name!r} has no snapshot {name!r}; check the name",
                reason=Reason.SNAPSHOT_NOT_FOUND,
                pool=self.name,
                volume=volume,
                snapshot=name,
            )
        return found

    def group_snapshot(self, name: str) -> GroupSnapshot:
        """Return the group snapshot `name`, which is ready.

        Raises:
            NotFoundError: GROUP_SNAPSHOT_NOT_FOUND.
        """
        found = self.find(GroupSnapshot, name)
        if found is None or found.state is not State.READY:
            raise NotFoundError(
                f"pool {self.name!r} has no group snapshot {name!r}; check the name",
                reason=Reason.GROUP_SNAPSHOT_NOT_FOUND,
                pool=self.name,
                group_snapshot=name,
            )
        return found

    def image(self, name: str, known: Known | None = None) -> Image:
        """Return the image `name`, which is ready.

        Raises:
            NotFoundError: IMAGE_NOT_FOUND.
        """
        found = self.find(Image, name, known)
        if found is None or found.state is not State.READY:
            raise NotFoundError(
                f"pool {self.name!r} has no image {name!r}; check the name",
                reason=Reason.IMAGE_NOT_FOUND,
                pool=self.name,
                image=name,
            )
        return found


def put(record: Record, expect: Record | Absent = ABSENT) -> Change:
    """Return the change that writes `record` where `expect` is now.

    Raises:
        PreconditionError: RECORD_NEWER.
    """
    if isinstance(expect, Record):
        expect.check_known()
    return Change(
        kind=record.KIND,
        key=record.key,
        value=record.encode(),
        expect=_bytes(expect),
        record=record,
    )


def drop(record: Record) -> Change:
    """Return the change that deletes `record`, which must be as given.

    Raises:
        PreconditionError: RECORD_NEWER.
    """
    record.check_known()
    return Change(kind=record.KIND, key=record.key, value=None, expect=record.encode())


def unchanged(record: Record) -> Change:
    """Return the expectation that `record` is still as given."""
    return Change(
        kind=record.KIND, key=record.key, value=None, expect=record.encode(), check_only=True
    )


def absent(record: type[Record], key: str) -> Change:
    """Return the expectation that there is no such record."""
    return Change(kind=record.KIND, key=key, value=None, expect=ABSENT, check_only=True)


def sync_ahead(pool: Pool, volumes: Sequence[Volume]) -> None:
    """Shorten the pause that freezing the volumes means for their writers, where that is known.

    Call it before the transaction that freezes them.
    """
    if pool.syncs_ahead is not None:
        pool.syncs_ahead.sync_ahead([volume.backend_id for volume in volumes])


class LeavingNewer(AbstractContextManager[None]):
    """Ends the block at a record of a newer server."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        return isinstance(value, PreconditionError) and value.reason is Reason.RECORD_NEWER


@lru_cache(maxsize=1024)
def _decoded(record: type[R], key: str, raw: bytes) -> R:
    return record.decode(raw, key)


def _bytes(expect: Record | Absent) -> bytes | Absent:
    return expect if isinstance(expect, Absent) else expect.encode()


def volume_lock(name: str) -> str:
    """Return the lock key of a volume and its snapshots and attachments."""
    return f"volume {name!r}"


def storage_lock(backend_id: str) -> str:
    """Return the lock key of a volume's storage, see `undisturbed`."""
    return f"the storage of volume {backend_id}"


def is_attached(pool: Pool, volume: str) -> bool:
    """Return whether a client that reaches the storage itself may open a volume that is locked.

    A record that a newer server wrote counts, too. *Complexity*: one round trip, or nothing where
    this process serves all volumes itself.
    """
    if pool.backend.caps.joins_catalog:
        return False
    return pool.catalog.count(Attachment.KIND, prefix=f"{volume}/", limit=1) > 0


def undisturbed(pool: Pool, backend_id: str) -> AbstractContextManager[None]:
    """Let nothing of a volume be freed behind an answer for the block; its lock is held."""
    if pool.backend.caps.joins_catalog:
        return nullcontext()
    return pool.locks.hold(shared=[storage_lock(backend_id)])


def group_lock(name: str) -> str:
    """Return the lock key of a group snapshot; its volumes have locks of their own."""
    return f"group snapshot {name!r}"


def host_lock(name: str) -> str:
    """Return the lock key of a host: shared while it gets a right, exclusive while it is fenced."""
    return f"host {name!r}"


def image_lock(name: str) -> str:
    """Return the lock key of an image."""
    return f"image {name!r}"


def now_ns() -> int:
    """Return the time for records."""
    return time.time_ns()
