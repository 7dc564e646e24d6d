"""Rows of pages: all versions are read, nothing damaged is believed."""

import random
from array import array

import pytest

from volcore.backends.local.pagecodec import Page, decoded, encoded
from volcore.errors import IntegrityError
from volcore.kernels import chunkmap, mapscan
from volcore.limits import CHUNK_BLOCKS

KINDS = ["mixed", 0, 1, 2]


def some_page(kind, seed=1):
    rng = random.Random(seed)
    mixed = bytes(rng.choices((0, 1, 2), k=CHUNK_BLOCKS))
    states = mixed if kind == "mixed" else bytes([kind]) * CHUNK_BLOCKS
    crcs = array("I", (rng.getrandbits(32) if state == 1 else 0 for state in states))
    return Page(7, 2**33, states, crcs)


def written_by(version, page):
    """The row as a server of that version wrote it."""
    row = encoded(page)
    if version == 4:
        return row
    form = page.states, page.crcs.tobytes()
    if version == 2:
        form = chunkmap.pack(page.states, page.crcs)
    return (*row[:2], *form, row[4])


@pytest.mark.parametrize(("kind", "length"), [("mixed", 269), (0, 13), (1, 13), (2, 13)])
def test_lengths(kind, length):
    """Goal: the lengths that docs/formats/local.md tells. Method: encode one of each kind."""
    page = some_page(kind)
    _, _, states, crcs, _ = encoded(page)
    assert (len(states), len(crcs)) == (length, 4 * page.states.count(1))
    chunks, found = mapscan.read_states(states, page.layer_id)
    assert (array("Q", chunks).tolist(), found) == ([page.chunk_index], page.states)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("version", [1, 2, 4])
def test_every_version(kind, version):
    """Goal: one checksum, three forms. Method: decode the row as each version wrote it."""
    page = some_page(kind)
    assert decoded(*written_by(version, page)) == page


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("version", [1, 2, 4])
def test_flips(kind, version):
    """Goal: every damaged row is refused. Method: flip bits, cut, lengthen, misplace."""
    layer_id, chunk, states, crcs, checksum = written_by(version, some_page(kind))
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


def flipped(data, rng):
    at = rng.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
