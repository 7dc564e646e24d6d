"""Taking over what others made in the same storage, and giving it back; nothing is copied."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable
from urllib.parse import quote


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignSnapshot:
    """A snapshot that somebody else made and named."""

    name: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignImage:
    """Storage that no volume of this pool is made of."""

    name: str
    size_bytes: int
    snapshots: tuple[ForeignSnapshot, ...] = ()
    """Oldest first; those that only hold clones are left out, they come along unseen."""
    obstacle: str = ""
    """A stable word for what keeps it from being adopted; empty if nothing does."""
    detail: str = ""
    """One sentence about that, which ends with what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignSource:
    """A snapshot of an image in any pool of the same cluster; its text is that of OpenStack."""

    cluster_id: str
    pool: str
    image: str
    snapshot: str

    def __str__(self) -> str:
        parts = (self.cluster_id, self.pool, self.image, self.snapshot)
        return "rbd://" + "/".join(quote(part, safe="") for part in parts)


@runtime_checkable
class SupportsAdopt(Protocol):
    """Volumes made by others become volumes of this pool in place, and leave it again."""

    def foreign_names(self) -> Sequence[str]:
        """Return the names of all foreign images, ascending. Complexity: the pool's images."""

    def foreign(self, name: str) -> ForeignImage:
        """Look at a foreign image, also while others use it; changes nothing.

        Raises:
            NotFoundError: OBJECT_NOT_FOUND, there is none, or it is a volume of this pool.
        """

    def adopt(self, volume_id: str) -> None:
        """Make the foreign image of this name a volume, with its snapshots; others may use it.

        Idempotent. A crash leaves a foreign image or a volume; `release` undoes either.

        Raises:
            NotFoundError: OBJECT_NOT_FOUND.
        """

    def check_release(self, volume_id: str, target_name: str, snapshots: Mapping[str, str]) -> None:
        """Refuse what `release` would refuse.

        Raises:
            ConflictError: NAME_TAKEN, the target name is another image's.
            PreconditionError: VOLUME_IN_USE, it is open here; or elsewhere, and would be renamed.
        """

    def release(self, volume_id: str, target_name: str, snapshots: Mapping[str, str]) -> None:
        """Make a volume a foreign image called `target_name`, and give snapshots their new names.

        They are left as others make them, so that their tools can clone them.

        Idempotent; repeated after a crash it goes on. A volume that does not exist is no error.
        What refuses it (see `check_release`) does so before anything is changed.

        Args:
            volume_id: the volume.
            target_name: what others shall find.
            snapshots: new name of each snapshot by its id.
        """


@runtime_checkable
class SupportsForeignParent(Protocol):
    """Volumes can be clones of what others made, which stays theirs."""

    @property
    def cluster_id(self) -> str:
        """The id of the cluster that the pool is in."""

    def foreign_parent(self, source: ForeignSource) -> ForeignImage:
        """Look at what could be a parent, also while others use it; changes nothing.

        Its size is that of the snapshot.

        Raises:
            NotFoundError: OBJECT_NOT_FOUND.
            PreconditionError: NOT_ADOPTABLE, with the obstacle NO_PERMISSION.
        """

    def clone_foreign(self, source: ForeignSource, target_id: str, size_bytes: int) -> None:
        """Make a volume that is a clone of a source without obstacle, as `VolumeBackend.clone`.

        What is beyond the source's size reads as zeroes. The source's owner may delete it.

        Raises:
            NotFoundError: OBJECT_NOT_FOUND.
            ConflictError: NAME_TAKEN.
            OutOfRangeError: SIZE_NOT_ALLOWED, SHRINK_REFUSED.
            PreconditionError: as `foreign_parent`.
        """
