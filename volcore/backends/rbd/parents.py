"""Images of others as parents of ours: a thin clone of a snapshot that lies in any pool.

The other image stays what it is; of ours, only a row in its header knows it. Its owner may delete
it as long as the clone lives: with clone format 2 the snapshot goes out of sight, and the image
into the rbd trash of its pool, where it can be removed once the last clone has gone.

Ceph's profile `rbd-read-only` on the other pool is right enough: it reads, and writes that row.

Source: Ceph, src/osd/OSDCap.cc (the profiles); glance_store, _drivers/rbd.py.
"""

import errno
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any, Final

from volcore.backends.adopting import ForeignImage, ForeignSource
from volcore.backends.rbd.direct import wire
from volcore.backends.rbd.errmap import ceph_errors, errno_of, translated
from volcore.backends.rbd.header import Headers
from volcore.backends.rbd.opening import open_image
from volcore.backends.rbd.session import FEATURES, ORDER, Session
from volcore.backends.refusals import check_size, id_taken, shrink_refused
from volcore.errors import NotFoundError, PermissionDeniedError, PreconditionError, Reason
from volcore.limits import IMAGE_VIRTUAL_SIZE_BYTES_MAX

_LAYERING: Final = 1
_DATA_POOL: Final = 128
_OPERATIONS: Final = 256
_NOBODY: Final = "volcore-nobody"
"""No image has such an id: librbd's are hexadecimal."""
_READABLE: Final = FEATURES | _DATA_POOL | _OPERATIONS


def look(session: Session, source: ForeignSource) -> ForeignImage:
    """See `SupportsForeignParent.foreign_parent`. Complexity: one open of the image."""
    with _permitted(session, source), _opened(session, source) as (headers, image):
        size_bytes = int(image.size())
        word, detail = _obstacle(headers, image)
        _check_right(headers, str(image.id()), source)
        return ForeignImage(name=source.image, size_bytes=size_bytes, obstacle=word, detail=detail)


def clone(session: Session, source: ForeignSource, target_id: str, size_bytes: int) -> None:
    """See `SupportsForeignParent.clone_foreign`; librbd does it, and the larger size after that."""
    check_size(size_bytes)
    with (
        _permitted(session, source),
        _opened(session, source) as (_, image),
        closing(session.cluster.open_ioctx_of(source.pool)) as parents,
        session.building(target_id),
    ):
        from_size_bytes = int(image.size())
        if size_bytes < from_size_bytes:
            raise shrink_refused(target_id, size_bytes=size_bytes, size_bytes_min=from_size_bytes)
        with translated(f"clone {source}", missing=_missing(source), exists=id_taken(target_id)):
            # Stripes are those of the parent by default, which may have larger objects.
            session.rbd.clone(
                parents, source.image, source.snapshot, session.ioctx, target_id, FEATURES, ORDER,
                stripe_unit=1 << ORDER, stripe_count=1,
            )  # fmt: skip
        if size_bytes > from_size_bytes:
            made_id = session.headers.image_id(target_id)
            assert made_id is not None, "librbd made it"
            with (
                translated(f"resize volume {target_id}"),
                open_image(session.ioctx, made_id, read_only=False) as made,
            ):
                made.resize(size_bytes)


@contextmanager
def _opened(session: Session, source: ForeignSource) -> Iterator[tuple[Headers, Any]]:
    """Lend the headers of the source's pool, and the source as it was at its snapshot.

    Raises:
        NotFoundError: OBJECT_NOT_FOUND.
    """
    missing = _missing(source)
    try:
        ioctx = session.cluster.open_ioctx_of(source.pool)
    except NotFoundError as err:
        raise missing from err
    with closing(ioctx):
        headers = Headers(ioctx)
        image_id = headers.image_id(source.image)
        if image_id is None:
            raise missing
        with (
            translated(f"look at {source}", missing=missing),
            open_image(ioctx, image_id, snapshot=source.snapshot, read_only=True) as image,
        ):
            yield headers, image


def _check_right(headers: Headers, image_id: str, source: ForeignSource) -> None:
    """Let the parent forget a clone that it has not: who may do that may make one.

    Without that right librbd, and we, could not take back the clone that has just been refused.

    Raises:
        PermissionDeniedError: PERMISSION_DENIED.
    """
    snapshot = headers.find_snapshot(image_id, source.snapshot)
    if snapshot is None:
        raise _missing(source)
    with suppress(NotFoundError):
        headers.forget_child(image_id, wire.child_link(headers.pool_id, _NOBODY, snapshot.snap))


@contextmanager
def _permitted(session: Session, source: ForeignSource) -> Iterator[None]:
    """Say which right the server's Ceph user lacks, if it does."""
    try:
        yield
    except PermissionDeniedError as err:
        user = session.cluster.options.user
        raise PreconditionError(
            f"{source} cannot be adopted: client.{user} may not make clones of rbd images in Ceph "
            f"pool {source.pool}; add `profile rbd-read-only pool={source.pool}` to its osd "
            "capabilities with `ceph auth caps`, and restart the server",
            reason=Reason.NOT_ADOPTABLE,
            obstacle="NO_PERMISSION",
        ) from err


def _obstacle(headers: Headers, image: Any) -> tuple[str, str]:
    """Return why an open image cannot be a parent: a word and a sentence; empty if it can."""
    features, size_bytes = int(image.features()), int(image.size())
    if headers.owner(str(image.id())) is not None:
        return "OURS", "it is volcore's own: use an image, or publish a snapshot of the volume"
    if not features & _LAYERING or features & ~_READABLE:
        odd = features & ~_READABLE
        return "FEATURES", (
            f"its rbd features ({odd:#x}) are not those of a plain image (journaling, striping, "
            "mirroring, migration): disable them, or import it"
            if odd
            else "it has no layering, without which nothing can be cloned: import it"
        )
    if _is_clone(image):
        return "CLONE", "it is a clone itself: `rbd flatten` it, or import it"
    if not 0 < size_bytes <= IMAGE_VIRTUAL_SIZE_BYTES_MAX:
        return "SIZE", (
            f"its size of {size_bytes} bytes is not between 1 and {IMAGE_VIRTUAL_SIZE_BYTES_MAX}"
        )
    return "", ""


def _is_clone(image: Any) -> bool:
    try:
        image.parent_info()
    except ceph_errors() as err:
        if errno_of(err) == errno.ENOENT:
            return False
        raise
    return True


def _missing(source: ForeignSource) -> NotFoundError:
    return NotFoundError(
        f"the cluster has no rbd image {source.pool}/{source.image} with a snapshot "
        f"{source.snapshot}; check the names",
        reason=Reason.OBJECT_NOT_FOUND,
        backend_name=source.image,
    )
