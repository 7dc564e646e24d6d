"""TLS of our servers: their files, what is wrong with them, and the context made from them."""

import binascii
import os
import ssl
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from volcore.errors import InvalidArgumentError, Reason

PSK_CIPHERS: Final = "kECDHEPSK:!eNULL:!CAMELLIA:!SHA1"
"""With forward secrecy only; Python offers pre-shared keys up to TLS 1.2."""
PSK_BYTES_MIN: Final = 16
_GROUP_OR_OTHERS: Final = 0o077
_GROUP_WRITE_OR_OTHERS: Final = 0o027

Problem = tuple[str, str]
"""A field of the files, and words that complete "FIELD ..."."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """PEM files; with `client_ca` every client must show a certificate of that authority."""

    certificate: Path
    key: Path
    client_ca: Path | None = None


@dataclass(frozen=True, slots=True)
class PskFile:
    """Pre-shared keys, one `NAME:HEX` a line, as `psktool` of GnuTLS writes them."""

    psk_file: Path


Credentials = TlsFiles | PskFile


def psk_is_supported() -> bool:
    """Return whether this Python has pre-shared keys (from 3.13 on, if its OpenSSL has them)."""
    return hasattr(ssl.SSLContext, "set_psk_server_callback") and getattr(ssl, "HAS_PSK", False)


def problems(credentials: Credentials) -> list[Problem]:
    """Return everything that keeps the files from being used now; they are read."""
    return _build(credentials)[1]


def server_context(credentials: Credentials) -> ssl.SSLContext:
    """Read the files and return the context of a server: TLS 1.2 or newer, no renegotiation.

    Nothing is resumed: each connection is authenticated anew, by the files of that moment.

    Raises:
        InvalidArgumentError: CONFIG_INVALID, the files cannot be used.
    """
    context, found = _build(credentials)
    if found:
        raise InvalidArgumentError(
            "; ".join(f"{field} {problem}" for field, problem in found),
            reason=Reason.CONFIG_INVALID,
        )
    return context


def key_problem(path: Path) -> str | None:
    """Return why a file with a secret must not be used, or None.

    It belongs to the server's user and is closed to all others, or it belongs to root and at most
    a group may read it. *Source*: PostgreSQL, `check_ssl_key_file_permissions`.
    """
    try:
        facts = path.stat()
    except OSError as err:
        return f"names {path}, which cannot be read: {err.strerror}"
    if facts.st_uid not in (0, os.geteuid()):
        return f"names {path}, which belongs to another user"
    forbidden = _GROUP_WRITE_OR_OTHERS if facts.st_uid == 0 else _GROUP_OR_OTHERS
    if stat.S_IMODE(facts.st_mode) & forbidden:
        return f"names {path}, which others may read or change; chmod 0600 it"
    return None


def _build(credentials: Credentials) -> tuple[ssl.SSLContext, list[Problem]]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_TICKET
    context.num_tickets = 0
    if isinstance(credentials, PskFile):
        return context, _add_keys(context, credentials.psk_file)
    found: list[Problem] = []
    if problem := key_problem(credentials.key):
        found.append(("key", problem))
    try:
        context.load_cert_chain(credentials.certificate, credentials.key, password=lambda: b"")
    except (ssl.SSLError, OSError, ValueError):
        words = f"does not fit to the certificate in {credentials.certificate}"
        found.append(("key", words))
    if credentials.client_ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        try:
            context.load_verify_locations(credentials.client_ca)
        except (ssl.SSLError, OSError):
            found.append(("client_ca", f"names {credentials.client_ca}, which is no PEM file"))
    return context, found


def _add_keys(context: Any, path: Path) -> list[Problem]:
    if not psk_is_supported():
        words = "needs Python 3.13 or newer with pre-shared keys in its OpenSSL; use certificates"
        return [("psk_file", words)]
    if problem := key_problem(path):
        return [("psk_file", problem)]
    try:
        keys = read_keys(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as err:
        return [("psk_file", f"names {path}, which holds no keys: {err}")]
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(PSK_CIPHERS)
    context.set_psk_server_callback(_finder(keys))
    return []


def read_keys(text: str) -> dict[str, bytes]:
    """Return the keys by name; blank lines and lines that begin with `#` count for nothing.

    Raises:
        ValueError: a line is not `NAME:HEX`, a key is shorter than 128 bits, or there is none.
    """
    keys: dict[str, bytes] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, _, digits = line.strip().rpartition(":")
        try:
            key = binascii.unhexlify(digits)
        except ValueError:
            key = b""
        if not name or len(key) < PSK_BYTES_MIN:
            raise ValueError(f"line {number} is not NAME:HEX with {PSK_BYTES_MIN} bytes or more")
        keys[name] = key
    if not keys:
        raise ValueError("it is empty")
    return keys


def _finder(keys: dict[str, bytes]) -> Callable[[str | None], bytes]:
    """Return what OpenSSL asks for the key of a name; no key ends the handshake."""
    return lambda name: keys.get(name or "", b"")
