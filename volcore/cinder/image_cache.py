"""Which images of Glance stay in a pool: the least recently used go first, those that serve stay.

An image serves while a volume that was made from it exists. Its last use is when it was imported,
when the latest of its volumes was made, or what this process remembers, whichever is later.
"""

import threading
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Final

from oslo_log import log as logging

from volcore import limits
from volcore.cinder.service import Service
from volcore.client import Client
from volcore.errors import VolcoreError
from volcore.v1 import image_pb2

LOG = logging.getLogger(__name__)
IMAGE_LABEL: Final = "volcore.cinder/image-id"
_PAGE_SIZE: Final = 1000
_DAY_S: Final = 86400


class ImageCache:
    """The bounds of one pool; what it remembers of uses is lost with the process.

    Args:
        parent: `pools/{pool}`.
        size_gib: of all disks together, holes included; 0: no bound.
        age_days: since the last use; 0: no bound.
    """

    def __init__(self, service: Service, *, parent: str, size_gib: int, age_days: int) -> None:
        self._service = service
        self._parent = parent
        self._size_gib = size_gib
        self._age_days = age_days
        self._used: dict[str, float] = {}

    def note_use(self, name: str) -> None:
        """Remember that an image was used now."""
        self._used[name] = time.time()

    def evict_behind(self) -> threading.Thread | None:
        """Delete what is too much, in a thread of its own; None when there are no bounds."""
        if not self._size_gib and not self._age_days:
            return None
        thread = threading.Thread(target=self._evict, name="volcore-image-cache", daemon=True)
        thread.start()
        return thread

    def _evict(self) -> None:
        try:
            self._service.call(self._evict_with)
        except VolcoreError as err:
            LOG.warning("Images of %s are not evicted now: %s", self._parent, err.message)

    def _evict_with(self, client: Client) -> None:
        images = {
            image.uid: image
            for image in client.list_images(self._parent, page_size=_PAGE_SIZE)
            if IMAGE_LABEL in image.labels
        }
        known = {image.name for image in images.values()}
        self._used = {name: at for name, at in list(self._used.items()) if name in known}
        used = {
            uid: max(image.create_time.ToSeconds(), self._used.get(image.name, 0.0))
            for uid, image in images.items()
        }
        serving = set()
        for volume in client.list_volumes(self._parent, page_size=_PAGE_SIZE):
            if (uid := volume.source.uid) in used:
                serving.add(uid)
                used[uid] = max(used[uid], volume.create_time.ToSeconds())
        for image in surplus(
            list(images.values()),
            used,
            serving,
            size_bytes_max=self._size_gib * limits.GIB,
            used_after=time.time() - self._age_days * _DAY_S if self._age_days else 0.0,
        ):
            LOG.info("Evicting image %s", image.name)
            client.delete_image(image.name)


def surplus(
    images: Sequence[image_pb2.Image],
    used: Mapping[str, float],
    serving: Collection[str],
    *,
    size_bytes_max: int,
    used_after: float,
) -> list[image_pb2.Image]:
    """Return which images go, the least recently used first; `size_bytes_max` 0: no bound.

    Those that were adopted take no room.
    """
    size_bytes = sum(image.size_bytes for image in images if not image.adopted_from)
    gone = []
    for image in sorted(images, key=lambda one: used[one.uid]):
        too_much = 0 < size_bytes_max < size_bytes and not image.adopted_from
        if image.uid not in serving and (too_much or used[image.uid] < used_after):
            gone.append(image)
            size_bytes -= 0 if image.adopted_from else image.size_bytes
    return gone
