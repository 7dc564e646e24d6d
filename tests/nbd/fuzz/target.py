"""The process under attack: an NBD server over a local pool; ends when its stdin does.

Exports: `disk` for clients that check what they read, `scratch` for the others, `locked` read-only.
The plain socket is DIRECTORY/nbd.sock, the one with TLS DIRECTORY/tls.sock.
"""

import shutil
import sys
from functools import partial
from pathlib import Path

from volcore.backends.local import LocalBackend, LocalStore
from volcore.limits import MIB
from volcore.nbd import ExportTable, NbdServer, TlsPolicy, UnixAddress
from volcore.observability.logs import set_up_logs
from volcore.testing.certificates import Authority

SIZE_BYTES = 64 * MIB
OPTION_TIMEOUT_S = 1.0
STOP_S = 20.0
EXPORTS = ("disk", "scratch", "locked")


def main(directory: Path) -> None:
    set_up_logs(level="error", format="json")
    backend = LocalBackend(LocalStore.open(directory / "pool"))
    backend.open()
    exports = ExportTable()
    for name in EXPORTS:
        backend.create(name, SIZE_BYTES)
        opener = partial(open_device, backend, name)
        exports.publish(name, opener, read_only=name == "locked")
    servers = [serve(exports, directory / "nbd.sock", None)]
    if shutil.which("openssl"):
        authority = Authority.make(directory / "ca")
        authority.client("fuzzer")
        policy = TlsPolicy(credentials=authority.server(), on_unix=True)
        servers.append(serve(exports, directory / "tls.sock", policy))
    print("ready", flush=True)
    sys.stdin.read()
    for server in servers:
        server.stop(STOP_S)
    for name in EXPORTS:
        exports.withdraw(name, timeout_s=STOP_S)
    backend.close()


def open_device(backend: LocalBackend, name: str, read_only: bool):
    return backend.open_device(name, read_only=read_only)


def serve(exports: ExportTable, path: Path, tls: TlsPolicy | None) -> NbdServer:
    server = NbdServer(
        UnixAddress(path), exports=exports, tls=tls, option_timeout_s=OPTION_TIMEOUT_S
    )
    server.start()
    return server


if __name__ == "__main__":
    main(Path(sys.argv[1]))
