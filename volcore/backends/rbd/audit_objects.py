"""Objects of images that are gone: data, headers and object maps that no image has any more.

It takes the names of all objects of the pool, so it is done on request only.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from volcore.backends.rbd.errmap import translated
from volcore.errors import NotFoundError
from volcore.limits import AUDIT_FAULTS_MAX
from volcore.model.faults import Fault, FaultKind

SAMPLES: Final = 4
"""Names kept of each kind and image: of a deleted snapshot's objects some may be trimmed first."""
_KINDS: Final = {
    "rbd_data": FaultKind.ORPHAN_DATA,
    "rbd_header": FaultKind.ORPHAN_HEADER,
    "rbd_object_map": FaultKind.ORPHAN_OBJECT_MAP,
}
_LOG: Final = logging.getLogger(__name__)


@dataclass(slots=True)
class _Left:
    """What is left of one image."""

    count: int = 0
    samples: list[str] = field(default_factory=list)


def orphans(ioctx: Any, image_ids: set[str], suspects: Sequence[Fault] | None) -> Iterator[Fault]:
    """Yield what images have left that nothing names; of `suspects` those that are still there.

    `image_ids`: of all images that anything names.
    """
    if suspects is not None:
        for fault in suspects:
            is_ours = fault.kind in _KINDS.values() and fault.subject not in image_ids
            if is_ours and has_head(ioctx, fault.part):
                yield fault
        return
    found = _listed(ioctx, image_ids)
    for (kind, image_id), left in found.items():
        if kind is not FaultKind.ORPHAN_HEADER and (FaultKind.ORPHAN_HEADER, image_id) in found:
            continue  # they are the image's that the header tells of
        present = next((name for name in left.samples if has_head(ioctx, name)), None)
        if present is not None:
            yield _fault(kind, image_id, present, left.count)


def has_head(ioctx: Any, name: str) -> bool:
    """Return whether an object exists now; one that waits to be trimmed is in lists only."""
    try:
        with translated(f"look at {name}"):
            ioctx.stat(name)
    except NotFoundError:
        return False
    return True


def owner_of(name: str) -> tuple[FaultKind, str] | None:
    """Return kind and image id of an object of an image of this pool; None if it is none."""
    kind, _, rest = name.partition(".")
    parts = rest.split(".")
    # Three parts: data of an image of another pool.
    if kind not in _KINDS or not parts[0] or len(parts) > 2:
        return None
    return _KINDS[kind], parts[0]


def _listed(ioctx: Any, image_ids: set[str]) -> dict[tuple[FaultKind, str], _Left]:
    found: dict[tuple[FaultKind, str], _Left] = {}
    with translated("list the objects of the pool"):
        for item in ioctx.list_objects():
            owner = owner_of(item.key)
            if owner is None or owner[1] in image_ids:
                continue
            if owner not in found and len(found) == AUDIT_FAULTS_MAX:
                _LOG.warning("more images than %d have left objects", AUDIT_FAULTS_MAX)
                break
            left = found.setdefault(owner, _Left())
            left.count += 1
            if len(left.samples) < SAMPLES:
                left.samples.append(item.key)
    return found


def _fault(kind: FaultKind, image_id: str, sample: str, count: int) -> Fault:
    meaning, remedy = _WORDS[kind]
    return Fault(
        kind=kind,
        concerns=f"rbd image id {image_id}",
        subject=image_id,
        part=sample,
        meaning=meaning.format(count=count, sample=sample),
        remedy=remedy,
        mendable=kind is FaultKind.ORPHAN_OBJECT_MAP,
    )


_WORDS: Final = {
    FaultKind.ORPHAN_DATA: (
        "There are {count} objects of data ({sample}) of an image that is gone; they take space.",
        "Not repaired: they may be all that is left of a disk; `rados rm` once nobody misses it.",
    ),
    FaultKind.ORPHAN_HEADER: (
        "There is the header {sample} of an image that has no name and is not in rbd's trash.",
        "Not repaired: with its data it may be a whole disk; `rados rm` once nobody misses it.",
    ),
    FaultKind.ORPHAN_OBJECT_MAP: (
        "There are {count} object maps ({sample}) of an image that is gone.",
        "They are deleted, unless the image's header is there; they hold no data.",
    ),
}
