"""Golden images: import, publish, adopt, export, look, delete.

An image is a backend volume with one snapshot, `base`. While it is being made it is covered by an
intent and invisible; a killed server leaves an intent, and recovery deletes what belongs to it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from volcore.backends.adopting import ForeignSource, SupportsForeignParent
from volcore.catalog.contract import Change
from volcore.engine.adoption import check_backend_name
from volcore.engine.changes import change, settle_leftover
from volcore.engine.deletions import Deletions
from volcore.engine.operations import Operations, Work
from volcore.engine.pool import Pool, image_lock, now_ns, put, unchanged, volume_lock
from volcore.engine.pools import Pools
from volcore.engine.views import ImageExport, ImportRequest
from volcore.errors import (
    ConflictError,
    InvalidArgumentError,
    NotSupportedError,
    OperationPendingError,
    PreconditionError,
    Reason,
)
from volcore.images import arrival, export, hashing
from volcore.images.inspect import HEAD_BYTES, detect
from volcore.limits import BLOCK_SIZE_BYTES
from volcore.model import names
from volcore.model.records import Image, Intent, IntentAction, Operation, Snapshot, State

BASE: Final = "base"
"""Snapshot of an image's backend volume that everything is cloned from."""
IMPORT: Final = "import"
PUBLISH: Final = "publish"


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSettings:
    """Where imported files may lie, and where uploads wait."""

    directories: tuple[Path, ...] = ()
    spool_directory: Path | None = None


class _SameContentError(Exception):
    """The import turned out to be the image that exists; never leaves this module."""


class Images:
    """Use cases of images; every call may be repeated blindly."""

    def __init__(
        self, pools: Pools, operations: Operations, deletions: Deletions, settings: ImageSettings
    ) -> None:
        self._pools = pools
        self._operations = operations
        self._deletions = deletions
        self._settings = settings
        operations.brief_with(IMPORT)
        operations.brief_with(PUBLISH)

    def get(self, pool: str, name: str) -> Image:
        """Return an image.

        Raises:
            NotFoundError: IMAGE_NOT_FOUND.
        """
        return self._pools.open(pool).image(names.check_name(name, field="image"))

    def list(self, pool: str, *, after: str = "", limit: int) -> list[Image]:
        """Return up to `limit` images with names after `after`, in the order of their names."""
        return self._pools.open(pool).list(
            Image,
            after=after,
            limit=limit,
            wanted=lambda i: i.state is State.READY,
            leave_newer=True,
        )

    def import_image(
        self, pool: str, request: ImportRequest, watch: Callable[[Operation], None] | None = None
    ) -> Image:
        """Import a file; blocks until the image is ready. The same content again is the same image.

        Raises:
            InvalidArgumentError: IMAGE_FORMAT_UNKNOWN, IMAGE_FORMAT_MISMATCH, IMAGE_UNSAFE,
                IMAGE_CORRUPT, IMAGE_CHECKSUM_MISMATCH, SOURCE_MISSING.
            ConflictError: the name is taken by other content.
            CancelledError: the operation was cancelled, or the upload broke off.
        """
        at = self._pools.open(pool)
        names.check_name(request.name, field="image_id")
        names.check_labels(request.labels)
        with at.locks.hold([image_lock(request.name)]):
            existing = self._existing(at, request.name)
            if existing is not None and request.expected_digest == existing.digest != "":
                return existing
            image_id = names.new_id()
            target = f"pools/{pool}/images/{request.name}"
            work = self._operations.begin(at, IMPORT, target, image_id, watch)
            error: BaseException | None = None
            try:
                return self._import(at, request, existing, work)
            except _SameContentError:
                assert existing is not None
                return existing
            except BaseException as err:
                error = err
                raise
            finally:
                self._operations.finish(work, error)

    def _import(
        self, at: Pool, request: ImportRequest, existing: Image | None, work: Work
    ) -> Image:
        """Fill a new backend volume, freeze it, and show it as an image."""
        with arrival.receive(
            arrival.Source(
                format_name=request.format_name,
                server_path=request.server_path,
                handed=request.handed,
                chunks=request.chunks,
                upload_size_bytes=request.upload_size_bytes,
            ),
            directories=self._settings.directories,
            spool_directory=self._settings.spool_directory,
            progress=work.progress,
        ) as incoming:
            creating = _draft(request.name, work.subject_id, incoming.size_bytes, request.labels)
            begin = [put(creating)] if existing is None else [unchanged(existing)]
            end: list[Change] = []
            with change(
                at,
                _intent(at, creating, IntentAction.CREATE_IMAGE),
                begin=begin,
                end=end,
                joined=False,
            ):
                at.backend.create(creating.backend_volume_id, incoming.size_bytes)
                with at.backend.open_device(creating.backend_volume_id, read_only=False) as device:
                    digest = incoming.write_into(device, work.progress)
                _check_digest(request, existing, digest)
                _share(at, creating, digest)
                at.backend.create_snapshot(creating.backend_volume_id, BASE)
                ready = creating.but(
                    state=State.READY,
                    digest=digest,
                    source_format=incoming.format_name,
                    source_path=incoming.source_path,
                )
                end.append(put(ready, creating))
            return ready

    def publish(
        self,
        pool: str,
        name: str,
        volume: str,
        snapshot: str,
        *,
        labels: dict[str, str] | None = None,
    ) -> Image:
        """Make an image of a snapshot without copying; reads the data once for the digest.

        Raises:
            NotFoundError: SNAPSHOT_NOT_FOUND.
            ConflictError: the name is taken by other content.
        """
        at = self._pools.open(pool)
        names.check_name(name, field="image_id")
        labels = names.check_labels(labels or {})
        with at.locks.hold([image_lock(name)], [volume_lock(volume)]):
            source = at.snapshot(volume, snapshot)
            origin = f"{source.key}@{source.id}"
            existing = self._existing(at, name)
            if existing is not None:
                if existing.published_from != origin:
                    raise _taken(name)
                return existing
            image_id = names.new_id()
            work = self._operations.begin(at, PUBLISH, f"pools/{pool}/images/{name}", image_id)
            error: BaseException | None = None
            try:
                return self._publish(at, name, source, origin, labels, work)
            except BaseException as err:
                error = err
                raise
            finally:
                self._operations.finish(work, error)

    def _publish(
        self,
        at: Pool,
        name: str,
        source: Snapshot,
        origin: str,
        labels: dict[str, str],
        work: Work,
    ) -> Image:
        """Clone the snapshot, freeze the clone, and show it as an image."""
        creating = _draft(name, work.subject_id, source.size_bytes, labels)
        target = creating.backend_volume_id
        intent = _intent(at, creating, IntentAction.CREATE_IMAGE)
        end: list[Change] = []
        with change(at, intent, begin=[unchanged(source), put(creating)], end=end, joined=False):
            at.backend.clone(source.backend_volume_id, source.backend_id, target, source.size_bytes)
            at.backend.create_snapshot(target, BASE)
            with at.backend.open_device(target, BASE, read_only=True) as device:
                digest = hashing.digest_device(device, work.progress)
            ready = creating.but(
                state=State.READY, digest=digest, source_format="snapshot", published_from=origin
            )
            end.append(put(ready, creating))
        return ready

    def adopt(
        self, pool: str, name: str, source: ForeignSource, *, labels: dict[str, str] | None = None
    ) -> Image:
        """Make an image that is a clone of what others made; only its first bytes are read.

        The same call again returns the same image. An empty `source.cluster_id` is any cluster.

        Raises:
            InvalidArgumentError: BAD_NAME, IMAGE_FORMAT_MISMATCH, IMAGE_FORMAT_UNKNOWN,
                IMAGE_UNSAFE.
            NotFoundError: OBJECT_NOT_FOUND, no such source.
            ConflictError: the name is taken by other content.
            PreconditionError: NOT_ADOPTABLE, saying why and what to do.
            NotSupportedError: CAPABILITY_ABSENT.
        """
        at = self._pools.open(pool)
        backend = _able(at)
        names.check_name(name, field="image_id")
        for field in ("pool", "image", "snapshot"):
            check_backend_name(getattr(source, field), field=f"source.{field}")
        labels = names.check_labels(labels or {})
        source = _here(source, backend.cluster_id)
        with at.locks.hold([image_lock(name)]):
            existing = self._existing(at, name)
            if existing is not None:
                if existing.published_from != str(source):
                    raise _taken(name)
                return existing
            return _adopt(at, backend, name, source, labels)

    def export(self, pool: str, name: str, format_name: str) -> ImageExport:
        """Return an image as a file in pieces; it cannot be deleted meanwhile.

        Raises:
            InvalidArgumentError: BAD_FIELD, another format than raw or qcow2.
            IntegrityError: while iterating, a block fails its checksum.
        """
        at = self._pools.open(pool)
        image = at.image(names.check_name(name, field="image"))
        if format_name not in {"raw", "qcow2"}:
            raise InvalidArgumentError(
                f"images are exported as raw or qcow2, not as {format_name[:20]!r}",
                reason=Reason.BAD_FIELD,
                field="format",
            )
        pieces = self._pieces(at, image, format_name)
        size_bytes, _ = next(pieces)
        return ImageExport(file_size_bytes=size_bytes, pieces=pieces)

    def _pieces(self, at: Pool, image: Image, format_name: str) -> Iterator[tuple[int, bytes]]:
        """Yield (file size, b""), then the pieces; holds the image as long as it is iterated."""
        with (
            at.locks.hold(shared=[image_lock(image.name)]),
            at.backend.open_device(
                image.backend_volume_id, image.backend_snapshot_id, read_only=True
            ) as device,
        ):
            if format_name == "raw":
                yield image.size_bytes, b""
                yield from export.export_raw(device)
            else:
                size_bytes, pieces = export.export_qcow2(device)
                yield size_bytes, b""
                yield from pieces

    def delete(self, pool: str, name: str) -> Operation | None:
        """Delete an image; volumes made from it keep working; one that is gone is no error.

        Returns as `Volumes.delete` does.

        Raises:
            ExhaustedError: TOO_MANY_REQUESTS.
        """
        at = self._pools.open(pool)
        names.check_name(name, field="image")
        with at.locks.hold([image_lock(name)]):
            image = self._existing(at, name)
            if image is None:
                return None
            intent = _intent(at, image, IntentAction.DELETE_IMAGE)
            operation = self._deletions.delete(at, intent, f"pools/{pool}/images/{name}", [image])
            at.stock.forget(image.id)
            return operation

    def _existing(self, at: Pool, name: str) -> Image | None:
        """Return the ready image, or None; settles what an earlier call left half-done."""
        found = at.find(Image, name)
        if found is None or found.state is State.READY:
            return found
        settle_leftover(at, found.id)
        return at.find(Image, name)


def _able(at: Pool) -> SupportsForeignParent:
    if not isinstance(at.backend, SupportsForeignParent):
        raise NotSupportedError(
            f"pool {at.name!r} ({at.backend.caps.kind}) cannot adopt images; use an rbd pool, or "
            "import the image",
            reason=Reason.CAPABILITY_ABSENT,
        )
    return at.backend


def _here(source: ForeignSource, cluster_id: str) -> ForeignSource:
    """Return the source with its cluster, which must be the pool's."""
    if source.cluster_id not in ("", cluster_id):
        raise PreconditionError(
            f"the source lies in the Ceph cluster {source.cluster_id[:64]!a}, the pool in "
            f"{cluster_id!r}; import the image",
            reason=Reason.NOT_ADOPTABLE,
            obstacle="OTHER_CLUSTER",
        )
    return replace(source, cluster_id=cluster_id)


def _adopt(
    at: Pool,
    backend: SupportsForeignParent,
    name: str,
    source: ForeignSource,
    labels: dict[str, str],
) -> Image:
    """Clone the source, freeze the clone, and show it as an image."""
    found = backend.foreign_parent(source)
    if found.obstacle:
        raise PreconditionError(
            f"{source} cannot be adopted: {found.detail}",
            reason=Reason.NOT_ADOPTABLE,
            obstacle=found.obstacle,
        )
    size_bytes = -(-found.size_bytes // BLOCK_SIZE_BYTES) * BLOCK_SIZE_BYTES
    creating = _draft(name, names.new_id(), size_bytes, labels)
    target = creating.backend_volume_id
    ready = creating.but(state=State.READY, source_format="rbd", published_from=str(source))
    intent = _intent(at, creating, IntentAction.CREATE_IMAGE)
    with change(at, intent, begin=[put(creating)], end=[put(ready, creating)]):
        backend.clone_foreign(source, target, size_bytes)
        at.backend.create_snapshot(target, BASE)
        with at.backend.open_device(target, BASE, read_only=True) as device:
            detect(device.read(0, min(HEAD_BYTES, size_bytes)), expected_format="raw")
    return ready


def _check_digest(request: ImportRequest, existing: Image | None, digest: str) -> None:
    """Compare what arrived with what was promised, and with what has the name already."""
    if request.expected_digest and digest != request.expected_digest:
        raise InvalidArgumentError(
            f"the content's digest is {digest}, not the expected {request.expected_digest[:80]}; "
            "fetch the file again",
            reason=Reason.IMAGE_CHECKSUM_MISMATCH,
            digest=digest,
        )
    if existing is not None:
        if existing.digest == digest:
            raise _SameContentError
        raise _taken(existing.name)


def _share(at: Pool, creating: Image, digest: str) -> None:
    """Where another image has this content already, become a clone of it: no space is used twice.

    Skipped when that image is busy: sharing is worth no waiting.
    """
    twins = at.list(
        Image,
        limit=1,
        wanted=lambda i: (
            i.state is State.READY and (i.digest, i.size_bytes) == (digest, creating.size_bytes)
        ),
        leave_newer=True,
    )
    if not twins:
        return
    try:
        with at.locks.hold(shared=[image_lock(twins[0].name)], timeout_s=0):
            twin = at.image(twins[0].name)
            at.backend.delete(creating.backend_volume_id)
            at.backend.clone(
                twin.backend_volume_id,
                twin.backend_snapshot_id,
                creating.backend_volume_id,
                creating.size_bytes,
            )
    except OperationPendingError:
        return


def _draft(name: str, image_id: str, size_bytes: int, labels: dict[str, str]) -> Image:
    return Image(
        name=name,
        id=image_id,
        backend_volume_id=names.backend_id(name, image_id),
        backend_snapshot_id=BASE,
        size_bytes=size_bytes,
        digest="",
        source_format="",
        state=State.CREATING,
        labels=dict(labels),
        create_time_ns=now_ns(),
    )


def _intent(at: Pool, image: Image, action: IntentAction) -> Intent:
    return Intent(
        id=image.id,
        action=action,
        subject_key=image.key,
        subject_id=image.id,
        backend_volume_id=image.backend_volume_id,
        backend_snapshot_id=image.backend_snapshot_id,
        owner=at.server_id,
        create_time_ns=now_ns(),
    )


def _taken(name: str) -> ConflictError:
    return ConflictError(
        f"image {name!r} exists with other content; use another name, or delete it first",
        reason=Reason.NAME_TAKEN,
        name=name,
    )
