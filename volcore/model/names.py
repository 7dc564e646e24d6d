"""Names, ids, labels and sizes: what is allowed, checked once, on the way in."""

import re
import secrets
from collections.abc import Mapping
from typing import Final

from volcore import limits
from volcore.errors import InvalidArgumentError, OutOfRangeError, Reason

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_LABEL_KEY: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._/-]*[A-Za-z0-9])?")


def check_name(name: str, *, field: str) -> str:
    """Return `name` if it may name a resource.

    Letters, digits, `.`, `_` and `-`, starting with a letter or digit, 1 to NAME_BYTES_MAX bytes.

    Raises:
        InvalidArgumentError: BAD_NAME.
    """
    if not name:
        problem = "is empty"
    elif len(name.encode(errors="replace")) > limits.NAME_BYTES_MAX:
        problem = f"is longer than {limits.NAME_BYTES_MAX} bytes"
    elif not _NAME.fullmatch(name):
        problem = (
            "may hold only letters, digits, '.', '_' and '-', and starts with a letter or digit"
        )
    else:
        return name
    shown = ascii(name if len(name) <= 40 else name[:40] + "...")
    raise InvalidArgumentError(
        f"{field} {shown} {problem}; choose another name", reason=Reason.BAD_NAME, field=field
    )


def is_name(name: str) -> bool:
    """Tell whether `name` may name a resource."""
    return bool(_NAME.fullmatch(name)) and len(name) <= limits.NAME_BYTES_MAX


def check_labels(labels: Mapping[str, str]) -> dict[str, str]:
    """Return a copy of `labels` if every key and value is within its limits.

    Raises:
        InvalidArgumentError: BAD_LABEL.
    """
    if len(labels) > limits.LABELS_MAX:
        raise InvalidArgumentError(
            f"{len(labels)} labels are more than the {limits.LABELS_MAX} allowed; send fewer",
            reason=Reason.BAD_LABEL,
        )
    for key, value in labels.items():
        if len(key.encode()) > limits.LABEL_KEY_BYTES_MAX or not _LABEL_KEY.fullmatch(key):
            raise InvalidArgumentError(
                f"label key {key[:80]!a} must be 1 to {limits.LABEL_KEY_BYTES_MAX} letters, "
                "digits, '.', '_', '/' or '-', with a letter or digit at both ends",
                reason=Reason.BAD_LABEL,
            )
        if len(value.encode()) > limits.LABEL_VALUE_BYTES_MAX or not value.isprintable():
            raise InvalidArgumentError(
                f"the value of label {key!r} must be printable and at most "
                f"{limits.LABEL_VALUE_BYTES_MAX} bytes",
                reason=Reason.BAD_LABEL,
            )
    return dict(labels)


def check_size(size_bytes: int, *, field: str = "size_bytes") -> int:
    """Return `size_bytes` if a volume may have it: whole blocks, within the limits.

    Raises:
        OutOfRangeError: SIZE_NOT_ALLOWED.
    """
    low, high = limits.VOLUME_SIZE_BYTES_MIN, limits.VOLUME_SIZE_BYTES_MAX
    if not low <= size_bytes <= high:
        raise OutOfRangeError(
            f"{field} is {size_bytes}; it must be between {low} and {high} bytes",
            reason=Reason.SIZE_NOT_ALLOWED,
            field=field,
        )
    if size_bytes % limits.BLOCK_SIZE_BYTES:
        raise OutOfRangeError(
            f"{field} is {size_bytes}; it must be a multiple of {limits.BLOCK_SIZE_BYTES} bytes",
            reason=Reason.SIZE_NOT_ALLOWED,
            field=field,
        )
    return size_bytes


def new_id() -> str:
    """Return a fresh 128-bit id, 32 hexadecimal digits; never reused."""
    return secrets.token_hex(16)


def backend_id(name: str, record_id: str) -> str:
    """Return the name under which a backend keeps an object: readable, and never used twice."""
    return f"{name}.{record_id[:12]}"


def etag(record_id: str, revision: int) -> str:
    """Return the tag that changes whenever the record does."""
    return f"{record_id[:8]}-{revision}"
