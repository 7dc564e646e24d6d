"""Attach and detach as Cinder does: by connector, live migration included.

volcore lets one host write. In a live migration Nova asks for the second host while the first one
still writes: that host is attached on standby, and takes over when the first one is detached. The
image's exclusive lock decides meanwhile who writes.

Volumes of a multi-attach type are attached to each host in the mode that all share.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

from volcore.client import Client
from volcore.errors import InvalidArgumentError, NotFoundError, PreconditionError, Reason
from volcore.model import names
from volcore.v1 import attachment_pb2


def host_of(connector: Mapping[str, Any]) -> str:
    """Return the name under which volcore knows the host of a connector."""
    host = str(connector["host"])
    try:
        return names.check_name(host, field="host")
    except InvalidArgumentError:
        return f"host-{hashlib.sha256(host.encode()).hexdigest()[:32]}"


def note(volume: Any, connector: Mapping[str, Any]) -> None:
    """Let Cinder know of a connection that is about to be made.

    It notes the connector only afterwards, and forgets to end a connection that it has not noted:
    that of a request which failed, or was cut off by a kill. Multi-attach volumes need no note:
    `delete` ends what they have.
    """
    if volume.status == "available":  # nobody has reserved it, so there is no attachment
        return
    begun = [one for one in volume.volume_attachment if not one.connector]
    if len(begun) == 1:
        begun[0].connector = dict(connector)
        begun[0].attach_status = "attaching"
        begun[0].save()


def attach(client: Client, volume: str, host: str) -> attachment_pb2.Attachment:
    """Give `host` the volume, on standby if another host may write; repeatable."""
    try:
        return client.attach_volume(volume, host)
    except PreconditionError as err:
        if err.reason is not Reason.VOLUME_IN_USE:
            raise
        attached = {one.host: one for one in client.list_attachments(volume)}
        if host in attached:
            source = attached[host].hand_over_from
        else:
            active = attachment_pb2.ATTACHMENT_STATE_ACTIVE
            source = next((one.host for one in attached.values() if one.state == active), "")
        return client.attach_volume(volume, host, hand_over_from=source)


def attach_shared(client: Client, volume: str, host: str) -> attachment_pb2.Attachment:
    """Give `host` the volume beside others; repeatable."""
    return client.attach_volume(
        volume, host, access_mode=attachment_pb2.ACCESS_MODE_READ_WRITE_SHARED
    )


def is_shared_by_guests(volume: Any, connector: Mapping[str, Any] | None) -> bool:
    """Tell whether more than one guest of a connector's host may have a multi-attach volume.

    An attachment that is being made has no connector yet, so it counts for every host. Two that
    end at once count each other, and the host keeps its right; `delete` ends it.
    """
    if connector is None or not connector.get("host"):
        return False
    known = [one.connector for one in volume.volume_attachment]
    return len([one for one in known if not one or one.get("host") == connector["host"]]) > 1


def delete(client: Client, volume: str, *, shared: bool) -> None:
    """Delete a volume that Cinder has attached nowhere; gone is no error."""
    if shared:
        try:
            for one in list(client.list_attachments(volume)):
                if one.access_mode == attachment_pb2.ACCESS_MODE_READ_WRITE_SHARED:
                    client.detach_volume(volume, one.host)
        except NotFoundError:
            return
    client.delete_volume(volume)


def detach(client: Client, volume: str, host: str) -> None:
    """End the right of `host`; a host on standby for it takes over. Gone is no error."""
    try:
        for one in client.list_attachments(volume):
            if one.hand_over_from == host and one.state == attachment_pb2.ATTACHMENT_STATE_STANDBY:
                client.hand_over_volume(volume, one.host)
        client.detach_volume(volume, host)
    except NotFoundError:
        return


def detach_all(client: Client, volume: str) -> None:
    """End the rights of all hosts. Gone is no error."""
    try:
        for one in list(client.list_attachments(volume)):
            client.detach_volume(volume, one.host)
    except NotFoundError:
        return


def rbd_data(
    attachment: attachment_pb2.Attachment, volume_id: str, secret_uuid: str | None
) -> dict[str, Any]:
    """Return the connection info that Nova and os-brick know from the stock RBD driver."""
    rbd = attachment.rbd
    monitors = [monitor.rpartition(":") for monitor in rbd.monitors]
    return {
        "driver_volume_type": "rbd",
        "data": {
            "name": f"{rbd.pool}/{rbd.image}",
            "hosts": [host.strip("[]") for host, _, _ in monitors],
            "ports": [port for _, _, port in monitors],
            "cluster_name": "ceph",
            "auth_enabled": bool(rbd.user),
            "auth_username": rbd.user or None,
            "secret_type": "ceph",
            "secret_uuid": secret_uuid or rbd.secret_uuid or rbd.cluster_fsid,
            "volume_id": volume_id,
            "discard": True,
        },
    }
