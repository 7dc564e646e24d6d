"""Checks of arguments, raising what the compiled shells raise."""

from operator import index

UINT8_MAX = 2**8 - 1
UINT32_MAX = 2**32 - 1
UINT64_MAX = 2**64 - 1
SSIZE_MAX = 2**63 - 1


def view(data: object, item_format: str = "B", *, writable: bool = False) -> memoryview:
    """Return a one-dimensional contiguous view of `data`, of items of `item_format`."""
    items = memoryview(data)  # type: ignore[arg-type]  # TypeError for what is no buffer
    if writable and items.readonly:
        raise BufferError("the buffer is not writable")
    if not items.c_contiguous:
        raise BufferError("the buffer is not contiguous")
    if items.ndim != 1:
        raise ValueError(f"expected 1 dimension, not {items.ndim}")
    if items.format == "c":
        items = items.cast("B")
    if items.format.lstrip("@=<") != item_format:
        raise ValueError(f"expected items of format {item_format}, not {items.format}")
    return items


def unsigned(value: int, maximum: int = UINT64_MAX) -> int:
    """Return `value` as an int from 0 to `maximum`."""
    number = index(value)
    if not 0 <= number <= maximum:
        raise OverflowError(f"{number} is not between 0 and {maximum}")
    return number


def signed_size(value: int) -> int:
    """Return `value` as an int that a Py_ssize_t holds."""
    number = index(value)
    if not -SSIZE_MAX - 1 <= number <= SSIZE_MAX:
        raise OverflowError(f"{number} does not fit a Py_ssize_t")
    return number


def count_blocks(length_bytes: int, block_size_bytes: int) -> int:
    """Return how many blocks make up `length_bytes`."""
    size = signed_size(block_size_bytes)
    if size <= 0 or length_bytes % size:
        raise ValueError(f"{length_bytes} bytes are no whole number of blocks of {size} bytes")
    return length_bytes // size


def check_lengths(wanted: int, *items: memoryview) -> None:
    """Refuse views that do not have the wanted number of items."""
    if any(len(each) != wanted for each in items):
        raise ValueError(f"expected {wanted} items, not {[len(each) for each in items]}")
