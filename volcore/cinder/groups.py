"""Groups of Cinder: volumes that are frozen at one instant and cloned together.

A group itself is nothing in volcore. A consistent snapshot of it is a group snapshot there, whose
members all have its name; Cinder's snapshots remember that as their `provider_id`. Groups whose
type does not ask for consistency are Cinder's own affair, one volume after another.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from cinder import exception
from cinder.volume import volume_utils
from oslo_log import log as logging

LOG = logging.getLogger(__name__)
Updates = tuple[dict[str, str], list[dict[str, str]]]
"""What Cinder shall note: for the group or group snapshot, and for each item in it."""


def is_consistent(group: Any) -> bool:
    """Tell whether the type of a group or group snapshot asks for snapshots of one instant."""
    return bool(volume_utils.is_group_a_cg_snapshot_type(group))


def snapshot_name(group_snapshot: Any) -> str:
    """Return the name of a group snapshot within its pool, and of its members."""
    return f"group-snapshot-{group_snapshot.id}"


def passing_name(group: Any) -> str:
    """Return the name of the group snapshot that exists while `group` is cloned from another."""
    return f"group-{group.id}"


def same(items: Iterable[Any], status: str, **fields: str) -> Updates:
    """Return that all went well."""
    return {"status": status}, [{"id": item.id, "status": status, **fields} for item in items]


def delete_volumes(volumes: Sequence[Any], delete: Callable[[Any], None]) -> Updates:
    """Delete the volumes of a group as far as they can be.

    One that is in use is available again. Cinder forgets all volumes of a group that is not in
    error, those that are left, too: so the group is, and can be deleted again.
    """
    noted = []
    for volume in volumes:
        try:
            delete(volume)
            status = "deleted"
        except exception.VolumeIsBusy:
            status = "available"
        except exception.CinderException:
            LOG.exception("%s of a group is not deleted", volume.name)
            status = "error_deleting"
        noted.append({"id": volume.id, "status": status})
    whole = all(each["status"] == "deleted" for each in noted)
    return {"status": "deleted" if whole else "error"}, noted
