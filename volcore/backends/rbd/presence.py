"""Asking whether the images of volumes are still there: others can delete an rbd image, too.

The question is one read of the image's header, which must have the mark of the volume. It is sent
without waiting, so that it costs no round of its own beside a write.
"""

import errno
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, Final

from volcore.backends.rbd.bindings import bindings
from volcore.backends.rbd.direct.plan import header_object
from volcore.backends.rbd.directory import Entry
from volcore.backends.rbd.errmap import ceph_errors, error_of, error_of_code
from volcore.backends.rbd.header import OWNER_KEY

_KNOWN_MAX: Final = 10_000
_MARK: Final = f"metadata_{OWNER_KEY}"


class Presence:
    """Looks for the images of volumes of one pool; any thread."""

    def __init__(self, ioctx: Any, find: Callable[[str], Entry | None]) -> None:
        self._ioctx = ioctx
        self._find = find
        self._lock = threading.Lock()
        self._image_ids: dict[str, str] = {}

    def look_for(self, volume_ids: Sequence[str]) -> Callable[[], set[str]]:
        """See `SupportsLookFor.look_for`."""
        questions = {volume_id: self._ask(volume_id) for volume_id in volume_ids}

        def wait() -> set[str]:
            return {volume_id for volume_id, answer in questions.items() if not answer()}

        return wait

    def _ask(self, volume_id: str) -> Callable[[], bool]:
        """Start to ask for one volume; return what waits for the answer."""
        image_id = self._image_id(volume_id)
        if not image_id:
            return lambda: False
        try:
            with ExitStack() as undo:
                op = undo.enter_context(bindings().rados.ReadOpCtx())
                rows, _ = self._ioctx.get_omap_vals_by_keys(op, (_MARK,))
                completion = self._ioctx.operate_aio_read_op(op, header_object(image_id))
                release = undo.pop_all().close
        except ceph_errors() as err:
            raise error_of(err, f"look for volume {volume_id}") from err

        def answer() -> bool:
            completion.wait_for_complete()
            code = int(completion.get_return_value())
            found = dict(rows) if code >= 0 else {}
            release()
            if code < 0 and code != -errno.ENOENT:
                raise error_of_code(-code, f"look for volume {volume_id}", f"error {-code}")
            return bytes(found.get(_MARK, b"")) == volume_id.encode()

        return answer

    def _image_id(self, volume_id: str) -> str:
        """Return the image of a volume, from memory if it was asked for before."""
        with self._lock:
            known = self._image_ids.get(volume_id)
        if known is not None:
            return known
        entry = self._find(volume_id)
        if entry is None or not entry.image_id:
            return ""
        with self._lock:
            if len(self._image_ids) >= _KNOWN_MAX:
                self._image_ids.clear()
            self._image_ids[volume_id] = entry.image_id
        return entry.image_id
