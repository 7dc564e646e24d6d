"""States of many chunks: known answers, native == pure, golden digest, damage, misuse."""

import random
import struct
from array import array
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from .conftest import native, oracle, outcome

ABSENT, DATA, ZERO, MIXED = range(4)
BLOCKS = 1024
LAYER = 7


def row(chunk, states, layer_id=LAYER):
    """What `read_states` takes for one chunk."""
    form, rest = states[0], b""
    if len(set(states)) > 1:
        number = sum(state << 2 * at for at, state in enumerate(states))
        form, rest = MIXED, number.to_bytes(256, "little")
    body = struct.pack("<QB", chunk, form) + rest
    seed = oracle("crc32c").crc32c(struct.pack("<Q", layer_id))
    return struct.pack("<I", oracle("crc32c").crc32c(body, seed)) + body


def some_states(rng):
    kinds = rng.choice([(ABSENT,), (DATA,), (ZERO,), (ABSENT, DATA), (ABSENT, DATA, ZERO)])
    return bytes(rng.choices(kinds, k=BLOCKS))


def words(values):
    return array("Q", values)


def test_read_states(mapscan):
    """Goal: rows of every form, one after the other. Method: what was put in comes out."""
    rng = random.Random(1)
    chunks = [0, 1, 5, 2**40, 2**64 - 1]
    states = [bytes([kind]) * BLOCKS for kind in (ABSENT, DATA, ZERO)]
    states += [some_states(rng), bytes(BLOCKS - 1) + b"\1"]
    rows = b"".join(map(row, chunks, states))
    for buffer in (rows, bytearray(rows), memoryview(b"x" + rows)[1:]):
        found, blocks = mapscan.read_states(buffer, LAYER)
        assert (array("Q", found).tolist(), blocks) == (chunks, b"".join(states))
    assert mapscan.read_states(b"", LAYER) == (b"", b"")


def test_golden_digest(mapscan):
    """Goal: freeze the form on the disk: a new digest means that old stores cannot be read."""
    rng = random.Random(5)
    rows = b"".join(row(chunk, some_states(rng)) for chunk in range(0, 90, 3))
    digest = sha256(rows + b"".join(mapscan.read_states(rows, LAYER)))
    assert digest.hexdigest() == "1d3c058898df1ccf973ea5c9e3635b686b3698f2a1e8ae10fc5c928a1e06e1cc"


def test_every_damage_is_refused(mapscan):
    """Goal: no state is believed without proof. Method: flip each bit, cut, swap, repeat, move."""
    one, other = row(3, bytes([DATA]) * BLOCKS), row(4, bytes([ABSENT, DATA, ZERO, DATA]) * 256)
    assert len(other) > len(one)
    bad = [other + one, one + one, one[:-1], other[:-1], one + other[:20], one + b"\0", b"\0" * 13]
    for data in (one, other):
        for bit in range(0, 8 * len(data), 1 if data is one else 7):
            flipped = bytearray(data)
            flipped[bit // 8] ^= 1 << bit % 8
            bad.append(flipped)
    for rows in bad:
        with pytest.raises(ValueError, match="row"):
            mapscan.read_states(rows, LAYER)
    for layer_id in (0, 6, 2**63):
        with pytest.raises(ValueError, match="row"):
            mapscan.read_states(one, layer_id)


def test_nonsense_with_a_right_checksum_is_refused(mapscan):
    """Goal: a state that there is not never gets out. Method: forge rows with it."""
    for rows in (row(1, bytes([4]) * BLOCKS), row(1, bytes([255]) * BLOCKS)):
        with pytest.raises(ValueError, match="row"):
            mapscan.read_states(rows, LAYER)
    for at in (0, 1, 2, 3, 511, 1023):
        states = bytearray(BLOCKS)
        states[at] = 3
        with pytest.raises(ValueError, match="row"):
            mapscan.read_states(row(1, states), LAYER)


def test_fill(mapscan):
    """Goal: the topmost layer decides, the next one what that leaves. Method: known answers."""
    kinds = bytearray(3 * BLOCKS)
    top = bytes([DATA, ABSENT, ZERO]) + bytes(BLOCKS - 3)
    below = bytes([ZERO, DATA, DATA, ZERO]) + bytes([DATA]) * (BLOCKS - 4)
    mapscan.fill(kinds, words([2]), top, ABSENT)
    mapscan.fill(kinds, words([2, 0]), below + top, ABSENT)
    assert kinds[: 2 * BLOCKS] == top + bytes(BLOCKS)
    assert kinds[2 * BLOCKS :] == bytes([DATA, DATA, ZERO, ZERO]) + bytes([DATA]) * (BLOCKS - 4)
    mapscan.fill(kinds, words([0, 0, 1]), bytes([9]) * (3 * BLOCKS), ZERO)
    assert kinds[:4] == bytes([DATA, ABSENT, 9, ABSENT])
    assert not any(kinds[BLOCKS : 2 * BLOCKS])
    mapscan.fill(kinds, words([]), b"", ABSENT)
    mapscan.fill(bytearray(), words([]), b"", ABSENT)


@given(st.integers(0, 2**32), st.integers(0, 3), st.integers(0, 3))
def test_native_equals_pure(seed, chunk_count, below_count):
    """Goal: one algebra. Method: random maps through both, damaged ones too."""
    rng = random.Random(seed)
    rows = bytearray(b"".join(row(at * 3, some_states(rng)) for at in range(chunk_count)))
    if rows and rng.random() < 0.3:
        rows[rng.randrange(len(rows))] ^= 1 << rng.randrange(8)
    kinds = bytes(rng.choices(range(4), k=chunk_count * BLOCKS))
    below = bytes(rng.choices(range(5), k=below_count * BLOCKS))
    places = words(rng.randrange(4) for _ in range(below_count))
    unknown = rng.choice([0, 1, 3, 255, 256])
    results = []
    for kernel in (native("mapscan"), oracle("mapscan")):
        target = bytearray(kinds)
        filled = outcome(kernel.fill, target, places, below, unknown)
        results.append((outcome(kernel.read_states, rows, LAYER), filled, target))
    assert results[0] == results[1]


BIG = 2**64
MISUSE = [
    (TypeError, "read_states", (None, 0)),
    (TypeError, "read_states", (b"", 0.5)),
    (OverflowError, "read_states", (b"", BIG)),
    (OverflowError, "read_states", (b"", -1)),
    (ValueError, "read_states", (array("I", [1]), 0)),
    (BufferError, "read_states", (memoryview(bytes(26))[::2], 0)),
    (BufferError, "fill", (bytes(BLOCKS), words([0]), bytes(BLOCKS), 0)),
    (ValueError, "fill", (bytearray(BLOCKS - 1), words([0]), bytes(BLOCKS), 0)),
    (ValueError, "fill", (bytearray(BLOCKS), words([1]), bytes(BLOCKS), 0)),
    (ValueError, "fill", (bytearray(BLOCKS), words([BIG - 1]), bytes(BLOCKS), 0)),
    (ValueError, "fill", (bytearray(BLOCKS), words([0]), bytes(BLOCKS - 1), 0)),
    (ValueError, "fill", (bytearray(BLOCKS), words([0, 0]), bytes(BLOCKS), 0)),
    (ValueError, "fill", (bytearray(BLOCKS), array("I", [0]), bytes(BLOCKS), 0)),
    (OverflowError, "fill", (bytearray(BLOCKS), words([0]), bytes(BLOCKS), 256)),
    (OverflowError, "fill", (bytearray(BLOCKS), words([0]), bytes(BLOCKS), -1)),
]


@pytest.mark.parametrize(("error", "name", "args"), MISUSE)
def test_misuse_is_refused(mapscan, error, name, args):
    with pytest.raises(error):
        getattr(mapscan, name)(*args)


def test_a_refused_fill_changes_nothing(mapscan):
    kinds = bytearray(BLOCKS)
    with pytest.raises(ValueError, match="no chunk 1"):
        mapscan.fill(kinds, words([0, 1]), bytes([DATA]) * (2 * BLOCKS), ABSENT)
    assert not any(kinds)
