"""The open volume at work: descriptors, maps and locks that threads share without the GIL.

A `DataPath` reads and writes whole blocks of a volume whose maps are loaded and whose files are
attached, and declines everything else: then the caller does it the long way, from the beginning,
and loads or attaches what was missing. So it decides nothing about durability; it only repeats, for
the common case, what `volcore.backends.local.chunkstore` says.

*Units*: blocks of 4096 bytes, chunks of 1024 blocks. *Concurrency*: every class may be used by any
thread. A `Stripe` is a lock that its holder may take again; its other methods, and changes of the
arrays of its maps, need it held. Waiting for it gives the GIL up. *Errors*: ValueError for
arguments that make no sense, MemoryError.

The oracles do no I/O: their `DataPath` declines everything, and there is no `NbdLoop`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from volcore.kernels import select

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any, Protocol

    from typing_extensions import Buffer

    from volcore.kernels.pure.datapath import ChunkState, DataPath, LayerFd, Stripe

    Words = tuple[int, int, int, int, int]
    Prepare = Callable[[Words], bool]
    Rare = Callable[[Words, "memoryview | None"], None]

    class NbdLoop(Protocol):
        """The transmission phase of one NBD connection; see `_ext/nbdloop.pxi`.

        `pump` serves aligned reads and writes until something needs Python. The request that it
        stopped at is then `request()`: (flags, command, cookie, offset in bytes, length in bytes).
        """

        draining: bool
        writable: bool
        """Writes that were let in while it was True are waited for by `wait_writes`."""
        workers_now: int

        def __init__(
            self,
            path: DataPath,
            fd: int,
            *,
            structured: bool,
            writable: bool,
            request_bytes_max: int,
            in_flight_max: int,
            in_flight_bytes_max: int,
        ) -> None: ...
        def pump(self, again: bool = False) -> int:
            """Return END, RARE, SPAWN or BAD; `again`: try the present request once more."""

        def request(self) -> Words: ...
        def take_payload(self) -> bool: ...
        def payload(self) -> memoryview | None: ...
        def end_request(self) -> None: ...
        def skip(self, length: int) -> bool: ...
        def is_busy(self) -> bool: ...
        def hand(self) -> bool: ...
        def enlist(self, workers_max: int) -> bool: ...
        def discharge(self) -> None: ...
        def work(self, patience_ns: int, prepare: Prepare, handle: Rare) -> None: ...
        def work_once(self, prepare: Prepare, handle: Rare) -> None: ...
        def wait_writes(self, patience_ns: int) -> bool: ...
        def wait_idle(self, patience_ns: int) -> bool: ...
        def stop(self) -> None: ...
        def flush(self) -> None: ...
        def send(self, parts: Sequence[Buffer]) -> None: ...

    def make_loop(*arguments: Any, **named: Any) -> NbdLoop:
        """Return an NbdLoop; only where HAS_LOOP."""
else:
    _kernel = select.load("datapath")
    ChunkState = _kernel.ChunkState
    DataPath = _kernel.DataPath
    LayerFd = _kernel.LayerFd
    Stripe = _kernel.Stripe
    make_loop = getattr(_kernel, "NbdLoop", None)

HAS_LOOP: Final = select.CHOICE == select.NATIVE
STRIPES: Final = 16
"""Locks per volume: more than the threads that serve one. Chunk c is guarded by c modulo this."""
END: Final = 0  # the client is gone
RARE: Final = 1  # the present request is the caller's
SPAWN: Final = 2  # a job waits, and no worker is idle
BAD: Final = 3  # what came is no request

__all__ = [
    "BAD",
    "END",
    "HAS_LOOP",
    "RARE",
    "SPAWN",
    "STRIPES",
    "ChunkState",
    "DataPath",
    "LayerFd",
    "Stripe",
    "make_loop",
]
