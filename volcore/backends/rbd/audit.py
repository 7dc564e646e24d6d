"""What contradicts itself between the directory's rows, rbd's names and trash, headers and links.

A look reads all that while it is being changed, so what it finds is a suspicion: the engine looks
again. `audit_objects.py` looks for objects of images that are gone, `audit_mending.py` mends.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from volcore.backends.rbd.audit_objects import orphans
from volcore.backends.rbd.direct import wire
from volcore.backends.rbd.direct.plan import is_derived
from volcore.backends.rbd.direct.proof import SCRATCH
from volcore.backends.rbd.directory import Entry
from volcore.backends.rbd.errmap import translated
from volcore.backends.rbd.header import OWNER_KEY, Parent, header_object, parse_parent
from volcore.backends.rbd.reads import Wave
from volcore.backends.rbd.session import Session
from volcore.errors import NotFoundError
from volcore.model.faults import Fault, FaultKind

TOGETHER: Final = 64
"""Headers read in one wave."""
_LINKS: Final = "snap_children_"
_LINK_ROWS_MAX: Final = 1000
_MARK: Final = f"metadata_{OWNER_KEY}"


@dataclass(frozen=True, slots=True)
class _Header:
    """What is compared of an image's header."""

    parent: Parent | None
    owner: str
    """The mark: the volume that it is, empty for images of others."""
    links: tuple[tuple[int, str], ...]
    """Snapshot and image id of each clone in this pool."""


def look(session: Session, suspects: Sequence[Fault] | None, *, objects: bool) -> Iterator[Fault]:
    """See `SupportsAudit.audit`."""
    session.direct.flush()
    one = _Look(session, None if suspects is None else {fault.subject for fault in suspects})
    yield from one.faults(suspects)
    if objects:
        yield from orphans(session.ioctx, one.image_ids(), suspects)


class _Look:
    """One look at one pool, at all of it or (`scope`) at what some ids concern."""

    def __init__(self, session: Session, scope: set[str] | None) -> None:
        self._session = session
        self._scope = scope
        with translated(f"list the rbd images of pool {session.pool}"):
            listed = [(str(x["id"]), str(x["name"])) for x in session.rbd.list2(session.ioctx)]
            trashed = [
                (str(x["id"]), str(x["name"])) for x in session.rbd.trash_list(session.ioctx)
            ]
        self._listed = dict(listed)
        self._trashed = dict(trashed)
        self._entries = list(session.directory.walk())
        self._retired = list(session.directory.walk_retired())
        self._known_links: dict[Parent, set[str] | None] = {}

    def image_ids(self) -> set[str]:
        """Return the ids of all images that anything names."""
        found = {*self._listed, *self._trashed, *self._retired}
        found |= {entry.image_id for entry in self._entries}
        return found | {entry.link.image_id for entry in self._entries if entry.link is not None}

    def faults(self, suspects: Sequence[Fault] | None) -> Iterator[Fault]:
        """Yield what looks wrong."""
        entries = [entry for entry in self._entries if self._in_scope(entry.volume_id)]
        yield from (half_made(one.volume_id) for one in entries if self._is_half_made(one))
        whole = [entry for entry in entries if entry.image_id]
        parents: dict[str, Parent | None] = {}
        links: list[tuple[str, str, int, str]] = []
        for entry, header in self._headers(whole, [entry.image_id for entry in whole]):
            yield from self._row(entry, header)
            if header is not None:
                parents[entry.image_id] = header.parent
                links += [(entry.volume_id, entry.image_id, *link) for link in header.links]
        yield from self._deleted(links)
        if suspects is not None:  # the others are no suspects
            wanted = {one.part for one in suspects if one.kind is FaultKind.LINK_WITHOUT_CHILD}
            links = [link for link in links if link_part(*link[1:]) in wanted]
        for owner, image_id, snap, child in links:
            if not self._reads_from(child, image_id, snap, parents):
                yield _link_without_child(owner, image_id, snap, child)
        yield from self._unlisted()

    def _in_scope(self, subject: str) -> bool:
        return self._scope is None or subject in self._scope

    def _is_half_made(self, entry: Entry) -> bool:
        return not entry.image_id and not self._session.in_flight(entry.volume_id)

    def _headers(
        self, items: Sequence[Any], image_ids: Sequence[str]
    ) -> Iterator[tuple[Any, _Header | None]]:
        """Yield each item with the header of its image, None if that has none."""
        for start in range(0, len(items), TOGETHER):
            together = slice(start, start + TOGETHER)
            with Wave(self._session.ioctx) as wave:
                asked = [
                    wave.rows(
                        header_object(image_id),
                        ("size", "parent", _MARK),
                        prefix=_LINKS,
                        row_count=_LINK_ROWS_MAX,
                    )
                    for image_id in image_ids[together]
                ]
            for item, image_id, reply in zip(
                items[together], image_ids[together], asked, strict=True
            ):
                rows: dict[str, bytes] = {}
                with suppress(NotFoundError):
                    rows = reply()
                yield item, self._header(image_id, rows) if "size" in rows else None

    def _header(self, image_id: str, rows: dict[str, bytes]) -> _Header:
        parent = None
        if "parent" in rows:  # before Ceph 14 the row had another form
            usual = rows["parent"][0] == 2
            parent = (
                parse_parent(rows["parent"]) if usual else self._session.headers.parent(image_id)
            )
        pool_id = self._session.headers.pool_id
        links = tuple(
            (int(key.removeprefix(_LINKS), 16), child)
            for key, row in rows.items()
            if key.startswith(_LINKS)
            for pool, child in wire.children_by_pool(row)
            if pool == pool_id
        )
        return _Header(parent, rows.get(_MARK, b"").decode(errors="replace"), links)

    def _row(self, entry: Entry, header: _Header | None) -> Iterator[Fault]:
        """Compare the row of a volume with its image."""
        name = self._listed.get(entry.image_id)
        if header is None:
            yield _fault(
                FaultKind.ROW_WITHOUT_IMAGE,
                entry.volume_id,
                entry.image_id,
                "It is listed as volcore's, but the rbd image is gone: somebody deleted it around "
                "volcore, or it is damaged.",
                "The entry is deleted if nothing of the image is left; else it stays, for whoever "
                "restores it.",
                mendable=True,
            )
            return
        if entry.image_id in self._trashed:
            yield _fault(
                FaultKind.IMAGE_IN_TRASH,
                entry.volume_id,
                entry.image_id,
                "Somebody moved it to rbd's trash around volcore; no client can open it by name.",
                "It is restored from rbd's trash, under its name.",
                mendable=True,
            )
        elif name is None:
            yield _fault(
                FaultKind.IMAGE_WITHOUT_NAME,
                entry.volume_id,
                entry.image_id,
                "The rbd image has no name in the pool's list any more; no client can open it.",
                "Not repaired: what took the name away is not known; `rbd trash list --all` and "
                "the list's own tools tell more.",
            )
        elif name != entry.volume_id:
            yield _fault(
                FaultKind.IMAGE_RENAMED,
                entry.volume_id,
                entry.image_id,
                f"Somebody renamed it to {name!r}, and volcore tells clients the old name.",
                f"Not repaired: a client may use the new name; `rbd rename {name} "
                f"{entry.volume_id}` when none does.",
            )
        if header.parent is not None and not self._is_known(header.parent, entry.image_id):
            yield self._child_without_link(entry, header.parent)

    def _is_known(self, parent: Parent, image_id: str) -> bool:
        if parent not in self._known_links:
            self._known_links[parent] = self._session.links.children(parent)
        known = self._known_links[parent]
        if known is None or image_id in known:
            return True
        return self._session.headers.is_old_child(parent, image_id)

    def _child_without_link(self, entry: Entry, parent: Parent) -> Fault:
        session = self._session
        is_live = False
        if parent.pool_id == session.headers.pool_id:
            with suppress(NotFoundError):
                is_live = session.headers.snapshot(parent.image_id, parent.snap).user
        return _fault(
            FaultKind.CHILD_WITHOUT_LINK,
            entry.volume_id,
            link_part(parent.image_id, parent.snap, entry.image_id),
            f"It reads from snapshot {parent.snap} of rbd image {parent.image_id}, which does not "
            "know it, so that nothing keeps its parent from being deleted.",
            "The parent is told of it again."
            if is_live
            else "Not repaired: the snapshot is deleted or gone, and takes no clone any more; "
            "flatten the volume while its parent can be read.",
            mendable=is_live,
        )

    def _deleted(self, links: list[tuple[str, str, int, str]]) -> Iterator[Fault]:
        """Compare the rows of deleted volumes with what is left of them; adds their links."""
        names = {one: self._session.directory.retired_name(one) or "" for one in self._retired}
        retired = [one for one in self._retired if self._in_scope(names[one])]
        for image_id, header in self._headers(retired, retired):
            name = names[image_id]
            links += [(name, image_id, *link) for link in (header.links if header else ())]
            if self._session.reaper.is_needed(image_id) or self._session.reaper.is_busy(image_id):
                continue
            yield _fault(
                FaultKind.UNFREED_IMAGE,
                name,
                image_id,
                "It was deleted and no clone needs it any more, but its space was not freed.",
                "It is freed, as it was asked for; if a client still has it open, later.",
                mendable=True,
            )

    def _reads_from(
        self, child: str, image_id: str, snap: int, parents: dict[str, Parent | None]
    ) -> bool:
        """Return whether an image exists, or is being made, and says that it is that clone."""
        if child in parents:
            parent = parents[child]
        else:
            try:
                parent = self._session.headers.parent(child)
            except NotFoundError:
                made = (entry.link for entry in self._entries if entry.link is not None)
                return any(link.image_id == child for link in made)
        return parent is not None and (parent.image_id, parent.snap) == (image_id, snap)

    def _unlisted(self) -> Iterator[Fault]:
        """Look at images and names that no row of the directory has."""
        ours = {entry.image_id for entry in self._entries} | set(self._retired)
        names = {entry.volume_id for entry in self._entries}
        foreign = [
            (image_id, name)
            for image_id, name in [*self._listed.items(), *self._trashed.items()]
            if image_id not in ours
            and name not in names
            and not name.startswith(SCRATCH)
            and self._in_scope(name)
        ]
        ids = [image_id for image_id, _ in foreign]
        for (image_id, name), header in self._headers(foreign, ids):
            in_trash = image_id in self._trashed
            if header is None:
                if is_derived(image_id, name) and not in_trash:
                    yield _name_without_image(name, image_id)
            elif header.owner == name:  # a clone or copy by others has its source's mark
                yield unlisted_image(name, image_id, in_trash=in_trash)


def link_part(image_id: str, snap: int, child: str) -> str:
    """Return how a fault names a link."""
    return f"{image_id} {snap} {child}"


def _fault(
    kind: FaultKind, name: str, part: str, meaning: str, remedy: str, *, mendable: bool = False
) -> Fault:
    return Fault(
        kind=kind,
        concerns=f"rbd image {name}",
        subject=name,
        part=part,
        meaning=meaning,
        remedy=remedy,
        mendable=mendable,
    )


def half_made(volume_id: str) -> Fault:
    """Return the fault of an image that is not whole."""
    return _fault(
        FaultKind.HALF_MADE,
        volume_id,
        "",
        "Its making was cut off, and nobody goes on with it; nobody ever had an answer for it.",
        "What there is of it is deleted, or finished if it is whole but for links and names.",
        mendable=True,
    )


def _link_without_child(owner: str, image_id: str, snap: int, child: str) -> Fault:
    return _fault(
        FaultKind.LINK_WITHOUT_CHILD,
        owner,
        link_part(image_id, snap, child),
        f"Its snapshot {snap} lists rbd image {child} as its clone, which does not exist or reads "
        "from it no more, so that it can never be freed.",
        "The entry is taken out of the list of clones; no image is touched.",
        mendable=True,
    )


def _name_without_image(name: str, image_id: str) -> Fault:
    return _fault(
        FaultKind.NAME_WITHOUT_IMAGE,
        name,
        image_id,
        "It is a name in rbd's list without an image, which a clone cut off has left.",
        "The name is deleted; there is no image.",
        mendable=True,
    )


def unlisted_image(name: str, image_id: str, *, in_trash: bool) -> Fault:
    """Return the fault of an image of ours that has no row."""
    if in_trash:
        return _fault(
            FaultKind.TRASH_WITHOUT_ROW,
            name,
            image_id,
            "It is in rbd's trash and marked as volcore's, but volcore did not put it there.",
            f"Not repaired: `rbd trash restore {image_id}` brings it back, `volcore volume adopt "
            f"{name}` makes it a volume, `rbd trash remove` ends it.",
        )
    return _fault(
        FaultKind.IMAGE_WITHOUT_ROW,
        name,
        image_id,
        "It is marked as volcore's, but neither the list of volcore's images nor a record names "
        "it.",
        f"Not repaired: it may hold data that somebody wants; `volcore volume adopt {name}` makes "
        "it a volume.",
    )
