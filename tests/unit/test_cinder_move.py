"""A volume that moves to another pool of its server, whatever was cut off before."""

import contextlib
import tempfile
from pathlib import Path

import pytest

from volcore.cinder.transfer import move
from volcore.errors import NotFoundError, PreconditionError, Reason, UnavailableError
from volcore.limits import MIB
from volcore.testing.nbd_disk import NbdDisk
from volcore.testing.server import RunningServer

HERE, THERE = (f"pools/{pool}/volumes/volume-1" for pool in "pq")
SIZE_BYTES = 8 * MIB


@pytest.fixture(scope="module")
def client():
    with tempfile.TemporaryDirectory(prefix="volcore-m-") as home:
        pools = ('backend = "local"\ndirectory = "{home}/p"\n', '[pools.q]\nbackend = "local"\n')
        lines = pools[0].format(home=home) + pools[1] + f'directory = "{home}/q"\n'
        with RunningServer(Path(home) / "s", lines) as server, server.client() as client:
            yield client


def fill(client, data):
    nbd = client.attach_volume(HERE, "tests").nbd
    with NbdDisk(nbd.socket_path, nbd.export_name) as disk:
        disk.write(MIB, data)
        disk.flush()
    client.detach_volume(HERE, "tests")


def read(client, volume):
    nbd = client.attach_volume(volume, "tests").nbd
    with NbdDisk(nbd.socket_path, nbd.export_name) as disk:
        data = disk.read(MIB, 5)
    client.detach_volume(volume, "tests")
    return data


@pytest.mark.parametrize("left", ["nothing", "a volume", "an image and its volume", "the end"])
def test_moves(client, tmp_path, left):
    """Goal: repeated until it is told, it ends right. Method: leave what each kill may leave."""
    client.create_volume(HERE, size_bytes=SIZE_BYTES, labels={"tier": "gold"})
    fill(client, b"bytes")
    if left == "a volume":
        client.create_volume(THERE, size_bytes=2 * SIZE_BYTES)
    elif left == "an image and its volume":
        path = tmp_path / "old"
        path.write_bytes(bytes(MIB))
        client.import_image("pools/q/images/move-volume-1", path)
        client.create_volume(THERE, image="pools/q/images/move-volume-1")
    for _ in range(1 + (left == "the end")):
        path = tmp_path / "way"
        path.touch()
        move(client, volume=HERE, there=THERE, size_bytes=SIZE_BYTES, path=str(path))
    assert read(client, THERE) == b"bytes"
    assert dict(client.get_volume(THERE).labels) == {"tier": "gold"}
    assert list(client.list_volumes("pools/p")) == []
    assert [*client.list_images("pools/p"), *client.list_images("pools/q")] == []
    client.delete_volume(THERE)


@pytest.mark.parametrize("lost", ["request", "answer"])
def test_source_deleted_unheard(client, tmp_path, monkeypatch, lost):
    """Goal: the bytes are never in no pool. Method: lose the delete, or its answer."""
    client.create_volume(HERE, size_bytes=SIZE_BYTES)
    fill(client, b"bytes")
    delete = client.delete_volume

    def unheard(name, **options):
        if name != HERE or lost == "answer":
            delete(name, **options)
        if name == HERE:
            raise UnavailableError("gone", reason=Reason.SERVER_UNREACHABLE, retryable=True)

    for attempt in range(2):
        path = tmp_path / f"way{attempt}"
        path.touch()
        with monkeypatch.context() as patched, contextlib.ExitStack() as raises:
            if attempt == 0:
                patched.setattr(client, "delete_volume", unheard)
                raises.enter_context(pytest.raises(UnavailableError))
            move(client, volume=HERE, there=THERE, size_bytes=SIZE_BYTES, path=str(path))
        assert read(client, THERE) == b"bytes"
    assert list(client.list_volumes("pools/p")) == []
    client.delete_volume(THERE)


def test_attached_stays(client, tmp_path):
    """Goal: nothing moves from under a guest. Method: attach, move, look at both pools."""
    path = tmp_path / "way"
    path.touch()
    client.create_volume(HERE, size_bytes=SIZE_BYTES)
    client.attach_volume(HERE, "guest")
    with pytest.raises(PreconditionError):
        move(client, volume=HERE, there=THERE, size_bytes=SIZE_BYTES, path=str(path))
    assert list(client.list_volumes("pools/q")) == list(client.list_images("pools/q")) == []
    assert [snapshot.name for snapshot in client.list_snapshots("pools/p/volumes/-")] == []
    client.detach_volume(HERE, "guest")
    client.delete_volume(HERE)
    with pytest.raises(NotFoundError):
        move(client, volume=HERE, there=THERE, size_bytes=SIZE_BYTES, path=str(path))
