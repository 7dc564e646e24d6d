"""A throw-away server for one device, for a tool such as qemu-img that runs beside us."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from volcore.backends.contract import BlockDevice
from volcore.limits import SHUTDOWN_GRACE_S_DEFAULT
from volcore.nbd.exports import ExportTable
from volcore.nbd.server import NbdServer, UnixAddress


@contextmanager
def private_export(
    device: BlockDevice,
    *,
    read_only: bool = False,
    timeout_s: float = SHUTDOWN_GRACE_S_DEFAULT,
) -> Iterator[Path]:
    """Serve `device` as the default export (the empty name) on a private unix socket.

    The socket lies in a fresh directory of mode 0700 and is gone afterwards. The device stays the
    caller's and stays open; at exit no request uses it any more.

    Durability: what was written is flushed at a normal exit.

    Yields:
        The path of the socket; `nbd+unix:///?socket=PATH` is its URI.

    Raises:
        DeadlineError: at exit, requests are still in the device after `timeout_s`.
        VolcoreError: at exit, what the final flush raised.
    """
    exports = ExportTable()
    exports.publish("", lambda _: device, read_only=read_only or device.read_only, owned=False)
    with tempfile.TemporaryDirectory(prefix="volcore-nbd-") as directory:
        path = Path(directory) / "s"
        server = NbdServer(UnixAddress(path), exports=exports)
        server.start()
        try:
            yield path
        finally:
            server.stop(timeout_s)
    if not device.read_only and not read_only:
        device.flush()
