"""Attachments through Cinder: what a host is told, and who may have the volume."""

import pytest

from volcore.cinder import connection
from volcore.v1 import attachment_pb2

from .cinder_api import ApiError


def test_same_words_as_the_stock_driver(site):
    """Goal: Nova sees no difference. Method: attach a volume of both, compare the answers."""
    cinder = site.cinder
    told = {}
    for backend in ("ours-rbd", "stock"):
        volume = cinder.create("volume", size=1, volume_type=backend)
        attachment = cinder.attach(volume["id"], "compute-1")
        told[backend] = attachment["connection_info"]
        if backend == "ours-rbd":
            with site.servers[backend].client() as client:
                (there,) = client.list_attachments(site.name(volume))
                assert there.host == "compute-1"
                image = client.get_volume(site.name(volume)).backend_name
            assert told[backend]["name"] == f"{site.pool}/{image}"
            cinder.act("volume", volume["id"], "os-extend", {"new_size": 2})
            assert cinder.wait("volume", volume["id"], "in-use")["size"] == 2
            with site.disk(backend, volume) as disk:
                assert disk.read((2 << 30) - 1, 1) == b"\0"
        cinder.detach(attachment["id"])
        cinder.wait("volume", volume["id"])
        cinder.delete("volume", volume["id"])
    ours, stock = told["ours-rbd"], told["stock"]
    assert ours.keys() == stock.keys()
    own = {"name", "volume_id", "attachment_id"}
    assert {k: v for k, v in ours.items() if k not in own} == {
        k: v for k, v in stock.items() if k not in own
    }


def test_local_pool_is_refused(site):
    """Goal: one clear sentence, and nothing is left attached."""
    cinder = site.cinder
    volume = cinder.create("volume", size=1, volume_type="ours-local")
    with pytest.raises(ApiError, match="use a type of an rbd pool") as caught:
        cinder.attach(volume["id"], "compute-1")
    assert caught.value.code == 400
    cinder.wait("volume", volume["id"])
    cinder.delete("volume", volume["id"])


@pytest.mark.parametrize("backend", ["ours-rbd", "ours-local"])
def test_live_migration(site, backend):
    """Goal: the second host takes over when the first one lets go, and may go on to a third.

    Method: the calls of the driver, each twice, on a real server.
    """
    name = "pools/p/volumes/migrating"
    active = attachment_pb2.ATTACHMENT_STATE_ACTIVE
    with site.servers[backend].client() as client:
        client.create_volume(name, size_bytes=1 << 30)
        for before, after in (("a", "b"), ("b", "c")):
            for _ in range(2):
                connection.attach(client, name, before)
            for _ in range(2):
                standby = connection.attach(client, name, after)
                assert standby.state == attachment_pb2.ATTACHMENT_STATE_STANDBY
            for _ in range(2):
                connection.detach(client, name, before)
            (left,) = client.list_attachments(name)
            assert (left.host, left.state) == (after, active)
        connection.attach(client, name, "d")
        connection.detach(client, name, "d")  # a migration that was given up
        (left,) = client.list_attachments(name)
        assert (left.host, left.state) == ("c", active)
        for _ in range(2):
            connection.detach_all(client, name)
        assert not list(client.list_attachments(name))
        client.delete_volume(name)
        connection.detach(client, name, "c")
        connection.detach_all(client, name)


def test_hosts_of_any_name():
    """Goal: each host name gives a name that volcore takes, and others another one."""
    hosts = ["compute-1.example", "Compute_2", "rack 1/host:3", "x" * 200, "ä"]
    names = [connection.host_of({"host": host}) for host in hosts]
    assert names[:2] == hosts[:2]
    assert len(set(names)) == len(hosts)
    assert all(name.isascii() and len(name) <= 100 for name in names)
