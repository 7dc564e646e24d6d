"""The records of the catalog: frozen values with a stable JSON form (`record.py`).

Times are integer nanoseconds since the epoch, UTC.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import ClassVar

from volcore.model.checks import Check, Finding
from volcore.model.intents import IntentAction as IntentAction
from volcore.model.record import LATER
from volcore.model.record import Kind as Kind
from volcore.model.record import Record as Record


class State(StrEnum):
    """Life of a volume, snapshot, image or warm clone; only READY ones are visible or claimed."""

    CREATING = "CREATING"
    READY = "READY"
    DELETING = "DELETING"


class SourceKind(StrEnum):
    """What a volume was made from."""

    IMAGE = "IMAGE"
    SNAPSHOT = "SNAPSHOT"
    VOLUME = "VOLUME"


class AccessMode(StrEnum):
    """How a host may use a volume."""

    READ_WRITE = "READ_WRITE"
    READ_ONLY = "READ_ONLY"
    READ_WRITE_SHARED = "READ_WRITE_SHARED"
    """Several hosts write at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where a volume's first content came from; stays valid after the source is gone."""

    kind: SourceKind
    name: str
    """Key of the source record: image name, volume name, or volume name / snapshot name."""
    id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume(Record):
    """A writable virtual disk."""

    KIND: ClassVar[Kind] = Kind.VOLUME

    name: str
    id: str
    backend_id: str
    size_bytes: int
    state: State
    source: Source | None = None
    labels: dict[str, str] = field(default_factory=dict)
    create_time_ns: int
    request_size_bytes: int = 0
    """Size that the creating call asked for (0: the source's); a repeat is compared with it."""
    undeleted_from: str = field(default="", metadata=LATER)
    """Name that it had in the trash, if it came back from there."""
    revision: int = 1

    @property
    def key(self) -> str:
        """Key of this record within its kind."""
        return self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot(Record):
    """A frozen point of one volume."""

    KIND: ClassVar[Kind] = Kind.SNAPSHOT

    volume: str
    name: str
    id: str
    volume_id: str
    """Id of the volume record; a new volume of the same name has another."""
    backend_volume_id: str
    backend_id: str
    size_bytes: int
    state: State
    labels: dict[str, str] = field(default_factory=dict)
    create_time_ns: int
    revision: int = 1
    group_id: str = field(default="", metadata=LATER)
    """Id of the group snapshot that it is part of, which has the same name."""
    renamed_from: str = field(default="", metadata=LATER)
    """Its name before the last rename: a repeat of that is told from a mistake."""

    @property
    def key(self) -> str:
        """Key of this record within its kind."""
        return f"{self.volume}/{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrashedVolume(Record):
    """A deleted volume that can come back; it keeps the whole volume, nothing else does."""

    KIND: ClassVar[Kind] = Kind.TRASH

    volume: Volume
    """As it was; its name may belong to another volume now."""
    snapshots: tuple[Snapshot, ...] = ()
    delete_time_ns: int
    purge_time_ns: int
    """When it is purged."""

    @property
    def key(self) -> str:
        """Key of this record within its kind."""
        return f"{self.volume.name}/{self.volume.id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupSnapshot(Record):
    """Several volumes frozen at one instant; each has a snapshot of the same name."""

    KIND: ClassVar[Kind] = Kind.GROUP_SNAPSHOT

    name: str
    id: str
    volumes: tuple[str, ...]
    """Names of its volumes, in order."""
    state: State
    labels: dict[str, str] = field(default_factory=dict)
    create_time_ns: int
    revision: int = 1

    @property
    def key(self) -> str:
        """Key of this record within its kind."""
        return self.name

    @property
    def member_keys(self) -> tuple[str, ...]:
        """Keys of its snapshots."""
        return tuple(f"{volume}/{self.name}" for volume in self.volumes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Image(Record):
    """A golden, read-only, checksummed source for deployment."""

    KIND: ClassVar[Kind] = Kind.IMAGE

    name: str
    id: str
    backend_volume_id: str
    backend_snapshot_id: str
    size_bytes: int
    digest: str
    """Content digest, see `volcore.model.digest`; empty when it was adopted."""
    source_format: str
    """Format it was imported from, `snapshot` when it was published, or `rbd` when adopted."""
    published_from: str = ""
    """`volume/snapshot` key and id when published, `rbd://...` when adopted, else empty."""
    source_path: str = field(default="", metadata=LATER)
    """File on the server that it was imported from, empty if it was not: bad blocks may be healed
    from there. Never shown."""
    state: State
    labels: dict[str, str] = field(default_factory=dict)
    create_time_ns: int
    revision: int = 1

    @property
    def key(self) -> str:
        """Key of this record within its kind."""
        return self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmClone(Record):
    """A clone of an image that is no volume yet; who deletes a READY one's record has claimed it.

    It is its own intent: one that is not READY is to be deleted by whoever finds it at a start.
    """

    KIND: ClassVar[Kind] = Kind.WARM_CLONE

    image: str
    id: str
    image_id: str
    """Id of the image record; a new image of the same name has another."""
    backend_id: str
    """Stays that of the volume that it becomes."""
    size_bytes: int
    state: State
    create_time_ns: int

    @property
    def key(self) -> str:
        """Key of this record within its kind."""
        return f"{self.image}/{self.id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Attachment(Record):
    """A host's right to use a volume."""

    KIND: ClassVar[Kind] = Kind.ATTACHMENT

    volume: str
    host: str
    volume_id: str
    access_mode: AccessMode
    create_time_ns: int
    revision: int = 1
    hand_over_from: str = field(default="", metadata=LATER)
    """Host whose right to write it was made to take over; such an attachment has its own export."""
    standby: bool = field(default=False, metadata=LATER)
    """It may read but not write now: before the hand-over its target, after it its source."""
    client_addresses: tuple[str, ...] = field(default=(), metadata=LATER)
    """Addresses of the host that the caller named, see `volcore.model.addresses`."""

    @property
    def key(self) -> str:
        """Key of this record within its kind."""
        return f"{self.volume}/{self.host}"


class Phase(StrEnum):
    """Life of an operation; the last three are final."""

    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation(Record):
    """Durable record of long work."""

    KIND: ClassVar[Kind] = Kind.OPERATION

    id: str
    action: str
    """`import`, `flatten`, `publish`, `verify`, `scrub` or `delete`."""
    target: str
    """Resource name that it works on."""
    subject_id: str
    """Id of the record that it works on."""
    phase: Phase
    done_bytes: int = 0
    total_bytes: int = 0
    cancel_requested: bool = False
    error_status: str = ""
    error_reason: str = ""
    error_message: str = ""
    create_time_ns: int
    end_time_ns: int = 0
    check: Check | None = field(default=None, metadata=LATER)
    """What a verify or scrub was asked and has found."""
    obstacle: str = field(default="", metadata=LATER)
    """Why it cannot go on now; it is tried again by itself."""
    revision: int = 1

    @property
    def key(self) -> str:
        """Key of this record within its kind."""
        return self.id

    @property
    def finished(self) -> bool:
        """Whether the phase is final."""
        return self.phase in {Phase.SUCCEEDED, Phase.FAILED, Phase.CANCELLED}


@dataclass(frozen=True, slots=True, kw_only=True)
class Intent(Record):
    """A multi-step change, written down before it starts and erased when it has ended."""

    KIND: ClassVar[Kind] = Kind.INTENT

    id: str
    action: IntentAction
    subject_key: str
    """Key of the record being changed: volume, snapshot, group snapshot or image."""
    subject_id: str
    backend_volume_id: str = ""
    backend_snapshot_id: str = ""
    size_bytes: int = 0
    target_name: str = field(default="", metadata=LATER)
    """What a released volume's storage shall be called."""
    owner: str
    """Server that works on it."""
    create_time_ns: int

    @property
    def key(self) -> str:
        """Key of this record within its kind."""
        return self.id


@dataclass(frozen=True, slots=True, kw_only=True)
class Health(Record):
    """What is known about the stored bytes of a pool."""

    KIND: ClassVar[Kind] = Kind.HEALTH
    KEY: ClassVar[str] = "pool"

    first_time_ns: int
    """When the clock of the schedule began."""
    scrub_begin_ns: int = 0
    scrub_end_ns: int = 0
    """When the last complete scrub began and ended; 0: never."""
    scrub_checked_bytes: int = 0
    damaged_blocks: int = 0
    """Blocks known to be bad now."""
    damage: tuple[Finding, ...] = ()
    """Where they are; a bounded selection."""
    revision: int = 1

    @property
    def key(self) -> str:
        """Key of this record within its kind."""
        return self.KEY
