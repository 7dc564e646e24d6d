"""Sizes, rates and times as people write and read them."""

import re
from datetime import datetime
from fractions import Fraction
from typing import Final

from volcore import limits
from volcore.errors import InvalidArgumentError, Reason

_UNITS: Final = {
    "B": 1,
    "KiB": limits.KIB,
    "MiB": limits.MIB,
    "GiB": limits.GIB,
    "TiB": limits.TIB,
    "PiB": limits.PIB,
}
_SIZE: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)")
_BY_LOWER: Final = {unit.lower(): unit for unit in _UNITS}


def parse_size(text: str) -> int:
    """Return the bytes that `text` (`10GiB`, `1.5TiB`, `4096B`) means.

    Raises:
        InvalidArgumentError: BAD_FIELD, without a unit, or with one that is not a power of 1024.
    """
    found = _SIZE.fullmatch(text.strip())
    if not found:
        raise _bad_size(f"{text!r} is not a size; write a number and a unit, such as 10GiB")
    number, unit = found.groups()
    if not unit:
        raise _bad_size(f"the size {text} has no unit; write {number}GiB, {number}MiB or {number}B")
    if unit.lower() not in _BY_LOWER:
        known = ", ".join(_UNITS)
        hint = f"{number}{unit[0].upper()}iB" if unit[0].upper() in "KMGTP" else "10GiB"
        raise _bad_size(f"{unit!r} is not a unit ({known}); write {hint}")
    size = Fraction(number) * _UNITS[_BY_LOWER[unit.lower()]]
    if size.denominator != 1:
        raise _bad_size(f"{text} is not a whole number of bytes; choose another size")
    return size.numerator


def format_bytes(count: int) -> str:
    """Return `10 GiB`, `1.5 MiB`, `17 B`: a few digits, never rounded up to the next unit."""
    for unit in reversed(_UNITS):
        factor = _UNITS[unit]
        if count >= factor and factor > 1:
            value = count / factor
            if count % factor == 0 or value >= 100:
                return f"{int(value)} {unit}"
            return f"{value:.1f} {unit}" if value >= 10 else f"{value:.2f} {unit}"
    return f"{count} B"


def format_duration(seconds: float) -> str:
    """Return `1.24 ms`, `350 ms`, `12.3 s`, `2:05 min`."""
    if seconds < 0.1:
        return f"{seconds * 1e3:.2f} ms"
    if seconds < 1:
        return f"{seconds * 1e3:.0f} ms"
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d} min"


def format_time(when: datetime | None) -> str:
    """Return local time to the second, or `-`."""
    return when.astimezone().strftime("%Y-%m-%d %H:%M:%S") if when else "-"


def _bad_size(message: str) -> InvalidArgumentError:
    return InvalidArgumentError(message, reason=Reason.BAD_FIELD, field="size")
