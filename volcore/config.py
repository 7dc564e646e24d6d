"""Settings: a TOML file, the environment and flags; read once, checked as a whole.

Nothing else reads the environment. Every mistake is found in one go and listed with its place.
"""

import difflib
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from volcore import limits
from volcore.config_reference import BACKEND, BACKENDS, TABLES, Key, Listen, Refused
from volcore.credentials import Credentials, PskFile, TlsFiles, problems
from volcore.errors import InvalidArgumentError, Reason
from volcore.model.names import check_name

DEFAULT_PATH: Final = Path("/etc/volcore/volcore.toml")
DEFAULT_POOL: Final = "default"
_FLAGS: Final = "command line"
_Path = tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """[server]."""

    listen: tuple[Listen, ...]
    advertise_host: str = ""
    tls: TlsFiles | None = None
    call_threads: int = limits.CALL_THREADS_DEFAULT
    shutdown_grace_s: float = limits.SHUTDOWN_GRACE_S_DEFAULT
    image_directories: tuple[Path, ...] = ()
    spool_directory: Path | None = None

    @property
    def endpoint(self) -> str:
        """Where other servers reach this one, unix sockets last; empty if nowhere."""
        tcp = [one for one in self.listen if one.path is None and one.port]
        for one in tcp:
            if self.advertise_host or not one.wildcard:
                return str(replace(one, host=self.advertise_host or one.host))
        return next((str(one) for one in self.listen if one.path is not None), "")


@dataclass(frozen=True, slots=True, kw_only=True)
class LogConfig:
    """[log]."""

    level: str = "info"
    format: str = "json"


@dataclass(frozen=True, slots=True, kw_only=True)
class NbdConfig:
    """[nbd]; `tls_attached_only` serves a volume only to the hosts that it is attached to."""

    listen: tuple[Listen, ...]
    advertise_host: str = ""
    tls: Credentials | None = None
    tls_attached_only: bool = False
    tls_on_unix: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ScrubConfig:
    """[scrub]."""

    interval_h: float = limits.SCRUB_INTERVAL_H_DEFAULT
    max_rate_bytes: int = limits.SCRUB_RATE_BYTES_DEFAULT
    heal: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalPool:
    """A pool of the embedded backend."""

    name: str
    directory: Path
    merge_rate_bytes: int = 128 * limits.MIB
    trash_retention_s: float = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RbdPool:
    """A pool of a Ceph cluster."""

    name: str
    pool: str
    ceph_conf: Path | None = None
    user: str = "admin"
    secret_uuid: str = ""
    connect_timeout_s: float = 10.0
    direct_clone: bool = True
    warm_clones: int = 0
    trash_retention_s: float = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPool:
    """A pool for tests."""

    name: str
    trash_retention_s: float = 0


PoolConfig = LocalPool | RbdPool | MemoryPool
_POOL_CLASSES: Final[Mapping[str, type[PoolConfig]]] = {
    "local": LocalPool,
    "rbd": RbdPool,
    "memory": MemoryPool,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """All settings; `source` is the file they came from, None for the built-in ones."""

    server: ServerConfig
    log: LogConfig
    nbd: NbdConfig
    scrub: ScrubConfig
    pools: tuple[PoolConfig, ...]
    source: Path | None
    notify_socket: str = ""
    """Where the service manager wants to hear that the server is ready (NOTIFY_SOCKET)."""
    watchdog_s: float = 0
    """After so long without a sign of life it ends the server; 0: never (WATCHDOG_USEC)."""


@dataclass(slots=True)
class _Findings:
    """What is being checked, and the mistakes so far."""

    source: Path | None
    lines: Mapping[_Path, int]
    flags: frozenset[_Path]
    mistakes: list[tuple[str, int, str]] = field(default_factory=list)

    def add(self, path: _Path, problem: str) -> None:
        """Note a mistake at the key `path`; without a line of its own, at the nearest table."""
        if any(path[: len(flag)] == flag or flag[: len(path)] == path for flag in self.flags):
            self.mistakes.append((_FLAGS, 0, f"{'.'.join(path)} {problem}"))
            return
        near = path
        while near and near not in self.lines:
            near = near[:-1]
        place = str(self.source or _FLAGS)
        self.mistakes.append((place, self.lines.get(near, 0), f"{'.'.join(path)} {problem}"))

    def fail(self) -> None:
        """Raise if there are mistakes."""
        if self.mistakes:
            raise _config_error(self.mistakes)


def load_config(
    path: Path | None = None,
    *,
    overrides: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
) -> Config:
    """Return the settings of a server.

    Args:
        path: the file; None: VOLCORE_CONFIG, else the default file if it exists, else built-in.
        overrides: flags, by dotted key (`server.listen`), with values as the file has them.
        environ: the environment; None: the process's own.

    Raises:
        InvalidArgumentError: CONFIG_INVALID; the message lists every mistake, one a line.
    """
    environ = os.environ if environ is None else environ
    source = _find_source(path, environ)
    text = "" if source is None else _read(source)
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as err:
        raise _syntax_error(source, text, err) from err
    flags = {tuple(key.split(".")): value for key, value in (overrides or {}).items()}
    for keys, value in flags.items():
        _put(raw, keys, value)
    findings = _Findings(source, key_lines(text), frozenset(flags))
    for name in raw:
        if name not in TABLES and name != "pools":
            findings.add((name,), f"is not known{_suggest(name, [*TABLES, 'pools'])}")
    values = {
        name: _check_table(findings, (name,), raw.get(name, {}), keys)
        for name, keys in TABLES.items()
    }
    pools = _check_pools(findings, raw.get("pools", {}), environ)
    server, nbd = values["server"], values["nbd"]
    tls = _take_tls(findings, "server", server)
    _check_exposed(findings, "server", server, safe=tls is not None)
    if server.get("listen") == ():
        findings.add(("server", "listen"), "is empty; name at least one address")
    nbd_tls = _take_nbd_tls(findings, nbd)
    _check_exposed(findings, "nbd", nbd, safe=nbd_tls is not None)
    _check_advertised(findings, nbd)
    findings.fail()
    runtime = runtime_directory(environ)
    server.setdefault("listen", (Listen(path=runtime / "volcore.sock"),))
    nbd.setdefault("listen", (Listen(path=runtime / "nbd.sock"),))
    return Config(
        server=ServerConfig(tls=tls, **server),
        log=LogConfig(**values["log"]),
        nbd=NbdConfig(tls=nbd_tls, **nbd),
        scrub=ScrubConfig(**values["scrub"]),
        pools=pools,
        source=source,
        notify_socket=environ.get("NOTIFY_SOCKET", ""),
        watchdog_s=_watchdog_s(environ),
    )


def _watchdog_s(environ: Mapping[str, str]) -> float:
    """Return how patient the service manager is with this process, see sd_watchdog_enabled(3)."""
    if environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return 0
    microseconds = environ.get("WATCHDOG_USEC", "")
    return int(microseconds) / 1e6 if microseconds.isdecimal() else 0


def client_endpoint(environ: Mapping[str, str] | None = None) -> str:
    """Return where clients look for a server: VOLCORE_ENDPOINT, else the default socket."""
    environ = os.environ if environ is None else environ
    default = Listen(path=runtime_directory(environ) / "volcore.sock")
    return environ.get("VOLCORE_ENDPOINT") or str(default)


def runtime_directory(environ: Mapping[str, str]) -> Path:
    """Return where sockets are by default."""
    if os.geteuid() == 0:
        return Path("/run/volcore")
    if runtime := environ.get("XDG_RUNTIME_DIR"):
        return Path(runtime) / "volcore"
    return _data_directory(environ) / "run"


def _data_directory(environ: Mapping[str, str]) -> Path:
    if os.geteuid() == 0:
        return Path("/var/lib/volcore")
    if data := environ.get("XDG_DATA_HOME"):
        return Path(data) / "volcore"
    return Path(environ.get("HOME") or "/") / ".local/share/volcore"


def key_lines(text: str) -> dict[_Path, int]:
    """Return the line (from 1) of every key and table of a TOML text that is well formed.

    tomllib tells no places, so each statement is cut out by growing it until it parses.
    """
    lines = text.splitlines()
    found: dict[_Path, int] = {}
    prefix: _Path = ()
    at = 0
    while at < len(lines):
        end, parsed = _statement(lines, at)
        header = lines[at].lstrip().startswith("[")
        if header:
            prefix = ()
        _note(found, parsed, prefix, at + 1)
        if header:
            prefix = _chain(parsed)
        at = end
    return found


def _statement(lines: list[str], at: int) -> tuple[int, dict[str, Any]]:
    for end in range(at + 1, len(lines) + 1):
        try:
            return end, tomllib.loads("\n".join(lines[at:end]))
        except tomllib.TOMLDecodeError:
            continue
    return at + 1, {}


def _note(found: dict[_Path, int], parsed: Any, prefix: _Path, line: int) -> None:
    if isinstance(parsed, dict):
        for key, value in parsed.items():
            found.setdefault((*prefix, key), line)
            _note(found, value, (*prefix, key), line)


def _chain(parsed: Any) -> _Path:
    """Return the name of the table that a header opens."""
    if isinstance(parsed, list):
        return _chain(parsed[0])
    if not parsed:
        return ()
    key, value = next(iter(parsed.items()))
    return (key, *_chain(value))


def _find_source(path: Path | None, environ: Mapping[str, str]) -> Path | None:
    if path is not None:
        return path
    if named := environ.get("VOLCORE_CONFIG"):
        return Path(named)
    return DEFAULT_PATH if DEFAULT_PATH.exists() else None


def _read(source: Path) -> str:
    try:
        return source.read_text(encoding="utf-8")
    except OSError as err:
        raise _config_error([(str(source), 0, f"cannot be read: {err.strerror}")]) from err
    except UnicodeDecodeError as err:
        raise _config_error([(str(source), 0, "is not UTF-8 text")]) from err


def _put(raw: dict[str, Any], keys: _Path, value: Any) -> None:
    for key in keys[:-1]:
        inner = raw.setdefault(key, {})
        if not isinstance(inner, dict):
            return
        raw = inner
    raw[keys[-1]] = value


def _check_table(
    findings: _Findings, path: _Path, raw: Any, keys: Mapping[str, Key]
) -> dict[str, Any]:
    """Return the checked values of a table; what is wrong goes to `findings`."""
    if not isinstance(raw, dict):
        findings.add(path, "must be a table")
        return {}
    values: dict[str, Any] = {}
    for name, value in raw.items():
        if name not in keys:
            findings.add((*path, name), f"is not known{_suggest(name, keys)}")
            continue
        try:
            values[name] = keys[name].check(value)
        except Refused as err:
            findings.add((*path, name), str(err))
    return values


def _check_pools(
    findings: _Findings, raw: Any, environ: Mapping[str, str]
) -> tuple[PoolConfig, ...]:
    if not isinstance(raw, dict):
        findings.add(("pools",), "must hold one table for each pool")
        return ()
    if not raw:
        directory = _data_directory(environ) / DEFAULT_POOL
        return (LocalPool(name=DEFAULT_POOL, directory=directory),)
    pools = [_check_pool(findings, name, table) for name, table in raw.items()]
    directories: dict[Path, str] = {}
    for pool in pools:
        if isinstance(pool, LocalPool):
            first = directories.setdefault(Path(os.path.normpath(pool.directory)), pool.name)
            if first != pool.name:
                findings.add(("pools", pool.name, "directory"), f"is that of pool {first} already")
    return tuple(pool for pool in pools if pool is not None)


def _check_pool(findings: _Findings, name: str, raw: Any) -> PoolConfig | None:
    path = ("pools", name)
    try:
        check_name(name, field="pool")
    except InvalidArgumentError as err:
        findings.add(path, f"is no good name: {err.message}")
    if not isinstance(raw, dict):
        findings.add(path, "must be a table")
        return None
    backend = raw.get("backend")
    if backend is None:
        findings.add(path, f"needs the key backend: {', '.join(BACKENDS)}")
        return None
    if not isinstance(backend, str) or backend not in BACKENDS:
        _check_table(findings, path, {"backend": backend}, {"backend": BACKEND})
        return None
    keys = BACKENDS[backend]
    values = _check_table(findings, path, raw, {"backend": BACKEND, **keys})
    del values["backend"]
    missing = [one for one, key in keys.items() if key.default == "required" and one not in raw]
    for one in missing:
        findings.add(path, f"needs the key {one}")
    if missing or any(key.default == "required" and one not in values for one, key in keys.items()):
        return None
    return _POOL_CLASSES[backend](name=name, **values)


def _take_tls(findings: _Findings, table: str, values: dict[str, Any]) -> TlsFiles | None:
    """Take the keys of a server's certificate out of `values`, checked."""
    names = ("tls_certificate", "tls_key", "tls_client_ca")
    given = {name: values.pop(name) for name in names if name in values}
    if not given:
        return None
    if "tls_certificate" not in given or "tls_key" not in given:
        findings.add((table, next(iter(given))), "needs tls_certificate and tls_key, both of them")
        return None
    tls = TlsFiles(**{name.removeprefix("tls_"): path for name, path in given.items()})
    _check_files(findings, table, tls)
    return tls


def _take_nbd_tls(findings: _Findings, nbd: dict[str, Any]) -> Credentials | None:
    """Take the keys of TLS out of [nbd], checked; adds `tls_attached_only`."""
    psk = nbd.pop("tls_psk_file", None)
    certified = any(name in nbd for name in ("tls_certificate", "tls_key", "tls_client_ca"))
    tls = _take_tls(findings, "nbd", nbd)
    asked = nbd.pop("tls_clients", None)
    if psk is not None:
        if certified or asked is not None:
            findings.add(("nbd", "tls_psk_file"), "goes without certificates and tls_clients")
        keys = PskFile(psk)
        _check_files(findings, "nbd", keys)
        return keys
    if tls is None:
        for name, on in (("tls_clients", asked), ("tls_on_unix", nbd.get("tls_on_unix"))):
            if on and not certified:
                findings.add(("nbd", name), "needs tls_certificate and tls_key")
        return None
    if asked == "any" and tls.client_ca is not None:
        findings.add(("nbd", "tls_clients"), "serves any client, so tls_client_ca has no use")
    if asked != "any" and tls.client_ca is None:
        findings.add(
            ("nbd", "tls_certificate"),
            'needs tls_client_ca as well, or tls_clients = "any" to serve whoever can connect',
        )
    nbd["tls_attached_only"] = asked == "attached"
    return tls


def _check_files(findings: _Findings, table: str, credentials: Credentials) -> None:
    for field_name, problem in problems(credentials):
        findings.add((table, f"tls_{field_name}"), problem)


def _check_exposed(
    findings: _Findings, table: str, values: Mapping[str, Any], *, safe: bool
) -> None:
    """Refuse to talk in the clear to other machines."""
    for one in values.get("listen", ()):
        if not safe and not one.loopback:
            findings.add(
                (table, "listen"),
                f"has {one}, which other machines can reach: set tls_certificate and tls_key, or "
                "use a loopback address",
            )


def _check_advertised(findings: _Findings, nbd: Mapping[str, Any]) -> None:
    """Refuse to tell clients an address that leads nowhere."""
    first = next(iter(nbd.get("listen", ())), None)
    if first is not None and first.wildcard and "advertise_host" not in nbd:
        findings.add(
            ("nbd", "listen"),
            f"begins with {first}, which no client can connect to: set advertise_host",
        )


def _suggest(name: str, known: Any) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else f"; known are {', '.join(known)}"


def _syntax_error(
    source: Path | None, text: str, err: tomllib.TOMLDecodeError
) -> InvalidArgumentError:
    problem, _, place = str(err).partition(" (at ")
    found = re.match(r"line (\d+)", place)
    line = int(found[1]) if found else max(1, len(text.splitlines()))
    return _config_error([(str(source), line, f"is not valid TOML: {problem}")])


def _config_error(mistakes: list[tuple[str, int, str]]) -> InvalidArgumentError:
    count = len(mistakes)
    head = f"the configuration has {count} mistake{'s' if count > 1 else ''}; correct and repeat:"
    rows = [
        f"{place}:{line}: {problem}" if line else f"{place}: {problem}"
        for place, line, problem in sorted(mistakes)
    ]
    return InvalidArgumentError("\n  ".join([head, *rows]), reason=Reason.CONFIG_INVALID)
