"""What must not grow: each pair differs in one thing; stores are warm, samples taken in turn.

size      clones of a snapshot of 10 TiB with 4,096 chunks in use, and of 1 GiB with 256
depth     clones of a volume with 1,000 layers below it, and with one; 4 KiB random reads of both,
          same content: a base, and changes of 32 blocks in each layer
count     clones in a pool of 100,000 volumes, and in one of 100
"""

import random
from collections.abc import Iterator

from benchmarks.local.stores import IMAGE, Store, opened
from benchmarks.report import Figure
from benchmarks.sampling import Context, Turns
from volcore.limits import BLOCK_SIZE_BYTES, CHUNK_BLOCKS, GIB, MIB, TIB
from volcore.model.records import SourceKind, Volume

READ_SIZE_BYTES = 256 * MIB
BLOCKS_PER_LAYER = 32
CHUNKS_PER_LAYER = 4


def run(context: Context) -> Iterator[Figure]:
    """Measure; see the module."""
    with opened(context.place("small")) as store:
        yield from _size(context, store)
        yield from _depth(context, store)
        yield from _count(context, store)


def _size(context: Context, store: Store) -> Iterator[Figure]:
    keys = {}
    for name, size_bytes, chunk_count in (
        ("1 GiB", GIB, context.size(256, 4)),
        ("10 TiB", 10 * TIB, context.size(4096, 16)),
    ):
        volume = store.create(f"size-{size_bytes}", size_bytes)
        store.touch(volume, chunk_count=chunk_count)
        keys[name] = store.snapshot(volume.name, "base")
    turns = _clones(context, {name: (store, key) for name, key in keys.items()}, "size")
    yield _pair(turns, "clone of 10 TiB", "10 TiB", "1 GiB", 1.1)


def _depth(context: Context, store: Store) -> Iterator[Figure]:
    depth = context.size(1000, 5)
    deep = _stack(store, depth, "deep")
    flat = store.create("flat-base", READ_SIZE_BYTES)
    _copy(store, deep, flat)
    flat_top = store.clone(SourceKind.VOLUME, flat.name, "flat-top")
    keys = {"deep": store.snapshot(deep.name, "s"), "flat": store.snapshot(flat_top.name, "s")}
    turns = _clones(context, {name: (store, key) for name, key in keys.items()}, "depth")
    yield _pair(turns, f"clone at depth {depth:,}", "deep", "flat", 1.2, against="depth 1")
    turns = _reads(context, store, {"deep": deep, "flat": flat_top})
    name = f"4 KiB random read at depth {depth:,}"
    yield _pair(turns, name, "deep", "flat", 1.2, against="depth 1")


def _count(context: Context, few: Store) -> Iterator[Figure]:
    with opened(context.place("large")) as many:
        few.deploy(context.size(100, 2), "few")
        many.deploy(context.size(100_000, 20), "many")
        turns = Turns().run(
            {
                "many": lambda n: many.clone(SourceKind.IMAGE, IMAGE, f"vm-{n + 100}"),
                "few": lambda n: few.clone(SourceKind.IMAGE, IMAGE, f"vm-{n + 100}"),
            },
            rounds=context.size(400, 3),
            warm_up=context.size(30, 1),
        )
    yield _pair(turns, "clone among 100,000 volumes", "many", "few", 1.3, against="among 100")


def _clones(context: Context, keys: dict[str, tuple[Store, str]], prefix: str) -> Turns:
    def act(name: str, number: int) -> Volume:
        store, key = keys[name]
        target = f"{prefix}-{name.replace(' ', '')}-{number + 100}"
        return store.clone(SourceKind.SNAPSHOT, key, target)

    return Turns().run(
        {name: lambda n, name=name: act(name, n) for name in keys},
        rounds=context.size(400, 3),
        warm_up=context.size(30, 1),
    )


def _stack(store: Store, depth: int, prefix: str) -> Volume:
    """Return the top of a chain of `depth` clones, each with a few blocks of its own."""
    generator = random.Random(7)
    volume = store.create(f"{prefix}-0", READ_SIZE_BYTES)
    with store.backend.open_device(volume.backend_id, read_only=False) as device:
        for at in range(0, READ_SIZE_BYTES, MIB):
            device.write(at, generator.randbytes(MIB))
    for number in range(1, depth + 1):
        volume = store.clone(SourceKind.VOLUME, volume.name, f"{prefix}-{number}")
        with store.backend.open_device(volume.backend_id, read_only=False) as device:
            for _ in range(CHUNKS_PER_LAYER):
                first = generator.randrange(READ_SIZE_BYTES // BLOCK_SIZE_BYTES // CHUNK_BLOCKS)
                for _ in range(BLOCKS_PER_LAYER // CHUNKS_PER_LAYER):
                    block = first * CHUNK_BLOCKS + generator.randrange(CHUNK_BLOCKS)
                    device.write(block * BLOCK_SIZE_BYTES, generator.randbytes(BLOCK_SIZE_BYTES))
    return volume


def _copy(store: Store, source: Volume, target: Volume) -> None:
    with (
        store.backend.open_device(source.backend_id, read_only=True) as reader,
        store.backend.open_device(target.backend_id, read_only=False) as writer,
    ):
        buffer = bytearray(MIB)
        for at in range(0, READ_SIZE_BYTES, MIB):
            reader.read_into(at, buffer)
            writer.write(at, buffer)


def _reads(context: Context, store: Store, volumes: dict[str, Volume]) -> Turns:
    rounds = context.size(20_000, 20)
    generator = random.Random(3)
    blocks = [generator.randrange(READ_SIZE_BYTES // BLOCK_SIZE_BYTES) for _ in range(rounds)]
    buffer = bytearray(BLOCK_SIZE_BYTES)
    devices = {
        name: store.backend.open_device(volume.backend_id, read_only=True)
        for name, volume in volumes.items()
    }
    try:
        for device in devices.values():
            for at in range(0, READ_SIZE_BYTES, BLOCK_SIZE_BYTES * context.size(1, 4096)):
                device.read_into(at, buffer)
        return Turns().run(
            {
                name: lambda n, read=device.read_into: read(blocks[n] * BLOCK_SIZE_BYTES, buffer)
                for name, device in devices.items()
            },
            rounds=rounds,
        )
    finally:
        for device in devices.values():
            device.close()


def _pair(
    turns: Turns, name: str, large: str, small: str, at_most: float, *, against: str = ""
) -> Figure:
    return Figure(
        scenario="scaling",
        name=name,
        unit="us",
        ours=turns.us(large),
        rival=against or small,
        theirs=turns.us(small),
        at_most=at_most,
    )
