"""Sizes as people write and read them."""

import pytest

from volcore.cli.units import format_bytes, format_duration, parse_size
from volcore.errors import InvalidArgumentError, Reason


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("10GiB", 10 << 30),
        ("512MiB", 512 << 20),
        ("1.5TiB", 3 << 39),
        ("4096B", 4096),
        (" 8 KiB ", 8192),
        ("1gib", 1 << 30),
        ("0.5KiB", 512),
        ("1PiB", 1 << 50),
    ],
)
def test_sizes(text, size_bytes):
    """Goal: a unit is all it takes. Method: examples."""
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("10", "10GiB"),
        ("10G", "10GiB"),
        ("10GB", "10GiB"),
        ("10 apples", "GiB"),
        ("", "10GiB"),
        ("-1GiB", "10GiB"),
        ("GiB", "10GiB"),
        ("1e3GiB", "GiB"),
        ("0.3B", "whole number"),
    ],
)
def test_sizes_that_could_mean_two_things(text, hint):
    """Goal: a refusal says what to write instead. Method: look for it in the sentence."""
    with pytest.raises(InvalidArgumentError) as caught:
        parse_size(text)
    assert caught.value.reason is Reason.BAD_FIELD
    assert hint in caught.value.message


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1536, "1.50 KiB"),
        ((1 << 30) - 1, "1023 MiB"),
        (10 << 30, "10 GiB"),
        (12345678, "11.8 MiB"),
    ],
)
def test_bytes_for_people(count, text):
    """Goal: short, and never a rounded-up lie. Method: examples at the edges."""
    assert format_bytes(count) == text


def test_durations():
    """Goal: three digits whatever the scale. Method: examples."""
    assert [format_duration(s) for s in (0.00124, 0.35, 12.34, 125)] == [
        "1.24 ms",
        "350 ms",
        "12.3 s",
        "2:05 min",
    ]
