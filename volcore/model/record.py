"""The form of a record of the catalog: canonical JSON, and what a newer server may add to it.

Each record encodes to canonical JSON (sorted keys, no spaces) with a format number `v`; equal bytes
mean equal records, which is what the catalog compares.

Servers of two versions may have the same catalog, one after the other. A newer one may add fields,
which others may ignore while they read; what they must not misunderstand has a new format number,
or a new word of an enum. What this server does not wholly know it never rewrites.

Invariants (docs/invariants.md):
1. INV-NEW-1 (must): a record of a newer server is left alone, byte for byte.
"""

import json
from collections.abc import Callable
from dataclasses import fields, replace
from enum import StrEnum
from functools import partial
from typing import Any, ClassVar, Final, Self, get_origin, get_type_hints

from volcore.errors import IntegrityError, PreconditionError, Reason

FORMAT: Final = 1
_RAW: Final = "_raw"
_ADDED: Final = "_added"
LATER: Final = {"later": True}
"""Marks a field added after format 1 was in use: absent from the JSON form while it has its
default, so that older records keep their bytes, which the catalog compares."""


class Kind(StrEnum):
    """Kinds of catalog records; a record's key is unique within its kind."""

    VOLUME = "volume"
    """key: volume name."""
    SNAPSHOT = "snapshot"
    """key: volume name / snapshot name."""
    GROUP_SNAPSHOT = "group_snapshot"
    """key: group snapshot name."""
    IMAGE = "image"
    """key: image name."""
    ATTACHMENT = "attachment"
    """key: volume name / host."""
    OPERATION = "operation"
    """key: operation id."""
    INTENT = "intent"
    """key: intent id."""
    TRASH = "trash"
    """key: volume name / volume id."""
    HEALTH = "health"
    """key: `pool`; there is one."""
    WARM_CLONE = "warm_clone"
    """key: image name / id."""
    FENCED_HOST = "fenced_host"
    """key: host."""


class Record:
    """Base of all records: canonical encoding and strict decoding."""

    KIND: ClassVar[Kind]

    @property
    def key(self) -> str:
        """Key of this record within its kind."""
        raise AssertionError("each record names its key")

    @property
    def added(self) -> tuple[str, ...]:
        """Fields that a newer server has added; such a record can be read, and not changed."""
        found: tuple[str, ...] = self.__dict__.get(_ADDED, ())
        return found

    def check_known(self) -> None:
        """Refuse to change what this server does not wholly know.

        Raises:
            PreconditionError: RECORD_NEWER.
        """
        if self.added:
            raise _newer(self.KIND, self.key, f"it has {', '.join(self.added)}")

    def encode(self) -> bytes:
        """Return the canonical JSON form; made once, since records never change.

        Of a record that was read, the bytes that were read: what a newer server added included.
        """
        made: bytes | None = self.__dict__.get(_RAW)
        if made is None:
            made = _ENCODER.encode({"v": FORMAT, **_fields(self)}).encode()
            self.__dict__[_RAW] = made
        return made

    @classmethod
    def decode(cls, raw: bytes, key: str = "") -> Self:
        """Return the record that `raw` holds; `key` is told where it cannot be read.

        Raises:
            PreconditionError: RECORD_NEWER, it is of a format, or has a word, of a newer server.
            IntegrityError: BAD_RECORD, when it is not such a record.
        """
        added: list[str] = []
        try:
            body = _DECODER.decode(raw.decode())
            found = body.pop("v")
            if isinstance(found, int) and found > FORMAT:
                raise _newer(cls.KIND, key, f"it has format {found}, this server knows {FORMAT}")
            assert found == FORMAT, f"format {found!r}"
            made = cls(**_readers(cls).read(body, added))
        except _UnknownWordError as err:
            raise _newer(cls.KIND, key, f"it says {err}") from err
        except (AssertionError, ValueError, KeyError, TypeError, AttributeError) as err:
            raise IntegrityError(
                f"a {cls.KIND} record of the catalog cannot be read: {err}; restore the catalog",
                reason=Reason.BAD_RECORD,
            ) from err
        made.__dict__[_RAW] = raw
        if added:
            made.__dict__[_ADDED] = tuple(sorted(added))
        return made

    def but(self, **changes: Any) -> Self:
        """Return a copy with `changes` and the next revision, where the record has one.

        Raises:
            PreconditionError: RECORD_NEWER.
        """
        self.check_known()
        if hasattr(self, "revision"):
            changes.setdefault("revision", self.revision + 1)
        return replace(self, **changes)  # type: ignore[type-var]


def _newer(kind: Kind, key: str, why: str) -> PreconditionError:
    return PreconditionError(
        f"{kind} {key!r} is of a newer server ({why[:200]}) and was left alone; use that server, "
        "or upgrade this one",
        reason=Reason.RECORD_NEWER,
        kind=kind,
        key=key,
    )


class _UnknownWordError(Exception):
    """An enum has no such word; the message has it."""


def _fields(record: Any) -> dict[str, Any]:
    """Return the fields of a record or of a value in it, without copying what is in them."""
    kind = type(record)
    if kind not in _FIELDS:
        _FIELDS[kind] = [
            (one.name, one.default if one.metadata else _ALWAYS) for one in fields(kind)
        ]
    return {
        name: value
        for name, default in _FIELDS[kind]
        if (value := getattr(record, name)) is not default and value != default
    }


_ALWAYS: Final = object()
"""Stands for the default of a field that is written whatever its value."""
_FIELDS: Final[dict[Any, list[tuple[str, Any]]]] = {}
_ENCODER: Final = json.JSONEncoder(sort_keys=True, separators=(",", ":"), default=_fields)
"""Made once: a record is written and compared in its JSON form several times in each change."""

_DECODER: Final = json.JSONDecoder()


class _Readers:
    """How the fields of a record, or of a value in it, are rebuilt from their JSON form."""

    def __init__(self, kind: Any) -> None:
        hints = get_type_hints(kind)
        hints.pop("KIND", None)
        self._names = frozenset(hints)
        pairs = ((name, _reader(hint)) for name, hint in hints.items())
        self._special = [(name, reader) for name, reader in pairs if reader is not None]

    def read(self, body: dict[str, Any], added: list[str]) -> dict[str, Any]:
        """Rebuild what is no plain value, in place; move to `added` what nobody knows here."""
        if not body.keys() <= self._names:
            for name in body.keys() - self._names:
                del body[name]
                added.append(name)
        for name, reader in self._special:
            if name in body:
                body[name] = reader(body[name], added)
        return body


_Reader = Callable[[Any, list[str]], Any]
_READERS: Final[dict[Any, _Readers]] = {}


def _readers(kind: Any) -> _Readers:
    """Return the readers of a record's class, which are worked out once."""
    found = _READERS.get(kind)
    if found is None:
        found = _READERS[kind] = _Readers(kind)
    return found


def _reader(hint: Any) -> _Reader | None:
    """Return what rebuilds a value of this type: enums, tuples, nested values; None: it stays."""
    if get_origin(hint) is tuple:
        part = _reader(hint.__args__[0])
        if part is None:
            return lambda value, _: tuple(value)
        return lambda value, added: tuple(part(one, added) for one in value)
    for candidate in getattr(hint, "__args__", ()) or (hint,):
        if isinstance(candidate, type) and issubclass(candidate, StrEnum):
            return partial(_word, {member.value: member for member in candidate})
        if isinstance(candidate, type) and hasattr(candidate, "__dataclass_fields__"):
            return partial(_nested, candidate)
    return None


def _word(words: dict[str, StrEnum], value: Any, _: list[str]) -> StrEnum:
    found = words.get(value)
    if found is None:
        raise _UnknownWordError(value)
    return found


def _nested(kind: type, value: Any, added: list[str]) -> Any:
    if value is None:
        return None
    return kind(**_readers(kind).read(value, added))
