"""Where Glance says that an image lies: what volcore may adopt in place instead of importing it."""

from collections.abc import Mapping
from typing import Any

from volcore.client.rbd import rbd_snapshot
from volcore.errors import InvalidArgumentError
from volcore.v1 import image_service_pb2


def sources(
    image_location: Any, image_meta: Mapping[str, Any]
) -> list[image_service_pb2.RbdSnapshot]:
    """Return the snapshots in Ceph that hold a raw image, of whatever cluster.

    Only those that are named as Glance's own store names them, by the id of the image: locations
    may have been set by users, who must not get at images of others.

    Args:
        image_location: of Cinder: the direct URL and the list of all locations, each may be None.
        image_meta: of Glance.
    """
    if image_meta.get("disk_format") != "raw" or not image_location:
        return []
    direct_url, locations = image_location
    urls = [str(one["url"]) for one in locations or () if one.get("url")] or [direct_url]
    found = []
    for url in urls:
        if not url or not url.startswith("rbd://"):
            continue
        try:
            source = rbd_snapshot(url)
        except InvalidArgumentError:  # `rbd://image`, of before snapshots
            continue
        if source.cluster_fsid and source.image == image_meta["id"]:
            found.append(source)
    return found
