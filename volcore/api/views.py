"""What the engine returns besides records, as messages."""

from volcore.api.calls import request_id
from volcore.backends.contract import RbdConnection
from volcore.engine.views import AttachmentView, PoolView
from volcore.model.records import Operation
from volcore.v1 import attachment_pb2, operation_pb2, pool_pb2
from volcore.wire import convert, names


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
            connection=view.connection,
        ),
        capacity_bytes=view.stats.capacity_bytes,
        available_bytes=view.stats.available_bytes,
        allocated_bytes=view.stats.allocated_bytes,
        provisioned_bytes=view.provisioned_bytes,
        volume_count=view.volume_count,
        image_count=view.image_count,
    )


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
            )
        )
    return message


def operation_message(pool: str, record: Operation) -> operation_pb2.Operation:
    """Return the message of an operation, as the call at hand sees it."""
    return convert.operation_message(pool, record, request_id=request_id())
