"""Rows of two images are compared without their times."""

import struct
import time

from volcore.backends.rbd.direct.likeness import _without_times


def test_nanoseconds_that_look_like_a_time():
    """Goal: alike whatever the nanoseconds. Method: such that end as the seconds of now do."""
    now = int(time.time())
    found = {
        _without_times(bytes(9) + struct.pack("<IIQ", now, nanoseconds, 1))
        for high in range(256)
        for nanoseconds in (high | now >> 16 << 8 & 0x1FFFFF00, now >> 16 | high << 16)
    }
    assert len(found) == 1
