"""All operations, and the calls to volcore in which they are cut off; see `operations`."""

from .operations import (
    blank,
    delete_snapshot,
    delete_volume,
    extend,
    from_ceph,
    from_qcow2,
    from_raw,
    from_snapshot,
    from_volume,
    migrate,
    retype,
    revert,
    snapshot,
    upload,
)
from .operations_groups import (
    create_group,
    delete_group,
    delete_group_snapshot,
    group_from_group,
    group_from_snapshot,
    group_snapshot,
)
from .operations_hosts import (
    attach,
    attach_deleted,
    attach_given_up,
    detach,
    extend_attached,
    force_detach,
    manage,
    manage_snapshot,
    unmanage,
    unmanage_snapshot,
)

OPERATIONS = {
    blank: "CreateVolume",
    from_snapshot: "CreateVolume",
    from_volume: "CreateVolume",
    from_raw: "ImportImage",
    from_qcow2: "ImportImage",
    from_ceph: "AdoptImage",
    snapshot: "CreateSnapshot",
    delete_volume: "DeleteVolume",
    delete_snapshot: "DeleteSnapshot",
    extend: "ResizeVolume",
    extend_attached: "ResizeVolume",
    revert: "RevertVolume",
    upload: "ExportImage",
    retype: "UpdateVolume",
    migrate: "ExportImage",
    group_snapshot: "CreateGroupSnapshot",
    group_from_snapshot: "CreateVolume",
    group_from_group: "CreateVolume",
    delete_group_snapshot: "DeleteGroupSnapshot",
    delete_group: "DeleteVolume",
    attach: "AttachVolume",
    attach_given_up: "AttachVolume",
    attach_deleted: "AttachVolume",
    detach: "DetachVolume",
    force_detach: "DetachVolume",
    manage: "AdoptVolume",
    manage_snapshot: "RenameSnapshot",
    unmanage: "ReleaseVolume",
}
"""With the call to volcore in which each is cut off."""
CALL_NOTHING = (create_group, unmanage_snapshot)
"""Those that only cinder-volume can cut off."""
RBD_ONLY = {
    *(attach, attach_given_up, attach_deleted, detach, force_detach, extend_attached),
    *(manage, unmanage, migrate, from_ceph),
}
ONLY_OF = {"DeleteGroupSnapshot": "/group-snapshot-"}
"""What a request says that is meant; every group that is deleted asks whether a copy left one."""
STREAMS = {from_raw, from_qcow2, upload, migrate}


def method_of(operation, backend):
    if backend == "ours-rbd":  # Cinder goes through the volumes one after another
        one_by_one = {
            group_snapshot: "CreateSnapshot",
            delete_group_snapshot: "DeleteSnapshot",
        }
        return one_by_one.get(operation, OPERATIONS[operation])
    if operation is group_from_group:
        return "CreateGroupSnapshot"  # of one instant, from which the volumes are made
    return OPERATIONS[operation]
