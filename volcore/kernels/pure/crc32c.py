"""Oracle of CRC-32C: one bit rule, one table, one loop.

Source: RFC 3720 section 12.1 (polynomial 0x1EDC6F41, reflected 0x82F63B78).
"""

from volcore.kernels.pure.checks import (
    UINT32_MAX,
    check_lengths,
    count_blocks,
    unsigned,
    view,
)

POLYNOMIAL = 0x82F63B78


def _shift_bit(state: int) -> int:
    return state >> 1 ^ POLYNOMIAL if state & 1 else state >> 1


def _shift_byte(state: int) -> int:
    for _ in range(8):
        state = _shift_bit(state)
    return state


_TABLE = [_shift_byte(byte) for byte in range(256)]


def implementations() -> list[str]:
    """See the public face."""
    return ["pure"]


def implementation() -> str:
    """See the public face."""
    return "pure"


def use_implementation(name: str) -> None:
    """See the public face."""
    if not isinstance(name, str):
        raise TypeError("name must be a str")
    if name != "pure":
        raise ValueError(f"no CRC-32C implementation {name!r} here, only ['pure']")


def crc32c(data: object, value: int = 0) -> int:
    """See the public face."""
    state = unsigned(value, UINT32_MAX) ^ UINT32_MAX
    for byte in view(data):
        state = state >> 8 ^ _TABLE[(state ^ byte) & 0xFF]
    return state ^ UINT32_MAX


def crc32c_blocks(data: object, block_size_bytes: int, out: object) -> None:
    """See the public face."""
    source, crcs = view(data), view(out, "I", writable=True)
    check_lengths(count_blocks(len(source), block_size_bytes), crcs)
    for index in range(len(crcs)):
        start = index * block_size_bytes
        crcs[index] = crc32c(source[start : start + block_size_bytes])


def find_bad_block(data: object, block_size_bytes: int, expected: object) -> int:
    """See the public face."""
    source, crcs = view(data), view(expected, "I")
    check_lengths(count_blocks(len(source), block_size_bytes), crcs)
    for index, crc in enumerate(crcs):
        start = index * block_size_bytes
        if crc32c(source[start : start + block_size_bytes]) != crc:
            return index
    return -1


def copy_crc32c_blocks(target: object, source: object, block_size_bytes: int, out: object) -> None:
    """See the public face."""
    to, start, crcs = view(target, writable=True), view(source), view(out, "I", writable=True)
    check_lengths(len(start), to)
    check_lengths(count_blocks(len(start), block_size_bytes), crcs)
    to[:] = start
    crc32c_blocks(to, block_size_bytes, out)


def _multiply(first: int, second: int) -> int:
    """Multiply two polynomials modulo P; bit 31 is x**0."""
    product = 0
    for place in range(31, -1, -1):
        if first >> place & 1:
            product ^= second
        second = _shift_bit(second)
    return product


def crc32c_combine(crc_first: int, crc_second: int, second_length_bytes: int) -> int:
    """See the public face. Moves the first on over as many zero bytes, by repeated squaring."""
    result, last = unsigned(crc_first, UINT32_MAX), unsigned(crc_second, UINT32_MAX)
    exponent, factor = unsigned(second_length_bytes), 1 << 23  # x**8
    while exponent:
        if exponent & 1:
            result = _multiply(factor, result)
        factor = _multiply(factor, factor)
        exponent >>= 1
    return result ^ last
