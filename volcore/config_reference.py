"""Every key of the configuration: its type, default, limits and meaning.

`volcore.config` checks files with these tables; `docs/configuration.md` is rendered from them. A
check takes the value found and returns the value meant, or raises `Refused` with what is wrong.
"""

import ipaddress
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from volcore import limits

Check = Callable[[Any], Any]
UNIX_PREFIX: Final = "unix://"
UNIX_PATH_BYTES_MAX: Final = 107
"""`sun_path` of Linux has 108 bytes, one of them the final zero."""
_HOST: Final = re.compile(r"[0-9A-Za-z:]([0-9A-Za-z.:-]{0,252}[0-9A-Za-z:])?")


class Refused(Exception):  # noqa: N818 - what is wrong with a value, never leaves `config`
    """A value is not allowed; the text says why, and completes "KEY ..."."""


@dataclass(frozen=True, slots=True)
class Listen:
    """Where to listen: a unix socket, or a TCP address."""

    path: Path | None = None
    host: str = ""
    port: int = 0

    def __str__(self) -> str:
        if self.path is not None:
            return f"{UNIX_PREFIX}{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def wildcard(self) -> bool:
        """Whether it stands for all addresses of this machine, so that nobody can connect to it."""
        return self.path is None and ipaddress.ip_address(self.host).is_unspecified

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach it."""
        return self.path is not None or ipaddress.ip_address(self.host).is_loopback


@dataclass(frozen=True, slots=True)
class Key:
    """One key of a table."""

    type: str
    check: Check
    default: str
    """As shown in the reference; what is used without the key is in `volcore.config`."""
    meaning: str


def text(*, choices: Sequence[str] = (), empty: bool = True) -> Check:
    """Return a check for strings."""

    def check(value: Any) -> str:
        if not isinstance(value, str):
            raise Refused(f"must be a string, not {_shown(value)}")
        if choices and value not in choices:
            raise Refused(f"must be one of {', '.join(choices)}, not {_shown(value)}")
        if not value and not empty:
            raise Refused("must not be empty")
        return value

    return check


def number(low: float, high: float, *, whole: bool) -> Check:
    """Return a check for numbers from `low` to `high`."""
    kind = "a whole number" if whole else "a number"

    def check(value: Any) -> Any:
        if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
            raise Refused(f"must be {kind}, not {_shown(value)}")
        if not low <= value <= high:
            raise Refused(f"must be between {low:g} and {high:g}, not {_shown(value)}")
        return value

    return check


def switch(value: Any) -> bool:
    """Return whether something is on; a check."""
    if not isinstance(value, bool):
        raise Refused(f"must be true or false, not {_shown(value)}")
    return value


def path(*, readable: bool = False) -> Check:
    """Return a check for absolute paths."""

    def check(value: Any) -> Path:
        found = Path(text(empty=False)(value))
        if not found.is_absolute():
            raise Refused(f"must be an absolute path, not {_shown(value)}")
        if readable and not (found.is_file() and os.access(found, os.R_OK)):
            raise Refused(f"names {found}, which is no readable file")
        return found

    return check


def several(check: Check) -> Check:
    """Return a check for lists, each item checked by `check`."""

    def check_all(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise Refused(f"must be a list, not {_shown(value)}")
        found = tuple(check(one) for one in value)
        if len(set(found)) < len(found):
            raise Refused("lists something twice")
        return found

    return check_all


def listen(value: Any) -> Listen:
    """Return where to listen; a check."""
    wanted = text(empty=False)(value)
    if wanted.startswith("unix:"):
        found = Path(wanted.removeprefix(UNIX_PREFIX).removeprefix("unix:"))
        if not found.is_absolute() or len(os.fsencode(found)) > UNIX_PATH_BYTES_MAX:
            raise Refused(
                f"has {_shown(value)}, where unix:///PATH with at most {UNIX_PATH_BYTES_MAX} bytes "
                "of path is meant"
            )
        return Listen(path=found)
    host, colon, port = wanted.rpartition(":")
    host = "127.0.0.1" if host == "localhost" else host.removeprefix("[").removesuffix("]")
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        address = None
    if address is None or not colon or not port.isascii() or not port.isdigit():
        raise Refused(f"has {_shown(value)}, where unix:///PATH or ADDRESS:PORT is meant")
    if int(port) > 65535:
        raise Refused(f"has port {port}; the highest is 65535")
    return Listen(host=str(address), port=int(port))


def yes_or_no(value: Any) -> bool:
    """Return a boolean; a check."""
    if not isinstance(value, bool):
        raise Refused(f"must be true or false, not {_shown(value)}")
    return value


def host(value: Any) -> str:
    """Return the name or address of a host; a check."""
    found: str = text(empty=False)(value)
    if not _HOST.fullmatch(found):
        raise Refused(f"must be the name or address of a host, not {_shown(value)}")
    return found


def _shown(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."


SERVER: Final[Mapping[str, Key]] = {
    "listen": Key(
        "list of strings",
        several(listen),
        "`unix:///run/volcore/volcore.sock`",
        "Where clients reach the API: `unix:///PATH` or `ADDRESS:PORT` (port 0: any). A unix "
        "socket has mode 0600, and beside it is a second one, `PATH.files`, for files that are "
        "handed over instead of uploaded. An address other than loopback needs TLS.",
    ),
    "advertise_host": Key(
        "string",
        host,
        "the address in `listen`",
        "Name or address of this host under which other servers of the same pools reach the first "
        "TCP address of `listen`; with TLS, a name in the server's certificate. Needed where that "
        "is `0.0.0.0` or `[::]`. See [availability](availability.md#any-server-answers).",
    ),
    "tls_certificate": Key(
        "path", path(readable=True), "none", "PEM file with the server's certificate chain."
    ),
    "tls_key": Key(
        "path",
        path(readable=True),
        "none",
        "PEM file with its private key, which others may not read.",
    ),
    "tls_client_ca": Key(
        "path",
        path(readable=True),
        "none",
        "PEM file with the authority of client certificates; when set, every TCP client must show "
        "one.",
    ),
    "call_threads": Key(
        "integer",
        number(1, 256, whole=True),
        str(limits.CALL_THREADS_DEFAULT),
        f"Calls that are worked on at a time, 1 to 256; up to {limits.CALLS_QUEUED_MAX} more wait.",
    ),
    "shutdown_grace_s": Key(
        "number",
        number(0, 3600, whole=False),
        str(limits.SHUTDOWN_GRACE_S_DEFAULT),
        "Seconds that calls in progress get to end when the server stops, 0 to 3600.",
    ),
    "image_directories": Key(
        "list of paths",
        several(path()),
        "none",
        "Directories on the server whose files may be imported by path. None: only uploads.",
    ),
    "spool_directory": Key(
        "path",
        path(),
        "the system's directory for temporary files",
        "Where uploads of formats that need random access wait for their conversion.",
    ),
}
LOG: Final[Mapping[str, Key]] = {
    "level": Key(
        "string",
        text(choices=("debug", "info", "warning", "error")),
        "`info`",
        "Least severe level that is written: `debug`, `info`, `warning` or `error`.",
    ),
    "format": Key(
        "string",
        text(choices=("json", "console")),
        "`json`",
        "`json` (one object per line) or `console` (for people).",
    ),
}
NBD: Final[Mapping[str, Key]] = {
    "listen": Key(
        "list of strings",
        several(listen),
        "`unix:///run/volcore/nbd.sock`",
        "Where hosts reach attached volumes of pools without a protocol of their own: "
        "`unix:///PATH` (its directory must have mode 0700) or `ADDRESS:PORT`. The first one is "
        "what attachments tell. An address other than loopback needs TLS. An empty list: no NBD.",
    ),
    "advertise_host": Key(
        "string",
        host,
        "the address in `listen`",
        "Name or address of this host that attachments tell in place of the address in `listen`; "
        "with TLS, a name in the server's certificate. Needed where `listen` begins with `0.0.0.0` "
        "or `[::]`.",
    ),
    "tls_certificate": Key(
        "path",
        path(readable=True),
        "none",
        "PEM file with the server's certificate chain. With it every TCP connection must use TLS. "
        "The files are read again for each new connection.",
    ),
    "tls_key": Key(
        "path",
        path(readable=True),
        "none",
        "PEM file with its private key, which others may not read.",
    ),
    "tls_client_ca": Key(
        "path", path(readable=True), "none", "PEM file with the authority of client certificates."
    ),
    "tls_clients": Key(
        "string",
        text(choices=("certificate", "attached", "any")),
        "`certificate`",
        "Who is served over TLS: `certificate`, who has a certificate of `tls_client_ca`; "
        "`attached`, of those only the hosts that a volume is attached to, each by the name in its "
        "certificate (common name or DNS name); `any`, everybody who can connect.",
    ),
    "tls_psk_file": Key(
        "path",
        path(readable=True),
        "none",
        "Instead of certificates: file with pre-shared keys, `NAME:HEX` a line, which others may "
        "not read. Needs Python 3.13.",
    ),
    "tls_on_unix": Key(
        "boolean", yes_or_no, "`false`", "Whether connections to unix sockets must use TLS too."
    ),
}
SCRUB: Final[Mapping[str, Key]] = {
    "interval_h": Key(
        "number",
        number(0, 24 * 366, whole=False),
        f"{limits.SCRUB_INTERVAL_H_DEFAULT}",
        "Hours from the end of one scrub of a pool to the start of the next; 0: never.",
    ),
    "max_rate_bytes": Key(
        "integer",
        number(0, 1 << 40, whole=True),
        f"{limits.SCRUB_RATE_BYTES_DEFAULT}",
        "Most bytes that a scrub reads from a pool in a second; 0: as fast as it goes.",
    ),
    "heal": Key(
        "boolean",
        switch,
        "`true`",
        "Rewrite bad blocks whose right content is found elsewhere and proven by its checksum. "
        "`false`: only report.",
    ),
}
_EVERY_POOL: Final[Mapping[str, Key]] = {
    "trash_retention_s": Key(
        "number",
        number(0, limits.TRASH_RETENTION_S_MAX, whole=False),
        "0",
        "Seconds for which deleted volumes can be undeleted, up to a year; their space is not free "
        "meanwhile. 0: there is no trash. A change holds for what is deleted from then on.",
    ),
}
LOCAL_POOL: Final[Mapping[str, Key]] = {
    "directory": Key("path", path(), "required", "Directory of the pool; made if it is missing."),
    "merge_rate_bytes": Key(
        "integer",
        number(limits.MIB, limits.TIB, whole=True),
        "134217728",
        "Most bytes a second that are written to merge layers which deletes left behind, 1 MiB to "
        "1 TiB.",
    ),
    **_EVERY_POOL,
}
RBD_POOL: Final[Mapping[str, Key]] = {
    "pool": Key("string", text(empty=False), "required", "Name of the Ceph pool."),
    "ceph_conf": Key("path", path(readable=True), "Ceph's own", "Ceph configuration file."),
    "user": Key("string", text(empty=False), "`admin`", "Ceph user, without `client.`."),
    "secret_uuid": Key(
        "string", text(), "none", "libvirt secret that holds the user's key, told to clients."
    ),
    "connect_timeout_s": Key(
        "number",
        number(0.1, 300, whole=False),
        "10",
        "Seconds to wait for the cluster at start, 0.1 to 300.",
    ),
    "direct_clone": Key(
        "boolean",
        switch,
        "`true`",
        "`true`: make clones and blank volumes in two round trips, and snapshots of volumes that "
        "nobody has open in four, once a comparison with librbd has shown that it makes the same "
        "on this cluster; `volcore pool get` tells. `false`: always through librbd.",
    ),
    "warm_clones": Key(
        "integer",
        number(0, limits.WARM_CLONES_MAX, whole=True),
        "0",
        "Most clones that are kept ready, of all images together, so that a deployment needs one "
        f"write; 0 to {limits.WARM_CLONES_MAX}. How many an image gets follows from what is "
        "deployed. 0: none, and those that exist are deleted.",
    ),
    **_EVERY_POOL,
}
MEMORY_POOL: Final[Mapping[str, Key]] = _EVERY_POOL
BACKENDS: Final[Mapping[str, Mapping[str, Key]]] = {
    "local": LOCAL_POOL,
    "rbd": RBD_POOL,
    "memory": MEMORY_POOL,
}
BACKEND: Final = Key(
    "string", text(choices=tuple(BACKENDS)), "required", "`local`, `rbd` or `memory`."
)
TABLES: Final[Mapping[str, Mapping[str, Key]]] = {
    "server": SERVER,
    "log": LOG,
    "nbd": NBD,
    "scrub": SCRUB,
}

_HEAD: Final = """# Configuration

<!-- Generated from volcore/config_reference.py by scripts/docs; do not edit. -->

`volcore serve` reads a TOML file: the one that `--config` names, else the one that the environment
variable `VOLCORE_CONFIG` names, else `/etc/volcore/volcore.toml` if it exists. Flags win over the
file. The whole is checked before anything starts, and every mistake is listed with its line.

Without any file there is one pool, `default`, of the embedded backend. For root it lies in
`/var/lib/volcore/default`, and the socket is `/run/volcore/volcore.sock`. For other users it lies
in `$XDG_DATA_HOME/volcore/default`, and the socket is `$XDG_RUNTIME_DIR/volcore/volcore.sock`. The
same pool is there when a file names no pool.

```toml
[server]
listen = ["unix:///run/volcore/volcore.sock", "127.0.0.1:7070"]

[pools.fast]
backend = "local"
directory = "/srv/volcore/fast"

[pools.ceph]
backend = "rbd"
pool = "volumes"
user = "volcore"
```
"""


def render() -> str:
    """Return docs/configuration.md."""
    parts = [_HEAD]
    for name, keys in TABLES.items():
        parts.append(_table(f"[{name}]", keys))
    parts.append(
        "\n## [pools.NAME]\n\nOne table for each pool; NAME is 1 to "
        f"{limits.NAME_BYTES_MAX} letters, digits, `.`, `_` and `-`, starting with a letter or "
        "digit.\n" + _rows({"backend": BACKEND})
    )
    about = {
        "local": "The embedded backend: a directory on any filesystem, used by one server.",
        "rbd": "A pool of a Ceph cluster; needs the packages python3-rados and python3-rbd.",
        "memory": "For tests: gone when the server ends. No keys of its own.",
    }
    for backend, keys in BACKENDS.items():
        parts.append(f'\n### backend = "{backend}"\n\n{about[backend]}\n')
        if keys:
            parts.append(_rows(keys))
    return "".join(parts)


def _table(title: str, keys: Mapping[str, Key]) -> str:
    return f"\n## {title}\n{_rows(keys)}"


def _rows(keys: Mapping[str, Key]) -> str:
    rows = [
        f"| `{name}` | {key.type} | {key.default} | {key.meaning} |\n" for name, key in keys.items()
    ]
    return "\n| key | type | default | meaning |\n| --- | --- | --- | --- |\n" + "".join(rows)
