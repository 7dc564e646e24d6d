"""Nova, unpatched, with volumes of ours: boot, attach, grow, detach, migrate, delete."""

import subprocess
import time
from xml.etree import ElementTree

import pytest

from volcore.testing import guest
from volcore.v1 import attachment_pb2

from .cinder_api import CinderApi
from .conftest import errors
from .nova_rig import HOSTS
from .rest import ApiError
from .rig import ROOT

GIB = 1 << 30
BACKEND = "ours-rbd"
COMMAND_LINE = f"console=ttyS0 quiet panic=-1 mitigations=off {guest.STAY_WORD}"
ACTIVE = attachment_pb2.ATTACHMENT_STATE_ACTIVE
REFUSED = "use a type of an rbd pool"

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]  # a dozen services start first


@pytest.fixture(scope="module")
def nova(nova_begun):
    """Nova, as soon as it is up."""
    probe = subprocess.run(["unshare", "--mount", "--uts", "true"], capture_output=True, text=True)
    if probe.returncode:
        pytest.skip(f"no host for Nova: {probe.stderr.strip()}")
    return nova_begun.result()


@pytest.fixture(scope="module")
def demo(nova):
    """Nova's API for a user who is no administrator."""
    return nova.api("demo")


@pytest.fixture(scope="module")
def cinder(nova):
    """Cinder's API for the same user."""
    return CinderApi(nova.cinder, nova.keystone.token("demo"))


@pytest.fixture(scope="module")
def flavor(nova):
    asked = {"flavor": {"name": "small", "ram": 256, "vcpus": 1, "disk": 0}}
    return nova.api("admin").call("POST", "/flavors", asked)["flavor"]["id"]


@pytest.fixture(scope="module")
def image(site, nova):
    """The guest's disk in Glance, with the kernel that boots it."""
    files, glance = guest.build_guest(ROOT / ".cache" / "guest"), site.glance
    kernel = glance.upload(files.kernel, "aki", container_format="aki")
    ramdisk = glance.upload(files.initrd, "ari", container_format="ari")
    fields = {"kernel_id": kernel, "ramdisk_id": ramdisk, "os_command_line": COMMAND_LINE}
    one = glance.upload(files.disk_raw, "raw", **fields)
    yield one
    for each in (one, kernel, ramdisk):
        glance.delete(each)


def attachments(site, volume):
    """Who has a volume, as volcore knows it: host to state."""
    with site.servers[BACKEND].client() as client:
        return {one.host: one.state for one in client.list_attachments(site.name(volume))}


def domains(nova):
    """The guests of all hosts: uuid to host."""
    return {
        one: name
        for name, host in nova.hosts.items()
        for one in host.virsh("list", "--all", "--uuid").split()
    }


def watchers(site, volume):
    """Who has the image of a volume open."""
    with site.servers[BACKEND].client() as client:
        name = client.get_volume(site.name(volume)).backend_name
    words = ["rbd", "--conf", site.conf_path, "status", f"{site.pool}/{name}"]
    said = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    return [line for line in said.splitlines() if "watcher=" in line]


def test_boot_attach_grow_detach_delete(site, nova, demo, cinder, flavor, image):
    """Goal: a guest runs from a clone of an image and has a second volume; nothing is left."""
    root = cinder.create("volume", size=1, volume_type=BACKEND, imageRef=image)
    server = demo.boot(flavor, root["id"])
    said = demo.wait_said(server, guest.WRITTEN_LINE)
    assert f"{guest.BOOTED_LINE}{guest.HOSTNAME}" in said
    assert f"disk: serial={root['id'][:20]} size_bytes={GIB}" in said
    host = domains(nova)[server]
    assert attachments(site, root) == {host: ACTIVE}
    assert watchers(site, root)
    with pytest.raises(ApiError) as caught:
        cinder.delete("volume", root["id"])
    assert caught.value.code == 400

    second = cinder.create("volume", size=1, volume_type=BACKEND)
    demo.attach(server, second["id"])
    demo.wait_said(server, guest.SECOND_WRITTEN_LINE)
    cinder.wait("volume", second["id"], "in-use")
    assert attachments(site, second) == {host: ACTIVE}
    cinder.act("volume", second["id"], "os-extend", {"new_size": 2})
    demo.wait_said(server, f"{guest.SECOND_LINE}{2 * GIB} bytes")
    demo.detach(server, second["id"])
    demo.wait_said(server, f"{guest.SECOND_LINE}none")
    assert cinder.wait("volume", second["id"])["size"] == 2
    assert (attachments(site, second), watchers(site, second)) == ({}, [])
    with site.disk(BACKEND, second) as disk:
        assert disk.read(0, len(guest.WRITTEN_BY_GUEST)) == guest.WRITTEN_BY_GUEST

    demo.delete(server)
    cinder.wait("volume", root["id"])
    assert (attachments(site, root), watchers(site, root)) == ({}, [])
    assert domains(nova) == {}

    server = demo.boot(flavor, root["id"])
    assert "boots before this one: 1" in demo.wait_said(server, guest.WRITTEN_LINE)
    demo.delete(server)
    for volume in (root, second):
        cinder.wait("volume", volume["id"])
        cinder.delete("volume", volume["id"])


def test_live_migration(site, nova, demo, cinder, flavor, image):
    """Goal: guest and volumes move together; a migration that fails leaves all where it was.

    Method: the host that is to have the guest does not know Ceph's key at first.
    """
    root = cinder.create("volume", size=1, volume_type=BACKEND, imageRef=image)
    second = cinder.create("volume", size=1, volume_type=BACKEND)
    server, admin = demo.boot(flavor, root["id"]), nova.api("admin")
    demo.attach(server, second["id"])
    demo.wait_said(server, guest.SECOND_WRITTEN_LINE)
    here = domains(nova)[server]
    (there,) = set(HOSTS) - {here}
    ((secret, key),) = nova.secrets.items()

    nova.hosts[there].virsh("secret-undefine", secret)
    admin.migrate(server, "ERROR")
    assert domains(nova) == {server: here}
    for volume in (root, second):
        assert attachments(site, volume) == {here: ACTIVE}
    nova.hosts[there].define_secret(secret, key)
    admin.call("POST", f"/servers/{server}/action", {"os-resetState": {"state": "active"}})

    admin.migrate(server)
    assert domains(nova) == {server: there}
    for volume in (root, second):
        assert attachments(site, volume) == {there: ACTIVE}
        assert len(watchers(site, volume)) == 1
    cinder.act("volume", second["id"], "os-extend", {"new_size": 2})
    demo.wait_said(server, f"{guest.SECOND_LINE}{2 * GIB} bytes")

    demo.delete(server)
    for volume in (root, second):
        cinder.wait("volume", volume["id"])
        assert (attachments(site, volume), watchers(site, volume)) == ({}, [])
        cinder.delete("volume", volume["id"])


def test_two_guests_share_a_volume(site, nova, demo, cinder, flavor, image):
    """Goal: a multi-attach volume serves guests of two hosts, uncached, until the last one goes."""
    kind = site.cinder.make_type("nova-shared", BACKEND, multiattach="<is> True")
    shared = cinder.create("volume", size=1, volume_type=kind)
    roots = [cinder.create("volume", size=1, volume_type=BACKEND, imageRef=image) for _ in range(2)]
    servers = [demo.boot(flavor, root["id"]) for root in roots]
    hosts = [domains(nova)[server] for server in servers]
    assert set(hosts) == set(HOSTS)
    for server, host in zip(servers, hosts, strict=True):
        demo.attach(server, shared["id"])
        demo.wait_said(server, guest.SECOND_WRITTEN_LINE)
        disks = ElementTree.fromstring(nova.hosts[host].virsh("dumpxml", server)).iter("disk")
        drivers = {disk.findtext("serial"): disk.find("driver").attrib for disk in disks}
        assert drivers[shared["id"]]["cache"] == "none"
    assert attachments(site, shared) == dict.fromkeys(HOSTS, ACTIVE)
    demo.detach(servers[0], shared["id"])
    demo.wait_said(servers[0], f"{guest.SECOND_LINE}none")
    demo.delete(servers[0])
    assert attachments(site, shared) == {hosts[1]: ACTIVE}
    demo.delete(servers[1])
    for volume in (shared, *roots):
        cinder.wait("volume", volume["id"])
        assert attachments(site, volume) == {}
        cinder.delete("volume", volume["id"])


def test_volume_of_a_local_pool(site, nova, demo, cinder, flavor, image):
    """Goal: Nova hears why it cannot have it, and is otherwise as before.

    The guest's own volume is made by Nova from the image, and deleted with the server.
    """
    local = cinder.create("volume", size=1, volume_type="ours-local")
    disk = {"volume_size": 1, "volume_type": BACKEND, "delete_on_termination": True}
    server = demo.boot(flavor, image, "image", **disk)
    demo.wait_said(server, f"{guest.BOOTED_LINE}{guest.HOSTNAME}")
    (root,) = demo.volumes(server)
    demo.attach(server, local["id"])
    deadline = time.monotonic() + 60
    while REFUSED not in nova.hosts[domains(nova)[server]].log("nova-compute"):
        assert time.monotonic() < deadline
        time.sleep(0.5)
    cinder.wait("volume", local["id"])
    cinder.delete("volume", local["id"])
    assert demo.volumes(server) == [root]
    demo.delete(server)
    cinder.wait_gone("volume", root)


def test_a_host_dies(site, nova, demo, cinder, flavor, image):
    """Goal: a guest whose host is gone starts on another one, with what it had written.

    Method: kill -9 of all that runs on the host, then evacuate. Late: the host stays dead.
    """
    root = cinder.create("volume", size=1, volume_type=BACKEND, imageRef=image)
    server = demo.boot(flavor, root["id"])
    demo.wait_said(server, guest.WRITTEN_LINE)
    here = domains(nova)[server]
    (there,) = set(HOSTS) - {here}
    nova.hosts[here].die()
    nova.api("admin").evacuate(server, here)
    assert "boots before this one: 1" in demo.wait_said(server, guest.WRITTEN_LINE)
    assert server in nova.hosts[there].virsh("list", "--uuid")
    assert attachments(site, root) == {there: ACTIVE}
    demo.delete(server)
    cinder.wait("volume", root["id"])
    assert (attachments(site, root), watchers(site, root)) == ({}, [])
    cinder.delete("volume", root["id"])


def test_no_errors_in_cinder(nova):
    """Goal: the Cinder that Nova spoke to had nothing to complain about."""
    assert [one for one in errors(nova.log("cinder-api")) if REFUSED not in one] == []
