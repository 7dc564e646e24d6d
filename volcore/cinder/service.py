"""One volcore service as cinder-volume needs it: calls that never block an eventlet hub.

grpc waits in C, which would stop every green thread of the process. Where eventlet has patched the
`thread` module calls therefore run in eventlet's pool of native threads; else they run as they are.

*Concurrency*: any thread. A patched lock must not be shared by native threads, and the client and
its channel have locks; so under eventlet each native thread has a client of its own. Their channels
share one connection per endpoint.
"""

import functools
import importlib
import sys
import threading
from collections.abc import Callable
from typing import Any, Final, TypeVar

from volcore.client import Client, RetryPolicy

T = TypeVar("T")
RESTART_TRIES: Final = RetryPolicy(tries_max=30)
"""A server may be away for almost a minute before a request fails."""


class Service:
    """Calls to the endpoints that `make` makes clients for.

    Args:
        make: returns a new client; called once per process, or per native thread of eventlet.
    """

    def __init__(self, make: Callable[[], Client]) -> None:
        self._make = make
        self._patched = _eventlet_module("patcher") if _is_patched() else None
        self._local: Any = None
        self._shared: Client | None = None
        self._lock = threading.Lock()
        if self._patched is not None:
            self._local = self._patched.original("threading").local()

    def call(self, work: Callable[[Client], T]) -> T:
        """Return what `work` returns for a client; it may run in another thread.

        Raises:
            VolcoreError: from the call.
        """
        if self._patched is None:
            return work(self._client())
        return self.run(functools.partial(self._work_here, work))

    def run(self, work: Callable[[], T]) -> T:
        """Return what `work` returns, which may block; it may run in another thread."""
        if self._patched is None:
            return work()
        result: T = _eventlet_module("tpool").execute(work)
        return result

    def _client(self) -> Client:
        with self._lock:
            if self._shared is None:
                self._shared = self._make()
            return self._shared

    def _work_here(self, work: Callable[[Client], T]) -> T:
        client: Client | None = getattr(self._local, "client", None)
        if client is None:
            client = self._local.client = self._make()
        return work(client)


def _is_patched() -> bool:
    """Say whether this process runs green threads; eventlet is not imported for that."""
    if "eventlet" not in sys.modules:
        return False
    return bool(_eventlet_module("patcher").is_monkey_patched("thread"))


def _eventlet_module(name: str) -> Any:
    return importlib.import_module(f"eventlet.{name}")
