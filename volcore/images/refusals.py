"""The errors of this room: one wording and one reason for each kind of refusal."""

from volcore.errors import InvalidArgumentError, OutOfRangeError, Reason
from volcore.limits import IMAGE_VIRTUAL_SIZE_BYTES_MAX, TIB


def unknown(sentence: str) -> InvalidArgumentError:
    """Return the error for a format that is not accepted."""
    return InvalidArgumentError(sentence, reason=Reason.IMAGE_FORMAT_UNKNOWN)


def mismatch(*, expected: str, found: str) -> InvalidArgumentError:
    """Return the error for a file that is not what the caller says."""
    return InvalidArgumentError(
        f"the file is declared as {expected} but is {found}; declare it as what it is, or leave "
        "the format out",
        reason=Reason.IMAGE_FORMAT_MISMATCH,
        expected=expected,
        found=found,
    )


def unsafe(sentence: str) -> InvalidArgumentError:
    """Return the error for a file that refers to something outside of itself, or may do so."""
    return InvalidArgumentError(sentence, reason=Reason.IMAGE_UNSAFE)


def corrupt(sentence: str) -> InvalidArgumentError:
    """Return the error for a file that contradicts itself or ends early."""
    return InvalidArgumentError(sentence, reason=Reason.IMAGE_CORRUPT)


def changed(format_name: str) -> InvalidArgumentError:
    """Return the error for a file that is not what it was when it was inspected."""
    return corrupt(
        f"the {format_name} file was changed while it was being imported; import it again when "
        "nobody writes to it"
    )


def truncated(format_name: str) -> InvalidArgumentError:
    """Return the error for a file that ends before what it refers to."""
    return corrupt(
        f"the {format_name} file ends before the data that it refers to; it was cut off: copy or "
        "download it again"
    )


def check_virtual_size(size_bytes: int) -> None:
    """Raise unless a disk may have this size.

    Raises:
        OutOfRangeError: SIZE_NOT_ALLOWED.
    """
    if 0 < size_bytes <= IMAGE_VIRTUAL_SIZE_BYTES_MAX:
        return
    raise OutOfRangeError(
        f"the image claims a disk of {size_bytes} bytes; give one with at least 1 byte and at most "
        f"{IMAGE_VIRTUAL_SIZE_BYTES_MAX // TIB} TiB",
        reason=Reason.SIZE_NOT_ALLOWED,
        size_bytes=size_bytes,
    )
