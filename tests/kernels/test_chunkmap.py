"""The block map: known answers, boundaries, native == pure, golden digest, misuse."""

import random
import struct
from array import array
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from .conftest import native, oracle, outcome

ABSENT, DATA, ZERO = 0, 1, 2
ZERO_OWNER, UNRESOLVED = 0xFFFE, 0xFFFF
STATES = st.sampled_from([ABSENT, DATA, ZERO])
CRCS = st.integers(0, 2**32 - 1)


def words(values):
    return array("I", list(values))


def test_mark(chunkmap):
    states = bytearray(10)
    chunkmap.mark(states, 2, 3, DATA)
    chunkmap.mark(states, 4, 2, ZERO)
    chunkmap.mark(states, 3, 1, ABSENT)
    chunkmap.mark(states, 10, 0, DATA)
    chunkmap.mark(bytearray(), 0, 0, DATA)
    assert list(states) == [0, 0, 1, 0, 2, 2, 0, 0, 0, 0]


def test_overlay_resolves_from_the_top_down(chunkmap):
    """Goal: the highest layer that says anything wins, and a trimmed block hides what is below."""
    owners, crcs = array("H", [UNRESOLVED] * 5), words([9] * 5)
    top = bytes([DATA, ZERO, ABSENT, ABSENT, ABSENT])
    below = bytes([DATA, DATA, DATA, ZERO, ABSENT])
    assert chunkmap.overlay(owners, crcs, top, words(range(10, 15)), 7) == 3
    assert chunkmap.overlay(owners, crcs, below, words(range(20, 25)), 0xFFFD) == 1
    assert owners.tolist() == [7, ZERO_OWNER, 0xFFFD, ZERO_OWNER, UNRESOLVED]
    assert crcs.tolist() == [10, 9, 22, 9, 9]


def test_resolve_runs(chunkmap):
    owners = array("H", [3, 3, 0xFFFD, ZERO_OWNER, UNRESOLVED, UNRESOLVED, ZERO_OWNER, 0, 3])
    assert chunkmap.resolve_runs(owners, 0, 9) == [
        (0, 2, 3),
        (2, 1, 0xFFFD),
        (3, 4, ZERO_OWNER),
        (7, 1, 0),
        (8, 1, 3),
    ]
    assert chunkmap.resolve_runs(owners, 1, 3) == [(1, 1, 3), (2, 1, 0xFFFD), (3, 1, ZERO_OWNER)]
    assert chunkmap.resolve_runs(owners, 9, 0) == []
    assert chunkmap.resolve_runs(array("H"), 0, 0) == []


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 1023, 1024, 1025])
@pytest.mark.parametrize("lead", [0, 1, 3])
def test_runs_of_every_length(chunkmap, length, lead):
    """Goal: the wide comparison stops at the right item. Method: one run between two others."""
    for owner, other in ((0, 1), (ZERO_OWNER, 5), (UNRESOLVED, 0xFFFD), (0xFFFD, UNRESOLVED)):
        owners = array("H", [other] * lead + [owner] * length + [other] * 2)
        expected = [(lead, length, owner), (lead + length, 2, other)]
        expected = [(at, count, min(who, ZERO_OWNER)) for at, count, who in expected]
        assert chunkmap.resolve_runs(owners, lead, length + 2) == expected
    for state, other in ((ABSENT, DATA), (DATA, ZERO), (ZERO, ABSENT)):
        states = bytes([other] * lead + [state] * length + [other] * 2)
        expected = [(lead, length, state), (lead + length, 2, other)]
        assert chunkmap.state_runs(states, lead, length + 2) == expected


def test_freeze_makes_maps_canonical(chunkmap):
    states, crcs = bytes([ABSENT, DATA, ZERO, DATA, ZERO, ZERO]), words([1, 2, 3, 0, 5, 6])
    assert chunkmap.freeze(states, crcs) == (2, 3)
    assert crcs.tolist() == [0, 2, 0, 0, 0, 0]
    assert chunkmap.freeze(states, crcs) == (2, 3)
    assert chunkmap.freeze(b"", words([])) == (0, 0)


def test_diff_is_a_union(chunkmap):
    changed = bytearray([0, 0, 0, 1, 4])
    assert chunkmap.diff(changed, bytes([ABSENT, DATA, ZERO, ABSENT, ABSENT])) == 4
    assert list(changed) == [0, 1, 1, 1, 4]
    assert chunkmap.diff(changed, bytes(5)) == 4
    assert chunkmap.diff(bytearray(), b"") == 0


def test_merge_lays_upper_over_lower(chunkmap):
    lower, lower_crcs = bytearray([DATA, DATA, DATA, ABSENT, ZERO]), words([1, 2, 3, 0, 0])
    upper, upper_crcs = bytes([ABSENT, DATA, ZERO, DATA, DATA]), words([9, 8, 7, 6, 5])
    chunkmap.merge(lower, lower_crcs, upper, upper_crcs)
    assert list(lower) == [DATA, DATA, ZERO, DATA, DATA]
    assert lower_crcs.tolist() == [1, 8, 0, 6, 5]


def test_merged_layers_resolve_as_the_stack_did(chunkmap):
    """Goal: background merge changes nothing that a reader sees. Method: resolve both ways."""
    rng = random.Random(3)
    for _ in range(50):
        lower, upper = (bytearray(rng.choices((0, 1, 2), k=64)) for _ in range(2))
        lower_crcs, upper_crcs = (words(rng.choices(range(2**32), k=64)) for _ in range(2))
        owners, crcs = array("H", [UNRESOLVED] * 64), words(bytes(64))
        chunkmap.overlay(owners, crcs, upper, upper_crcs, 0)
        chunkmap.overlay(owners, crcs, lower, lower_crcs, 0)
        chunkmap.merge(lower, lower_crcs, upper, upper_crcs)
        merged, merged_crcs = array("H", [UNRESOLVED] * 64), words(bytes(64))
        chunkmap.overlay(merged, merged_crcs, lower, lower_crcs, 0)
        assert (merged, merged_crcs) == (owners, crcs)


def test_golden_digest(chunkmap):
    """Goal: freeze the results. Maps are on disk: a new digest means blocks read from elsewhere."""
    rng, digest = random.Random(11), sha256()
    for block_count in (1, 7, 64, 1000, 1024):
        maps = [bytearray(rng.choices((0, 1, 2), k=block_count)) for _ in range(3)]
        crcs = [words(rng.choices(range(2**32), k=block_count)) for _ in range(3)]
        owners, owner_crcs = array("H", [UNRESOLVED] * block_count), words(bytes(block_count))
        changed = bytearray(block_count)
        for layer in range(3):
            count = chunkmap.overlay(owners, owner_crcs, maps[layer], crcs[layer], layer)
            digest.update(f"{count} {chunkmap.diff(changed, maps[layer])}".encode())
        digest.update(repr(chunkmap.resolve_runs(owners, 0, block_count)).encode())
        chunkmap.merge(maps[0], crcs[0], maps[1], crcs[1])
        digest.update(repr(chunkmap.freeze(maps[0], crcs[0])).encode())
        digest.update(repr(chunkmap.state_runs(maps[0], 0, block_count)).encode())
        digest.update(repr((crcs[0].tolist(), owner_crcs.tolist(), changed)).encode())
    assert digest.hexdigest() == "fdb176b900242da05380b99a4cc89608c1dff6f6af6b3db0d87670ed2191c2e2"


def run_all(kernel, layers, first, count):
    """Every operation on copies of the layers; all results and all buffers."""
    size = len(layers[0])
    maps = [bytearray(state for state, _ in layer) for layer in layers]
    crcs = [words(crc for _, crc in layer) for layer in layers]
    owners, owner_crcs = array("H", [UNRESOLVED] * size), words(bytes(size))
    changed, results = bytearray(size), []
    for index, (states, layer_crcs) in enumerate(zip(maps, crcs, strict=True)):
        results.append(outcome(kernel.overlay, owners, owner_crcs, states, layer_crcs, index))
        results.append(outcome(kernel.diff, changed, states))
    results.append(outcome(kernel.resolve_runs, owners, first, count))
    results.append(outcome(kernel.merge, maps[-1], crcs[-1], maps[0], crcs[0]))
    results.append(outcome(kernel.state_runs, maps[-1], first, count))
    results.append(outcome(kernel.freeze, maps[0], crcs[0]))
    results.append(outcome(kernel.mark, maps[0], first, count, ZERO))
    return results, maps, crcs, owners, owner_crcs, changed


@st.composite
def layer_stacks(draw):
    size = draw(st.integers(0, 70))
    # A run here and there, and sometimes a state that is none.
    state = STATES if draw(st.booleans()) else st.sampled_from([0, 0, 0, 0, 1, 1, 1, 2, 3])
    layer = st.lists(st.tuples(state, CRCS), min_size=size, max_size=size)
    return draw(st.lists(layer, min_size=1, max_size=4))


@given(layer_stacks(), st.integers(-1, 72), st.integers(-1, 72))
def test_native_equals_pure(layers, first, count):
    expected = run_all(oracle("chunkmap"), layers, first, count)
    assert run_all(native("chunkmap"), layers, first, count) == expected


def test_pack(chunkmap):
    """Goal: the form on the disk, byte for byte. Method: known answers of each length."""
    states = bytes([ABSENT, DATA, ZERO, DATA, ZERO, ABSENT, ABSENT, ABSENT])
    expected = bytes([0b01100100, 0b00000010]), bytes([2, 0, 0, 0, 4, 3, 2, 1])
    assert chunkmap.pack(states, words([9, 2, 9, 0x01020304, 9, 9, 9, 9])) == expected
    for state, count in ((ABSENT, 0), (DATA, 1024), (ZERO, 0)):
        packed = chunkmap.pack(bytes([state]) * 1024, words(range(1024)))
        assert packed == (bytes([state]), struct.pack(f"<{count}I", *range(count)))
    found, crcs = bytearray([9] * 8), words([9] * 8)
    chunkmap.unpack(*expected, found, crcs)
    assert (found, crcs.tolist()) == (states, [0, 2, 0, 0x01020304, 0, 0, 0, 0])
    chunkmap.unpack(bytes([ZERO]), b"", found, crcs)
    assert (found, crcs.tolist()) == (bytes([ZERO]) * 8, [0] * 8)


def test_packed_golden_digest(chunkmap):
    """Goal: freeze the form on the disk: a new digest means that old stores cannot be read."""
    rng, digest = random.Random(13), sha256()
    for block_count in (8, 12, 64, 1000, 1024):
        for _ in range(4):
            states = bytes(rng.choices((0, 1, 2), k=block_count))
            crcs = words(rng.choices(range(2**32), k=block_count))
            digest.update(b"".join(chunkmap.pack(states, crcs)))
    assert digest.hexdigest() == "2c6e57972c9478fee493a3efd16649105016ac181ace048a8e6c9525de60ab0e"


@given(st.lists(st.tuples(STATES, CRCS), min_size=2, max_size=20), st.integers(1, 52))
def test_packed_native_equals_pure(blocks, repeats):
    """Goal: one form, and nothing lost in it. Method: both ways, with both implementations."""
    blocks = (blocks * repeats * 4)[:1024]
    blocks = blocks[: len(blocks) // 4 * 4]
    states, crcs = bytes(state for state, _ in blocks), words(crc for _, crc in blocks)
    packed = native("chunkmap").pack(states, crcs)
    assert packed == oracle("chunkmap").pack(states, crcs)
    for kernel in (native("chunkmap"), oracle("chunkmap")):
        found, found_crcs = bytearray(len(states)), words([7] * len(states))
        kernel.unpack(*packed, found, found_crcs)
        kernel.freeze(states, crcs)
        assert (found, found_crcs) == (states, crcs)


@given(st.binary(max_size=6), st.binary(max_size=40), st.sampled_from([8, 16, 20, 7, 4]))
def test_unpack_of_anything(packed_states, packed_crcs, count):
    """Goal: damage is refused, alike by both. Method: random bytes."""
    results = []
    for kernel in (native("chunkmap"), oracle("chunkmap")):
        states, crcs = bytearray(count), words([7] * count)
        results.append((outcome(kernel.unpack, packed_states, packed_crcs, states, crcs), states))
    assert results[0] == results[1]


BIG = 2**63
MISUSE = [
    (TypeError, "mark", (None, 0, 0, 0)),
    (BufferError, "mark", (bytes(4), 0, 1, DATA)),
    (BufferError, "mark", (memoryview(bytearray(4))[::2], 0, 1, DATA)),
    (ValueError, "mark", (bytearray(4), 0, 1, 3)),
    (ValueError, "mark", (bytearray(4), 0, 1, -1)),
    (ValueError, "mark", (bytearray(4), 0, 1, 257)),
    (ValueError, "mark", (bytearray(4), -1, 1, DATA)),
    (ValueError, "mark", (bytearray(4), 0, 5, DATA)),
    (ValueError, "mark", (bytearray(4), 4, 1, DATA)),
    (ValueError, "mark", (bytearray(4), 5, 0, DATA)),
    (ValueError, "mark", (bytearray(4), BIG - 1, BIG - 1, DATA)),
    (OverflowError, "mark", (bytearray(4), BIG, 0, DATA)),
    (OverflowError, "mark", (bytearray(4), 0, 0, BIG)),
    (TypeError, "mark", (bytearray(4), 0, 1.0, DATA)),
    (ValueError, "resolve_runs", (bytes(4), 0, 1)),
    (ValueError, "resolve_runs", (array("H", [0]), 0, 2)),
    (TypeError, "resolve_runs", ("ab", 0, 1)),
    (ValueError, "state_runs", (bytes([0, 3]), 0, 1)),
    (ValueError, "state_runs", (bytes(2), 1, 2)),
    (ValueError, "freeze", (bytes(2), words([1]))),
    (ValueError, "freeze", (bytes([3]), words([1]))),
    (ValueError, "freeze", (bytes(1), array("i", [1]))),
    (BufferError, "freeze", (bytes(1), memoryview(words([1])).toreadonly())),
    (ValueError, "diff", (bytearray(2), bytes(1))),
    (ValueError, "diff", (bytearray(1), bytes([9]))),
    (BufferError, "diff", (bytes(1), bytes(1))),
    (ValueError, "overlay", (array("H", [0]), words([0]), bytes(1), words([0]), ZERO_OWNER)),
    (ValueError, "overlay", (array("H", [0]), words([0]), bytes(1), words([0]), -1)),
    (OverflowError, "overlay", (array("H", [0]), words([0]), bytes(1), words([0]), BIG)),
    (ValueError, "overlay", (array("H", [0]), words([0]), bytes([3]), words([0]), 0)),
    (ValueError, "overlay", (array("H", [0]), words([]), bytes(1), words([0]), 0)),
    (ValueError, "overlay", (array("H", [0]), words([0]), bytes(2), words([0]), 0)),
    (ValueError, "overlay", (array("H", [0]), words([0]), bytes(1), words([]), 0)),
    (ValueError, "merge", (bytearray(1), words([0]), bytes([7]), words([0]))),
    (ValueError, "merge", (bytearray([7]), words([0]), bytes(1), words([0]))),
    (ValueError, "merge", (bytearray(1), words([0]), bytes(1), words([]))),
    (ValueError, "pack", (bytes(4), words([0] * 4))),
    (ValueError, "pack", (bytes(10), words([0] * 10))),
    (ValueError, "pack", (bytes(1028), words([0] * 1028))),
    (ValueError, "pack", (bytes(8), words([0] * 7))),
    (ValueError, "pack", (bytes([3] * 8), words([0] * 8))),
    (ValueError, "unpack", (bytes([3]), b"", bytearray(8), words([0] * 8))),
    (ValueError, "unpack", (bytes([0xC0, 0]), b"", bytearray(8), words([0] * 8))),
    (ValueError, "unpack", (bytes([1, 0]), b"", bytearray(8), words([0] * 8))),
    (ValueError, "unpack", (bytes([1, 0]), bytes(8), bytearray(8), words([0] * 8))),
    (ValueError, "unpack", (b"", b"", bytearray(8), words([0] * 8))),
    (ValueError, "unpack", (bytes(3), b"", bytearray(8), words([0] * 8))),
    (ValueError, "unpack", (bytes(1), b"", bytearray(8), words([0] * 4))),
    (BufferError, "unpack", (bytes(1), b"", bytes(8), words([0] * 8))),
    (BufferError, "merge", (bytes(1), words([0]), bytes(1), words([0]))),
]


@pytest.mark.parametrize(("error", "name", "args"), MISUSE)
def test_misuse_is_refused(chunkmap, error, name, args):
    with pytest.raises(error):
        getattr(chunkmap, name)(*args)


def test_a_refused_call_changes_nothing(chunkmap):
    owners, crcs = array("H", [UNRESOLVED] * 2), words([5, 6])
    with pytest.raises(ValueError, match="state"):
        chunkmap.overlay(owners, crcs, bytes([DATA, 3]), words([1, 2]), 0)
    with pytest.raises(ValueError, match="state"):
        chunkmap.freeze(bytes([ABSENT, 3]), crcs)
    assert (owners.tolist(), crcs.tolist()) == ([UNRESOLVED] * 2, [5, 6])
