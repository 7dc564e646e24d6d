"""What the engine takes and returns besides catalog records."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO

from volcore.backends.contract import BackendCaps, PoolStats, RbdConnection, ShortPath
from volcore.engine.stock import StockFigures
from volcore.images.arrival import HandedFile
from volcore.images.spool import Piece
from volcore.model.extent import Extent
from volcore.model.records import Attachment, GroupSnapshot, Health, Snapshot, SourceKind


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceRef:
    """What a volume shall be made from: key of an image, a volume, or `volume/snapshot`."""

    kind: SourceKind
    key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateVolume:
    """Request for one volume; `size_bytes` 0 means the source's size."""

    name: str
    source: SourceRef | None = None
    size_bytes: int = 0
    labels: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class NbdConnection:
    """Where an NBD export is; `socket_path` is empty for TCP, `tls_hostname` without TLS."""

    uri: str
    export_name: str
    socket_path: str = ""
    host: str = ""
    port: int = 0
    tls_hostname: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttachmentView:
    """An attachment and how to reach its volume."""

    record: Attachment
    connection: NbdConnection | RbdConnection


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupSnapshotView:
    """A group snapshot and its snapshots, in the order of their volumes' names."""

    record: GroupSnapshot
    members: tuple[Snapshot, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolView:
    """A pool and its figures."""

    name: str
    caps: BackendCaps
    flatten: bool
    revert: bool
    adopt: bool
    group_snapshot: bool
    connection: str
    """`nbd` or `rbd`."""
    stats: PoolStats
    provisioned_bytes: int
    """Of the volumes, those in the trash included."""
    deleted_volume_count: int
    """Volumes in the trash."""
    trash_retention_s: float
    volume_count: int
    image_count: int
    verify: bool
    diff: bool
    health: Health | None
    """What scrubs have found; None before the first one, and where there are none."""
    short_path: ShortPath | None
    """Whether the short path for clones is used; None: there is none."""
    warm_clones: StockFigures


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportRequest:
    """What to import: a file on the server, one that was handed over, or the bytes of an upload.

    `format_name` is `raw`, `qcow2`, `vmdk`, `vdi`, `vhdx`, or empty to find out. `chunks` yields
    the file's bytes in order; when it raises, the import stops and leaves nothing.
    """

    name: str
    format_name: str = ""
    server_path: str = ""
    handed: HandedFile | None = None
    chunks: Iterator[Piece] | None = None
    upload_size_bytes: int = 0
    expected_digest: str = ""
    labels: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageExport:
    """A file being exported: its size and its pieces, ascending; gaps are zeroes."""

    file_size_bytes: int
    pieces: Iterator[tuple[int, bytes]]


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotDiff:
    """Where a snapshot may differ: its size, and ascending extents that are DATA or ZERO."""

    size_bytes: int
    extents: Sequence[Extent]


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedFile:
    """A file opened for import; the inspected descriptor is the one that is read."""

    file: BinaryIO
    size_bytes: int
