"""Which warm clones one pool has ready, and how many there should be: counts and clocks only.

A *line* is the stock of one image in one size. Its *target*, the high mark, is twice what was asked
for in about WARM_DEMAND_S; it is filled up to that whenever half of it is gone, the low mark. Every
WARM_IDLE_S it falls to what that time needed, by half at most, and a line at 0 ends. All targets
together stay within the pool's bound: a new line takes what nobody has, then from lines that were
not asked for WARM_HOT_S, the coldest first.

What is here is a copy: the records in the catalog decide, and a claim compares them.
"""

import threading
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from volcore.limits import (
    WARM_CLONES_FIRST,
    WARM_DEMAND_S,
    WARM_HOT_S,
    WARM_IDLE_S,
)
from volcore.model.records import Image, WarmClone

FILL_MAX: Final = 16
"""Clones made at once: a request that comes meanwhile waits for some milliseconds at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StockFigures:
    """What an operator sees of a stock."""

    ready_count: int
    target_count: int
    count_max: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """Clones to claim, and the image as its record was when last seen."""

    image: Image
    clones: tuple[WarmClone, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shortage:
    """Clones to make."""

    image: Image
    size_bytes: int
    count: int


@dataclass(slots=True)
class _Line:
    """The stock of one image in one size."""

    image_id: str
    size_bytes: int
    asked_s: float
    """When it was last asked for."""
    adjusted_s: float
    """When the target last fell."""
    target: int = 0
    demand: float = 0.0
    """What was asked for, older demands weighing less: half after WARM_DEMAND_S."""
    peak: int = 0
    """The highest target that demand has justified since `adjusted_s`."""
    filling: bool = True
    ready: list[WarmClone] = field(default_factory=list)


class Stock:
    """The warm clones of one pool; any thread."""

    def __init__(
        self,
        count_max: int = 0,
        *,
        clock: Callable[[], float] = time.monotonic,
        on_work: Callable[[], None] = lambda: None,
    ) -> None:
        """Begin empty.

        Args:
            count_max: bound of all lines together; 0: no warm clones.
            clock: seconds.
            on_work: called when there is something to make or delete.
        """
        self.count_max = count_max
        self._clock = clock
        self._on_work = on_work
        self._lock = threading.Lock()
        self._images: dict[str, Image] = {}
        self._lines: dict[tuple[str, int], _Line] = {}
        self._unsure: list[WarmClone] = []
        self._doomed: list[WarmClone] = []

    def take(self, image: str, size_bytes: int, count: int) -> Taken | None:
        """Take clones out of the stock, all or none; `size_bytes` 0 means the image's.

        Every one is given back, forgotten or doubted by the caller, or has become a volume.
        """
        if not self.count_max:
            return None
        with self._lock:
            found = self._images.get(image)
            line = found and self._lines.get((found.id, size_bytes or found.size_bytes))
            if not found or not line or len(line.ready) < count:
                return None
            clones = tuple(line.ready[:count])
            del line.ready[:count]
            self._ask(line, count)
        return Taken(image=found, clones=clones)

    def has(self, image: str) -> bool:
        """Return whether there are clones of an image, which then was READY a moment ago."""
        with self._lock:
            found = self._images.get(image)
            return found is not None and any(
                line.ready for (image_id, _), line in self._lines.items() if image_id == found.id
            )

    def missed(self, image: Image, size_bytes: int, count: int) -> None:
        """Note that volumes had to be made otherwise; `image` is READY."""
        if not self.count_max:
            return
        with self._lock:
            self._know(image)
            self._ask(self._line(image, size_bytes), count)

    def saw(self, image: Image) -> None:
        """Note the present record of an image."""
        with self._lock:
            if image.name in self._images:
                self._know(image)

    def adopt(self, image: Image, clones: Sequence[WarmClone]) -> None:
        """Take over READY clones of one size that a server before has left: they show demand."""
        if not clones:
            return
        with self._lock:
            self._know(image)
            line = self._line(image, clones[0].size_bytes)
            line.peak = len(clones)
            self._aim(line, len(clones))
            line.ready += clones
            line.filling = False
            self._cut(line)

    def add(self, clones: Iterable[WarmClone]) -> None:
        """Put READY clones into the stock, new ones or some that were not claimed after all."""
        with self._lock:
            for clone in clones:
                line = self._lines.get((clone.image_id, clone.size_bytes))
                if line is None:
                    self._doomed.append(clone)
                else:
                    line.ready.append(clone)
            for line in self._lines.values():
                self._cut(line)
        self._on_work()

    def doubt(self, clones: Iterable[WarmClone]) -> None:
        """Set clones aside whose records may have changed."""
        with self._lock:
            self._unsure += clones
        self._on_work()

    def doom(self, clones: Iterable[WarmClone]) -> None:
        """Set clones aside that are to be deleted."""
        with self._lock:
            self._doomed += clones
        self._on_work()

    def forget(self, image_id: str) -> None:
        """Doom the clones of an image that is gone."""
        with self._lock:
            self._forget(image_id)
        self._on_work()

    def holds(self, clone_id: str) -> bool:
        """Return whether a clone is in stock, or set aside to be looked at or deleted."""
        with self._lock:
            lines = (line.ready for line in self._lines.values())
            held = (self._unsure, self._doomed, *lines)
            return any(clone.id == clone_id for clones in held for clone in clones)

    def adjust(self) -> None:
        """Let targets fall that were not needed."""
        now_s = self._clock()
        with self._lock:
            for key, line in list(self._lines.items()):
                if now_s - line.adjusted_s >= WARM_IDLE_S:
                    line.target = min(line.target, max(line.peak, line.target // 2))
                    line.peak, line.adjusted_s = 0, now_s
                self._cut(line)
                if not line.target:
                    del self._lines[key]

    def doubted(self) -> WarmClone | None:
        """Take a clone out whose record is to be read again."""
        with self._lock:
            return self._unsure.pop() if self._unsure else None

    def doomed(self) -> WarmClone | None:
        """Take a clone out that is to be deleted; the oldest wish first."""
        with self._lock:
            return self._doomed.pop(0) if self._doomed else None

    def shortage(self) -> Shortage | None:
        """Return what to make next: for the line that was asked for last, within the bound."""
        with self._lock:
            names = {image.id: image for image in self._images.values()}
            present = len(self._unsure) + len(self._doomed)
            present += sum(len(line.ready) for line in self._lines.values())
            for line in sorted(self._lines.values(), key=lambda line: -line.asked_s):
                missing = line.target - len(line.ready)
                line.filling = missing > 0 and (line.filling or missing * 2 >= line.target)
                count = min(missing, FILL_MAX, self.count_max - present)
                if line.filling and count > 0:
                    image = names[line.image_id]
                    return Shortage(image=image, size_bytes=line.size_bytes, count=count)
        return None

    def figures(self) -> StockFigures:
        """Return what there is and what there should be."""
        with self._lock:
            return StockFigures(
                ready_count=sum(len(line.ready) for line in self._lines.values()),
                target_count=sum(line.target for line in self._lines.values()),
                count_max=self.count_max,
            )

    def _know(self, image: Image) -> None:
        """Keep the record of an image; another one of the same name is gone."""
        before = self._images.get(image.name)
        if before is not None and before.id != image.id:
            self._forget(before.id)
        self._images[image.name] = image

    def _forget(self, image_id: str) -> None:
        """Doom the clones of an image."""
        for key in [key for key in self._lines if key[0] == image_id]:
            self._doomed += self._lines.pop(key).ready
        for name in [name for name, image in self._images.items() if image.id == image_id]:
            del self._images[name]

    def _line(self, image: Image, size_bytes: int) -> _Line:
        """Return a line, a new one if need be."""
        now_s = self._clock()
        line = _Line(image.id, size_bytes, asked_s=now_s, adjusted_s=now_s)
        return self._lines.setdefault((image.id, size_bytes), line)

    def _ask(self, line: _Line, count: int) -> None:
        """Note a demand, and aim at what it justifies."""
        now_s = self._clock()
        line.demand *= 0.5 ** ((now_s - line.asked_s) / WARM_DEMAND_S)
        line.demand += count
        line.asked_s = now_s
        wanted = max(WARM_CLONES_FIRST, round(2 * line.demand))
        line.peak = max(line.peak, wanted)
        if wanted > line.target:
            self._aim(line, wanted)
        if len(line.ready) * 2 <= line.target:
            self._on_work()

    def _aim(self, line: _Line, wanted: int) -> None:
        """Raise a target as far as the bound allows, at the cost of cold lines."""
        others = [other for other in self._lines.values() if other is not line]
        room = self.count_max - sum(other.target for other in others)
        for other in sorted(others, key=lambda other: other.asked_s):
            if room >= wanted or line.asked_s - other.asked_s < WARM_HOT_S:
                break
            given = min(other.target, wanted - room)
            other.target -= given
            room += given
            self._cut(other)
        line.target = max(line.target, min(wanted, room))

    def _cut(self, line: _Line) -> None:
        """Doom what is above the target, the youngest."""
        excess = line.ready[line.target :]
        if excess:
            del line.ready[line.target :]
            self._doomed += excess
            self._on_work()


def ids(clones: Collection[WarmClone]) -> list[str]:
    """Return the names of clones in the backend."""
    return [clone.backend_id for clone in clones]
