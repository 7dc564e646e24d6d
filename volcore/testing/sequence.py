"""A sequence of blocks that prove themselves, as the test guest writes it (`guest.py`).

Block n holds 128 times the same line of 32 bytes: n in ten digits, a space, a number that follows
from n in twenty digits, a line feed. A torn, misplaced or foreign block has other lines.
"""

from pathlib import Path
from typing import Final

BLOCK_BYTES: Final = 4096
LINE_BYTES: Final = 32
FACTOR: Final = 2654435761
OFFSET: Final = 12345
MODULUS: Final = 2147483647
"""Exact for the first three million blocks: awk counts in doubles, and prints 31 bits."""

_BLANK: Final = bytes(BLOCK_BYTES)


def block(number: int) -> bytes:
    """Return block `number`."""
    line = b"%010d %020d\n" % (number, (number * FACTOR + OFFSET) % MODULUS)
    assert len(line) == LINE_BYTES
    return line * (BLOCK_BYTES // LINE_BYTES)


def length(path: Path, end_bytes: int | None = None) -> int:
    """Return how many blocks of the sequence a raw image begins with.

    Only what lies before `end_bytes` is looked at, whole blocks; by default everything.

    Raises:
        AssertionError: something that is no such block, and no zeroes, follows.
    """
    count = 0
    end_bytes = path.stat().st_size if end_bytes is None else end_bytes
    with path.open("rb") as file:
        while (found := file.read(BLOCK_BYTES)) == block(count):
            count += 1
        # The guest was stopped between two blocks, so what follows was never written.
        while found and file.tell() <= end_bytes:
            assert found == _BLANK[: len(found)], (
                f"block {count} is neither of the sequence nor blank"
            )
            found = file.read(BLOCK_BYTES)
    return count
