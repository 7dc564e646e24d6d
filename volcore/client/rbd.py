"""Texts that name snapshots of rbd images."""

from typing import Final
from urllib.parse import unquote

from volcore.errors import InvalidArgumentError, Reason
from volcore.v1.image_service_pb2 import RbdSnapshot

_SCHEME: Final = "rbd://"


def rbd_snapshot(text: str) -> RbdSnapshot:
    """Return the source that a text names: `pool/image@snapshot`, or as OpenStack's Glance says.

    Glance's is `rbd://{cluster_fsid}/{pool}/{image}/{snapshot}`, each part percent-encoded.

    Raises:
        InvalidArgumentError: BAD_FIELD.
    """
    if text.startswith(_SCHEME):
        parts = [unquote(part) for part in text.removeprefix(_SCHEME).split("/")]
    else:
        pool, _, image = text.partition("/")
        parts = ["", pool, *image.split("@")]
    if len(parts) != len(RbdSnapshot.DESCRIPTOR.fields) or not all(parts[1:]):
        raise InvalidArgumentError(
            f"{text[:200]!a} names no snapshot of an rbd image; say pool/image@snapshot or "
            "rbd://fsid/pool/image/snapshot",
            reason=Reason.BAD_FIELD,
            field="source",
        )
    fsid, pool, image, snapshot = parts
    return RbdSnapshot(cluster_fsid=fsid, pool=pool, image=image, snapshot=snapshot)
