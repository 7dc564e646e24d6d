"""The judge of the rbd soak sees what it is there to see, and nothing in a pool that is well."""

import struct
import subprocess
import time
from dataclasses import replace

import pytest
from rbd_backend.pools import opened, raw_pool

from volcore.backends.contract import ShortPathState
from volcore.backends.rbd.opening import settled
from volcore.limits import BLOCK_SIZE_BYTES, MIB
from volcore.testing.rbd_judge import Disk, Judge

SIZE = 8 * MIB
GOLD = Disk(SIZE, {0: 7, 5 * MIB: 8}, {"s": Disk(SIZE, {0: 7})})
CLONE = Disk(SIZE, {0: 7, MIB: 9})


class Plants:
    """A pool with the volume `gold`, its clone `clone`, and foreign images; faults to plant."""

    def __init__(self, ioctx):
        import rbd

        self.rbd = rbd
        self.ioctx = ioctx
        self.ids = {one["name"]: one["id"] for one in rbd.RBD().list2(ioctx)}

    def call(self, name, method, body):
        self.ioctx.execute(name, "rbd", method, body)

    def link(self, method, parent, child):
        with settled(self.rbd.Image(self.ioctx, parent, read_only=True)) as image:
            (snap,) = image.list_snaps()
        raw = child.encode()
        spec = struct.pack("<qI", self.ioctx.get_pool_id(), len(raw)) + raw + bytes(4)
        body = struct.pack("<QBBI", snap["id"], 2, 1, len(spec)) + spec
        self.call(f"rbd_header.{self.ids[parent]}", method, body)

    def row(self, name, **rows):
        import rados

        with rados.WriteOpCtx() as op:
            for key, value in rows.items():
                if value is None:
                    self.ioctx.remove_omap_keys(op, (key.replace("__", "/"),))
                else:
                    self.ioctx.set_omap(op, (key.replace("__", "/"),), (value,))
            self.ioctx.operate_write_op(op, name)

    def rows(self, name):
        import rados

        with rados.ReadOpCtx() as op:
            found, _ = self.ioctx.get_omap_vals(op, "", "", 1000)
            self.ioctx.operate_read_op(op, name)
            return dict(found)

    def write(self, name, offset, data):
        with self.rbd.Image(self.ioctx, name) as image:
            image.write(data, offset)


def dangling_child(plants):
    plants.link("child_attach", "gold", "beefbeefbeef")
    yield "gold: a dangling link to its child beefbeefbeef"
    plants.link("child_detach", "gold", "beefbeefbeef")


def unknown_child(plants):
    plants.link("child_detach", "gold", plants.ids["clone"])
    yield "clone: its parent gold does not know it"
    plants.link("child_attach", "gold", plants.ids["clone"])


def wrong_byte(plants):
    plants.write("clone", 3 * MIB + 5, b"\1")
    yield f"clone: byte {3 * MIB + 5} is 1, not 0"
    plants.write("clone", 3 * MIB + 5, b"\0")


def lost_byte(plants):
    plants.write("gold", 5 * MIB, bytes(BLOCK_SIZE_BYTES))
    yield f"gold: byte {5 * MIB} is 0, not 8"
    plants.write("gold", 5 * MIB, bytes([8]) * BLOCK_SIZE_BYTES)


def orphan_object(plants):
    for name in ("rbd_data.beef.0000000000000000", "rbd_header.beef", "rbd_id.beef", "what"):
        plants.ioctx.write_full(name, b"x")
        yield f"{name}: an orphan"
        plants.ioctx.remove_object(name)


def orphan_past_the_end(plants):
    name = f"rbd_data.{plants.ids['clone']}.0000000000000002"
    plants.ioctx.write_full(name, b"x")
    yield f"{name}: an orphan"
    plants.ioctx.remove_object(name)


def orphan_image(plants):
    plants.rbd.RBD().create(plants.ioctx, "stray", SIZE, old_format=False)
    yield "stray: an orphan"
    plants.rbd.RBD().remove(plants.ioctx, "stray")


def orphan_in_the_trash(plants):
    plants.rbd.RBD().create(plants.ioctx, "stray", SIZE, old_format=False)
    plants.rbd.RBD().trash_move(plants.ioctx, "stray", 0)
    (one,) = plants.rbd.RBD().trash_list(plants.ioctx)
    yield f"stray ({one['id']}): stays in the trash"
    plants.rbd.RBD().trash_remove(plants.ioctx, one["id"], True)


def lost_image(plants):
    plants.rbd.RBD().rename(plants.ioctx, "alone", "gone")
    yield "alone: the image is lost"
    plants.rbd.RBD().rename(plants.ioctx, "gone", "alone")


def lost_name(plants):
    plants.row("rbd_directory", **{f"id_{plants.ids['clone']}": None})
    yield "clone: the list of images does not lead"
    name = b"clone"
    row = struct.pack("<I", len(name)) + name
    plants.row("rbd_directory", **{f"id_{plants.ids['clone']}": row})


def half_made(plants):
    plants.row("volcore_directory", v__half=b'={"v":1}')
    yield "half: a row of the directory, but no volume"
    plants.row("volcore_directory", v__half=None)


def unsettled(plants):
    plants.row("volcore_catalog", intent__x=b"={}")
    yield "intent/x: an intent"
    plants.row("volcore_catalog", intent__x=None)


def needless_snapshot(plants):
    """A deleted snapshot whose clone has gone without a word."""
    with plants.rbd.Image(plants.ioctx, "alone") as image:
        image.create_snap("s")
    plants.link("child_attach", "alone", "beefbeefbeef")
    header = f"rbd_header.{plants.ids['alone']}"
    with plants.rbd.Image(plants.ioctx, "alone") as image:
        image.remove_snap("s")
        (snap,) = image.list_snaps()
    key = f"snap_children_{snap['id']:016x}"
    kept = plants.rows(header)[key]
    plants.row(header, **{key: None})
    yield f"alone: its deleted snapshot {snap['id']} stays"
    plants.row(header, **{key: kept})
    plants.link("child_detach", "alone", "beefbeefbeef")
    with plants.rbd.Image(plants.ioctx, "alone") as image:
        image.remove_snap_by_id(snap["id"])


def wrong_object_map(plants):
    name = f"rbd_object_map.{plants.ids['clone']}"
    kept = plants.ioctx.read(name, MIB)
    with plants.rbd.Image(plants.ioctx, "alone") as image:
        spare = plants.ioctx.read(f"rbd_object_map.{image.id()}", MIB)
    plants.ioctx.write_full(name, spare)
    yield "clone: rbd object-map check"
    plants.ioctx.write_full(name, kept)
    command = ["rbd", "--conf", plants.conf_path, "--pool", plants.pool]
    subprocess.run([*command, "object-map", "rebuild", "--no-progress", "clone"], check=True)


FAULTS = (
    dangling_child, unknown_child, wrong_byte, lost_byte, orphan_object, orphan_past_the_end,
    orphan_image, orphan_in_the_trash, lost_image, lost_name, half_made, unsettled,
    needless_snapshot, wrong_object_map,
)  # fmt: skip


def test_planted_faults(ceph_cluster, ceph_pool):
    """Goal: the judge of the soak is no rubber stamp. Method: faults one by one, each undone."""
    with opened(ceph_cluster, ceph_pool, direct=True) as backend:
        assert backend.wait_for_short_path().state is ShortPathState.ON
        backend.create("gold", SIZE)
        write(backend, "gold", GOLD.snapshots["s"])
        backend.create_snapshot("gold", "s")
        write(backend, "gold", GOLD)
        backend.clone("gold", "s", "clone", SIZE)
        write(backend, "clone", CLONE)
    disks = {"gold": GOLD, "clone": CLONE, "alone": Disk(SIZE, {})}
    with raw_pool(ceph_cluster, ceph_pool) as ioctx:
        import rbd

        rbd.RBD().create(ioctx, "alone", SIZE, old_format=False, features=61)
        judge = Judge(ioctx, ceph_cluster.conf_path, ceph_pool)
        plants = Plants(ioctx)
        plants.conf_path, plants.pool = str(ceph_cluster.conf_path), ceph_pool

        def found(*, tools=True):
            findings = judge.structure({"gold", "clone"}, {"alone"})
            for name, disk in disks.items():
                findings += judge.content(name, disk)
            return findings + (judge.tools(disks) if tools else [])

        until_clean(found)
        for fault in FAULTS:
            for wanted in fault(plants):
                findings = found(tools=fault is wrong_object_map)
                assert any(finding.startswith(wanted) for finding in findings), (wanted, findings)
        assert found() == []
        disks["clone"] = replace(CLONE, size_bytes=2 * SIZE, snapshots={"t": CLONE})
        size, snapshots = sorted(judge.content("clone", disks["clone"]))
        assert "bytes, not" in size
        assert "snapshots [], not ['t']" in snapshots
        assert "clone: rbd info shows" in judge.tools(disks)[0]


def write(backend, name, disk):
    with backend.open_device(name, read_only=False) as device:
        for offset, tag in disk.tags.items():
            device.write(offset, bytes([tag]) * BLOCK_SIZE_BYTES)


def until_clean(found, timeout_s=20.0):
    """The scratch images of a proof leave objects that the OSDs trim a little later."""
    end_s = time.monotonic() + timeout_s
    while findings := found():
        assert time.monotonic() < end_s, findings
        time.sleep(0.2)


@pytest.mark.parametrize("offset", [0, BLOCK_SIZE_BYTES, SIZE - BLOCK_SIZE_BYTES])
def test_pieces(offset):
    """Goal: the judge's own idea of bytes. Method: pieces joined are the whole."""
    disk = Disk(SIZE, {offset: 5})
    whole = b"".join(disk.piece(at, 4 * MIB) for at in range(0, SIZE, 4 * MIB))
    assert whole[offset : offset + BLOCK_SIZE_BYTES] == bytes([5]) * BLOCK_SIZE_BYTES
    assert whole.count(0) == SIZE - BLOCK_SIZE_BYTES


def test_what_librbd_marks_needlessly(ceph_cluster, ceph_pool):
    """Goal: a map that librbd alone has made so is no finding. Method: zeroes past object ends."""
    with raw_pool(ceph_cluster, ceph_pool) as ioctx:
        import rbd

        for name in ("known", "unknown"):
            rbd.RBD().create(ioctx, name, SIZE, old_format=False, features=61)
            with rbd.Image(ioctx, name) as image:
                image.write(b"something", 0)
                image.create_snap("s")
                image.write_zeroes(MIB, BLOCK_SIZE_BYTES)
        judge = Judge(ioctx, ceph_cluster.conf_path, ceph_pool)
        disks = {"known": Disk(SIZE, {}, zeroed={0}), "unknown": Disk(SIZE, {}, zeroed={1})}
        (finding,) = judge.tools(disks)
    assert finding.startswith("unknown: rbd object-map check")
    assert judge.needless_marks == 1
