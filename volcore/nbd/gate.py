"""Whether the clients of an export may write now, and when the last of their writes has ended.

Shutting a gate is the moment at which a hand-over takes the right to write away: writes that have
entered end, all others are refused. Invariant INV-NBD-9 (must): when `shut` returned True, nothing
of the export's clients changes the device until `open`.

Writes enter in one of two ways: through `enter` and `leave`, or inside a member (a compiled loop)
that counts its own and is told when the gate moves.
"""

import threading
import time
from typing import Protocol


class GateMember(Protocol):
    """A connection that counts its writes by itself."""

    def set_writable(self, writable: bool) -> None:
        """Let writes in from now on, or none; does not wait."""

    def wait_writes(self, timeout_s: float) -> bool:
        """Return whether no write that was let in is under way, waiting that long."""


class WriteGate:
    """The gate of one export. Any thread."""

    def __init__(self, *, writable: bool) -> None:
        self._changed = threading.Condition()
        self._writable = writable
        self._writing = 0
        self._members: set[GateMember] = set()

    @property
    def writable(self) -> bool:
        """Whether writes are let in; a hint, `enter` decides."""
        return self._writable

    def enter(self) -> bool:
        """Return whether a write may begin; if so, call `leave` when it has ended."""
        with self._changed:
            self._writing += self._writable
            return self._writable

    def leave(self) -> None:
        """End a write."""
        with self._changed:
            self._writing -= 1
            if not self._writing and not self._writable:
                self._changed.notify_all()

    def join(self, member: GateMember) -> None:
        """Tell `member` now and whenever the gate moves."""
        with self._changed:
            self._members.add(member)
            member.set_writable(self._writable)

    def quit(self, member: GateMember) -> None:
        """Forget `member`, which has no write under way any more."""
        with self._changed:
            self._members.discard(member)

    def open(self) -> None:
        """Let writes in."""
        self._move(writable=True)

    def shut(self, timeout_s: float) -> bool:
        """Let no more writes in; return whether those that were in have ended within the time.

        When they have not, the gate is shut all the same. Idempotent.
        """
        members = self._move(writable=False)
        deadline_s = time.monotonic() + timeout_s
        with self._changed:
            ended = self._changed.wait_for(lambda: not self._writing, timeout_s)
        return ended and all(
            member.wait_writes(max(0.0, deadline_s - time.monotonic())) for member in members
        )

    def _move(self, *, writable: bool) -> tuple[GateMember, ...]:
        with self._changed:
            self._writable = writable
            for member in self._members:
                member.set_writable(writable)
            return tuple(self._members)
