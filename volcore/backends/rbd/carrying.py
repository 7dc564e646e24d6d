"""Records of the catalog in the headers of the images that they are about.

Rows of a header's omap, `volcore.record/<kind>/<key>` (docs/formats/omap.md). librbd neither reads
nor copies such rows, as it does with image metadata: they are of this image only, and die with it.
They are written only where the mark says that the image is ours.

Invariant INV-CARRY-1 (must): a row is never written to an image without volcore's mark.
"""

import errno
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

from volcore.backends.carrying import Load
from volcore.backends.rbd.audit import half_made, unlisted_image
from volcore.backends.rbd.bindings import bindings
from volcore.backends.rbd.direct.plan import id_object, is_derived, map_object
from volcore.backends.rbd.direct.proof import SCRATCH
from volcore.backends.rbd.direct.waves import Write
from volcore.backends.rbd.errmap import error_of_code, translated
from volcore.backends.rbd.header import (
    OWNER_KEY,
    RECORD_PREFIX,
    Parent,
    header_object,
    parse_parent,
)
from volcore.backends.rbd.reads import Wave
from volcore.backends.rbd.session import Session
from volcore.errors import NotFoundError
from volcore.model.faults import Fault, FaultKind

TOGETHER: Final = 64
"""Headers in one wave."""
_PAGE_ROWS: Final = 1000
_MARK: Final = f"metadata_{OWNER_KEY}"
_GONE: Final = (-errno.ECANCELED, -errno.ENOENT)


def carry(session: Session, loads: Mapping[str, Load]) -> None:
    """See `SupportsCarry.carry`."""
    ids = sorted(loads)
    for start in range(0, len(ids), TOGETHER):
        with session.gate.using():
            _carry_some(session, ids[start : start + TOGETHER], loads)


def carried(session: Session, volume_ids: Sequence[str]) -> dict[str, dict[str, bytes]]:
    """See `SupportsCarry.carried`."""
    found: dict[str, dict[str, bytes]] = {}
    for start in range(0, len(volume_ids), TOGETHER):
        found |= _read(session, _image_ids(session, volume_ids[start : start + TOGETHER]))
    return found


def enter_all(session: Session) -> Iterator[Fault]:
    """See `SupportsCarry.enter_all`."""
    session.direct.flush()
    entries = list(session.directory.walk())
    known = {entry.volume_id for entry in entries}
    # Also those of volumes whose deletion is under way, by now in the trash.
    ours = {entry.image_id for entry in entries} | set(session.directory.walk_retired())
    with translated(f"list the rbd images of pool {session.pool}"):
        listed = [(str(x["id"]), str(x["name"])) for x in session.rbd.list2(session.ioctx)]
        trashed = [(str(x["id"]), str(x["name"])) for x in session.rbd.trash_list(session.ioctx)]
    names = {name for _, name in listed}
    lost = [one for one in listed if one[1] not in known and not one[1].startswith(SCRATCH)]
    children: dict[Parent, set[str] | None] = {}
    for start in range(0, len(lost), TOGETHER):
        whole = {}
        for image_id, name, owner, is_whole in _ours(
            session, lost[start : start + TOGETHER], children
        ):
            if owner != name:
                if owner not in known and owner not in names:
                    yield _renamed(name, owner)
            elif is_whole:
                whole[name] = image_id
            else:
                yield half_made(name)
        if whole and not session.directory.take_over_all(whole):  # some were adopted meanwhile
            for name, image_id in whole.items():
                session.directory.take_over(name, image_id)
    for image_id, name in trashed:
        if image_id not in ours and session.headers.owner(image_id) == name:
            yield unlisted_image(name, image_id, in_trash=True)


def _carry_some(session: Session, some: Sequence[str], loads: Mapping[str, Load]) -> None:
    """Let some volumes carry their records."""
    images = _image_ids(session, some)
    present = _read(session, images)
    writes = []
    for volume_id, rows in present.items():
        write = _difference(session, volume_id, images[volume_id], loads[volume_id], rows)
        if write is not None:
            writes.append(write)
    for code, write in zip(session.direct.waves.run(writes), writes, strict=True):
        if code < 0 and code not in _GONE:  # deleted or released meanwhile
            raise error_of_code(-code, f"write {write.name}", f"error {-code}")


def _ours(
    session: Session,
    images: Sequence[tuple[str, str]],
    children: dict[Parent, set[str] | None],
) -> Iterator[tuple[str, str, str, bool]]:
    """Yield id, name and mark of those images that are ours, and whether they are whole.

    One whose mark is of another name is ours if it carries records: tools copy marks, not those.
    """
    with Wave(session.ioctx) as wave:
        asked = [
            (
                one,
                wave.rows(
                    header_object(one[0]),
                    ("size", "parent", _MARK),
                    prefix=RECORD_PREFIX,
                    row_count=1,
                ),
                wave.content(map_object(one[0]), 1),
                wave.content(id_object(one[1]), 1),
            )
            for one in images
        ]
    for (image_id, name), header, *parts in asked:
        try:
            rows = header()
        except NotFoundError:  # a name without an image
            continue
        owner = rows.pop(_MARK, b"").decode(errors="replace")
        if owner != name and not (owner and any(key.startswith(RECORD_PREFIX) for key in rows)):
            continue
        is_whole = "size" in rows
        if is_derived(image_id, name):  # of a direct clone each part may be missing
            for part in parts:
                try:
                    part()
                except NotFoundError:
                    is_whole = False
        if is_whole and "parent" in rows:
            is_whole = _is_linked(session, image_id, rows["parent"], children)
        yield image_id, name, owner, is_whole


def _renamed(name: str, owner: str) -> Fault:
    return Fault(
        kind=FaultKind.IMAGE_RENAMED,
        concerns=f"rbd image {name}",
        subject=owner,
        meaning=f"It carries the records of rbd image {owner}, which there is not: it was renamed "
        "around volcore.",
        remedy=f"Not rebuilt: `rbd rename {name} {owner}`, then repeat the rebuild.",
    )


def _is_linked(
    session: Session, image_id: str, row: bytes, children: dict[Parent, set[str] | None]
) -> bool:
    """Return whether the parent of an image knows it; a parent that cannot be read does."""
    parent = parse_parent(row) if row[0] == 2 else session.headers.parent(image_id)
    if parent is None:
        return True
    if parent not in children:
        children[parent] = session.links.children(parent)
    known = children[parent]
    if known is None or image_id in known:
        return True
    return session.links.knows(parent, image_id)


def _image_ids(session: Session, volume_ids: Sequence[str]) -> dict[str, str]:
    """Return the rbd images of those volumes that exist, or are being made directly."""
    with Wave(session.ioctx) as wave:
        entries = session.directory.finding(wave, volume_ids)
    found = {
        volume_id: entry.image_id or (entry.link.image_id if entry.link else "")
        for volume_id, entry in entries().items()
    }
    return {volume_id: image_id for volume_id, image_id in found.items() if image_id}


def _read(session: Session, images: Mapping[str, str]) -> dict[str, dict[str, bytes]]:
    """Return what the images, by volume id, carry; nothing for those that are not there."""
    with Wave(session.ioctx) as wave:
        asked = {
            volume_id: wave.rows(
                header_object(image_id), ("size",), prefix=RECORD_PREFIX, row_count=_PAGE_ROWS
            )
            for volume_id, image_id in images.items()
        }
    found = {}
    for volume_id, reply in asked.items():
        with suppress(NotFoundError):
            rows = reply()
            if rows.pop("size", None) is not None:
                found[volume_id] = {
                    key.removeprefix(RECORD_PREFIX): raw for key, raw in rows.items()
                }
    return found


def _difference(
    session: Session, volume_id: str, image_id: str, load: Load, present: Mapping[str, bytes]
) -> Write | None:
    """Return the write that makes what an image carries as `load` has it; None: it is so."""
    puts = {
        RECORD_PREFIX + key: raw for key, raw in load.records.items() if present.get(key) != raw
    }
    removals = [
        RECORD_PREFIX + key
        for key in present
        if key not in load.records and key.partition("/")[0] in load.kinds
    ]
    if not puts and not removals:
        return None

    def fill(op: Any) -> None:
        op.omap_cmp(_MARK, volume_id, bindings().rados.LIBRADOS_CMPXATTR_OP_EQ)
        if puts:
            session.ioctx.set_omap(op, tuple(puts), tuple(puts.values()))
        if removals:
            session.ioctx.remove_omap_keys(op, tuple(removals))

    return Write(header_object(image_id), fill)
