"""What Glance says of the place of an image, and which of it is adopted."""

import pytest

from volcore.cinder.locations import sources
from volcore.client.rbd import rbd_snapshot
from volcore.errors import InvalidArgumentError

ID = "7d2f1f0a-64b1-4e6e-9a51-2f1f5c0f6a11"
FSID = "0f7c9d0e-3b0a-4a39-8d5c-5d7f5f6f7a8b"
RAW = {"id": ID, "disk_format": "raw"}
URL = f"rbd://{FSID}/my%20images/{ID}/snap"


def found(location, meta=RAW):
    return [
        (one.cluster_fsid, one.pool, one.image, one.snapshot) for one in sources(location, meta)
    ]


def test_sources():
    """Goal: Glance's own names only. Method: all ways to tell a place, and places of others."""
    ours = (FSID, "my images", ID, "snap")
    assert found((URL, None)) == [ours]
    assert found((None, [{"url": "file:///a"}, {"url": URL, "metadata": {}}])) == [ours]
    assert found((URL, [{"url": URL}])) == [ours]
    assert found((URL, None), {**RAW, "disk_format": "qcow2"}) == []
    for url in (
        None,
        "",
        f"file:///{ID}",
        f"rbd://{ID}",
        f"rbd://{FSID}/images/another/snap",
        f"rbd://{FSID}/images/{ID}/snap/more",
        f"rbd:///images/{ID}/snap",
        f"RBD://{FSID}/images/{ID}",
    ):
        assert found((url, [])) == []
    assert found(None) == found((None, None)) == []


@pytest.mark.parametrize("text", ["", "a", "a/b", "a/b@", "/b@c", "a/b@c@d", "rbd://a/b/c"])
def test_no_source(text):
    """Goal: a text that names no snapshot is refused."""
    with pytest.raises(InvalidArgumentError, match="pool/image@snapshot"):
        rbd_snapshot(text)


def test_both_forms():
    """Goal: the same source by either form."""
    short, long = rbd_snapshot("a/b@c"), rbd_snapshot("rbd://f/a/b/c")
    assert (short.pool, short.image, short.snapshot, short.cluster_fsid) == ("a", "b", "c", "")
    long.cluster_fsid = ""
    assert long == short
