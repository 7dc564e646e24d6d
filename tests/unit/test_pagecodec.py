"""Rows of pages: both versions are read, nothing damaged is believed."""

import random
from array import array

import pytest

from volcore.backends.local.pagecodec import (
    Page,
    decoded,
    encoded,
    make_brief,
    read_briefs,
)
from volcore.errors import IntegrityError
from volcore.limits import CHUNK_BLOCKS

KINDS = ["mixed", 0, 1, 2]


def some_page(kind, seed=1):
    rng = random.Random(seed)
    mixed = bytes(rng.choices((0, 1, 2), k=CHUNK_BLOCKS))
    states = mixed if kind == "mixed" else bytes([kind]) * CHUNK_BLOCKS
    crcs = array("I", (rng.getrandbits(32) if state == 1 else 0 for state in states))
    return Page(7, 2**33, states, crcs)


@pytest.mark.parametrize(("kind", "length"), [("mixed", 256), (0, 1), (1, 1), (2, 1)])
def test_lengths(kind, length):
    """Goal: the lengths that docs/formats/local.md tells. Method: encode one of each kind."""
    page = some_page(kind)
    _, _, states, crcs, _, brief = encoded(page)
    assert (len(states), len(crcs)) == (length, 4 * page.states.count(1))
    assert (brief is None) == (kind == "mixed")
    if brief is not None:
        assert read_briefs([(7, 2**33, brief)]) == [kind]


@pytest.mark.parametrize("kind", KINDS)
def test_both_versions(kind):
    """Goal: one checksum, two forms. Method: decode the row, and the row as version 1 wrote it."""
    page = some_page(kind)
    *row, _ = encoded(page)
    assert decoded(*row) == page
    assert decoded(7, 2**33, page.states, page.crcs.tobytes(), row[4]) == page


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("version", [1, 2])
def test_flips(kind, version):
    """Goal: every damaged row is refused. Method: flip bits, cut, lengthen, misplace."""
    page = some_page(kind)
    layer_id, chunk, states, crcs, checksum, _ = encoded(page)
    if version == 1:
        states, crcs = page.states, page.crcs.tobytes()
    rng, bad = random.Random(3), []
    for _ in range(100):
        which = rng.randrange(3)
        if which == 2:
            bad.append((layer_id, chunk, states, crcs, checksum ^ 1 << rng.randrange(32)))
        elif which == 1 and crcs:
            bad.append((layer_id, chunk, states, flipped(crcs, rng), checksum))
        else:
            bad.append((layer_id, chunk, flipped(states, rng), crcs, checksum))
    bad += [(layer_id, chunk, one, two, checksum) for one, two in (
        (states[:-1], crcs), (states + b"\0", crcs), (states, crcs + bytes(4)),
        (states, crcs + b"\0"), (b"", b""),
    )]  # fmt: skip
    bad += [(layer_id ^ 1, chunk, states, crcs, checksum), (layer_id, 5, states, crcs, checksum)]
    for row in bad:
        with pytest.raises(IntegrityError):
            decoded(*row)


def test_flipped_brief():
    """Goal: a diff trusts no damaged index. Method: flip each bit of a brief, misplace it."""
    good, brief = (5, 6, make_brief(5, 6, 2)), make_brief(3, 4, 1)
    assert read_briefs([good, (3, 4, brief)]) == [2, 1]
    bad = [(3, 4, brief ^ 1 << bit) for bit in range(63)]
    for row in [*bad, (3, 5, brief), (4, 4, brief), (3, 4, -brief), (3, 4, 3 << 32)]:
        with pytest.raises(IntegrityError, match=f"chunk {row[1]} in layer {row[0]}"):
            read_briefs([good, row, good])


def flipped(data, rng):
    at = rng.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
