"""Catalog records to messages, and the enums of messages to the words of the model."""

from collections.abc import Iterable

from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import status_pb2

from volcore.errors import InvalidArgumentError, Reason
from volcore.model import records
from volcore.model.checks import Check, Finding
from volcore.model.names import etag
from volcore.v1 import (
    attachment_pb2,
    check_pb2,
    group_snapshot_pb2,
    image_pb2,
    operation_pb2,
    snapshot_pb2,
    volume_pb2,
)
from volcore.wire import names, status

_SOURCE_KINDS = {
    records.SourceKind.IMAGE: volume_pb2.SOURCE_KIND_IMAGE,
    records.SourceKind.SNAPSHOT: volume_pb2.SOURCE_KIND_SNAPSHOT,
    records.SourceKind.VOLUME: volume_pb2.SOURCE_KIND_VOLUME,
}
_FORMATS = {
    image_pb2.IMAGE_FORMAT_UNSPECIFIED: "",
    image_pb2.IMAGE_FORMAT_RAW: "raw",
    image_pb2.IMAGE_FORMAT_QCOW2: "qcow2",
    image_pb2.IMAGE_FORMAT_VMDK: "vmdk",
    image_pb2.IMAGE_FORMAT_VDI: "vdi",
    image_pb2.IMAGE_FORMAT_VHDX: "vhdx",
}
_FORMATS_BY_NAME = {name: number for number, name in _FORMATS.items()}
_ACCESS_MODES = {
    attachment_pb2.ACCESS_MODE_UNSPECIFIED: records.AccessMode.READ_WRITE,
    attachment_pb2.ACCESS_MODE_READ_WRITE: records.AccessMode.READ_WRITE,
    attachment_pb2.ACCESS_MODE_READ_ONLY: records.AccessMode.READ_ONLY,
    attachment_pb2.ACCESS_MODE_READ_WRITE_SHARED: records.AccessMode.READ_WRITE_SHARED,
}
_ACCESS_MODES_BY_NAME = {
    records.AccessMode.READ_WRITE: attachment_pb2.ACCESS_MODE_READ_WRITE,
    records.AccessMode.READ_ONLY: attachment_pb2.ACCESS_MODE_READ_ONLY,
    records.AccessMode.READ_WRITE_SHARED: attachment_pb2.ACCESS_MODE_READ_WRITE_SHARED,
}
_PHASES = {
    records.Phase.QUEUED: operation_pb2.OPERATION_PHASE_QUEUED,
    records.Phase.RUNNING: operation_pb2.OPERATION_PHASE_RUNNING,
    records.Phase.SUCCEEDED: operation_pb2.OPERATION_PHASE_SUCCEEDED,
    records.Phase.FAILED: operation_pb2.OPERATION_PHASE_FAILED,
    records.Phase.CANCELLED: operation_pb2.OPERATION_PHASE_CANCELLED,
}


def volume_message(
    pool: str,
    found: records.Volume | records.TrashedVolume,
    *,
    allocated_bytes: int = 0,
    exclusive_bytes: int | None = None,
    depth: int = 0,
) -> volume_pb2.Volume:
    """Return the message of a volume, also of one in the trash; the figures are the FULL view's."""
    trashed = found if isinstance(found, records.TrashedVolume) else None
    record = found.volume if isinstance(found, records.TrashedVolume) else found
    return volume_pb2.Volume(
        name=str(names.VolumeName(pool, record.name)),
        uid=record.id,
        size_bytes=record.size_bytes,
        source=None if record.source is None else _source_message(pool, record.source),
        labels=record.labels,
        create_time=timestamp(record.create_time_ns),
        etag=etag(record.id, record.revision),
        state=(
            volume_pb2.VOLUME_STATE_READY if trashed is None else volume_pb2.VOLUME_STATE_DELETED
        ),
        delete_time=None if trashed is None else timestamp(trashed.delete_time_ns),
        purge_time=None if trashed is None else timestamp(trashed.purge_time_ns),
        allocated_bytes=allocated_bytes,
        exclusive_bytes=exclusive_bytes,
        depth=depth,
        backend_name=record.backend_id,
    )


def source_name(pool: str, source: records.Source) -> str:
    """Return the resource name that the source had when the volume was made."""
    if source.kind is records.SourceKind.IMAGE:
        return str(names.ImageName(pool, source.name))
    if source.kind is records.SourceKind.VOLUME:
        return str(names.VolumeName(pool, source.name))
    volume, _, snapshot = source.name.partition("/")
    return str(names.SnapshotName(pool, volume, snapshot))


def _source_message(pool: str, source: records.Source) -> volume_pb2.VolumeSource:
    return volume_pb2.VolumeSource(
        kind=_SOURCE_KINDS[source.kind], name=source_name(pool, source), uid=source.id
    )


def snapshot_message(pool: str, record: records.Snapshot) -> snapshot_pb2.Snapshot:
    """Return the message of a snapshot."""
    return snapshot_pb2.Snapshot(
        name=str(names.SnapshotName(pool, record.volume, record.name)),
        uid=record.id,
        size_bytes=record.size_bytes,
        labels=record.labels,
        create_time=timestamp(record.create_time_ns),
        backend_name=record.backend_id,
        group_snapshot=str(names.GroupSnapshotName(pool, record.name)) if record.group_id else "",
    )


def group_snapshot_message(
    pool: str, record: records.GroupSnapshot, members: Iterable[records.Snapshot]
) -> group_snapshot_pb2.GroupSnapshot:
    """Return the message of a group snapshot with its `members`."""
    return group_snapshot_pb2.GroupSnapshot(
        name=str(names.GroupSnapshotName(pool, record.name)),
        uid=record.id,
        snapshots=[snapshot_message(pool, member) for member in members],
        labels=record.labels,
        create_time=timestamp(record.create_time_ns),
    )


def image_message(pool: str, record: records.Image) -> image_pb2.Image:
    """Return the message of an image."""
    return image_pb2.Image(
        name=str(names.ImageName(pool, record.name)),
        uid=record.id,
        size_bytes=record.size_bytes,
        digest=record.digest,
        source_format=_FORMATS_BY_NAME.get(
            record.source_format, image_pb2.IMAGE_FORMAT_UNSPECIFIED
        ),
        labels=record.labels,
        create_time=timestamp(record.create_time_ns),
        backend_name=record.backend_volume_id,
        adopted_from=record.published_from if record.source_format == "rbd" else "",
    )


def attachment_message(pool: str, record: records.Attachment) -> attachment_pb2.Attachment:
    """Return the message of an attachment, without its connection."""
    return attachment_pb2.Attachment(
        name=str(names.AttachmentName(pool, record.volume, record.host)),
        host=record.host,
        access_mode=_ACCESS_MODES_BY_NAME[record.access_mode],
        state=(
            attachment_pb2.ATTACHMENT_STATE_STANDBY
            if record.standby
            else attachment_pb2.ATTACHMENT_STATE_ACTIVE
        ),
        hand_over_from=record.hand_over_from,
        client_addresses=record.client_addresses,
        create_time=timestamp(record.create_time_ns),
    )


def operation_message(
    pool: str, record: records.Operation, *, request_id: str = ""
) -> operation_pb2.Operation:
    """Return the message of an operation; `request_id` is that of the call that shows it."""
    return operation_pb2.Operation(
        name=str(names.OperationName(pool, record.id)),
        action=record.action,
        target=record.target,
        phase=_PHASES[record.phase],
        done_bytes=record.done_bytes,
        total_bytes=record.total_bytes,
        error=_operation_error(record, request_id),
        create_time=timestamp(record.create_time_ns),
        end_time=timestamp(record.end_time_ns) if record.end_time_ns else None,
        cancel_requested=record.cancel_requested,
        check=None if record.check is None else _check_message(record.check),
        obstacle=record.obstacle,
    )


def _check_message(check: Check) -> check_pb2.Check:
    return check_pb2.Check(
        heal=check.heal,
        checked_bytes=check.checked_bytes,
        bad_block_count=check.bad_blocks,
        healed_block_count=check.healed_blocks,
        damage=[damage_message(finding) for finding in check.findings],
        damage_count=check.finding_count,
    )


def damage_message(finding: Finding) -> check_pb2.DamagedBlocks:
    """Return the message of a finding."""
    return check_pb2.DamagedBlocks(
        kind=f"DAMAGE_KIND_{finding.kind}",
        names=finding.names,
        name_count=finding.name_count,
        offset_bytes=finding.offset_bytes,
        length_bytes=finding.length_bytes,
        layer=finding.layer,
        healed=finding.healed,
        detail=finding.detail,
    )


def _operation_error(record: records.Operation, request_id: str) -> status_pb2.Status | None:
    if record.phase is not records.Phase.FAILED:
        return None
    error = status.error_of(record.error_status, record.error_reason, record.error_message)
    return status.to_status(error, request_id=request_id)


def format_name(number: int, *, field: str = "format") -> str:
    """Return the model's word for an image format; empty for UNSPECIFIED.

    Raises:
        InvalidArgumentError: BAD_FIELD, here and in `access_mode`.
    """
    found = _FORMATS.get(number)  # type: ignore[call-overload]
    if found is None:
        raise _unknown(number, field, "image format")
    return str(found)


def access_mode(number: int, *, field: str = "access_mode") -> records.AccessMode:
    """Return the model's access mode; READ_WRITE for UNSPECIFIED."""
    found = _ACCESS_MODES.get(number)  # type: ignore[call-overload]
    if found is None:
        raise _unknown(number, field, "access mode")
    return records.AccessMode(found)


def timestamp(time_ns: int) -> Timestamp:
    """Return the message of a time in nanoseconds since the epoch."""
    seconds, nanos = divmod(time_ns, 1_000_000_000)
    return Timestamp(seconds=seconds, nanos=nanos)


def _unknown(number: int, field: str, what: str) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"{field} is {number}, which is no {what} of this version; choose a listed one",
        reason=Reason.BAD_FIELD,
        field=field,
    )
