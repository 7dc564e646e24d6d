"""The records of the catalog: frozen values with a stable JSON form.

Each record encodes to canonical JSON (sorted keys, no spaces) with a format number `v`; equal bytes
mean equal records, which is what the catalog compares. A record of a newer format is refused, never
rewritten. Times are integer nanoseconds since the epoch, UTC.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from functools import partial
from typing import Any, ClassVar, Final, Self, get_origin, get_type_hints

from volcore.errors import IntegrityError, Reason
from volcore.model.checks import Check, Finding
from volcore.model.intents import IntentAction as IntentAction

FORMAT: Final = 1
_RAW: Final = "_raw"
_LATER: Final = {"later": True}
"""Marks a field added after format 1 was in use: absent from the JSON form while it has its
default, so that older records keep their bytes, which the catalog compares."""


class Kind(StrEnum):
    """Kinds of catalog records; a record's key is unique within its kind."""

    VOLUME = "volume"
    """key: volume name."""
    SNAPSHOT = "snapshot"
    """key: volume name / snapshot name."""
    GROUP_SNAPSHOT = "group_snapshot"
    """key: group snapshot name."""
    IMAGE = "image"
    """key: image name."""
    ATTACHMENT = "attachment"
    """key: volume name / host."""
    OPERATION = "operation"
    """key: operation id."""
    INTENT = "intent"
    """key: intent id."""
    TRASH = "trash"
    """key: volume name / volume id."""
    HEALTH = "health"
    """key: `pool`; there is one."""
    WARM_CLONE = "warm_clone"
    """key: image name / id."""
    FENCED_HOST = "fenced_host"
    """key: host."""


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


class Record:
    """Base of all records: canonical encoding and strict decoding."""

    KIND: ClassVar[Kind]

    @property
    def key(self) -> str:
        """Key of this record within its kind."""
        raise AssertionError("each record names its key")

    def encode(self) -> bytes:
        """Return the canonical JSON form; made once, since records never change."""
        made: bytes | None = self.__dict__.get(_RAW)
        if made is None:
            made = _ENCODER.encode({"v": FORMAT, **_fields(self)}).encode()
            self.__dict__[_RAW] = made
        return made

    @classmethod
    def decode(cls, raw: bytes) -> Self:
        """Return the record that `raw` holds.

        Raises:
            IntegrityError: BAD_RECORD, when it is not such a record, or of a newer format.
        """
        try:
            body = _DECODER.decode(raw.decode())
            found = body.pop("v")
            if found != FORMAT:
                raise IntegrityError(
                    f"a {cls.KIND} record has format {found}, this server knows {FORMAT}; "
                    "it was left alone: use the newer server",
                    reason=Reason.BAD_RECORD,
                )
            readers = _readers(cls)
            added = body.keys() - readers.names
            made = cls(**readers.read({k: body[k] for k in body.keys() - added} if added else body))
        except (ValueError, KeyError, TypeError, AttributeError) as err:
            raise IntegrityError(
                f"a {cls.KIND} record of the catalog cannot be read: {err}; restore the catalog",
                reason=Reason.BAD_RECORD,
            ) from err
        if not added:  # else it is not ours to write again as it is
            made.__dict__[_RAW] = raw
        return made

    def but(self, **changes: Any) -> Self:
        """Return a copy with `changes` and the next revision, where the record has one."""
        if hasattr(self, "revision"):
            changes.setdefault("revision", self.revision + 1)
        return replace(self, **changes)  # type: ignore[type-var]


def _fields(record: Any) -> dict[str, Any]:
    """Return the fields of a record or of a value in it, without copying what is in them."""
    kind = type(record)
    if kind not in _FIELDS:
        _FIELDS[kind] = [
            (one.name, one.default if one.metadata else _ALWAYS) for one in fields(kind)
        ]
    return {
        name: value
        for name, default in _FIELDS[kind]
        if (value := getattr(record, name)) is not default and value != default
    }


_ALWAYS: Final = object()
"""Stands for the default of a field that is written whatever its value."""
_FIELDS: Final[dict[Any, list[tuple[str, Any]]]] = {}
_ENCODER: Final = json.JSONEncoder(sort_keys=True, separators=(",", ":"), default=_fields)
"""Made once: a record is written and compared in its JSON form several times in each change."""

_DECODER: Final = json.JSONDecoder()


class _Readers:
    """How the fields of a record, or of a value in it, are rebuilt from their JSON form."""

    def __init__(self, kind: Any) -> None:
        hints = get_type_hints(kind)
        hints.pop("KIND", None)
        self.names = frozenset(hints)
        pairs = ((name, _reader(hint)) for name, hint in hints.items())
        self._special = [(name, reader) for name, reader in pairs if reader is not None]

    def read(self, body: dict[str, Any]) -> dict[str, Any]:
        """Rebuild what is no plain value, in place."""
        for name, reader in self._special:
            if name in body:
                body[name] = reader(body[name])
        return body


_READERS: Final[dict[Any, _Readers]] = {}


def _readers(kind: Any) -> _Readers:
    """Return the readers of a record's class, which are worked out once."""
    found = _READERS.get(kind)
    if found is None:
        found = _READERS[kind] = _Readers(kind)
    return found


def _reader(hint: Any) -> Callable[[Any], Any] | None:
    """Return what rebuilds a value of this type: enums, tuples, nested values; None: it stays."""
    if get_origin(hint) is tuple:
        part = _reader(hint.__args__[0])
        return tuple if part is None else lambda value: tuple(map(part, value))
    for candidate in getattr(hint, "__args__", ()) or (hint,):
        if isinstance(candidate, type) and issubclass(candidate, StrEnum):
            return {member.value: member for member in candidate}.__getitem__
        if isinstance(candidate, type) and hasattr(candidate, "__dataclass_fields__"):
            return partial(_nested, candidate)
    return None


def _nested(kind: type, value: Any) -> Any:
    if value is None:
        return None
    return kind(**_readers(kind).read(value))


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
    undeleted_from: str = field(default="", metadata=_LATER)
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
    group_id: str = field(default="", metadata=_LATER)
    """Id of the group snapshot that it is part of, which has the same name."""
    renamed_from: str = field(default="", metadata=_LATER)
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
    source_path: str = field(default="", metadata=_LATER)
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
    hand_over_from: str = field(default="", metadata=_LATER)
    """Host whose right to write it was made to take over; such an attachment has its own export."""
    standby: bool = field(default=False, metadata=_LATER)
    """It may read but not write now: before the hand-over its target, after it its source."""
    client_addresses: tuple[str, ...] = field(default=(), metadata=_LATER)
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
    check: Check | None = field(default=None, metadata=_LATER)
    """What a verify or scrub was asked and has found."""
    obstacle: str = field(default="", metadata=_LATER)
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
    target_name: str = field(default="", metadata=_LATER)
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
