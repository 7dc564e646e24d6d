"""Where the records, the storage and its bookkeeping of one pool contradict each other."""

from dataclasses import dataclass
from enum import StrEnum


class FaultKind(StrEnum):
    """What is wrong; docs/operations.md has the table of what each means and what mends it."""

    ATTACHMENT_WITHOUT_VOLUME = "ATTACHMENT_WITHOUT_VOLUME"
    CHILD_WITHOUT_LINK = "CHILD_WITHOUT_LINK"
    HALF_MADE = "HALF_MADE"
    IMAGE_IN_TRASH = "IMAGE_IN_TRASH"
    IMAGE_RENAMED = "IMAGE_RENAMED"
    IMAGE_WITHOUT_NAME = "IMAGE_WITHOUT_NAME"
    IMAGE_WITHOUT_RECORD = "IMAGE_WITHOUT_RECORD"
    IMAGE_WITHOUT_ROW = "IMAGE_WITHOUT_ROW"
    INTENT_WITHOUT_OWNER = "INTENT_WITHOUT_OWNER"
    LINK_WITHOUT_CHILD = "LINK_WITHOUT_CHILD"
    NAME_WITHOUT_IMAGE = "NAME_WITHOUT_IMAGE"
    ORPHAN_DATA = "ORPHAN_DATA"
    ORPHAN_HEADER = "ORPHAN_HEADER"
    ORPHAN_OBJECT_MAP = "ORPHAN_OBJECT_MAP"
    RECORD_AMBIGUOUS = "RECORD_AMBIGUOUS"
    RECORD_NEWER = "RECORD_NEWER"
    RECORD_NOT_CARRIED = "RECORD_NOT_CARRIED"
    RECORD_UNREADABLE = "RECORD_UNREADABLE"
    RECORD_WITHOUT_IMAGE = "RECORD_WITHOUT_IMAGE"
    RECORD_WITHOUT_INTENT = "RECORD_WITHOUT_INTENT"
    ROW_WITHOUT_IMAGE = "ROW_WITHOUT_IMAGE"
    SIZE_MISMATCH = "SIZE_MISMATCH"
    SNAPSHOT_WITHOUT_IMAGE = "SNAPSHOT_WITHOUT_IMAGE"
    SNAPSHOT_WITHOUT_RECORD = "SNAPSHOT_WITHOUT_RECORD"
    SNAPSHOT_WITHOUT_VOLUME = "SNAPSHOT_WITHOUT_VOLUME"
    TRASH_WITHOUT_ROW = "TRASH_WITHOUT_ROW"
    UNFREED_IMAGE = "UNFREED_IMAGE"
    WARM_CLONE_WITHOUT_IMAGE = "WARM_CLONE_WITHOUT_IMAGE"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One contradiction, in words for an operator."""

    kind: FaultKind
    concerns: str
    """Resource name, or what it is in the storage: `rbd image vm.0123456789ab`."""
    meaning: str
    """One sentence."""
    remedy: str
    """One sentence: what a repair does, or why it does nothing and what to do instead."""
    mendable: bool = False
    """A repair would change something."""
    mended: bool = False
    subject: str = ""
    """Id in the backend of the volume that it is about, else of the image; empty if it has none."""
    part: str = ""
    """What of it: a snapshot, a link, an object; whoever mends it reads it."""
    key: str = ""
    """Key of the record that it is about."""

    @property
    def identity(self) -> tuple[str, ...]:
        """What is the same when the same is seen again."""
        return self.kind, self.concerns, self.subject, self.part, self.key
