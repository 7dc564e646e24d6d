"""What came from what, as a tree: image, volumes, their snapshots, volumes of these.

Everything comes from three list calls, so a tree of a busy pool may be a moment old in places.
"""

from collections import defaultdict
from typing import TYPE_CHECKING, Final

from volcore.cli.output import short
from volcore.cli.units import format_bytes
from volcore.v1.volume_pb2 import VOLUME_VIEW_FULL

if TYPE_CHECKING:
    from rich.tree import Tree

    from volcore.client import Client
    from volcore.v1.snapshot_pb2 import Snapshot
    from volcore.v1.volume_pb2 import Volume

_DELETED: Final = "(deleted)"


class Forest:
    """The resources of one pool, by what they came from."""

    def __init__(self, client: "Client", pool: str) -> None:
        self.images = {image.uid: image for image in client.list_images(pool)}
        volumes = list(client.list_volumes(pool, view=VOLUME_VIEW_FULL))
        self.volumes = {volume.uid: volume for volume in volumes}
        self.clones: dict[str, list[Volume]] = defaultdict(list)
        """By the uid of the source; blank volumes under an empty one."""
        for volume in volumes:
            self.clones[volume.source.uid].append(volume)
        self.snapshots: dict[str, list[Snapshot]] = defaultdict(list)
        """By the name of the volume."""
        self.snapshot_uids = set()
        for snapshot in client.list_snapshots(f"{pool}/volumes/-"):
            self.snapshots[snapshot.name.rpartition("/snapshots/")[0]].append(snapshot)
            self.snapshot_uids.add(snapshot.uid)

    def deleted_sources(self) -> dict[str, str]:
        """Return uid and name of what is gone and has clones, in the order of the names."""
        known = {"", *self.images, *self.volumes, *self.snapshot_uids}
        gone = {
            uid: clones[0].source.name for uid, clones in self.clones.items() if uid not in known
        }
        return dict(sorted(gone.items(), key=lambda item: item[1]))


def draw(client: "Client", pool: str) -> "Tree":
    """Return the tree of a pool."""
    from rich.tree import Tree

    forest = Forest(client, pool)
    root = Tree(f"[bold]pool {short(pool)}[/bold]")
    for image in forest.images.values():
        size = format_bytes(image.size_bytes)
        node = root.add(f"[cyan]image[/cyan] [bold]{short(image.name)}[/bold]  {size}")
        _add_clones(node, forest, image.uid)
    for uid, name in forest.deleted_sources().items():
        kind, label = _kind_and_label(name)
        node = root.add(f"[dim]{kind} {label} {_DELETED}[/dim]")
        _add_clones(node, forest, uid)
    _add_clones(root, forest, "")
    return root


def _add_clones(node: "Tree", forest: Forest, source_uid: str) -> None:
    """Hang the volumes made from one source below it, with all that hangs below them.

    A source is older than its clones, so the recursion ends; it is as deep as the chain of clones,
    which the backends bound.
    """
    for volume in forest.clones.get(source_uid, ()):
        text = f"[green]volume[/green] [bold]{short(volume.name)}[/bold]"
        text += f"  {format_bytes(volume.size_bytes)}"
        text += f"  [dim]{format_bytes(volume.allocated_bytes)} own[/dim]"
        child = node.add(text)
        for snapshot in forest.snapshots.get(volume.name, ()):
            size = format_bytes(snapshot.size_bytes)
            point = child.add(f"[yellow]snapshot[/yellow] {short(snapshot.name)}  {size}")
            _add_clones(point, forest, snapshot.uid)
        _add_clones(child, forest, volume.uid)


def _kind_and_label(name: str) -> tuple[str, str]:
    parts = name.split("/")
    return parts[-2].removesuffix("s"), "/".join(parts[3::2])
