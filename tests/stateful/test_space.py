"""Goal: the figures agree with `du`. Method: random histories; delete, compare what was freed."""

import random
import subprocess
from contextlib import suppress

import pytest

from volcore.backends.local import LocalBackend, LocalStore
from volcore.backends.local.pruning import Pruning
from volcore.limits import BLOCK_SIZE_BYTES, CHUNK_SIZE_BYTES

from .test_histories import NIGHTLY

B = BLOCK_SIZE_BYTES
SIZE = 2 * CHUNK_SIZE_BYTES


def du(store):
    """Space of the layer files, as `du` counts it."""
    out = subprocess.run(
        ["du", "-s", "--block-size=1", *sorted((store.directory / "layers").glob("*.data"))],
        check=True, capture_output=True, text=True,
    ).stdout if store.layers.layer_ids() else ""  # fmt: skip
    return sum(int(line.split()[0]) for line in out.splitlines() if "data" in line)


@pytest.mark.parametrize("seed", range(40 if NIGHTLY else 6))
@pytest.mark.parametrize("merges", [False, True])
def test_exclusive_bytes(tmp_path, seed, merges):
    """Exclusive and shared bytes make up all; deleting a volume frees its exclusive ones."""
    store = LocalStore.open(tmp_path / "pool")
    backend = LocalBackend(store)
    backend.open()
    dice = random.Random(seed)
    volumes = history(backend, dice)
    if merges:
        backend.upkeep.finish()
    while volumes:
        facts = {volume: backend.describe(volume) for volume in volumes}
        exclusive = sum(one.exclusive_bytes for one in facts.values())
        before = du(store)
        assert exclusive + shared(backend, volumes) == before
        assert sum(one.allocated_bytes for one in facts.values()) <= before
        volume = volumes.pop(dice.randrange(len(volumes)))
        backend.delete(volume)
        assert before - du(store) == facts[volume].exclusive_bytes
        if merges:
            backend.upkeep.finish()
    assert du(store) == 0
    backend.close()


def shared(backend, volumes):
    """Space of the layers that go with no single volume, found by trying each one."""
    layers = backend._store.layers
    alone = set()
    for volume in volumes:
        with suppress(InterruptedError):
            tried(backend, volume, alone)
    left = set(layers.layer_ids()) - alone
    return sum(map(backend._store.files.allocated_bytes, left))


def tried(backend, volume, alone):
    """Delete a volume, note which layers go with it, and undo it."""
    layers, pruning = backend._store.layers, Pruning(backend._store.layers)
    known = set(layers.layer_ids())
    with backend._database.transaction():
        backend.delete(volume)
        while dead := pruning.dead():
            for layer_id in dead:
                pruning.delete_some_pages(layer_id, 1000)
                pruning.delete_layer(layer_id)
        alone |= known - set(layers.layer_ids())
        raise InterruptedError


def history(backend, dice):
    """Volumes, snapshots, clones and deleted things."""
    volumes = ["v0"]
    backend.create("v0", SIZE)
    for step in range(40):
        volume = dice.choice(volumes)
        points = backend.describe(volume).snapshot_ids
        kind = dice.random()
        if kind < 0.5:
            with backend.open_device(volume, read_only=False) as device:
                device.write(dice.randrange(1500) * B, dice.randbytes(dice.randrange(1, 90) * B))
                if kind < 0.1:
                    device.discard(dice.randrange(1500) * B, 200 * B)
        elif kind < 0.7:
            backend.create_snapshot(volume, f"s{step}")
        elif kind < 0.85:
            volumes.append(f"c{step}")
            backend.clone(volume, dice.choice([None, *points]), volumes[-1], SIZE)
        elif kind < 0.95 and points:
            backend.delete_snapshot(volume, dice.choice(points))
        elif len(volumes) > 1:
            volumes.remove(volume)
            backend.delete(volume)
    return volumes
