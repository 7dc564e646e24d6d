"""Reads of several objects at once, each wave one round trip."""

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Final, Self

from volcore.backends.rbd.bindings import bindings
from volcore.backends.rbd.errmap import error_of_code, translated

REPLY_BYTES_MAX: Final = 64 << 10
"""Of a method of an OSD class."""


class Wave:
    """Reads of one pool that are sent inside the block, and have all ended after it.

    So have their callbacks: the bindings keep a completion only as long as its pool handle lives,
    and librados calls back into one that was collected.

    Each returns a function that gives the result after the block, or raises: NotFoundError with
    OBJECT_NOT_FOUND for an object or entry that is not there. *Concurrency*: one thread.
    """

    def __init__(self, ioctx: Any) -> None:
        self._ioctx = ioctx
        self._sent: list[Any] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for completion in self._sent:
            completion.wait_for_complete_and_cb()

    def rows(
        self, name: str, keys: Sequence[str], *, prefix: str = "", row_count: int = 0
    ) -> Callable[[], dict[str, bytes]]:
        """Read the rows of an object that have one of `keys`, and `row_count` with `prefix`."""
        with translated(f"read {name}"), bindings().rados.ReadOpCtx() as op:
            parts = []
            if keys:
                parts.append(self._ioctx.get_omap_vals_by_keys(op, tuple(keys))[0])
            if row_count:
                parts.append(self._ioctx.get_omap_vals(op, "", prefix, row_count)[0])
            completion = self._ioctx.operate_aio_read_op(op, name)
        self._sent.append(completion)

        def result() -> dict[str, bytes]:
            _check(completion, f"read {name}")
            return {key: value for part in parts for key, value in part}

        return result

    def content(self, name: str, length_bytes: int) -> Callable[[], bytes]:
        """Read the first bytes of an object."""
        replies: list[bytes | None] = []
        with translated(f"read {name}"):
            completion = self._ioctx.aio_read(
                name, length_bytes, 0, lambda _, data: replies.append(data)
            )
        return self._reply(completion, replies, f"read {name}")

    def call(self, name: str, method: str, body: bytes) -> Callable[[], bytes]:
        """Call a method of the OSD class `rbd`."""
        replies: list[bytes | None] = []
        with translated(f"call rbd.{method} on {name}"):
            completion = self._ioctx.aio_execute(
                name, "rbd", method, body, REPLY_BYTES_MAX, lambda _, data: replies.append(data)
            )
        return self._reply(completion, replies, f"call rbd.{method} on {name}")

    def _reply(
        self, completion: Any, replies: Sequence[bytes | None], doing: str
    ) -> Callable[[], bytes]:
        self._sent.append(completion)

        def result() -> bytes:
            length = _check(completion, doing)
            return (replies[0] or b"")[:length]  # an empty reply comes as a buffer never written

        return result


def _check(completion: Any, doing: str) -> int:
    """Return what the read returned, if it is no error."""
    code = int(completion.get_return_value())
    if code < 0:
        raise error_of_code(-code, doing, f"error {-code}")
    return code
