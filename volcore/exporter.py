"""The NBD server as the engine sees it: volumes are published, shut, withdrawn."""

import threading
from collections.abc import Callable, Collection
from functools import partial
from typing import Final

from volcore.backends.contract import BlockDevice
from volcore.engine.views import NbdConnection
from volcore.errors import ConflictError
from volcore.nbd import ExportTable, NbdServer, TcpAddress, UnixAddress, uri

WITHDRAW_S: Final = 10.0
"""How long detaching waits for requests of NBD clients."""
HAND_OVER_S: Final = 10.0
"""How long a hand-over waits for the source's writes to end; the guest stands still meanwhile."""


class NbdExporter:
    """Makes volumes reachable over NBD for `volcore.engine`; any thread."""

    def __init__(
        self, exports: ExportTable, server: NbdServer, *, advertise_host: str = ""
    ) -> None:
        self._exports = exports
        self._server = server
        self._advertise_host = advertise_host
        self._lock = threading.Lock()
        self._read_only: dict[str, bool] = {}

    def publish(
        self,
        name: str,
        opener: Callable[[bool], BlockDevice],
        *,
        read_only: bool,
        hosts: Callable[[], Collection[str]],
        writable: bool,
    ) -> None:
        """Offer `name`; a repeat changes nothing, another mode replaces the export."""
        with self._lock:
            if self._read_only.get(name, read_only) is not read_only:
                self._withdraw(name)
            if name not in self._read_only:
                offer = partial(
                    self._exports.publish,
                    name,
                    opener,
                    read_only=read_only,
                    clients=hosts,
                    writable=writable,
                )
                try:
                    offer()
                except ConflictError:  # an earlier withdrawal is not over yet
                    self._withdraw(name)
                    offer()
                self._read_only[name] = read_only

    def connection(self, name: str) -> NbdConnection:
        """Return how clients reach an export: at the first address, by the advertised name."""
        address = self._server.addresses[0]
        tls = self._server.needs_tls(address)
        if isinstance(address, UnixAddress):
            return NbdConnection(
                uri=uri(address, name, tls=tls),
                export_name=name,
                socket_path=str(address.path),
                tls_hostname=(self._advertise_host or "localhost") if tls else "",
            )
        address = TcpAddress(self._advertise_host or address.host, address.port)
        return NbdConnection(
            uri=uri(address, name, tls=tls),
            export_name=name,
            host=address.host,
            port=address.port,
            tls_hostname=address.host if tls else "",
        )

    def set_writable(self, name: str, writable: bool) -> None:
        """See `Exporter.set_writable`."""
        self._exports.set_writable(name, writable=writable, timeout_s=HAND_OVER_S)

    def expel(self, name: str) -> None:
        """See `Exporter.expel`."""
        self._exports.expel(name)

    def withdraw(self, name: str) -> None:
        """Stop offering `name`; what its clients wrote is durable at return.

        Raises:
            DeadlineError: requests are still in the device; repeat the call.
        """
        with self._lock:
            self._withdraw(name)

    def _withdraw(self, name: str) -> None:
        self._read_only.pop(name, None)
        self._exports.withdraw(name, timeout_s=WITHDRAW_S)
