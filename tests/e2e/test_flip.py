"""A byte flipped on disk is an I/O error to whoever reads it, never data."""

import subprocess

import pytest

from e2e.test_main_job import READ_WRITE, attached
from volcore.errors import IntegrityError, Reason
from volcore.limits import MIB


@pytest.mark.parametrize("site", ["local"], indirect=True)
def test_flipped_byte(site, golden, golden_qcow2, tmp_path):
    """Flip one byte of the image's layer: the clone's guest gets EIO, the export says where."""
    with site.server.client() as client:
        image = client.import_image("pools/p/images/gold", golden_qcow2)
        client.deploy_volumes(image.name, ["a"])
        disk = attached(client, "a", "h", READ_WRITE)
        layers = site.server.pool_directory / "layers"
        (layer,) = [path for path in layers.iterdir() if path.stat().st_size > 20 * MIB]
        with layer.open("r+b") as file:
            file.seek(20 * MIB + 5000)
            byte = file.read(1)
            file.seek(-1, 1)
            file.write(bytes([byte[0] ^ 1]))
        for offset, fine in (("20M", True), ("20484k", False), ("20488k", True)):
            done = subprocess.run(
                ["qemu-io", "-c", f"read {offset} 4k", disk], capture_output=True, text=True
            )
            assert ("Input/output error" in done.stdout + done.stderr) is not fine, done
        with pytest.raises(IntegrityError) as caught:
            client.export_image(image.name, tmp_path / "out.raw")
        assert caught.value.reason is Reason.BAD_CHECKSUM
        assert caught.value.context["offset_bytes"] == str(20 * MIB + 4096)
        assert image.backend_name in caught.value.message
        assert not (tmp_path / "out.raw").exists()
        client.detach_volume("pools/p/volumes/a", "h")
    assert '"offset_bytes": 20975616' in site.server.log()
