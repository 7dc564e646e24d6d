"""A snapshot and its siblings: snapshots of the same content that take some of its clones.

librbd keeps all clones of a snapshot in one row of the image's header, which each new clone reads
and writes whole. So a popular snapshot has siblings, made by `siblings.py`. They are known by
their names alone, which no id of ours can be, for those never start with a dot:
`.sibling-<n>-of-<snapshot number>-<snapshot id>`, and `.new-sibling-...` until its content is
proven to be that of the snapshot: before that it takes no clone.
"""

import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from volcore.backends.rbd.direct import wire
from volcore.backends.rbd.header import Headers, HeaderSnapshot, header_object
from volcore.backends.rbd.reads import Wave

CHILDREN_MAX: Final = 256
"""Clones of one snapshot before a sibling takes the next; measured in docs/design/0013."""
SIBLINGS_MAX: Final = 31
"""Of one snapshot: 8,192 clones are spread evenly, those beyond go to whichever has fewest."""
_NAME: Final = re.compile(r"\.(new-)?sibling-(\d+)-of-(\d+)-(.+)", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """A snapshot that exists and its siblings, oldest first."""

    own: HeaderSnapshot
    siblings: Sequence[HeaderSnapshot]
    unproven: HeaderSnapshot | None
    """A sibling whose making was cut short."""
    counts: Sequence[int]
    """Clones of the snapshot, then of each sibling."""

    @property
    def is_full(self) -> bool:
        """Whether all have as many clones as they should."""
        return min(self.counts) >= CHILDREN_MAX

    @property
    def newest(self) -> int:
        """The highest number of all."""
        known = [self.own.snap, *(one.snap for one in self.siblings)]
        return max(known + ([self.unproven.snap] if self.unproven else []))

    @property
    def new_name(self) -> str:
        """The name of the next sibling, until it is proven."""
        numbers = [int(_parts(one.name)[1]) for one in self.siblings]
        return f".new-sibling-{max(numbers, default=0) + 1}-of-{self.own.snap}-{self.own.name}"

    def choose(self) -> tuple[int, int]:
        """Return the number of the snapshot for the next clones, and how many it should take."""
        snaps = [self.own.snap, *(one.snap for one in self.siblings)]
        for snap, count in zip(snaps, self.counts, strict=True):
            if count < CHILDREN_MAX:
                return snap, CHILDREN_MAX - count
        return snaps[min(range(len(snaps)), key=self.counts.__getitem__)], 1


def look(ioctx: Any, headers: Headers, image_id: str, snapshot_id: str) -> Family | None:
    """Return a snapshot with its siblings, None if there is no such snapshot; three rounds.

    Raises:
        NotFoundError: no such image.
    """
    found = headers.snapshots(image_id)
    own = next((one for one in found if one.user and one.name == snapshot_id), None)
    if own is None:
        return None
    siblings = siblings_of(found, own)
    proven = [one for one in siblings if is_proven(one.name)]
    keys = [wire.children_key(one.snap) for one in (own, *proven)]
    with Wave(ioctx) as wave:
        reading = wave.rows(header_object(image_id), keys)
    rows = reading()
    return Family(
        own=own,
        siblings=proven,
        unproven=next((one for one in siblings if not is_proven(one.name)), None),
        counts=[struct.unpack_from("<I", rows.get(key, bytes(4)))[0] for key in keys],
    )


def siblings_of(found: Sequence[HeaderSnapshot], own: HeaderSnapshot) -> list[HeaderSnapshot]:
    """Return those of an image's snapshots that are siblings of one, proven or not, oldest first.

    Those that are deleted and wait for their last clone are left out.
    """
    return sorted(
        (one for one in found if one.user and _parts(one.name)[2:] == (str(own.snap), own.name)),
        key=lambda one: one.snap,
    )


def original(name: str) -> str:
    """Return the id of the snapshot whose sibling has that name; of any other, the name."""
    return _parts(name)[3] or name


def is_sibling(name: str) -> bool:
    """Return whether a snapshot with that name is a sibling, proven or not."""
    return _NAME.fullmatch(name) is not None


def is_proven(name: str) -> bool:
    """Return whether that is the name of a sibling that takes clones."""
    return is_sibling(name) and not _parts(name)[0]


def proven_name(name: str) -> str:
    """Return the name that an unproven sibling gets when it is proven."""
    return name.replace(".new-", ".", 1)


def _parts(name: str) -> tuple[str, str, str, str]:
    """Return "new-" or nothing, n, the snapshot's number and id; all empty for other names."""
    found = _NAME.fullmatch(name)
    if found is None:
        return "", "", "", ""
    new, number, snap, snapshot_id = found.groups()
    return new or "", number, snap, snapshot_id
