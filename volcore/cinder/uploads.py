"""Volumes as Glance images: a snapshot, published and exported, whatever the volume does meanwhile.

Snapshot and image of an upload are named after the volume, so what a killed cinder-volume left is
found again: by the next upload, or when the volume is deleted.
"""

from collections.abc import Mapping
from typing import Any, Final

from cinder import exception
from cinder.volume import volume_utils

FORMATS: Final = ("raw", "qcow2")


def check(image_meta: Mapping[str, Any]) -> None:
    """Refuse an upload that is neither raw nor qcow2.

    Raises:
        ImageUnacceptable: with the reason.
    """
    disk, container = image_meta.get("disk_format"), image_meta.get("container_format")
    if disk not in FORMATS or container != "bare":
        raise exception.ImageUnacceptable(
            image_id=image_meta["id"],
            reason=f"volcore uploads raw and qcow2 in a bare container, not {disk} in {container}; "
            "choose one of these, or convert the image afterwards",
        )


def send(
    context: Any, image_service: Any, image_meta: Mapping[str, Any], path: str, volume: Any
) -> None:
    """Upload the file as Cinder does, with the store and the base image that it knows."""
    volume_utils.upload_volume(
        context,
        image_service,
        image_meta,
        path,
        volume,
        volume_format=image_meta["disk_format"],
        run_as_root=False,
    )
