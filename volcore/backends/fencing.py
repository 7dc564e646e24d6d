"""The power to cut clients off from storage that they reach by themselves."""

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol, runtime_checkable


class Fencing(Protocol):
    """Storage that knows its clients by address (`volcore.model.addresses`)."""

    @property
    def cluster_id(self) -> str:
        """Id of the cluster: who is cut off is cut off from all pools of that."""

    @property
    def own_address(self) -> str:
        """This server's own address there."""

    def clients(self, volume_ids: Sequence[str]) -> Mapping[str, frozenset[str]]:
        """Return the addresses of those that have each volume open, or its lock; never our own.

        Not all of them: one that was cut off for 30 s and has no lock is not known any more. A
        volume that does not exist has none. Complexity: some requests for each volume.
        """

    def blocked(self) -> Collection[str]:
        """Return all addresses that are cut off."""

    def block(self, addresses: Sequence[str], volume_ids: Sequence[str]) -> None:
        """Cut clients off, and drop the locks that they have on volumes. Idempotent.

        Durability: when this returns, nothing that they send changes a volume of the pool any
        more, nor does what is under way; until `unblock`.

        Raises:
            PermissionDeniedError: this server may not; nothing was changed.
            UnavailableError: some may be cut off, and some not.
        """

    def unblock(self, addresses: Sequence[str]) -> None:
        """Let new clients of these IPs in; those known of before stay cut off. Idempotent.

        Raises:
            PermissionDeniedError: this server may not; nothing was changed.
            UnavailableError: some may be in already.
        """


@runtime_checkable
class SupportsFencing(Protocol):
    """A backend whose clients reach the storage by themselves, and can be cut off from it."""

    def fencing(self) -> Fencing:
        """Return the means. Costs no access to the storage.

        Raises:
            UnavailableError: this server may not change the pool now.
        """
