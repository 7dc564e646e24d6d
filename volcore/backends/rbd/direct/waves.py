"""Writes to several objects at once, each awaited as a whole: one wave is one round trip.

librados keeps the order of one client's operations on one object, so writes to the same object may
stand in one wave.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from volcore.backends.rbd.bindings import bindings
from volcore.backends.rbd.errmap import ceph_errors, error_of

NOTIFY_TIMEOUT_MS: Final = 2000
"""How long a dead client that still counts as watching holds a notification up."""
_REPLY_BYTES_MAX: Final = 64 << 10


@dataclass(frozen=True, slots=True)
class Write:
    """One atomic change of one object."""

    name: str
    fill: Callable[[Any], None]
    """Puts the steps into a librados write operation."""


class Pending:
    """A write that is under way; the operation's objects live until it has ended."""

    def __init__(self, completion: Any) -> None:
        self._completion = completion

    @property
    def is_done(self) -> bool:
        """Whether `wait` would return at once."""
        return bool(self._completion.is_complete())

    def wait(self) -> int:
        """Return 0 or the negative errno; any thread, any number of times."""
        self._completion.wait_for_complete()
        return int(self._completion.get_return_value())


class Reply:
    """A question that is under way."""

    def __init__(self, start: Callable[[Callable[..., None]], Any]) -> None:
        """Start it: `start` gets the function to call back, and returns the completion."""
        self._found: tuple[Any, ...] = ()
        self._completion = start(self._keep)

    def _keep(self, _: Any, *found: Any) -> None:
        self._found = found

    def wait(self) -> tuple[int, tuple[Any, ...]]:
        """Return 0 or more, or the negative errno, and what the binding calls back with."""
        self._completion.wait_for_complete_and_cb()
        return int(self._completion.get_return_value()), self._found


class Waves:
    """Sends writes to one pool; any thread."""

    def __init__(self, ioctx: Any) -> None:
        self.ioctx = ioctx
        self._lock = threading.Lock()
        self.wave_count = 0
        """Round trips that a caller has waited for."""
        self.write_count = 0
        """Operations sent."""

    def send(self, write: Write) -> Pending:
        """Start a write.

        Raises:
            UnavailableError: the connection is closed.
        """
        try:
            with bindings().rados.WriteOpCtx() as op:
                write.fill(op)
                pending = Pending(self.ioctx.operate_aio_write_op(op, write.name))
        except ceph_errors() as err:
            raise error_of(err, f"write {write.name}") from err
        with self._lock:
            self.write_count += 1
        return pending

    def read(self, name: str, length_bytes: int) -> Reply:
        """Start to read an object from its beginning."""
        return self._ask(name, lambda back: self.ioctx.aio_read(name, length_bytes, 0, back))

    def call(self, name: str, owner: str, method: str, body: bytes) -> Reply:
        """Start to call a method, which only reads, of the OSD class `owner`."""
        return self._ask(
            name,
            lambda back: self.ioctx.aio_execute(
                name, owner, method, body, _REPLY_BYTES_MAX, oncomplete=back
            ),
        )

    def notify(self, name: str, message: str) -> Reply:
        """Start to tell all who watch an object; found: errno, who answered, who did not.

        Order: behind the writes to that object that were sent before, in the absence of failures.
        """
        return self._ask(
            name, lambda back: self.ioctx.aio_notify(name, back, message, NOTIFY_TIMEOUT_MS)
        )

    def _ask(self, name: str, start: Callable[[Callable[..., None]], Any]) -> Reply:
        """Start a question; errors as `send`."""
        try:
            return Reply(start)
        except ceph_errors() as err:
            raise error_of(err, f"ask {name}") from err

    def run(
        self,
        writes: Sequence[Write],
        *,
        beside: Callable[[], None] | None = None,
        sent: Sequence[Pending] = (),
    ) -> list[int]:
        """Send all, wait for all; return 0 or the negative errno of each, first of those `sent`.

        `beside` is called in between; what it raises is raised when all writes have ended.
        """
        pending = [*sent, *(self.send(write) for write in writes)]
        try:
            if beside is not None:
                beside()
        finally:
            for one in reversed(pending):  # the last to end wakes this thread, not each
                one.wait()
        codes = [one.wait() for one in pending]
        with self._lock:
            self.wave_count += 1
        return codes


def calling(name: str, method: str, body: bytes, *, expect: tuple[str, str] | None = None) -> Write:
    """Return the call of a method of the OSD class `rbd`.

    Args:
        name: the object.
        method: of the class.
        body: its argument.
        expect: key and value (code points below 0x80) of a row that must be so, else ECANCELED.
    """

    def fill(op: Any) -> None:
        if expect is not None:
            op.omap_cmp(*expect, bindings().rados.LIBRADOS_CMPXATTR_OP_EQ)
        op.execute("rbd", method, body)

    return Write(name, fill)
