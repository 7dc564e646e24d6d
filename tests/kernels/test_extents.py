"""Extent algebra: known answers, boundaries, native == pure, golden digest, misuse."""

import random
from array import array
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from .conftest import native, oracle, outcome

MAX = 2**64 - 1
MIB = 1 << 20
PLAIN = {"object_size_bytes": 4 * MIB, "stripe_unit_bytes": 4 * MIB, "stripe_count": 1}
STRIPED = {"object_size_bytes": 4 * MIB, "stripe_unit_bytes": 64 << 10, "stripe_count": 16}


def layout(object_size_bytes, stripe_unit_bytes, stripe_count):
    return {
        "object_size_bytes": object_size_bytes,
        "stripe_unit_bytes": stripe_unit_bytes,
        "stripe_count": stripe_count,
    }


def test_the_example_of_the_ceph_document(extents):
    """Goal: the picture in doc/dev/file-striping.rst. Method: units of 1 byte, numbered as there.

    object size 3 units, stripe count 4: set 0 is objects 0..3 with units 0..11, in rows.
    """
    rows = layout(3, 1, 4)
    mapped = extents.map_extents(0, 16, **rows)
    assert [(index, at) for index, at, _, _ in mapped] == [
        *((index, row) for row in range(3) for index in range(4)),
        (4, 0),
        (5, 0),
        (6, 0),
        (7, 0),
    ]
    assert [buffer for _, _, _, buffer in mapped] == list(range(16))


def test_plain_layout(extents):
    assert extents.map_extents(0, 0, **PLAIN) == []
    assert extents.map_extents(0, 1, **PLAIN) == [(0, 0, 1, 0)]
    assert extents.map_extents(4 * MIB - 1, 2, **PLAIN) == [
        (0, 4 * MIB - 1, 1, 0),
        (1, 0, 1, 1),
    ]
    assert extents.map_extents(5 * MIB, 8 * MIB, **PLAIN) == [
        (1, MIB, 3 * MIB, 0),
        (2, 0, 4 * MIB, 3 * MIB),
        (3, 0, MIB, 7 * MIB),
    ]


def test_a_stripe_count_of_one_ignores_the_unit(extents):
    fine = layout(4 * MIB, 4096, 1)
    for offset, length in ((0, 4 * MIB), (100, 9 * MIB), (4 * MIB - 1, 1)):
        expected = extents.map_extents(offset, length, **PLAIN)
        assert extents.map_extents(offset, length, **fine) == expected


def test_striped_layout(extents):
    unit = STRIPED["stripe_unit_bytes"]
    assert extents.map_extents(unit - 1, 2, **STRIPED) == [(0, unit - 1, 1, 0), (1, 0, 1, 1)]
    # The second row of the first set, then the first row of the second set.
    assert extents.map_extents(16 * unit, 1, **STRIPED) == [(0, unit, 1, 0)]
    assert extents.map_extents(64 * MIB, 1, **STRIPED) == [(16, 0, 1, 0)]


@pytest.mark.parametrize("offset", [2**32 - 1, 2**32, 2**32 + 1, 2**63, MAX - 10, MAX - 1])
def test_large_offsets(extents, offset):
    for stripes in (PLAIN, STRIPED, layout(2**63, 2**62, 3), layout(1, 1, MAX)):
        mapped = extents.map_extents(offset, 1, **stripes)
        assert len(mapped) == 1
        assert extents.object_to_image(*mapped[0][:2], **stripes) == offset
    assert extents.map_extents(MAX, 0, **PLAIN) == []
    assert extents.map_extents(0, MAX, **layout(MAX, MAX, 1)) == [(0, 0, MAX, 0)]


@pytest.mark.parametrize("offset", [0, 1, 12_345, 2**40 + 77])
@pytest.mark.parametrize("stripes", [PLAIN, STRIPED, layout(12, 4, 3), layout(5, 5, 2)])
def test_mapping_covers_the_range_and_inverts(extents, offset, stripes):
    """Goal: no byte lost or doubled. Method: invert the first and last byte of every extent."""
    length, done = 200, 0
    for index, at, part, buffer in extents.map_extents(offset, length, **stripes):
        assert buffer == done
        assert extents.object_to_image(index, at, **stripes) == offset + done
        assert extents.object_to_image(index, at + part - 1, **stripes) == offset + done + part - 1
        done += part
    assert done == length


def test_object_to_image_at_the_end_of_the_numbers(extents):
    last = 2**42 - 1
    assert extents.object_to_image(last, 4 * MIB - 1, **PLAIN) == MAX
    for index, at, stripes in (
        (last + 1, 0, PLAIN),
        (MAX, 4 * MIB - 1, STRIPED),
        (MAX, 0, layout(MAX, 1, MAX)),
        (MAX, MAX - 1, layout(MAX, MAX, MAX)),
        (MAX, 0, layout(2**63, 1, 1)),
    ):
        with pytest.raises(OverflowError):
            extents.object_to_image(index, at, **stripes)


def test_merge_extents(extents):
    assert extents.merge_extents([]) == []
    assert extents.merge_extents([(5, 0, 1), (7, 0, 2)]) == []
    assert extents.merge_extents([(0, 4, 1), (4, 4, 1), (8, 4, 2)]) == [(0, 8, 1), (8, 4, 2)]
    assert extents.merge_extents([(8, 4, 2), (4, 4, 1), (0, 4, 1)]) == [(0, 8, 1), (8, 4, 2)]
    assert extents.merge_extents([(0, 10, 1), (3, 2, 2)]) == [(0, 3, 1), (3, 2, 2), (5, 5, 1)]
    assert extents.merge_extents([(3, 2, 2), (0, 10, 1)]) == [(0, 10, 1)]
    assert extents.merge_extents([(0, 10, 1), (3, 2, 2), (2, 5, 1)]) == [(0, 10, 1)]
    assert extents.merge_extents(((0, 1, 0), (2, 1, 0))) == [(0, 1, 0), (2, 1, 0)]
    assert extents.merge_extents([(MAX - 1, 1, 255), (MAX, 0, 1), (0, MAX, 3)]) == [(0, MAX, 3)]


def test_merge_is_idempotent_on_many(extents):
    rng = random.Random(5)
    items = [(rng.randrange(10_000), rng.randrange(50), rng.randrange(3)) for _ in range(300)]
    merged = extents.merge_extents(items)
    assert extents.merge_extents(merged) == merged
    assert merged == sorted(merged)


def test_golden_digest(extents):
    """Goal: freeze the results. They say where bytes lie in Ceph: no other digest is right."""
    rng, digest = random.Random(13), sha256()
    for unit in (1, 512, 65_536):
        for per_object in (1, 2, 7):
            for stripe_count in (1, 2, 5):
                stripes = layout(unit * per_object, unit, stripe_count)
                for offset in (0, 1, unit, 3 * unit - 1, 2**33 + 5):
                    mapped = extents.map_extents(offset, 11 * unit + 3, **stripes)
                    digest.update(repr(mapped).encode())
    for count in (1, 2, 10, 100):
        items = [(rng.randrange(1000), rng.randrange(90), rng.randrange(3)) for _ in range(count)]
        digest.update(repr(extents.merge_extents(items)).encode())
    assert digest.hexdigest() == "a4349dac7db2a2ed7a8a1bc2d59125b41b6b5963495634c67810068a37486355"


NUMBERS = st.one_of(st.integers(0, 300), st.integers(0, MAX), st.integers(MAX - 300, MAX + 1))


@given(NUMBERS, st.integers(0, 400), st.integers(0, 40), st.integers(1, 8), st.integers(0, 6))
def test_map_native_equals_pure(offset, length, unit, per_object, stripe_count):
    stripes = layout(unit * per_object, unit, stripe_count)
    expected = outcome(oracle("extents").map_extents, offset, length, **stripes)
    assert outcome(native("extents").map_extents, offset, length, **stripes) == expected


@given(NUMBERS, NUMBERS, NUMBERS, st.integers(1, 8), NUMBERS)
def test_inverse_native_equals_pure(index, at, unit, per_object, stripe_count):
    stripes = layout(unit * per_object, unit, stripe_count)
    expected = outcome(oracle("extents").object_to_image, index, at, **stripes)
    assert outcome(native("extents").object_to_image, index, at, **stripes) == expected


SPANS = st.tuples(st.one_of(st.integers(0, 60), NUMBERS), st.integers(0, 30), st.integers(0, 3))


@given(st.lists(SPANS, max_size=25), st.booleans())
def test_merge_native_equals_pure(spans, ascending):
    items = sorted(spans) if ascending else spans
    expected = outcome(oracle("extents").merge_extents, items)
    assert outcome(native("extents").merge_extents, items) == expected


class Growing(list):
    """A sequence that has more items than it says."""

    def __len__(self):
        return 1


MISUSE = [
    (OverflowError, "map_extents", (MAX, 1), PLAIN),
    (OverflowError, "map_extents", (1, MAX), PLAIN),
    (OverflowError, "map_extents", (MAX + 1, 0), PLAIN),
    (OverflowError, "map_extents", (-1, 1), PLAIN),
    (OverflowError, "map_extents", (0, -1), PLAIN),
    (TypeError, "map_extents", (0.5, 1), PLAIN),
    (TypeError, "map_extents", (None, 1), PLAIN),
    (TypeError, "map_extents", ("0", 1), PLAIN),
    (ValueError, "map_extents", (0, 1), layout(0, 1, 1)),
    (ValueError, "map_extents", (0, 1), layout(1, 0, 1)),
    (ValueError, "map_extents", (0, 1), layout(1, 1, 0)),
    (ValueError, "map_extents", (0, 1), layout(5, 2, 1)),
    (ValueError, "map_extents", (0, 1), layout(2, 4, 1)),
    (OverflowError, "map_extents", (0, 1), layout(-1, 1, 1)),
    (ValueError, "object_to_image", (0, 4 * MIB), PLAIN),
    (OverflowError, "object_to_image", (0, -1), PLAIN),
    (TypeError, "object_to_image", (0, b"1"), PLAIN),
    (TypeError, "merge_extents", (None,), {}),
    (TypeError, "merge_extents", ([1],), {}),
    (TypeError, "merge_extents", ([(1.5, 2, 3)],), {}),
    (TypeError, "merge_extents", ([(1, 2, "DATA")],), {}),
    (ValueError, "merge_extents", ([(1, 2)],), {}),
    (ValueError, "merge_extents", ([(1, 2, 3, 4)],), {}),
    (OverflowError, "merge_extents", ([(1, 2, 256)],), {}),
    (OverflowError, "merge_extents", ([(MAX, 1, 1)],), {}),
    (OverflowError, "merge_extents", ([(-1, 1, 1)],), {}),
]


@pytest.mark.parametrize(("error", "name", "args", "keywords"), MISUSE)
def test_misuse_is_refused(extents, error, name, args, keywords):
    with pytest.raises(error):
        getattr(extents, name)(*args, **keywords)


def test_a_sequence_that_lies_about_its_length_is_refused():
    with pytest.raises(ValueError, match="changed"):
        native("extents").merge_extents(Growing([(0, 1, 1), (1, 1, 1)]))


def test_of_blocks(extents):
    """Goal: runs as bytes. Method: some over a chunk's end, cut ones, gaps of chunks."""
    kinds, chunks = bytes([0, 1, 1, 1, 1, 2, 2, 1]), array("Q", [1, 2])

    def rows(end_bytes, at=chunks):
        table = array("Q", extents.of_blocks(at, kinds, 10, end_bytes))
        return list(zip(table[::3], table[1::3], table[2::3], strict=True))

    assert rows(1000) == [(50, 40, 1), (90, 20, 2), (110, 10, 1)]
    assert rows(95) == [(50, 40, 1), (90, 5, 2)]
    assert rows(61) == [(50, 11, 1)]
    assert rows(50) == rows(0) == []
    far = (1 << 63) // 40 - 1
    apart = rows(2**64 - 1, at=array("Q", [0, far]))
    base = far * 40
    assert apart == [(10, 30, 1), (base, 10, 1), (base + 10, 20, 2), (base + 30, 10, 1)]
    assert extents.of_blocks(array("Q"), b"", 10, 10) == b""


KINDS = st.lists(st.sampled_from([0, 0, 1, 1, 2, 255]), min_size=19, max_size=19)


@given(
    st.lists(st.tuples(st.integers(0, 9), KINDS), max_size=6),
    st.integers(0, 2000), st.integers(0, 12),
)  # fmt: skip
def test_of_blocks_native_equals_pure(maps, end_bytes, block_size_bytes):
    """Goal: both give the same, for ascending chunks and others."""
    chunks = array("Q", sorted({chunk for chunk, _ in maps}) or [3, 1])
    kinds = bytes(kind for _, own in maps for kind in own)
    native_one, pure_one = (
        outcome(kernel.of_blocks, chunks, kinds, block_size_bytes, end_bytes)
        for kernel in (native("extents"), oracle("extents"))
    )
    assert native_one == pure_one


CHUNK = array("Q", [0])


@pytest.mark.parametrize(
    ("error", "args"),
    [
        (ValueError, (CHUNK, b"", 1, 1)),
        (ValueError, (array("Q"), bytes(1), 1, 1)),
        (ValueError, (array("Q", [0, 1]), bytes(3), 1, 1)),
        (ValueError, (array("Q", [1, 1]), bytes(2), 1, 1)),
        (ValueError, (array("Q", [2, 1]), bytes(2), 1, 1)),
        (ValueError, (CHUNK, bytes(1), 0, 1)),
        (ValueError, (CHUNK, bytes(1), 2**32 + 1, 1)),
        (ValueError, (CHUNK, bytes(2**20 + 1), 1, 1)),
        (ValueError, (array("Q", [2**61]), bytes(1), 4, 1)),
        (OverflowError, (CHUNK, bytes(1), -1, 1)),
        (OverflowError, (CHUNK, bytes(1), 1, 2**64)),
        (TypeError, (CHUNK, bytes(1), 1.0, 1)),
        (ValueError, (array("I", [0]), bytes(1), 1, 1)),
        (BufferError, (CHUNK, memoryview(bytes(4))[::2], 1, 1)),
        (TypeError, (CHUNK, None, 1, 1)),
    ],
)
def test_misuse_of_blocks_is_refused(extents, error, args):
    with pytest.raises(error):
        extents.of_blocks(*args)
