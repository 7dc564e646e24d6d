"""What the engine returns besides records, as messages."""

from collections.abc import Sequence
from typing import Final

from google.protobuf.duration_pb2 import Duration

from volcore.api.calls import request_id
from volcore.backends.adopting import ForeignImage
from volcore.backends.contract import RbdConnection, ShortPath
from volcore.engine.fence_plan import FencedClient, FencePlan
from volcore.engine.stock import StockFigures
from volcore.engine.views import AttachmentView, GroupSnapshotView, PoolView
from volcore.model.faults import Fault
from volcore.model.fences import FencedHost
from volcore.model.records import Health, Operation
from volcore.v1 import (
    adoptable_image_pb2,
    attachment_pb2,
    fenced_host_pb2,
    group_snapshot_pb2,
    operation_pb2,
    pool_fault_pb2,
    pool_pb2,
)
from volcore.wire import convert, names

_DETAIL_CHARACTERS_MAX: Final = 250
"""Of the reason that the short path is not used: at most 1000 bytes."""


def fault_message(fault: Fault) -> pool_fault_pb2.PoolFault:
    """Return the message of what an audit has found."""
    return pool_fault_pb2.PoolFault(
        kind=fault.kind,
        concerns=fault.concerns,
        meaning=fault.meaning,
        remedy=fault.remedy,
        repairable=fault.mendable,
        repaired=fault.mended,
    )


def pool_message(view: PoolView) -> pool_pb2.Pool:
    """Return the message of a pool and its figures."""
    return pool_pb2.Pool(
        name=str(names.PoolName(view.name)),
        backend=view.caps.kind,
        capabilities=pool_pb2.PoolCapabilities(
            block_size_bytes=view.caps.block_size_bytes,
            depth_max=view.caps.depth_max,
            snapshots_max=view.caps.snapshots_max,
            checksums=view.caps.checksums,
            flatten=view.flatten,
            revert=view.revert,
            adopt=view.adopt,
            connection=view.connection,
            group_snapshot=view.group_snapshot,
            verify=view.verify,
            diff=view.diff,
        ),
        capacity_bytes=view.stats.capacity_bytes,
        available_bytes=view.stats.available_bytes,
        allocated_bytes=view.stats.allocated_bytes,
        provisioned_bytes=view.provisioned_bytes,
        volume_count=view.volume_count,
        image_count=view.image_count,
        health=_health_message(view.health) if view.verify else None,
        deleted_volume_count=view.deleted_volume_count,
        trash_retention=_duration(view.trash_retention_s),
        short_path=None if view.short_path is None else _short_path_message(view.short_path),
        warm_clones=_warm_clones_message(view.warm_clones),
    )


def adoptable_message(image: ForeignImage) -> adoptable_image_pb2.AdoptableImage:
    """Return the message of an image that may be adopted, or of why not."""
    message = adoptable_image_pb2.AdoptableImage(
        backend_name=image.name,
        size_bytes=image.size_bytes,
        adoptable=not image.obstacle,
        obstacle=image.obstacle,
        detail=image.detail,
    )
    for snapshot in image.snapshots:
        message.snapshots.add(backend_name=snapshot.name, size_bytes=snapshot.size_bytes)
    return message


def _duration(length_s: float) -> Duration | None:
    """Return the message of a time span, None for none."""
    if not length_s:
        return None
    message = Duration()
    message.FromNanoseconds(int(length_s * 10**9))
    return message


def _short_path_message(found: ShortPath) -> pool_pb2.PoolShortPath:
    return pool_pb2.PoolShortPath(
        state=f"STATE_{found.state}", detail=found.detail[:_DETAIL_CHARACTERS_MAX]
    )


def _warm_clones_message(found: StockFigures) -> pool_pb2.PoolWarmClones | None:
    if not found.count_max:
        return None
    return pool_pb2.PoolWarmClones(
        ready_count=found.ready_count, target_count=found.target_count, count_max=found.count_max
    )


def _health_message(health: Health | None) -> pool_pb2.PoolHealth:
    if health is None:
        return pool_pb2.PoolHealth()
    message = pool_pb2.PoolHealth(
        damaged_block_count=health.damaged_blocks,
        damage=[convert.damage_message(finding) for finding in health.damage],
        last_scrub_checked_bytes=health.scrub_checked_bytes,
    )
    if health.scrub_end_ns:
        message.last_scrub_time.CopyFrom(convert.timestamp(health.scrub_end_ns))
        message.last_scrub_duration.FromNanoseconds(health.scrub_end_ns - health.scrub_begin_ns)
    return message


def group_snapshot_message(pool: str, view: GroupSnapshotView) -> group_snapshot_pb2.GroupSnapshot:
    """Return the message of a group snapshot and its members."""
    return convert.group_snapshot_message(pool, view.record, view.members)


def attachment_message(pool: str, view: AttachmentView) -> attachment_pb2.Attachment:
    """Return the message of an attachment and its connection."""
    message = convert.attachment_message(pool, view.record)
    connection = view.connection
    if isinstance(connection, RbdConnection):
        message.rbd.CopyFrom(
            attachment_pb2.RbdConnection(
                cluster_fsid=connection.cluster_fsid,
                monitors=connection.monitors,
                pool=connection.pool,
                image=connection.image,
                user=connection.user,
                conf_path=connection.conf_path,
                secret_uuid=connection.secret_uuid,
            )
        )
    else:
        message.nbd.CopyFrom(
            attachment_pb2.NbdConnection(
                uri=connection.uri,
                export_name=connection.export_name,
                socket_path=connection.socket_path,
                host=connection.host,
                port=connection.port,
                tls_hostname=connection.tls_hostname,
            )
        )
    return message


def fenced_host_message(pool: str, record: FencedHost) -> fenced_host_pb2.FencedHost:
    """Return the message of a fenced host."""
    return fenced_host_pb2.FencedHost(
        name=str(names.FencedHostName(pool, record.host)),
        host=record.host,
        state=f"FENCED_HOST_STATE_{record.state}",
        client_addresses=record.client_addresses,
        volumes=[str(names.VolumeName(pool, volume)) for volume in record.volumes],
        create_time=convert.timestamp(record.create_time_ns),
    )


def fence_plan_message(pool: str, plan: FencePlan) -> fenced_host_pb2.FencePlan:
    """Return the message of what fencing a host will hit."""

    def volume(name: str) -> str:
        return str(names.VolumeName(pool, name))

    def clients(found: Sequence[FencedClient]) -> list[fenced_host_pb2.FencedClient]:
        return [
            fenced_host_pb2.FencedClient(
                address=one.address,
                declared=one.declared,
                volumes=[volume(name) for name in one.volumes],
            )
            for one in found
        ]

    attached = (key.split("/") for key in plan.attachments)
    return fenced_host_pb2.FencePlan(
        clients=clients(plan.clients),
        attachments=[str(names.AttachmentName(pool, *parts)) for parts in attached],
        other_volumes=[str(names.VolumeName(*other)) for other in plan.other_volumes],
        spared_clients=clients(plan.spared_clients),
        volumes_without_clients=[volume(name) for name in plan.volumes_without_clients],
        etag=plan.etag,
    )


def operation_message(pool: str, record: Operation) -> operation_pb2.Operation:
    """Return the message of an operation, as the call at hand sees it."""
    return convert.operation_message(pool, record, request_id=request_id())
