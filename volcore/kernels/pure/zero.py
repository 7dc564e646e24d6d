"""Oracle of zero detection."""

from volcore.kernels.pure.checks import check_lengths, count_blocks, view


def is_zero(data: object) -> bool:
    """See the public face."""
    return not any(view(data))


def find_zero_blocks(data: object, block_size_bytes: int, out: object) -> int:
    """See the public face."""
    source, flags = view(data), view(out, writable=True)
    check_lengths(count_blocks(len(source), block_size_bytes), flags)
    for index in range(len(flags)):
        start = index * block_size_bytes
        flags[index] = is_zero(source[start : start + block_size_bytes])
    return sum(flags)
