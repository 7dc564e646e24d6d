"""Glance images: the first use of one brings it into the pool, every volume is a clone of that.

A raw image that lies in the pool's own Ceph cluster is adopted there, without a copy. Any other is
fetched into Cinder's `image_conversion_dir`, hashed on the way, and goes to volcore only when its
hash is Glance's. One process imports at a time: Cinder's coordinator has the lock, which ends with
the process; without a common one, volcore still makes one image of the content.
"""

import errno
import functools
import hashlib
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from cinder import coordination, exception
from oslo_config import cfg
from oslo_log import log as logging

from volcore import limits
from volcore.cinder.files import temporary_file
from volcore.cinder.image_cache import IMAGE_LABEL, ImageCache
from volcore.cinder.service import Service
from volcore.cinder.transfer import FORMATS
from volcore.client import Client
from volcore.errors import (
    ConflictError,
    InvalidArgumentError,
    NotFoundError,
    NotSupportedError,
    OutOfRangeError,
    PreconditionError,
    Reason,
)
from volcore.v1 import image_pb2, image_service_pb2
from volcore.writeback import Writeback

LOG = logging.getLogger(__name__)
IMPORTS_MAX: Final = 4
"""Imports that one backend runs at once: each is a process, and a file."""
TRIES_MAX: Final = 3
"""An image may be deleted between its import and its first clone."""


def serves(image_meta: Mapping[str, Any]) -> bool:
    """Say whether volcore imports this kind of image; signatures are verified by Cinder alone."""
    if image_meta.get("container_format") != "bare" or image_meta.get("disk_format") not in FORMATS:
        return False
    signed = "img_signature" in (image_meta.get("properties") or {})
    return not signed or cfg.CONF.verify_glance_signatures == "disabled"


def image_name(image_meta: Mapping[str, Any]) -> str:
    """Return the name that an image of Glance has in volcore: other content, other name."""
    content = image_meta.get("os_hash_value") or image_meta.get("checksum")
    text = str(content or image_meta.get("updated_at"))
    return f"glance-{image_meta['id']}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


class Images:
    """The images of one pool.

    Args:
        parent: `pools/{pool}`.
        import_timeout_s: how long a request waits for another one that imports the same image.
        owner: Cinder deletes temporary files whose names end so when it starts.
        transfer: `options.transfer` for the backend's section.
    """

    def __init__(
        self,
        service: Service,
        *,
        parent: str,
        import_timeout_s: float,
        owner: str,
        cache: ImageCache,
        transfer: Callable[..., None],
    ) -> None:
        self._service = service
        self._parent = parent
        self._import_timeout_s = import_timeout_s
        self._owner = owner
        self._cache = cache
        self._transfer = transfer
        self._imports = threading.BoundedSemaphore(IMPORTS_MAX)

    def clone(
        self,
        image_meta: Mapping[str, Any],
        size_bytes: int,
        *,
        adoptable: Sequence[image_service_pb2.RbdSnapshot],
        fetch: Callable[[Any], None],
        create: Callable[[str], None],
    ) -> None:
        """Call `create` with an image that is ready; adopt or import it if this is its first use.

        `adoptable` is where it may lie in Ceph. `fetch` writes the file into what it is given.
        `create` raises NotFoundError when the image is gone.

        Raises:
            ImageUnacceptable: the file is not what Glance says, unsafe, or larger than the volume.
            ImageCopyFailure: the file did not arrive, or another import of it took too long.
            ImageTooBig: no room in Cinder's `image_conversion_dir`.
            VolcoreError: from volcore.
        """
        name = f"{self._parent}/images/{image_name(image_meta)}"
        for left in reversed(range(TRIES_MAX)):
            found = self._find(name)
            image = found or self._make_once(name, image_meta, size_bytes, adoptable, fetch)
            _check_size(image_meta, image.size_bytes, size_bytes)
            self._cache.note_use(name)
            try:
                create(name)
            except NotFoundError as err:
                if err.reason is not Reason.IMAGE_NOT_FOUND or not left:
                    raise
            else:
                if found is None:
                    self._cache.evict_behind()
                return

    def _find(self, name: str) -> image_pb2.Image | None:
        try:
            return self._service.call(lambda c: c.get_image(name))
        except NotFoundError:
            return None

    def _make_once(
        self,
        name: str,
        image_meta: Mapping[str, Any],
        size_bytes: int,
        adoptable: Sequence[image_service_pb2.RbdSnapshot],
        fetch: Callable[[Any], None],
    ) -> image_pb2.Image:
        """Adopt or import, or wait for who does."""
        lock = coordination.COORDINATOR.get_lock(f"volcore-{name.replace('/', '-')}")
        if not lock.acquire(blocking=self._import_timeout_s):
            raise exception.ImageCopyFailure(
                reason=f"another request imports image {image_meta['id']} for more than "
                f"{self._import_timeout_s} s; repeat later, or raise volcore_image_timeout"
            )
        try:
            if (image := self._find(name)) is not None:
                return image
            image = self._adopt(name, image_meta, adoptable)
            if image is None:
                with self._imports:
                    image = self._import(name, image_meta, fetch)
            if image.size_bytes > size_bytes:  # nobody has it yet: nothing stays behind
                self._service.call(lambda c: c.delete_image(name))
            return image
        finally:
            lock.release()

    def _adopt(
        self,
        name: str,
        image_meta: Mapping[str, Any],
        adoptable: Sequence[image_service_pb2.RbdSnapshot],
    ) -> image_pb2.Image | None:
        """Return the image if it could be had without a copy."""
        labels = {IMAGE_LABEL: str(image_meta["id"])}
        for source in adoptable:
            try:
                adopt = functools.partial(_adopt_from, name=name, source=source, labels=labels)
                image = self._service.call(adopt)
            except NotSupportedError as err:
                LOG.info("Image %s is imported: %s", image_meta["id"], err.message)
                return None
            except (NotFoundError, PreconditionError) as err:
                LOG.warning("Image %s is not adopted: %s", image_meta["id"], err.message)
            except ConflictError:  # somebody has imported it without our lock
                return self._find(name)
            except InvalidArgumentError as err:
                raise _unacceptable(image_meta, err.message) from err
            else:
                LOG.info("Adopted image %s as %s", image_meta["id"], name)
                return image
        return None

    def _import(
        self, name: str, image_meta: Mapping[str, Any], fetch: Callable[[Any], None]
    ) -> image_pb2.Image:
        with temporary_file(self._service, "fetch", self._owner) as path:
            arriving = Arriving(self._service, path, image_meta)
            try:
                fetch(arriving)
                arriving.finish()
            except OSError as err:
                raise _not_fetched(image_meta, err) from err
            finally:
                arriving.close()
            LOG.info("Importing image %s as %s", image_meta["id"], name)
            labels = {IMAGE_LABEL: str(image_meta["id"])}
            try:
                self._transfer(
                    "import",
                    name=name,
                    path=path,
                    disk_format=image_meta["disk_format"],
                    labels=labels,
                )
            except (InvalidArgumentError, OutOfRangeError, ConflictError) as err:
                raise _unacceptable(image_meta, err.message) from err
        return self._service.call(lambda c: c.get_image(name))


def _adopt_from(
    client: Client, *, name: str, source: image_service_pb2.RbdSnapshot, labels: dict[str, str]
) -> image_pb2.Image:
    return client.adopt_image(name, source, labels=labels)


class Arriving:
    """A file that is hashed while it is written; never blocks an eventlet hub.

    *Concurrency*: one caller.
    """

    def __init__(self, service: Service, path: str, image_meta: Mapping[str, Any]) -> None:
        self._service = service
        self._file = open(path, "wb", buffering=0)  # noqa: SIM115 - see `close`
        self._writeback = Writeback(self._file.fileno())
        self._image_meta = image_meta
        self._pieces = bytearray()
        self._expected, self._hash = "", hashlib.sha256()
        if image_meta.get("os_hash_value"):
            self._expected = str(image_meta["os_hash_value"])
            self._hash = hashlib.new(str(image_meta["os_hash_algo"]))
        elif image_meta.get("checksum"):
            self._expected = str(image_meta["checksum"])
            self._hash = hashlib.md5(usedforsecurity=False)

    def write(self, data: bytes) -> int:
        """Take the next bytes."""
        self._pieces += data
        if len(self._pieces) >= limits.FRAME_BYTES_MAX:
            self._service.run(self._store)
        return len(data)

    def finish(self) -> None:
        """Write the rest and compare.

        Raises:
            ImageUnacceptable: these are not the bytes that Glance promised.
        """
        self._service.run(self._store)
        self._service.run(self._file.truncate)
        if self._expected and self._hash.hexdigest() != self._expected:
            raise _unacceptable(
                self._image_meta,
                f"its {self._hash.name} is {self._hash.hexdigest()} but Glance says "
                f"{self._expected}; nothing of it was kept, upload the image again",
            )

    def close(self) -> None:
        """Close the file, which may wait for the disk; idempotent."""
        self._service.run(self._file.close)

    def _store(self) -> None:
        data = bytes(self._pieces)
        self._pieces.clear()
        self._hash.update(data)
        if data == bytes(len(data)):
            self._file.seek(len(data), os.SEEK_CUR)  # a hole: saves room, and work in volcore
            return
        while data:
            data = data[self._file.write(data) :]
        self._writeback.wrote(self._file.tell())


def _check_size(image_meta: Mapping[str, Any], image_bytes: int, size_bytes: int) -> None:
    if image_bytes > size_bytes:
        raise _unacceptable(
            image_meta,
            f"its disk has {image_bytes} bytes and does not fit in a volume of {size_bytes}; "
            "ask for a larger volume",
        )


def _not_fetched(image_meta: Mapping[str, Any], err: OSError) -> Exception:
    """Return the error for a file that did not arrive; glanceclient's is an OSError as well."""
    if err.errno == errno.ENOSPC:
        reason = f"no room in {cfg.CONF.image_conversion_dir}; make room for it"
        too_big: Exception = exception.ImageTooBig(image_id=image_meta["id"], reason=reason)
        return too_big
    failure: Exception = exception.ImageCopyFailure(
        reason=f"image {image_meta['id']} did not arrive whole from Glance: {err}; nothing of it "
        "was kept, upload the image again or repeat"
    )
    return failure


def _unacceptable(image_meta: Mapping[str, Any], reason: str) -> Exception:
    error: Exception = exception.ImageUnacceptable(image_id=image_meta["id"], reason=reason)
    return error
