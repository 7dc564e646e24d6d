"""`volcore admin`: what a check prints and returns, of a sound pool and of one with a fault."""

import json

import pytest
from rbd_backend.pools import options, raw_pool

from .server import running_server


def test_sound(server):
    """Goal: silence and 0. Method: both forms."""
    done = server.volcore("admin", "check")
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.endswith("compared: no faults\n")
    document = json.loads(server.volcore("admin", "check", "--objects", "-o", "json").stdout)
    assert document["items"] == []


@pytest.mark.ceph
def test_a_fault(ceph_cluster, ceph_pool):
    """Goal: it is told, and mended on request. Method: move an image to rbd's trash around it."""
    import rbd

    chosen = options(ceph_cluster)
    lines = {"pool": ceph_pool, "ceph_conf": chosen.conf_path, "user": chosen.user}
    pool = "".join(f'{key} = "{value}"\n' for key, value in {"backend": "rbd", **lines}.items())
    with running_server(pool) as site:
        site.volcore("volume", "create", "v", "--size", "8MiB")
        (volume,) = json.loads(site.volcore("volume", "list", "-o", "json").stdout)["items"]
        with raw_pool(ceph_cluster, ceph_pool) as ioctx:
            rbd.RBD().trash_move(ioctx, volume["backend_name"], 0)
        done = site.volcore("admin", "check")
        assert done.returncode == 1
        first, meaning, repair = done.stdout.splitlines()
        assert first.startswith("IMAGE_IN_TRASH  pools/p/volumes/v, rbd image v.")
        assert "rbd's trash" in meaning
        assert repair.startswith("  Repair: ")
        assert "1 fault, 0 repaired; --repair mends what can be" in done.stderr
        done = site.volcore("admin", "check", "--repair", "-o", "json")
        assert done.returncode == 0
        (fault,) = json.loads(done.stdout)["items"]
        assert (fault["kind"], fault["repaired"]) == ("IMAGE_IN_TRASH", True)
        assert site.volcore("admin", "check").returncode == 0
        export = site.volcore("admin", "export").stdout
        assert len(export.splitlines()) == 3
        (site.server.directory / "export").write_text(export)
        site.volcore("volume", "create", "w", "--size", "8MiB")
        done = site.volcore("admin", "import", str(site.server.directory / "export"))
        assert done.returncode == 7
        assert "CATALOG_NOT_EMPTY" in done.stderr
        assert site.volcore("volume", "delete", "w", "--yes").returncode == 0
        done = site.volcore("admin", "import", str(site.server.directory / "export"))
        assert (done.returncode, done.stdout) == (0, "")
        assert done.stderr.startswith("1 records; now compare")
        done = site.volcore("admin", "rebuild")
        assert (done.returncode, done.stdout) == (0, "")
        assert done.stderr.startswith("1 records from 1 stored volumes, 0 findings; now compare")
        with raw_pool(ceph_cluster, ceph_pool) as ioctx:
            rbd.RBD().create(ioctx, "w.1", 8 << 20, old_format=False)
            with rbd.Image(ioctx, "w.1") as image:
                image.metadata_set("volcore.volume_id", "w.1")
        done = site.volcore("admin", "rebuild")
        assert done.returncode == 1
        first, meaning, remedy = done.stdout.splitlines()
        assert first == "IMAGE_WITHOUT_RECORD  rbd image w.1"
        assert meaning.startswith("  It carries no record")
        assert remedy.startswith("  Left out: `volcore admin check --repair` releases it")
        (fault,) = json.loads(site.volcore("admin", "rebuild", "-o", "json").stdout)["items"]
        assert fault["concerns"] == "rbd image w.1"
