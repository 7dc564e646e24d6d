"""Extents as a table."""

from array import array

import pytest

from volcore.model.extent import Extent, ExtentKind, ExtentTable

DATA, ZERO = ExtentKind.DATA, ExtentKind.ZERO


def table(*rows):
    return array("Q", [word for row in rows for word in row]).tobytes()


def test_table():
    """Goal: a sequence like any other; what continues the last extent is joined with it."""
    found = ExtentTable()
    assert list(found) == []
    assert not found
    for rows in ([], [(0, 4, DATA), (4, 4, ZERO)], [(8, 8, ZERO), (32, 1, DATA)], [(33, 1, ZERO)]):
        found.add(table(*rows))
    wanted = [Extent(0, 4, DATA), Extent(4, 12, ZERO), Extent(32, 1, DATA), Extent(33, 1, ZERO)]
    assert list(found) == wanted
    assert all(type(one) is Extent and type(one.kind) is ExtentKind for one in found)
    assert [found[at] for at in range(-4, 4)] == wanted * 2
    assert [list(found[at : at + 3]) for at in range(5)] == [wanted[at : at + 3] for at in range(5)]
    assert (len(found), found[1].end_bytes, wanted[2] in found) == (4, 16, True)
    with pytest.raises(IndexError):
        found[4]
