"""What deleting a volume would free, by the rows and the sizes of files alone."""

from collections.abc import Iterable

from volcore.backends.local.layers import Layers


def exclusive_layers(layers: Layers, volume_id: str, points: Iterable[int]) -> set[int]:
    """Return the layers that go with the volume: `points` are those of its head and its snapshots.

    A layer goes when no other volume or snapshot is at it and all its children go. Call it inside a
    transaction. *Complexity*: the layers that go, and those just below them.
    """
    gone: set[int] = set()
    todo = list(points)
    while todo:
        layer_id = todo.pop()
        if layer_id in gone or _is_needed(layers, volume_id, layer_id, gone):
            continue  # a layer that is needed for a child only comes again, after that one
        gone.add(layer_id)
        parent_id = layers.layer(layer_id).parent_id
        if parent_id is not None:
            todo.append(parent_id)
    return gone


def _is_needed(layers: Layers, volume_id: str, layer_id: int, gone: set[int]) -> bool:
    """Tell whether something else than the volume, or a layer not in `gone`, needs the layer."""
    database = layers.database
    needed = database.query(
        "SELECT EXISTS (SELECT 1 FROM volume WHERE top_layer = ?1 AND volume_id <> ?2)"
        " OR EXISTS (SELECT 1 FROM snapshot WHERE layer = ?1 AND volume_id <> ?2)",
        (layer_id, volume_id),
    )[0][0]
    # One child more than those that go is enough to know.
    children = database.query(
        "SELECT id FROM layer WHERE parent_id = ? LIMIT ?", (layer_id, len(gone) + 1)
    )
    return bool(needed) or any(child not in gone for (child,) in children)
