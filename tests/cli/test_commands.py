"""Each verb against a real server: what it prints, and what it returns."""

import itertools
import json
import shlex
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import pytest

from .server import running_server

COUNTER = itertools.count(1)
VOLATILE = {
    "uid": "UID", "create_time": "TIME", "end_time": "TIME", "etag": "ETAG",
    "backend_name": "BACKEND", "name": None,
}  # fmt: skip


def fresh(prefix="v"):
    return f"{prefix}-{next(COUNTER)}"


def ok(server, *words, **options):
    """Run a command that must succeed; return what it printed."""
    done = server.volcore(*words, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


def as_json(server, *words):
    return json.loads(ok(server, *words, "--output", "json"))


def refused(server, code, reason, *words):
    """Run a command that must fail; return what it said."""
    done = server.volcore(*words)
    assert done.returncode == code, (done.returncode, done.stderr)
    assert done.stdout == ""
    assert f"  reason:  {reason}\n" in done.stderr
    assert "Traceback" not in done.stderr
    assert "  next:    " in done.stderr
    assert "  request: " in done.stderr
    return done.stderr


def stable(document):
    """A document without what differs from run to run."""
    if isinstance(document, list):
        return [stable(item) for item in document]
    if not isinstance(document, dict):
        return document
    return {
        key: VOLATILE[key] if VOLATILE.get(key) else stable(value)
        for key, value in document.items()
    }


@pytest.fixture(scope="module")
def pool(server):
    return ok(server, "pool", "list", "--output", "name").strip()


@pytest.fixture
def volume(server):
    name = fresh()
    ok(server, "volume", "create", name, "--size", "8MiB")
    return name


def test_import_on_the_same_machine(server, golden, golden_file, monkeypatch):
    """Goal: the file is handed over, not sent. Method: make uploads impossible."""
    monkeypatch.setattr("volcore.client.transfer.Upload.frames", None)
    name = fresh("i")
    digest = as_json(server, "image", "import", str(golden_file), name)["digest"]
    assert digest == as_json(server, "image", "get", golden)["digest"]
    ok(server, "image", "delete", name, "--yes")


def test_pool_list_and_get(server, pool):
    """Goal: figures in every form. Method: all forms of one pool."""
    table = ok(server, "pool", "list").splitlines()
    assert table[0].split()[:2] == ["NAME", "BACKEND"]
    assert pool == f"pools/{table[1].split()[0]}"
    shown = as_json(server, "pool", "get")
    assert list(shown)[:3] == ["apiVersion", "kind", "name"]
    assert (shown["apiVersion"], shown["kind"], shown["backend"]) == ("volcore/v1", "Pool", "local")
    assert shown["capabilities"]["connection"] == "nbd"
    assert shown["capabilities"]["checksums"] is True
    assert isinstance(shown["capacity_bytes"], int)
    refused(server, 5, "POOL_NOT_FOUND", "pool", "get", "nobody")


def test_volume_json_snapshot(server, pool):
    """Goal: programs can rely on the JSON. Method: compare all of it."""
    name = fresh()
    made = as_json(server, "volume", "create", name, "--size", "8MiB", "--label", "a=1", "-l", "b=")
    assert stable(made) == {
        "apiVersion": "volcore/v1",
        "kind": "Volume",
        "name": f"{pool}/volumes/{name}",
        "uid": "UID",
        "size_bytes": 8 << 20,
        "labels": {"a": "1", "b": ""},
        "create_time": "TIME",
        "etag": "ETAG",
        "state": "READY",
        "allocated_bytes": 0,
        "depth": 0,
        "backend_name": "BACKEND",
    }
    listed = as_json(server, "volume", "list", "--label", "b", "--label", "a=1")
    assert (listed["kind"], listed["items"][0]["name"]) == ("VolumeList", made["name"])
    assert ok(server, "volume", "list", "-l", "a=1", "-o", "name") == f"{made['name']}\n"
    again = as_json(server, "volume", "create", name, "--size", "8MiB", "-l", "a=1", "-l", "b=")
    assert again == made


def test_volume_refusals(server, volume):
    """Goal: the class of an error is the exit code. Method: one of each that is easy to get."""
    refused(server, 6, "NAME_TAKEN", "volume", "create", volume, "--size", "16MiB")
    refused(server, 5, "VOLUME_NOT_FOUND", "volume", "get", "nobody")
    refused(server, 5, "IMAGE_NOT_FOUND", "volume", "create", fresh(), "--image", "nobody")
    refused(server, 4, "SIZE_NOT_ALLOWED", "volume", "create", fresh(), "--size", "5000B")
    refused(server, 4, "SHRINK_REFUSED", "volume", "resize", volume, "4MiB")
    refused(server, 3, "BAD_NAME", "volume", "create", "../x", "--size", "8MiB")
    ok(server, "snapshot", "create", volume, "s")
    said = refused(server, 7, "VOLUME_HAS_SNAPSHOTS", "volume", "delete", volume, "--yes")
    assert f"volumes/{volume}/snapshots/s" in said
    ok(server, "volume", "delete", volume, "--yes", "--force")
    ok(server, "volume", "delete", volume, "--yes", "--force")


def test_label(server, volume):
    """Goal: labels come and go one by one. Method: set, change, take away."""
    ok(server, "volume", "label", volume, "a=1", "b=2", "c=-")
    shown = as_json(server, "volume", "label", volume, "a=3", "b-")
    assert shown["labels"] == {"a": "3", "c": "-"}


def test_resize_and_get(server, volume):
    """Goal: a volume grows. Method: ask for its size."""
    ok(server, "volume", "resize", volume, "16MiB")
    assert "16 MiB" in ok(server, "volume", "get", volume)
    assert as_json(server, "volume", "get", volume)["size_bytes"] == 16 << 20


def test_hand_over(server, volume):
    """Goal: a migration from the command line. Method: each step, and what the list shows."""
    ok(server, "attachment", "attach", volume, "a")
    target = as_json(server, "attachment", "attach", volume, "b", "--hand-over-from", "a")
    assert (target["state"], target["hand_over_from"]) == ("STANDBY", "a")
    assert as_json(server, "attachment", "hand-over", volume, "b")["state"] == "ACTIVE"
    shown = [line.split() for line in ok(server, "attachment", "list", volume).splitlines()]
    assert [(row[1], row[3]) for row in shown[1:]] == [("a", "standby"), ("b", "active")]
    refused(server, 7, "VOLUME_IN_USE", "attachment", "attach", volume, "a")
    for host in "ab":
        ok(server, "attachment", "detach", volume, host, "--yes")


def test_snapshot_diff(server, pool, volume):
    """Goal: a table with sums, and JSON. Method: two snapshots with nothing between them."""
    ok(server, "snapshot", "create", volume, "d1")
    ok(server, "snapshot", "create", volume, "d2")
    found = as_json(server, "snapshot", "diff", volume, "d2", "--base", "d1")
    assert (found["kind"], found["items"]) == ("SnapshotExtentList", [])
    assert "OFFSET" in ok(server, "snapshot", "diff", volume, "d2")
    done = server.volcore("snapshot", "diff", volume, "d1", "--base", "d2")
    assert done.returncode != 0
    assert "newer" in done.stderr


def test_group_snapshots(server, pool, volume):
    """Goal: all verbs of group snapshots. Method: one life."""
    other, group = fresh(), fresh("g")
    ok(server, "volume", "create", other, "--size", "8MiB")
    made = as_json(server, "snapshot", "group", "create", group, volume, other, "-l", "x=y")
    assert (made["kind"], made["name"]) == ("GroupSnapshot", f"{pool}/groupSnapshots/{group}")
    names = [f"{pool}/volumes/{v}/snapshots/{group}" for v in sorted((volume, other))]
    assert [snapshot["name"] for snapshot in made["snapshots"]] == names
    assert as_json(server, "snapshot", "group", "get", group) == made
    assert f"{volume}" in ok(server, "snapshot", "group", "list")
    assert ok(server, "snapshot", "group", "list", "-o", "name") == f"{made['name']}\n"
    words = refused(server, 7, "SNAPSHOT_IN_GROUP", "snapshot", "delete", volume, group, "--yes")
    assert f"blocker: group snapshot {made['name']}" in words
    ok(server, "snapshot", "group", "delete", group, "--yes")
    refused(server, 5, "GROUP_SNAPSHOT_NOT_FOUND", "snapshot", "group", "get", group)


def test_snapshots(server, pool, volume):
    """Goal: all verbs of snapshots. Method: one life."""
    made = as_json(server, "snapshot", "create", volume, "one", "--label", "x=y")
    assert stable(made) == {
        "apiVersion": "volcore/v1",
        "kind": "Snapshot",
        "name": f"{pool}/volumes/{volume}/snapshots/one",
        "uid": "UID",
        "size_bytes": 8 << 20,
        "labels": {"x": "y"},
        "create_time": "TIME",
        "backend_name": "BACKEND",
        "group_snapshot": "",
    }
    assert as_json(server, "snapshot", "get", volume, "one") == made
    assert made["name"] in ok(server, "snapshot", "list", "-o", "name")
    assert ok(server, "snapshot", "list", volume, "-o", "name") == f"{made['name']}\n"
    clone = fresh()
    ok(server, "volume", "create", clone, "--snapshot", f"{volume}/one")
    ok(server, "volume", "create", fresh(), "--volume", clone)
    assert f"snapshot {volume}/one" in ok(server, "volume", "get", clone)
    assert clone in ok(server, "volume", "list", "--source", f"{volume}/one", "-o", "name")
    ok(server, "volume", "revert", volume, "one", "--yes")
    ok(server, "snapshot", "delete", volume, "one", "--yes")
    refused(server, 5, "SNAPSHOT_NOT_FOUND", "snapshot", "get", volume, "one")


def test_images(server, pool, golden, golden_file, tmp_path):
    """Goal: all verbs of images. Method: import, export, publish, look, delete."""
    shown = as_json(server, "image", "get", golden)
    digest = shown.pop("digest")
    assert digest.startswith("blake3-4m:")
    assert stable(shown) == {
        "apiVersion": "volcore/v1",
        "kind": "Image",
        "name": f"{pool}/images/golden",
        "uid": "UID",
        "size_bytes": 16 << 20,
        "source_format": "QCOW2",
        "labels": {"os": "none"},
        "create_time": "TIME",
        "backend_name": "BACKEND",
        "adopted_from": "",
    }
    for form in ("raw", "qcow2"):
        target = tmp_path / f"out.{form}"
        ok(server, "image", "export", golden, str(target), "--format", form)
        compared = subprocess.run(
            ["qemu-img", "compare", "-f", form, "-F", "qcow2", target, golden_file], timeout=60
        )
        assert compared.returncode == 0
        assert server.volcore("image", "export", golden, str(target)).returncode == 3
        ok(server, "image", "export", golden, str(target), "--format", form, "--yes")
    source, other = fresh(), fresh("image")
    ok(server, "volume", "create", source, "--image", golden)
    ok(server, "snapshot", "create", source, "s")
    published = as_json(server, "image", "publish", other, source, "s")
    assert published["digest"] == digest
    assert published["source_format"] == "UNSPECIFIED"
    assert ok(server, "image", "list", "-o", "name").split() == [
        f"{pool}/images/golden",
        f"{pool}/images/{other}",
    ]
    ok(server, "image", "delete", other, "--yes")
    refused(server, 5, "IMAGE_NOT_FOUND", "image", "get", other)


def test_import_says_how_it_goes(server, golden_file):
    """Goal: progress without a terminal is plain lines. Method: read stderr."""
    done = server.volcore("image", "import", str(golden_file), fresh("image"), "-o", "json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["kind"] == "Image"
    assert "\x1b" not in done.stderr
    assert "done in" in done.stderr.splitlines()[-1]


def test_import_refusals(server, golden_file, tmp_path):
    """Goal: what cannot be an image is refused by name. Method: three of them."""
    absent = server.volcore("image", "import", str(tmp_path / "absent"))
    assert absent.returncode == 3
    assert "No such file" in absent.stderr
    refused(server, 3, "IMAGE_FORMAT_MISMATCH", "image", "import", str(golden_file), fresh("i"),
            "--format", "vmdk")  # fmt: skip
    refused(server, 3, "IMAGE_CHECKSUM_MISMATCH", "image", "import", str(golden_file), fresh("i"),
            "--digest", "blake3-4m:" + "0" * 64)  # fmt: skip


def test_deploy(server, pool, golden):
    """Goal: many volumes in one call, failures told one by one. Method: with a taken name."""
    prefix = fresh("d")
    made = as_json(server, "volume", "deploy", golden, "--count", "3", "--prefix", prefix)
    names = [f"{pool}/volumes/{prefix}-000{number}" for number in (1, 2, 3)]
    assert [item["name"] for item in made["items"]] == names
    assert made["items"][0]["source"]["kind"] == "IMAGE"
    taken, free = fresh(), fresh()
    ok(server, "volume", "create", taken, "--size", "8MiB")
    done = server.volcore("volume", "deploy", golden, taken, free, "--output", "name")
    assert done.returncode == 6
    assert done.stdout == f"{pool}/volumes/{free}\n"
    assert f"volume {taken}:" in done.stderr
    assert "1 of 2 volumes exist now" in done.stderr


def test_host(server, pool, golden):
    """A host is fenced as the plan says, has no volume until it is unfenced, and is listed."""
    volume, host = fresh(), fresh("h")
    ok(server, "volume", "create", volume, "--image", golden)
    ok(server, "attachment", "attach", volume, host, "--client-address", "192.0.2.7")
    plan = ok(server, "host", "fence", host, "--dry-run")
    assert [line.split()[:2] for line in plan.splitlines()] == [
        ["EFFECT", "WHAT"],
        ["free", volume],
    ]
    assert as_json(server, "host", "fence", host, "--dry-run")["kind"] == "FencePlan"
    assert server.volcore("host", "fence", host).returncode == 3, "nobody was asked"
    asked = server.volcore("host", "fence", host, "-o", "json")
    assert (asked.returncode, asked.stdout) == (3, "")
    assert f"free: {volume}: attached to {host}" in asked.stderr
    assert ok(server, "host", "list", "-o", "name") == ""
    made = as_json(server, "host", "fence", host, "--yes")
    assert (made["state"], made["volumes"]) == ("FENCED", [f"{pool}/volumes/{volume}"])
    refused(server, 7, "HOST_FENCED", "attachment", "attach", volume, host)
    assert ok(server, "host", "list", "-o", "name").splitlines() == [made["name"]]
    assert as_json(server, "host", "get", host) == made
    ok(server, "host", "unfence", host, "--yes")
    assert ok(server, "host", "list", "-o", "name") == ""
    refused(server, 5, "FENCED_HOST_NOT_FOUND", "host", "get", host)
    ok(server, "volume", "delete", volume, "--yes")


def test_attachment(server, pool, golden, tmp_path):
    """Goal: connection info that QEMU's tools take. Method: let qemu-img open it."""
    volume = fresh()
    ok(server, "volume", "create", volume, "--image", golden)
    made = as_json(server, "attachment", "attach", volume, "node-1", "--mode", "read-only")
    assert made["access_mode"] == "READ_ONLY"
    assert made["nbd"]["uri"].startswith("nbd+unix:///")
    connection = json.loads(
        ok(server, "attachment", "get", volume, "node-1", "--connection", "json")
    )
    assert (connection["kind"], connection["type"]) == ("Connection", "nbd")
    seen = subprocess.run(
        ["qemu-img", "info", "--output=json", f"json:{json.dumps(connection['qemu_blockdev'])}"],
        check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    assert json.loads(seen.stdout)["virtual-size"] == 16 << 20
    words = shlex.split(ok(server, "attachment", "get", volume, "node-1", "--connection", "qemu"))
    options = json.loads(words[1])
    assert options["read-only"] is True
    assert options.pop("node-name")
    assert options == connection["qemu_blockdev"]
    disk = ElementTree.fromstring(
        ok(server, "attachment", "get", volume, "node-1", "--connection", "libvirt")
    )
    assert Path(disk.find("source/host").attrib["socket"]).is_socket()
    assert made["name"] in ok(server, "attachment", "list", "-o", "name")
    assert "read-only" in ok(server, "attachment", "list", volume)
    said = refused(server, 7, "VOLUME_IN_USE", "volume", "delete", volume, "--yes")
    assert "node-1" in said
    ok(server, "attachment", "detach", volume, "node-1", "--yes")
    ok(server, "attachment", "detach", volume, "node-1", "--yes")
    refused(server, 5, "ATTACHMENT_NOT_FOUND", "attachment", "get", volume, "node-1")


def test_flatten_and_operations(server, golden):
    """Goal: long work is visible and can be waited for. Method: flatten a clone."""
    volume = fresh()
    ok(server, "volume", "create", volume, "--image", golden)
    begun = as_json(server, "volume", "flatten", volume, "--no-wait")
    assert (begun["kind"], begun["action"]) == ("Operation", "flatten")
    ended = as_json(server, "operation", "wait", begun["name"])
    assert ended["phase"] == "SUCCEEDED"
    operation_id = begun["name"].rpartition("/")[2]
    assert as_json(server, "operation", "get", operation_id) == ended
    assert as_json(server, "operation", "cancel", operation_id) == ended
    assert begun["name"] in ok(server, "operation", "list", "-o", "name")
    refused(server, 5, "OPERATION_NOT_FOUND", "operation", "get", "0" * 32)


def test_deletes_are_operations():
    """Goal: what is freed behind the answer can be seen. Method: a pool that needs time for it."""
    with running_server('backend = "memory"\n') as server:
        ok(server, "volume", "create", "v", "--size", "8MiB")
        ok(server, "volume", "delete", "v", "--yes")
        ok(server, "volume", "delete", "v", "--yes")
        (line,) = [x for x in ok(server, "operation", "list").splitlines() if "delete" in x]
        operation_id = line.split()[0]
        assert "volumes/v" in line
        ended = as_json(server, "operation", "wait", operation_id)
        assert (ended["target"], ended["phase"]) == ("pools/p/volumes/v", "SUCCEEDED")
        assert as_json(server, "operation", "cancel", operation_id) == ended
        assert ok(server, "operation", "list", "-o", "name") == ended["name"] + "\n"
        assert as_json(server, "operation", "list", "--unfinished")["items"] == []


def test_trash():
    """Goal: deleted volumes can be seen and had back. Method: each verb, on a pool with a trash."""
    with running_server('backend = "memory"\ntrash_retention_s = 86400\n') as server:
        made = as_json(server, "volume", "create", "v", "--size", "8MiB", "--label", "a=b")
        ok(server, "volume", "delete", "v", "--yes")
        assert as_json(server, "volume", "list")["items"] == []
        (gone,) = as_json(server, "volume", "list", "--deleted")["items"]
        assert (gone["uid"], gone["state"]) == (made["uid"], "DELETED")
        table = ok(server, "volume", "list", "--deleted")
        assert made["uid"] in table
        assert "PURGED" in table
        assert "1 volumes, for " in ok(server, "pool", "get")
        refused(server, 5, "VOLUME_NOT_FOUND", "volume", "get", "v")
        ok(server, "volume", "create", "v", "--size", "4MiB")
        refused(server, 6, "NAME_TAKEN", "volume", "undelete", "v")
        back = as_json(server, "volume", "undelete", "v", "--as", "w")
        assert back["name"].endswith("/volumes/w")
        assert (back["uid"], back["labels"], back["state"]) == (made["uid"], {"a": "b"}, "READY")
        ok(server, "volume", "delete", "v", "--purge", "--yes")
        refused(server, 5, "VOLUME_NOT_FOUND", "volume", "undelete", "v")
        ok(server, "volume", "delete", "w", "--yes")
        done = server.volcore("volume", "delete", "w", "--purge", "--yes")
        assert f"purge them with --uid: {back['uid']}" in done.stderr
        ok(server, "volume", "delete", "w", "--uid", back["uid"], "--purge", "--yes")
        assert as_json(server, "volume", "list", "--deleted")["items"] == []
        refused(server, 5, "VOLUME_NOT_FOUND", "volume", "undelete", "w", "--uid", back["uid"])
        done = server.volcore("volume", "delete", "v", "w", "--uid", "x", "--yes")
        assert "--uid is of one volume" in done.stderr


def test_tree(server, golden):
    """Goal: what came from what at a glance. Method: a chain, with its source deleted."""
    image, top, clone = fresh("image"), fresh("top"), fresh("clone")
    first = fresh("first")
    ok(server, "volume", "create", first, "--image", golden)
    ok(server, "snapshot", "create", first, "s")
    ok(server, "image", "publish", image, first, "s")
    ok(server, "volume", "create", top, "--image", image)
    ok(server, "snapshot", "create", top, "point")
    ok(server, "volume", "create", clone, "--snapshot", f"{top}/point")
    lines = ok(server, "volume", "tree").splitlines()
    depth = {name: next(line for line in lines if name in line).index(name) for name in
             (image, top, "point", clone)}  # fmt: skip
    assert depth[image] < depth[top] < depth[clone]
    assert "16 MiB" in next(line for line in lines if top in line)
    ok(server, "image", "delete", image, "--yes")
    gone = next(line for line in ok(server, "volume", "tree").splitlines() if image in line)
    assert "(deleted)" in gone
    assert ok(server, "volume", "tree").count(clone) == 1
