"""Asking whether the images of volumes are still there: others can delete an rbd image, too.

The question is one read of the image's header, which must have the mark of the volume. It is sent
without waiting, so that it costs no round of its own beside a write.
"""

import errno
import threading
from collections.abc import Callable, Sequence
from typing import Any, Final

from volcore.backends.rbd.bindings import bindings
from volcore.backends.rbd.direct.plan import header_object
from volcore.backends.rbd.directory import Entry
from volcore.backends.rbd.errmap import ceph_errors, error_of, error_of_code
from volcore.backends.rbd.header import OWNER_KEY

_KNOWN_MAX: Final = 10_000
_UNDER_WAY_MAX: Final = 1000
_MARK: Final = f"metadata_{OWNER_KEY}"


class Presence:
    """Looks for the images of volumes of one pool; any thread."""

    def __init__(self, ioctx: Any, find: Callable[[str], Entry | None]) -> None:
        self._ioctx = ioctx
        self._find = find
        self._lock = threading.Lock()
        self._image_ids: dict[str, str] = {}
        self._under_way: set[_Question] = set()

    def look_for(self, volume_ids: Sequence[str]) -> Callable[[], set[str]]:
        """See `SupportsLookFor.look_for`."""
        questions = [(volume_id, self._ask(volume_id)) for volume_id in volume_ids]

        def wait() -> set[str]:
            return {volume_id for volume_id, answer in questions if not self._is_there(answer)}

        return wait

    def forget(self, volume_id: str) -> None:
        """Forget which image a volume has."""
        with self._lock:
            self._image_ids.pop(volume_id, None)

    def close(self) -> None:
        """Return when no read is under way; idempotent."""
        with self._lock:
            questions = list(self._under_way)
        for question in questions:
            question.wait()
        self._reap()

    def _ask(self, volume_id: str) -> "_Question | None":
        """Start to ask for one volume; None: it has no image."""
        image_id = self._image_id(volume_id)
        if not image_id:
            return None
        question = _Question(self._ioctx, image_id, volume_id)
        if len(self._under_way) > _UNDER_WAY_MAX:
            self._reap()
        with self._lock:
            self._under_way.add(question)
        return question

    def _is_there(self, question: "_Question | None") -> bool:
        """Wait for an answer; return whether the image is there, with its mark."""
        if question is None:
            return False
        code = question.wait()
        with self._lock:
            self._under_way.discard(question)
        if code < 0 and code != -errno.ENOENT:
            what = f"look for volume {question.volume_id}"
            raise error_of_code(-code, what, f"error {-code}")
        return code >= 0 and question.mark() == question.volume_id.encode()

    def _reap(self) -> None:
        """Forget the questions whose answers nobody waits for, once they are there."""
        with self._lock:
            self._under_way = {one for one in self._under_way if not one.is_done}

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


class _Question:
    """A read that is under way. librados writes into it: it must live until it is done."""

    def __init__(self, ioctx: Any, image_id: str, volume_id: str) -> None:
        self.volume_id = volume_id
        try:
            with bindings().rados.ReadOpCtx() as op:
                self._rows, _ = ioctx.get_omap_vals_by_keys(op, (_MARK,))
                self._completion = ioctx.operate_aio_read_op(op, header_object(image_id))
        except ceph_errors() as err:
            raise error_of(err, f"look for volume {volume_id}") from err

    @property
    def is_done(self) -> bool:
        """Whether `wait` would return at once."""
        return bool(self._completion.is_complete())

    def wait(self) -> int:
        """Return 0 or more, or the negative errno; any number of times."""
        self._completion.wait_for_complete()
        return int(self._completion.get_return_value())

    def mark(self) -> bytes:
        """Return the mark that was read; once, after `wait` returned no error."""
        return bytes(dict(self._rows).get(_MARK, b""))
