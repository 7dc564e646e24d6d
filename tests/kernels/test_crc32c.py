"""CRC-32C: known answers, boundaries, native == pure, golden digest, misuse, alias."""

import random
from array import array
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from .conftest import crc32c_rows, native, oracle

RFC_3720_B4 = [
    (bytes(32), 0x8A9136AA),
    (b"\xff" * 32, 0x62A8AB43),
    (bytes(range(32)), 0x46DD794E),
    (bytes(reversed(range(32))), 0x113FDB5C),
    (
        bytes.fromhex(
            "01c00000000000000000000000000000140000000000040000000014"
            "0000001828000000000000000200000000000000"
        ),
        0xD9963A56,
    ),
]
BLOCK = 4096
# Around each change of loop: 8 bytes, three short streams, folding, three long streams, a block.
LENGTHS = sorted(
    {at + by for at in (0, 8, 64, 256, 504, 512, 768, 1360, 4080, BLOCK) for by in (-1, 0, 1)}
    - {-1}
    | {2 * BLOCK + 5, 40_000}
)
DATA = random.Random(20).randbytes(2 * BLOCK + 50_000)


@pytest.mark.parametrize(("data", "expected"), RFC_3720_B4)
def test_rfc_3720_vectors(crc32c, data, expected):
    assert crc32c.crc32c(data) == expected


def test_known_answers(crc32c):
    assert crc32c.crc32c(b"") == 0
    assert crc32c.crc32c(b"", 0xFFFFFFFF) == 0xFFFFFFFF
    assert crc32c.crc32c(b"a") == 0xC1D04330
    assert crc32c.crc32c(b"123456789") == 0xE3069283
    assert crc32c.crc32c(bytes(BLOCK)) == 0x98F94189


@pytest.mark.parametrize("length", LENGTHS)
def test_every_loop_boundary_equals_the_oracle(crc32c, length):
    """Goal: no length, alignment or start value goes wrong. Method: compare with the oracle."""
    for skip in (0, 1, 7):
        data = memoryview(DATA)[skip : skip + length]
        for value in (0, 1, 0xFFFFFFFF, 0xDEADBEEF):
            assert crc32c.crc32c(data, value) == oracle("crc32c").crc32c(data, value)


def test_continuation_and_combine_agree_with_one_pass(crc32c):
    whole = crc32c.crc32c(DATA[:10_000])
    for cut in (0, 1, 511, 512, 4096, 9_999, 10_000):
        first, second = DATA[:cut], DATA[cut:10_000]
        assert crc32c.crc32c(second, crc32c.crc32c(first)) == whole
        parts = crc32c.crc32c(first), crc32c.crc32c(second)
        assert crc32c.crc32c_combine(*parts, len(second)) == whole


def test_combine_with_lengths_that_no_buffer_has(crc32c):
    """Goal: lengths past 2**32. Method: moving on by a sum is moving on twice."""
    for length in (2**32 - 1, 2**32, 2**32 + 1, 2**40 + 12345, 2**63):
        once = crc32c.crc32c_combine(0x12345678, 0, length)
        twice = crc32c.crc32c_combine(once, 0, 2**64 - 1 - length)
        assert twice == crc32c.crc32c_combine(0x12345678, 0, 2**64 - 1)


@pytest.mark.parametrize("block_size", [1, 7, 511, 512, 513, BLOCK - 1, BLOCK, BLOCK + 1])
@pytest.mark.parametrize("block_count", [0, 1, 2, 9])
def test_blocks(crc32c, block_size, block_count):
    """Goal: block calls equal single calls, over and under the size that releases the GIL."""
    data = DATA[: block_size * block_count]
    expected = [
        oracle("crc32c").crc32c(data[at : at + block_size])
        for at in range(0, len(data), block_size)
    ]
    out = array("I", bytes(4 * block_count))
    assert crc32c.crc32c_blocks(data, block_size, out) is None
    assert out.tolist() == expected
    target, copied = bytearray(len(data)), array("I", bytes(4 * block_count))
    assert crc32c.copy_crc32c_blocks(target, data, block_size, copied) is None
    assert (target, copied) == (data, out)
    assert crc32c.find_bad_block(data, block_size, out) == -1


@pytest.mark.parametrize("bad", [0, 3, 8])
def test_find_bad_block_sees_every_flipped_bit(crc32c, bad):
    data, crcs = bytearray(DATA[: 9 * 512]), array("I", bytes(36))
    crc32c.crc32c_blocks(data, 512, crcs)
    for bit in (0, 5, 512 * 8 - 1):
        data[bad * 512 + bit // 8] ^= 1 << bit % 8
        assert crc32c.find_bad_block(data, 512, crcs) == bad
        data[bad * 512 + bit // 8] ^= 1 << bit % 8
    crcs[bad] ^= 1 << 31
    crcs[8] ^= 1
    assert crc32c.find_bad_block(data, 512, crcs) == (bad if bad != 8 else 8)


@pytest.mark.parametrize(("source_at", "target_at"), [(0, 100), (100, 0), (0, 0), (0, 4096)])
def test_copy_between_overlapping_ranges_is_a_memmove(crc32c, source_at, target_at):
    memory = bytearray(DATA[: 3 * BLOCK])
    source = bytes(memory[source_at : source_at + 2048])
    view, out = memoryview(memory), array("I", bytes(16))
    crc32c.copy_crc32c_blocks(
        view[target_at : target_at + 2048], view[source_at : source_at + 2048], 512, out
    )
    assert memory[target_at : target_at + 2048] == source
    assert crc32c.find_bad_block(source, 512, out) == -1


def test_input_changed_after_the_call_changes_nothing(crc32c):
    data, out = bytearray(DATA[:BLOCK]), array("I", [0])
    crc32c.crc32c_blocks(data, BLOCK, out)
    before = out[0]
    data[:] = bytes(BLOCK)
    assert out[0] == before
    del data[:]  # no view is kept: resizing is allowed


def test_implementations_can_be_forced(crc32c):
    assert crc32c.implementation() in crc32c.implementations()
    with pytest.raises(ValueError, match="no CRC-32C implementation"):
        crc32c.use_implementation("abacus")
    with pytest.raises(TypeError):
        crc32c.use_implementation(None)


def test_golden_digest(crc32c):
    """Goal: freeze the results. They are on disk: a new digest means unreadable volumes."""
    digest = sha256()
    for length in range(0, 2 * BLOCK, 61):
        for value in (0, 0xFFFFFFFF):
            digest.update(crc32c.crc32c(DATA[:length], value).to_bytes(4, "little"))
    for length in (0, 1, 4096, 2**32, 2**64 - 1):
        digest.update(crc32c.crc32c_combine(0x01234567, 0x89ABCDEF, length).to_bytes(4, "little"))
    assert digest.hexdigest() == "69b22dd879e01f9da3541d0dc7bef631a29a1087c8e3fe0240dc8d6f49f68d60"


@given(st.binary(max_size=6000), st.integers(0, 2**32 - 1), st.integers(1, 700))
def test_native_equals_pure(data, value, block_size):
    kernel, pure = native("crc32c"), oracle("crc32c")
    blocks = data[: len(data) // block_size * block_size]
    expected = array("I", bytes(len(blocks) // block_size * 4))
    pure.crc32c_blocks(blocks, block_size, expected)
    whole = pure.crc32c(data, value)
    before = kernel.implementation()
    try:
        for name in crc32c_rows()[1:]:
            kernel.use_implementation(name)
            assert kernel.crc32c(data, value) == whole
            assert kernel.find_bad_block(blocks, block_size, expected) == -1
    finally:
        kernel.use_implementation(before)


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1))
def test_combine_native_equals_pure(first, second, length):
    expected = oracle("crc32c").crc32c_combine(first, second, length)
    assert native("crc32c").crc32c_combine(first, second, length) == expected


def words(*values):
    return array("I", values)


MISUSE = [
    (TypeError, "crc32c", (None,)),
    (TypeError, "crc32c", ("text",)),
    (TypeError, "crc32c", (b"", 1.0)),
    (TypeError, "crc32c", (b"", None)),
    (BufferError, "crc32c", (memoryview(b"abcd")[::2],)),
    (ValueError, "crc32c", (words(1),)),
    (ValueError, "crc32c", (memoryview(b"abcd").cast("B", (2, 2)),)),
    (OverflowError, "crc32c", (b"", -1)),
    (OverflowError, "crc32c", (b"", 2**32)),
    (OverflowError, "crc32c_combine", (0, 2**32, 1)),
    (OverflowError, "crc32c_combine", (0, 0, 2**64)),
    (OverflowError, "crc32c_combine", (0, 0, -1)),
    (TypeError, "crc32c_combine", (0, 0, 0.5)),
    (ValueError, "crc32c_blocks", (b"abc", 2, words(1))),
    (ValueError, "crc32c_blocks", (b"abcd", 2, words(1))),
    (ValueError, "crc32c_blocks", (b"abcd", 2, words(1, 2, 3))),
    (ValueError, "crc32c_blocks", (b"abcd", 2, bytearray(8))),
    (ValueError, "crc32c_blocks", (b"", 0, words())),
    (ValueError, "crc32c_blocks", (b"abcd", -2, words(1, 2))),
    (OverflowError, "crc32c_blocks", (b"", 2**63, words())),
    (TypeError, "crc32c_blocks", (b"abcd", 2.0, words(1, 2))),
    (TypeError, "crc32c_blocks", (b"abcd", 2, None)),
    (BufferError, "crc32c_blocks", (b"abcd", 2, memoryview(words(1, 2)).toreadonly())),
    (BufferError, "crc32c_blocks", (b"abcd", 2, memoryview(words(1, 2, 3, 4))[::2])),
    (ValueError, "find_bad_block", (b"abcd", 2, words(1))),
    (TypeError, "find_bad_block", (b"abcd", 2, "12")),
    (BufferError, "copy_crc32c_blocks", (b"abcd", b"abcd", 2, words(1, 2))),
    (ValueError, "copy_crc32c_blocks", (bytearray(3), b"abcd", 2, words(1, 2))),
    (ValueError, "copy_crc32c_blocks", (bytearray(4), b"abcd", 2, words(1))),
]


@pytest.mark.parametrize(("error", "name", "args"), MISUSE)
def test_misuse_is_refused(crc32c, error, name, args):
    with pytest.raises(error):
        getattr(crc32c, name)(*args)


def test_calls_side_by_side_give_the_same(crc32c):
    """Goal: calls share no scratch. Method: many threads, sizes that release the GIL and not."""
    pieces = [DATA[at : at + size] for at in range(8) for size in (100, 4096, 50_000)]
    expected = [oracle("crc32c").crc32c(piece) for piece in pieces]
    if crc32c is oracle("crc32c"):
        return
    with ThreadPoolExecutor(8) as pool:
        for _ in range(20):
            assert list(pool.map(crc32c.crc32c, pieces)) == expected
