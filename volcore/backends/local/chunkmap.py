"""The resolved map of one chunk in memory: who owns each block, and with which CRC."""

from array import array
from collections.abc import Iterable
from itertools import groupby
from typing import Final

from volcore.backends.local.layers import Page
from volcore.backends.local.unflushed import Place
from volcore.errors import IntegrityError, Reason
from volcore.kernels import chunkmap
from volcore.kernels.datapath import ChunkState
from volcore.limits import CHUNK_BLOCKS
from volcore.model.extent import ExtentKind

_ONLY_DATA: Final = bytes([0, 1, 0]) + bytes(253)
"""Translates states to 1 where there is DATA."""
_UNRESOLVED: Final = array("H", [chunkmap.UNRESOLVED]) * CHUNK_BLOCKS
_NO_CRCS: Final = array("I", bytes(4 * CHUNK_BLOCKS))
Run = tuple[int, int, int]
"""(first block, block count, owner or state)."""


class ChunkMap(ChunkState):
    """One chunk of a stack of layers. Guarded by its stripe.

    `states` is the top layer's own map; `owners` and `crcs` are what the whole stack resolves to.
    An owner is a position in the chain, counted from the oldest layer, so that a new top layer
    changes none of them.

    `version` counts changes; `durable_version` is the newest one that the database holds.
    `maybe_durable` is 1 for each block that is DATA in a page that is durable or on its way:
    overwriting it needs a note (INV-LOCAL-2). `holes` is 1 where space can be freed once the
    present states are durable.
    """

    __slots__ = ("_place", "crcs", "holes", "maybe_durable", "owners", "states")

    def __init__(
        self,
        chain: list[int],
        pages: Iterable[Page],
        *,
        writable: bool,
        index: int = 0,
        place: Place | None = None,
    ) -> None:
        """Resolve `pages` of the layers in `chain` for the chunk `index`; states lie in `place`."""
        by_position = {chain.index(page.layer_id): page for page in pages}
        self.owners = memoryview(array("H", _UNRESOLVED))
        self.crcs = memoryview(array("I", _NO_CRCS))
        self._place = place  # given back with this object
        self.states = memoryview(bytearray(CHUNK_BLOCKS)) if place is None else place.states
        top = by_position.get(len(chain) - 1)
        states = bytes(CHUNK_BLOCKS) if top is None or not writable else bytes(top.states)
        self.states[:] = states
        self.maybe_durable = bytearray(states.translate(_ONLY_DATA))
        mark = None if place is None else place.mark
        super().__init__(index, self.owners, self.crcs, self.states, self.maybe_durable, mark)
        self.holes: bytearray | None = None
        open_count = CHUNK_BLOCKS
        for position in sorted(by_position, reverse=True):
            if open_count:
                open_count = overlay(self.owners, self.crcs, by_position[position], position)

    def seal(self) -> tuple[bytes, "array[int]", bytes | None]:
        """Return copies of the top layer's states, CRCs and holes, about to become durable."""
        states = bytes(self.states)
        crcs = array("I", self.crcs)
        chunkmap.freeze(states, crcs)
        both = int.from_bytes(self.maybe_durable) | int.from_bytes(states.translate(_ONLY_DATA))
        self.maybe_durable[:] = both.to_bytes(CHUNK_BLOCKS)
        return states, crcs, bytes(self.holes) if self.holes else None

    def push(self) -> None:
        """Continue on a new, empty top layer."""
        assert self.version == self.durable_version, "a frozen layer's pages are complete"
        self.states[:] = self.maybe_durable[:] = bytes(CHUNK_BLOCKS)
        self.holes = None
        self.noted = False

    def needs_note(self, first_block: int, block_count: int) -> bool:
        """Tell whether writing the blocks may tear one from its durable CRC."""
        return self.maybe_durable.find(1, first_block, first_block + block_count) >= 0

    def runs(self, first_block: int, block_count: int) -> list[Run]:
        """Return the owners of the range in maximal runs."""
        return chunkmap.resolve_runs(self.owners, first_block, block_count)

    def kinds(self, first_block: int, block_count: int) -> list[tuple[int, int, ExtentKind]]:
        """Return the range in runs of one kind, ABSENT told from ZERO."""
        found: list[tuple[int, int, ExtentKind]] = []
        for first, count, owner in self.runs(first_block, block_count):
            if owner != chunkmap.ZERO_OWNER:
                if found and found[-1][2] == ExtentKind.DATA:
                    first, count = found[-1][0], found.pop()[1] + count
                found.append((first, count, ExtentKind.DATA))
                continue
            for value, group in groupby(self.owners[first : first + count]):
                length = len(list(group))
                absent = value == chunkmap.UNRESOLVED
                found.append((first, length, ExtentKind.ABSENT if absent else ExtentKind.ZERO))
                first += length
        return found


def overlay(owners: memoryview, crcs: memoryview, page: Page, position: int) -> int:
    """Resolve from one page; return how many blocks stay open.

    Raises:
        IntegrityError: BAD_RECORD, the page holds what no version wrote.
    """
    try:
        return chunkmap.overlay(owners, crcs, page.states, page.crcs, position)
    except ValueError as err:
        raise IntegrityError(
            f"the map of chunk {page.chunk_index} in layer {page.layer_id} makes no sense; restore "
            "the volumes that use it",
            reason=Reason.BAD_RECORD,
            layer=page.layer_id,
            chunk_index=page.chunk_index,
        ) from err
