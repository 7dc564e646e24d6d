"""Says what is wrong with a pool of rbd images, from outside: Ceph's bindings and tools alone.

Nothing of the code under test is asked, and its rows are decoded anew. The pool must be at rest.
Each finding is one sentence that begins with the image or object it is about.
"""

import json
import re
import signal
import struct
import subprocess
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from volcore.backends.rbd.direct.family import is_proven, is_sibling, original
from volcore.backends.rbd.opening import settled
from volcore.limits import BLOCK_SIZE_BYTES, MIB

PIECE_BYTES: Final = 4 * MIB
"""Of one read, and of one rbd data object."""
PAGE_ROWS: Final = 1000
_POOL_OBJECTS: Final = ("rbd_directory", "rbd_info", "rbd_trash", "rbd_children")
_TRASH_NAMESPACE: Final = 2
_TOOL_THREADS: Final = 2
TOOL_TIMEOUT_S: Final = 180.0
LOOKS: Final = 3
_MARKED: Final = re.compile(r"rbd_data\.\w+\.(\w{16}) marked as 1, but should be 3")
_CLOSED_TOO_SOON: Final = (-signal.SIGABRT, -signal.SIGSEGV)


@dataclass(frozen=True, slots=True)
class Disk:
    """What an image must show: zeroes, but for blocks of 4 KiB that hold one byte, their tag."""

    size_bytes: int
    tags: Mapping[int, int]
    """Offset to tag."""
    snapshots: Mapping[str, "Disk"] = field(default_factory=dict)
    zeroed: Container[int] = frozenset()
    """Numbers of objects that were zeroed where they may have held nothing: librbd calls these
    written all the same, and `rbd object-map check` finds fault with that."""

    def piece(self, offset_bytes: int, length_bytes: int) -> bytes:
        """Return a part; it begins and ends between blocks."""
        found = bytearray(length_bytes)
        for at, tag in self.tags.items():
            start = at - offset_bytes
            if 0 <= start < length_bytes:
                found[start : start + BLOCK_SIZE_BYTES] = bytes([tag]) * BLOCK_SIZE_BYTES
        return bytes(found)


@dataclass(frozen=True, slots=True)
class _Image:
    """What the header of an image says."""

    image_id: str
    name: str
    size_bytes: int
    snaps: dict[int, bool]
    """Snapshot to whether a user sees it; others wait in the trash for their last clone."""
    parent: tuple[str, int] | None
    """Image id and snapshot; None, too, if it is in another pool."""
    children: dict[int, set[str]]


class Judge:
    """Looks at one pool.

    Args:
        ioctx: of the pool, with a connection as an administrator.
        conf_path: the `ceph.conf` for the command-line tools.
        pool: its name.
    """

    def __init__(self, ioctx: Any, conf_path: Path, pool: str) -> None:
        import rados
        import rbd

        self._rados, self._rbd = rados, rbd
        self._ioctx = ioctx
        self._conf_path = conf_path
        self._pool = pool
        self.needless_marks = 0
        """Objects that `tools` has let pass: see `Disk.zeroed`."""

    def structure(self, ours: Iterable[str], foreign: Iterable[str] = ()) -> list[str]:
        """Return findings about names, links, trash and objects that belong to nobody.

        Args:
            ours: names of the rbd images of all volumes and images of volcore.
            foreign: names of all others.
        """
        ours = set(ours)
        listed = {one["name"]: one["id"] for one in self._rbd.RBD().list2(self._ioctx)}
        trashed = {one["id"]: one["name"] for one in self._rbd.RBD().trash_list(self._ioctx)}
        wanted = ours | set(foreign)
        findings = [f"{name}: the image is lost" for name in sorted(wanted - set(listed))]
        findings += [f"{name}: an orphan, nobody knows it" for name in sorted(set(listed) - wanted)]
        images: dict[str, _Image] = {}
        for name, image_id in [*listed.items(), *((n, i) for i, n in trashed.items())]:
            try:
                images[image_id] = self._image(image_id, name)
            except self._rbd.Error as err:
                findings.append(f"{name} ({image_id}): librbd does not open it: {err}")
        findings += self._names(listed)
        findings += self._links(images)
        findings += _needless(images, trashed)
        findings += self._objects(images, listed)
        findings += self._rows(ours, listed, trashed)
        return findings

    def content(self, name: str, disk: Disk) -> list[str]:
        """Return findings about the size, snapshots and bytes of one image, all of them read."""
        findings = []
        try:
            with settled(self._rbd.Image(self._ioctx, name, read_only=True)) as image:
                live = {snap["name"] for snap in image.list_snaps() if snap["namespace"] == 0}
                found = {one for one in live if not is_sibling(one)}
                if found != set(disk.snapshots):
                    findings.append(
                        f"{name}: has snapshots {sorted(found)}, not {sorted(disk.snapshots)}"
                    )
                findings += _compared(image, name, disk)
                for snapshot in live:
                    known = disk.snapshots.get(original(snapshot))
                    if known is not None and (snapshot in found or is_proven(snapshot)):
                        image.set_snap(snapshot)
                        findings += _compared(image, f"{name}@{snapshot}", known)
        except self._rbd.Error as err:
            findings.append(f"{name}: librbd does not read it: {err}")
        return findings

    def tools(self, disks: Mapping[str, Disk]) -> list[str]:
        """Return findings of `rbd`: list, describe, measure, and check every object map."""
        findings = []
        needless: list[int] = []
        listed = json.loads(self._tool("ls", "--format", "json"))
        if sorted(listed) != sorted(disks):
            findings.append(f"rbd ls: shows {len(listed)} images of {len(disks)}")

        def check(name: str) -> list[str]:
            try:
                found = json.loads(self._tool("info", name, "--format", "json"))
                bad = [f"{name}: rbd info shows {found['flags']}"] if found["flags"] else []
                if found["size"] != disks[name].size_bytes:
                    bad.append(f"{name}: rbd info shows {found['size']} bytes")
                # One by one: of a hundred images opened and closed by one command, it dies of one.
                used = json.loads(self._tool("du", name, "--format", "json"))["images"]
                if all(one["name"] != name for one in used):
                    bad.append(f"{name}: rbd du does not show it")
                if "object-map" in found["features"]:
                    # It tells what is wrong on the error stream, and ends with 0 all the same.
                    said = self._tool("object-map", "check", "--no-progress", name, errors=True)
                    lines = [line for line in said.splitlines() if "rror" in line]
                    zeroed = disks[name].zeroed
                    faults = [line for line in lines if _needlessly_marked(line) not in zeroed]
                    needless.append(len(lines) - len(faults))
                    bad += [f"{name}: rbd object-map check: {faults}"] if faults else []
            except ToolError as err:
                return [f"{name}: {err}"]
            return bad

        with ThreadPoolExecutor(_TOOL_THREADS) as pool:
            for found in pool.map(check, sorted(disks)):
                findings += found
        self.needless_marks = sum(needless)
        return findings

    def _tool(self, *words: str, errors: bool = False) -> str:
        """Return the output of `rbd`, with the error stream if `errors`."""
        done = looked(["rbd", "--conf", str(self._conf_path), "--pool", self._pool], *words)
        if done.returncode:
            raise ToolError(f"rbd {words[0]} ended with {done.returncode}: {done.stderr[:300]}")
        return done.stdout + (done.stderr if errors else "")

    def _image(self, image_id: str, name: str) -> _Image:
        with settled(self._rbd.Image(self._ioctx, image_id=image_id, read_only=True)) as image:
            snaps = {snap["id"]: snap["namespace"] == 0 for snap in image.list_snaps()}
            size_bytes = image.size()
        rows = dict(self._omap(f"rbd_header.{image_id}", ""))
        pool_id = int(self._ioctx.get_pool_id())
        parent = _parent(rows["parent"], pool_id) if rows.get("parent") else None
        children = {
            int(key.removeprefix("snap_children_"), 16): _children(row)
            for key, row in rows.items()
            if key.startswith("snap_children_")
        }
        return _Image(image_id, name, size_bytes, snaps, parent, children)

    def _names(self, listed: Mapping[str, str]) -> Iterator[str]:
        """The list of images is kept in both directions, and has an object for each name."""
        rows = dict(self._omap("rbd_directory", ""))
        for name, image_id in listed.items():
            if rows.pop(f"id_{image_id}", None) != _string(name):
                yield f"{name}: the list of images does not lead from {image_id} to it"
            rows.pop(f"name_{name}", None)
            try:
                found = self._ioctx.read(f"rbd_id.{name}")
            except self._rados.ObjectNotFound:
                found = b""
            if found != _string(image_id):
                yield f"{name}: its name object does not say {image_id}"
        yield from (f"{key}: a row of the list of images without a partner" for key in rows)

    def _links(self, images: Mapping[str, _Image]) -> Iterator[str]:
        """A clone and its parent know each other."""
        for image in images.values():
            if image.parent is not None:
                parent_id, snap = image.parent
                parent = images.get(parent_id)
                if parent is None or snap not in parent.snaps:
                    yield f"{image.name}: a dangling link to its parent {parent_id}, {snap}"
                elif image.image_id not in parent.children.get(snap, set()):
                    yield f"{image.name}: its parent {parent.name} does not know it"
            for snap, children in image.children.items():
                for child in sorted(children):
                    if child not in images or images[child].parent != (image.image_id, snap):
                        yield f"{image.name}: a dangling link to its child {child}, {snap}"

    def _objects(self, images: Mapping[str, _Image], listed: Mapping[str, str]) -> Iterator[str]:
        """Every object belongs to an image, or has no head and waits for the OSDs to trim it."""
        for key in sorted({item.key for item in self._ioctx.list_objects()}):
            if key in _POOL_OBJECTS or key.startswith("volcore_"):
                continue
            kind, _, rest = key.partition(".")
            owner, _, part = rest.partition(".")
            image = images.get(owner)
            known = False
            if kind == "rbd_id":
                known = rest in listed
            elif image is not None and kind == "rbd_header":
                known = not part
            elif image is not None and kind == "rbd_object_map":
                known = not part or int(part, 16) in image.snaps
            elif image is not None and kind == "rbd_data":
                known = int(part, 16) * PIECE_BYTES < image.size_bytes
            if not known and self._has_head(key):
                yield f"{key}: an orphan, no image has it"

    def _has_head(self, key: str) -> bool:
        try:
            self._ioctx.stat(key)
        except self._rados.ObjectNotFound:
            return False
        return True

    def _rows(
        self, ours: set[str], listed: Mapping[str, str], trashed: Mapping[str, str]
    ) -> Iterator[str]:
        """The directory and catalog agree, and nothing is half done."""
        rows = {key: json.loads(row[1:]) for key, row in self._omap("volcore_directory", "")}
        volumes = {key[2:]: row for key, row in rows.items() if key.startswith("v/")}
        for name in sorted(ours | set(volumes)):
            if name not in ours:
                yield f"{name}: a row of the directory, but no volume"
            elif name not in volumes:
                yield f"{name}: a volume without a row of the directory"
            elif volumes[name].get("image") != listed.get(name):
                yield f"{name}: its row says {volumes[name]}, not {listed.get(name)}"
        retired = {key[2:] for key in rows if key.startswith("t/")}
        for image_id in sorted(retired ^ set(trashed)):
            yield f"{image_id}: either in the trash or in a row of the trash, not both"
        for key, _ in self._omap("volcore_catalog", "intent/"):
            yield f"{key}: an intent that nobody settled"

    def _omap(self, name: str, prefix: str) -> Iterator[tuple[str, bytes]]:
        """Yield the rows of an object; none if there is no such object."""
        after = ""
        while True:
            with self._rados.ReadOpCtx() as op:
                found, _ = self._ioctx.get_omap_vals(op, after, prefix, PAGE_ROWS)
                try:
                    self._ioctx.operate_read_op(op, name)
                except self._rados.ObjectNotFound:
                    return
                rows = list(found)
            yield from rows
            if not rows:
                return
            after = rows[-1][0]


class ToolError(Exception):
    """A command-line tool did not accept an image."""


def looked(command: Sequence[str], *words: str) -> subprocess.CompletedProcess[str]:
    """Run an `rbd` command that only reads; again if it dies of closing too soon (0017)."""
    for _ in range(LOOKS):
        done = subprocess.run(
            [*command, *words], capture_output=True, text=True, check=False, timeout=TOOL_TIMEOUT_S
        )
        if done.returncode not in _CLOSED_TOO_SOON:
            break
    return done


def _needlessly_marked(line: str) -> int | None:
    """Return the number of the object that a check of an object map finds written needlessly."""
    found = _MARKED.search(line)
    return None if found is None else int(found[1], 16)


def _needless(images: Mapping[str, _Image], trashed: Mapping[str, str]) -> Iterator[str]:
    """What is deleted is there only while a clone needs it."""
    for image in images.values():
        for snap, visible in image.snaps.items():
            if not visible and not image.children.get(snap):
                yield f"{image.name}: its deleted snapshot {snap} stays, but has no clone"
        if image.image_id in trashed and not any(image.children.values()):
            yield f"{image.name} ({image.image_id}): stays in the trash, but has no clone"


def _compared(image: Any, name: str, disk: Disk) -> list[str]:
    """Compare an open image with what it must show; at most one finding."""
    if image.size() != disk.size_bytes:
        return [f"{name}: has {image.size()} bytes, not {disk.size_bytes}"]
    for offset in range(0, disk.size_bytes, PIECE_BYTES):
        length = min(PIECE_BYTES, disk.size_bytes - offset)
        found, wanted = image.read(offset, length), disk.piece(offset, length)
        if found != wanted:
            at = next(n for n in range(length) if found[n] != wanted[n])
            return [f"{name}: byte {offset + at} is {found[at]}, not {wanted[at]}"]
    return []


def _string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<I", len(raw)) + raw


def _text(raw: bytes, at: int) -> tuple[str, int]:
    """Return the string at `at`, and where it ends."""
    (length,) = struct.unpack_from("<I", raw, at)
    return raw[at + 4 : at + 4 + length].decode(), at + 4 + length


def _parent(row: bytes, pool_id: int) -> tuple[str, int] | None:
    """Return image id and snapshot of a row of pool, namespace, image id, snapshot, overlap."""
    if struct.unpack_from("<q", row, 6)[0] != pool_id:  # negative: none
        return None
    _, at = _text(row, 14)
    image_id, at = _text(row, at)
    return image_id, int(struct.unpack_from("<Q", row, at)[0])


def _children(row: bytes) -> set[str]:
    """Return the image ids in a set of clones: each pool, image id, namespace."""
    found = set()
    (count,) = struct.unpack_from("<I", row)
    at = 4
    for _ in range(count):
        (length,) = struct.unpack_from("<I", row, at + 2)
        found.add(_text(row, at + 6 + 8)[0])
        at += 6 + length
    return found
