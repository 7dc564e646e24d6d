"""Histories of a pool, and what may be read after one was cut off: the oracle of the crash tests.

A `Step` is one call. `PoolModel.apply` gives its effect: a write that was not flushed adds a
content that its blocks may have; a flush leaves the newest. `random_steps` draws a history without
any backend, `Player` plays it on one, `read_pool` reads everything and `PoolModel.mismatch` judges.
"""

import copy
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Final

from volcore.backends.contract import (
    BlockDevice,
    SupportsFlatten,
    SupportsRevert,
    VolumeBackend,
)
from volcore.limits import BLOCK_SIZE_BYTES, CHUNK_BLOCKS, CHUNK_SIZE_BYTES

_ZEROES: Final = bytes(BLOCK_SIZE_BYTES)
_B: Final = BLOCK_SIZE_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One call: `kind` says which; the fields it does not use stay as they are."""

    kind: str
    volume: str = ""
    point: str | None = None
    target: str = ""
    size_bytes: int = 0
    offset_bytes: int = 0
    length_bytes: int = 0
    seed: int = 0
    fua: bool = False

    def data(self) -> bytes:
        """Return what a write writes; no two seeds give the same block."""
        return random.Random(self.seed).randbytes(self.length_bytes)  # noqa: S311 - test data


@dataclass(slots=True)
class PointModel:
    """What a volume or snapshot may hold: the contents possible for each block, newest last."""

    size_bytes: int
    blocks: dict[int, list[bytes]] = field(default_factory=dict)

    @classmethod
    def of(cls, content: bytes) -> "PointModel":
        """Return the model of a point that holds exactly this."""
        blocks = {at // _B: [content[at : at + _B]] for at in range(0, len(content), _B)}
        return cls(len(content), {at: one for at, one in blocks.items() if one != [_ZEROES]})

    def put(self, offset_bytes: int, data: bytes) -> None:
        """Write without a flush."""
        done = 0
        while done < len(data):
            block, start = divmod(offset_bytes + done, _B)
            piece = data[done : done + _B - start]
            allowed = self.blocks.setdefault(block, [_ZEROES])
            old = allowed[-1]
            allowed.append(old[:start] + piece + old[start + len(piece) :])
            done += len(piece)

    def settle(self, offset_bytes: int = 0, length_bytes: int | None = None) -> None:
        """Keep the newest contents only, of all blocks or of those that the range touches."""
        end_bytes = self.size_bytes if length_bytes is None else offset_bytes + length_bytes
        for block, allowed in self.blocks.items():
            if block * _B < end_bytes and (block + 1) * _B > offset_bytes:
                del allowed[:-1]

    def frozen(self, size_bytes: int | None = None) -> "PointModel":
        """Return a settled copy."""
        blocks = {block: allowed[-1:] for block, allowed in self.blocks.items()}
        return PointModel(size_bytes or self.size_bytes, blocks)

    def newest(self) -> bytes:
        """Return what it holds while nothing crashed."""
        content = bytearray(self.size_bytes)
        for block, allowed in self.blocks.items():
            content[block * _B : (block + 1) * _B] = allowed[-1]
        return bytes(content)

    def newest_mismatch(self, content: bytes, first_block: int) -> str | None:
        """Return where `content` is not the newest, as it is while nothing crashed."""
        for at in range(0, len(content), _B):
            block = first_block + at // _B
            if content[at : at + _B] != self.blocks.get(block, [_ZEROES])[-1]:
                return f"block {block} does not hold what was written last"
        return None

    def mismatch(self, content: bytes, offset_bytes: int = 0) -> str | None:
        """Return where `content`, whole blocks, holds what it may not, or None."""
        end = offset_bytes + len(content)
        rest = bytearray(content)
        for block, allowed in self.blocks.items():
            at = block * _B - offset_bytes
            if offset_bytes <= block * _B < end:
                if content[at : at + _B] not in allowed:
                    return f"block {block} has none of {len(allowed)} contents"
                rest[at : at + _B] = _ZEROES
        if rest != bytes(len(rest)):
            at = offset_bytes + len(rest) - len(rest.lstrip(b"\0"))
            return f"block {at // _B} was never written"
        return None


@dataclass(slots=True)
class VolumeModel:
    """A volume: its head and its snapshots."""

    head: PointModel
    points: dict[str, PointModel] = field(default_factory=dict)


Found = dict[str, dict[str | None, bytes]]
"""Everything that a pool shows: volume, then snapshot or None for the head, then the bytes."""


class PoolModel:
    """What a pool may hold."""

    def __init__(self) -> None:
        """Begin empty."""
        self.volumes: dict[str, VolumeModel] = {}

    @classmethod
    def of(cls, found: Found) -> "PoolModel":
        """Return the model of a pool that holds exactly this."""
        model = cls()
        for name, points in found.items():
            heads = {point: PointModel.of(content) for point, content in points.items()}
            model.volumes[name] = VolumeModel(
                heads[None], {point: one for point, one in heads.items() if point is not None}
            )
        return model

    def apply(self, step: Step) -> None:
        """Take over the effect of a step that has succeeded, or may have."""
        getattr(self, f"_{step.kind}")(step)

    def attempted(self, step: Step) -> list["PoolModel"]:
        """Return what the pool may be besides this while `step` runs, or when it was cut off."""
        if step.kind in {"flush", "close", "flatten", "restart", "merge"}:
            return []  # until it returns it promises nothing
        after = copy.deepcopy(self)
        after.apply(replace(step, fua=False))
        return [after]

    def _create(self, step: Step) -> None:
        self.volumes[step.volume] = VolumeModel(PointModel(step.size_bytes))

    def _delete(self, step: Step) -> None:
        del self.volumes[step.volume]

    def _resize(self, step: Step) -> None:
        self.volumes[step.volume].head.size_bytes = step.size_bytes

    def _write(self, step: Step) -> None:
        head = self.volumes[step.volume].head
        head.put(step.offset_bytes, step.data())
        if step.fua:
            head.settle()

    def _discard(self, step: Step) -> None:
        self.volumes[step.volume].head.put(step.offset_bytes, bytes(step.length_bytes))

    def _fill(self, step: Step) -> None:
        self._discard(step)

    def _flush(self, step: Step) -> None:
        self.volumes[step.volume].head.settle()

    _close = _flatten = _flush

    def _merge(self, step: Step) -> None:
        """Background work changes nothing that anybody sees."""

    def _restart(self, _step: Step) -> None:
        for volume in self.volumes.values():
            volume.head.settle()

    def _snapshot(self, step: Step) -> None:
        volume = self.volumes[step.volume]
        volume.head.settle()
        assert step.point is not None
        volume.points[step.point] = volume.head.frozen()

    def _delete_snapshot(self, step: Step) -> None:
        assert step.point is not None
        del self.volumes[step.volume].points[step.point]

    def _clone(self, step: Step) -> None:
        source = self.volumes[step.volume]
        point = source.head if step.point is None else source.points[step.point]
        point.settle()
        self.volumes[step.target] = VolumeModel(point.frozen(step.size_bytes))

    def _revert(self, step: Step) -> None:
        volume = self.volumes[step.volume]
        assert step.point is not None
        volume.head = volume.points[step.point].frozen()

    def mismatch(self, found: Found) -> str | None:
        """Return what `found` has that it may not, or lacks; None when all is as it may be."""
        if found.keys() != self.volumes.keys():
            return f"volumes {sorted(found)}, not {sorted(self.volumes)}"
        for name, volume in self.volumes.items():
            points: dict[str | None, PointModel] = {None: volume.head}
            points.update(volume.points)
            if found[name].keys() != points.keys():
                return f"{name} has points {[*found[name]]}, not {[*points]}"
            for point, model in points.items():
                content = found[name][point]
                text = model.mismatch(content)
                if len(content) != model.size_bytes:
                    text = f"has {len(content)} bytes, not {model.size_bytes}"
                if text is not None:
                    return f"{name} {point or 'head'}: {text}"
        return None


class Player:
    """Plays steps on a backend; devices are opened by their first write."""

    def __init__(self, start: Callable[[], VolumeBackend]) -> None:
        self._start = start
        self.backend = start()
        self._devices: dict[str, BlockDevice] = {}

    def play(self, step: Step) -> None:
        """Do one step; errors are the caller's."""
        kind, volume = step.kind, step.volume
        if kind in {"write", "discard", "fill", "flush"}:
            self._change(self._device(volume), step)
        elif kind == "close":
            self._close(volume)
        elif kind == "restart":
            self.close()
            self.backend = self._start()
        elif kind == "create":
            self.backend.create(volume, step.size_bytes)
        elif kind == "resize":
            self.backend.resize(volume, step.size_bytes)
        elif kind == "clone":
            self.backend.clone(volume, step.point, step.target, step.size_bytes)
        elif kind == "flatten":
            assert isinstance(self.backend, SupportsFlatten)
            self.backend.flatten(volume, lambda done, total: None)
        elif kind == "snapshot":
            self.backend.create_snapshot(volume, step.point or "")
        elif kind == "delete_snapshot":
            self.backend.delete_snapshot(volume, step.point or "")
        elif kind == "delete":
            self._close(volume)
            self.backend.delete(volume)
        elif kind == "merge":
            work = getattr(self.backend, "upkeep", None)
            for _ in range(step.seed % MERGE_STEPS_MAX + 1):
                if work is None or not work.step():
                    break
        else:
            assert kind == "revert"
            assert isinstance(self.backend, SupportsRevert)
            self._close(volume)
            self.backend.revert(volume, step.point or "")

    def _change(self, device: BlockDevice, step: Step) -> None:
        if step.kind == "write":
            device.write(step.offset_bytes, step.data(), fua=step.fua)
        elif step.kind == "discard":
            device.discard(step.offset_bytes, step.length_bytes)
        elif step.kind == "fill":
            device.write_zeroes(step.offset_bytes, step.length_bytes, may_trim=False)
        else:
            device.flush()

    def _device(self, volume: str) -> BlockDevice:
        if volume not in self._devices:
            self._devices[volume] = self.backend.open_device(volume, read_only=False)
        return self._devices[volume]

    def _close(self, volume: str) -> None:
        if volume in self._devices:
            self._devices.pop(volume).close()

    def close(self) -> None:
        """Close everything."""
        for volume in list(self._devices):
            self._close(volume)
        self.backend.close()


def read_pool(backend: VolumeBackend) -> Found:
    """Read every byte of every volume and snapshot."""
    found: Found = {}
    for volume in backend.walk():
        found[volume] = {}
        for point in (None, *backend.describe(volume).snapshot_ids):
            with backend.open_device(volume, point, read_only=True) as device:
                found[volume][point] = device.read(0, device.size_bytes)
    return found


VOLUMES_MAX: Final = 4
SNAPSHOTS_MAX: Final = 3
SIZE_BYTES: Final = CHUNK_SIZE_BYTES + 12 * BLOCK_SIZE_BYTES
MERGE_STEPS_MAX: Final = 8
"""Steps of background work done together."""
_WINDOWS: Final = ((0, 10), (CHUNK_BLOCKS - 6, CHUNK_BLOCKS + 12))
"""Blocks where histories happen: few, so that they meet; both ends of a chunk, and the next one."""
_KINDS: Final = (
    ("write", 40), ("discard", 12), ("fill", 3), ("flush", 14), ("snapshot", 6), ("clone", 5),
    ("delete_snapshot", 3), ("revert", 3), ("flatten", 2), ("resize", 2), ("create", 2),
    ("delete", 2), ("close", 6), ("restart", 2), ("merge", 8),
)  # fmt: skip


def random_steps(dice: random.Random, count: int) -> list[Step]:
    """Draw a history that begins in an empty pool."""
    model = PoolModel()
    steps: list[Step] = []
    source = _drawn(dice, model)
    while len(steps) < count:
        step = next(source)
        model.apply(step)
        steps.append(step)
    return steps


def _drawn(dice: random.Random, model: PoolModel) -> Iterator[Step]:
    kinds = [kind for kind, _ in _KINDS]
    weights = [weight for _, weight in _KINDS]
    serial = 1
    yield Step(kind="create", volume="v1", size_bytes=SIZE_BYTES)
    while True:
        serial += 1
        (kind,) = dice.choices(kinds, weights)
        volume = dice.choice(sorted(model.volumes))
        points = [*model.volumes[volume].points]
        size_bytes = model.volumes[volume].head.size_bytes
        if kind in {"write", "discard", "fill"}:
            yield _change(dice, kind, volume, serial)
        elif kind == "create" and len(model.volumes) < VOLUMES_MAX:
            yield Step(kind=kind, volume=f"v{serial}", size_bytes=SIZE_BYTES)
        elif kind == "clone" and len(model.volumes) < VOLUMES_MAX:
            point = dice.choice([None, *points])
            if point is not None:
                size_bytes = model.volumes[volume].points[point].size_bytes
            size_bytes += dice.randrange(3) * BLOCK_SIZE_BYTES
            target = f"v{serial}"
            yield Step(kind=kind, volume=volume, point=point, target=target, size_bytes=size_bytes)
        elif kind == "resize":
            size_bytes += dice.randrange(1, 9) * BLOCK_SIZE_BYTES
            yield Step(kind=kind, volume=volume, size_bytes=size_bytes)
        elif kind == "snapshot" and len(points) < SNAPSHOTS_MAX:
            yield Step(kind=kind, volume=volume, point=f"s{serial}")
        elif kind in {"delete_snapshot", "revert"} and points:
            yield Step(kind=kind, volume=volume, point=dice.choice(points))
        elif kind in {"flush", "flatten", "close", "restart"} or (
            kind == "delete" and len(model.volumes) > 1
        ):
            yield Step(kind=kind, volume=volume)
        elif kind == "merge":
            yield Step(kind=kind, seed=dice.randrange(MERGE_STEPS_MAX))


def _change(dice: random.Random, kind: str, volume: str, seed: int) -> Step:
    low, high = dice.choice(_WINDOWS)
    offset = dice.randrange(low, high) * _B
    length = dice.choice((1, 1, 2, 3, 6)) * _B
    if dice.random() < 0.25:
        offset += dice.randrange(_B)
        length = dice.randrange(1, 2 * _B)
    length = min(length, high * _B - offset)
    return Step(
        kind=kind, volume=volume, offset_bytes=offset, length_bytes=length, seed=seed,
        fua=kind == "write" and dice.random() < 0.1,
    )  # fmt: skip
