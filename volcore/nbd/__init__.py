"""NBD server: block devices for QEMU, libnbd tools and the kernel's nbd client.

Layers, top down: `server` (addresses, connections) · `connection` (one client) · `handshake` and
`transmission` (the two phases) · `commands` (what a request does to a device) · `protocol` (bytes).
`tls` stands below both. `exports` decides which devices there are and how long they stay open.
"""

from volcore.nbd.exports import ExportTable
from volcore.nbd.private import private_export
from volcore.nbd.server import NbdServer, TcpAddress, UnixAddress, uri
from volcore.nbd.tls import TlsPolicy

__all__ = [
    "ExportTable",
    "NbdServer",
    "TcpAddress",
    "TlsPolicy",
    "UnixAddress",
    "private_export",
    "uri",
]
