"""Connection info as other programs want it: JSON, words for QEMU, XML for libvirt."""

import hashlib
import json
import shlex
from pathlib import Path
from typing import Any, Final
from xml.etree import ElementTree

from volcore.v1.attachment_pb2 import (
    ACCESS_MODE_READ_ONLY,
    ACCESS_MODE_READ_WRITE_SHARED,
    Attachment,
)

NODE_NAME_BYTES_MAX: Final = 31
"""*Source*: QEMU, include/block/block_int-common.h, `node_name[32]`."""
TLS_DIRECTORY: Final = Path("/etc/pki/libvirt-nbd")
"""Where libvirt looks for certificates for NBD, unless its `qemu.conf` says otherwise."""
SERIAL_BYTES_MAX: Final = 20
"""*Source*: virtio 1.2, section 5.2.6, VIRTIO_BLK_T_GET_ID."""


def as_json(attachment: Attachment, tls_directory: Path = TLS_DIRECTORY) -> dict[str, Any]:
    """Return the connection's own fields, and the same as a QEMU block device.

    Where TLS is needed, `qemu_object` is the object that the device refers to.
    """
    kind = attachment.WhichOneof("connection")
    own: dict[str, Any]
    if kind == "nbd":
        nbd = attachment.nbd
        own = {"uri": nbd.uri, "export_name": nbd.export_name}
        if nbd.socket_path:
            own["socket_path"] = nbd.socket_path
        else:
            own |= {"host": nbd.host, "port": nbd.port}
        if nbd.tls_hostname:
            own |= {
                "tls_hostname": nbd.tls_hostname,
                "qemu_object": tls_object(attachment, tls_directory),
            }
    else:
        rbd = attachment.rbd
        own = {
            "cluster_fsid": rbd.cluster_fsid,
            "monitors": list(rbd.monitors),
            "pool": rbd.pool,
            "image": rbd.image,
            "user": rbd.user,
            "conf_path": rbd.conf_path,
            "secret_uuid": rbd.secret_uuid,
        }
    return {
        "volume": _volume(attachment),
        "host": attachment.host,
        "read_only": _read_only(attachment),
        "type": kind,
        **own,
        "qemu_blockdev": blockdev(attachment),
    }


def blockdev(attachment: Attachment) -> dict[str, Any]:
    """Return the options of a QEMU `-blockdev`; with `json:` before them, a file for qemu-img."""
    options: dict[str, Any]
    if attachment.WhichOneof("connection") == "nbd":
        nbd = attachment.nbd
        server = (
            {"type": "unix", "path": nbd.socket_path}
            if nbd.socket_path
            else {"type": "inet", "host": nbd.host, "port": str(nbd.port)}
        )
        options = {"driver": "nbd", "server": server, "export": nbd.export_name}
        if nbd.tls_hostname:
            options["tls-creds"] = f"{_node(attachment)}-tls"
            if nbd.socket_path:
                options["tls-hostname"] = nbd.tls_hostname
    else:
        rbd = attachment.rbd
        options = {"driver": "rbd", "pool": rbd.pool, "image": rbd.image, "user": rbd.user}
        if rbd.conf_path:
            options["conf"] = rbd.conf_path
        else:
            options["server"] = [
                {"host": host, "port": port} for host, port in map(_monitor, rbd.monitors)
            ]
    if _shared(attachment):
        options["cache"] = {"direct": True}
    return {**options, "read-only": _read_only(attachment), "discard": "unmap"}


def tls_object(attachment: Attachment, tls_directory: Path) -> dict[str, Any]:
    """Return the options of the QEMU `-object` with the client's certificates.

    QEMU finds `ca-cert.pem`, `client-cert.pem` and `client-key.pem` in the directory.
    """
    return {
        "qom-type": "tls-creds-x509",
        "id": f"{_node(attachment)}-tls",
        "endpoint": "client",
        "dir": str(tls_directory),
        "verify-peer": True,
    }


def as_qemu(attachment: Attachment, tls_directory: Path = TLS_DIRECTORY) -> str:
    """Return words for QEMU, quoted for a shell: a block device and a virtio disk."""
    volume, node = _volume(attachment), _node(attachment)
    assert len(node) <= NODE_NAME_BYTES_MAX
    words = ["-blockdev", _packed({"node-name": node, **blockdev(attachment)})]
    if attachment.nbd.tls_hostname:
        words = ["-object", _packed(tls_object(attachment, tls_directory)), *words]
    device = f"virtio-blk-pci,id={node}-disk,drive={node},serial={volume[:SERIAL_BYTES_MAX]}"
    return shlex.join([*words, "-device", device])


def as_libvirt(attachment: Attachment) -> str:
    """Return a libvirt `<disk>` element."""
    disk = ElementTree.Element("disk", type="network", device="disk")
    driver = ElementTree.SubElement(disk, "driver", name="qemu", type="raw", discard="unmap")
    if _shared(attachment):
        driver.set("cache", "none")
    if attachment.WhichOneof("connection") == "nbd":
        nbd = attachment.nbd
        source = ElementTree.SubElement(disk, "source", protocol="nbd", name=nbd.export_name)
        if nbd.socket_path:
            ElementTree.SubElement(source, "host", transport="unix", socket=nbd.socket_path)
        else:
            ElementTree.SubElement(source, "host", name=nbd.host, port=str(nbd.port))
        if nbd.tls_hostname:
            source.set("tls", "yes")
            if nbd.socket_path:
                source.set("tlsHostname", nbd.tls_hostname)
    else:
        rbd = attachment.rbd
        source = ElementTree.SubElement(
            disk, "source", protocol="rbd", name=f"{rbd.pool}/{rbd.image}"
        )
        for host, port in map(_monitor, rbd.monitors):
            ElementTree.SubElement(source, "host", name=host, port=port)
        if rbd.conf_path:
            ElementTree.SubElement(source, "config", file=rbd.conf_path)
        if rbd.secret_uuid:
            auth = ElementTree.SubElement(source, "auth", username=rbd.user)
            ElementTree.SubElement(auth, "secret", type="ceph", uuid=rbd.secret_uuid)
    ElementTree.SubElement(disk, "target", dev="vda", bus="virtio")
    ElementTree.SubElement(disk, "serial").text = _volume(attachment)[:SERIAL_BYTES_MAX]
    if _read_only(attachment):
        ElementTree.SubElement(disk, "readonly")
    if _shared(attachment):
        ElementTree.SubElement(disk, "shareable")
    ElementTree.indent(disk)
    return ElementTree.tostring(disk, encoding="unicode")


def _volume(attachment: Attachment) -> str:
    return attachment.name.split("/")[3]


def _node(attachment: Attachment) -> str:
    return f"volcore-{hashlib.sha256(attachment.name.encode()).hexdigest()[:16]}"


def _packed(options: dict[str, Any]) -> str:
    return json.dumps(options, separators=(",", ":"))


def _read_only(attachment: Attachment) -> bool:
    return attachment.access_mode == ACCESS_MODE_READ_ONLY


def _shared(attachment: Attachment) -> bool:
    return attachment.access_mode == ACCESS_MODE_READ_WRITE_SHARED


def _monitor(address: str) -> tuple[str, str]:
    """Split `host:port`; an IPv6 host may stand in brackets, which both QEMU and libvirt drop."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), port
