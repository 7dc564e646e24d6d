"""Managing what is there already: rbd images of a volcore pool, and snapshots of its volumes.

To manage a volume is to adopt its rbd image, in place; to unmanage it gives the image back, under
the name that Cinder's own RBD driver would look for. A snapshot of an adopted volume is volcore's
with it, so to manage one is to give it the name that Cinder has for it.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from cinder import exception
from cinder.volume import volume_utils

from volcore import limits
from volcore.client import Client
from volcore.errors import (
    ConflictError,
    InvalidArgumentError,
    NotFoundError,
    NotSupportedError,
    PreconditionError,
    Reason,
)
from volcore.v1 import adoptable_image_pb2, snapshot_pb2

_KEY: Final = "source-name"
_DELETED: Final = ".deleted"
"""Ends the name of an image that Cinder's RBD driver keeps for its clones only."""


def source_name(reference: Any) -> str:
    """Return the name in an existing_ref.

    Raises:
        ManageExistingInvalidReference: it has none.
    """
    name = reference.get(_KEY) if isinstance(reference, Mapping) else None
    if not name or not isinstance(name, str):
        raise invalid(reference, f"it must have the element {_KEY}")
    return name


def invalid(reference: Any, reason: str) -> Exception:
    """Return Cinder's error for a reference that leads to nothing that can be managed."""
    error: Exception = exception.ManageExistingInvalidReference(
        existing_ref=reference, reason=reason
    )
    return error


def find(client: Client, parent: str, reference: Any) -> adoptable_image_pb2.AdoptableImage:
    """Return the rbd image that a reference names, if it can be adopted.

    Raises:
        ManageExistingInvalidReference: it cannot; with volcore's reason.
        ManageExistingAlreadyManaged: it is a volume already.
    """
    name = source_name(reference)
    try:
        found = list(client.list_adoptable_images(parent, backend_name=name))
    except (NotSupportedError, InvalidArgumentError) as err:
        raise invalid(reference, err.message) from err
    if not found:
        _refuse_known(client, parent, name)
        raise invalid(reference, f"there is no rbd image {name}")
    if not found[0].adoptable:
        raise invalid(reference, found[0].detail)
    return found[0]


def adopt(client: Client, name: str, reference: Any, labels: Mapping[str, str]) -> None:
    """Make the rbd image that a reference names the volume `name`; repeatable.

    Raises:
        ManageExistingInvalidReference: it cannot be done; with volcore's reason.
        ManageExistingAlreadyManaged: it is another volume.
    """
    try:
        client.adopt_volume(name, source_name(reference), labels=labels)
    except ConflictError as err:
        owner = err.context.get("owner", name)
        raise exception.ManageExistingAlreadyManaged(volume_ref=owner) from err
    except (NotFoundError, InvalidArgumentError, NotSupportedError) as err:
        raise invalid(reference, err.message) from err
    except PreconditionError as err:
        if err.reason is not Reason.NOT_ADOPTABLE:
            raise
        raise invalid(reference, err.message) from err


def release(client: Client, name: str) -> None:
    """Give a volume back under its own name; one of a pool that cannot stays volcore's."""
    try:
        client.release_volume(name, backend_name=name.rpartition("/")[2])
    except NotSupportedError:
        return


def snapshot(client: Client, volume: str, reference: Any) -> snapshot_pb2.Snapshot:
    """Return the snapshot of a volume that a reference names.

    Raises:
        ManageExistingInvalidReference: there is none.
    """
    try:
        return client.get_snapshot(f"{volume}/snapshots/{source_name(reference)}")
    except (NotFoundError, InvalidArgumentError) as err:
        raise invalid(reference, err.message) from err


def rename_snapshot(client: Client, name: str, reference: Any) -> None:
    """Give the snapshot that a reference names the name that Cinder has for it; repeatable.

    Raises:
        ManageExistingInvalidReference: there is none, or its name may not change.
    """
    volume, _, new = name.rpartition("/snapshots/")
    try:
        client.rename_snapshot(f"{volume}/snapshots/{source_name(reference)}", new)
    except (NotFoundError, InvalidArgumentError, ConflictError, PreconditionError) as err:
        raise invalid(reference, err.message) from err


def manageable_volumes(
    client: Client, parent: str, cinder_volumes: Iterable[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Return what Cinder lists: rbd images, and the volumes that it has already."""
    known = {str(one["id"]) for one in cinder_volumes}
    entries = []
    for volume in client.list_volumes(parent):
        name = volume.name.rpartition("/")[2]
        found = volume_utils.extract_id_from_volume_name(name)
        reason = "already managed" if found in known else "a volume of volcore: release it first"
        entries.append(
            _entry(
                volume.backend_name,
                volume.size_bytes,
                cinder_id=found if found in known else None,
                reason=reason,
            )
        )
    try:
        for image in client.list_adoptable_images(parent):
            reason = image.detail
            if not reason and image.backend_name.endswith(_DELETED):
                reason = "deleted in Cinder, kept for its clones"
            entries.append(_entry(image.backend_name, image.size_bytes, reason=reason))
    except NotSupportedError:  # a local pool has no images of others
        pass
    return entries


def manageable_snapshots(
    client: Client, parent: str, cinder_snapshots: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Return what Cinder lists: the snapshots of all volumes of the pool."""
    known = {str(one["id"]) for one in cinder_snapshots}
    entries = []
    for found in client.list_snapshots(f"{parent}/volumes/-"):
        volume, _, name = found.name.rpartition("/snapshots/")
        snapshot_id = volume_utils.extract_id_from_snapshot_name(name)
        managed = snapshot_id in known
        reason = "already managed" if managed else ""
        if not managed and found.group_snapshot:
            reason = "part of a group snapshot of volcore"
        entry = _entry(
            name, found.size_bytes, cinder_id=snapshot_id if managed else None, reason=reason
        )
        entries.append(entry | {"source_reference": {_KEY: volume.rpartition("/")[2]}})
    return entries


def size_gib(size_bytes: int) -> int:
    """Return a size as Cinder counts: whole GiB, rounded up."""
    return -(-size_bytes // limits.GIB)


def _entry(
    name: str, size_bytes: int, *, cinder_id: str | None = None, reason: str
) -> dict[str, Any]:
    return {
        "reference": {_KEY: name},
        "size": size_gib(size_bytes),
        "safe_to_manage": not reason,
        "reason_not_safe": reason or None,
        "cinder_id": cinder_id,
        "extra_info": None,
    }


def _refuse_known(client: Client, parent: str, name: str) -> None:
    """Refuse what is a volume already; looks at all volumes of the pool."""
    for volume in client.list_volumes(parent):
        if volume.backend_name == name:
            raise exception.ManageExistingAlreadyManaged(volume_ref=volume.name)
