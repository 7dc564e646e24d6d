"""Files that images came from, read again."""

import pytest

from volcore.images.reread import SourceBlocks
from volcore.limits import BLOCK_SIZE_BYTES, CHUNK_SIZE_BYTES, MIB

from .conftest import make_raw, qemu_img


@pytest.mark.parametrize(
    ("options", "size"), [("compression_type=zstd", "9M"), ("compat=1.1", "1M")]
)
def test_file_changes_while_it_is_open(options, size, tmp_path):
    """Goal: a scrub survives whatever becomes of the file. Method: overwrite it between reads."""
    raw, path, other = (tmp_path / name for name in ("raw", "disk.qcow2", "other.qcow2"))
    data = make_raw(raw, 9 * MIB)
    qemu_img("convert", "-f", "raw", "-O", "qcow2", raw, path)
    qemu_img("create", "-f", "qcow2", "-o", options, other, size)
    blocks = SourceBlocks([tmp_path])
    assert blocks.read(str(path), "qcow2", 0) == data[:BLOCK_SIZE_BYTES]
    with path.open("r+b") as file:
        file.write(other.read_bytes())
    assert blocks.read(str(path), "qcow2", CHUNK_SIZE_BYTES) is None
    blocks.close()
