r"""Filters of list calls: terms joined by ` AND `.

- `source = "pools/p/images/i"`: also a snapshot or a volume
- `labels.KEY = "VALUE"`: a quote or backslash in VALUE is written \" or \\
- `labels.KEY:*`: has the label, whatever its value
"""

import re
from collections.abc import Callable
from typing import Final

from volcore import limits
from volcore.errors import InvalidArgumentError, Reason
from volcore.model.records import Volume
from volcore.wire.convert import source_name

Term = Callable[[str, Volume], bool]
"""Says whether a volume of a pool is wanted."""
_STRING: Final = r'"((?:[^"\\]|\\.)*)"'
_SOURCE: Final = re.compile(rf"source\s*=\s*{_STRING}", re.DOTALL)
_LABEL: Final = re.compile(
    rf"labels\.([A-Za-z0-9](?:[A-Za-z0-9._/-]*[A-Za-z0-9])?)\s*(?::\s*(\*)|=\s*{_STRING})",
    re.DOTALL,
)
_AND: Final = re.compile(r"\s+AND\s+")
_ESCAPE: Final = re.compile(r"\\(.)", re.DOTALL)


def parse_filter(text: str) -> Term | None:
    """Return what `text` asks for, or None when it is empty: everything.

    Raises:
        InvalidArgumentError: BAD_FILTER, with the place of the first mistake.
    """
    if len(text.encode()) > limits.FILTER_BYTES_MAX:
        raise _bad(f"is longer than {limits.FILTER_BYTES_MAX} bytes; send a shorter one")
    text = text.strip()
    if not text:
        return None
    terms: list[Term] = []
    at = 0
    while True:
        term, at = _term(text, at)
        terms.append(term)
        if at == len(text):
            return lambda pool, volume: all(term(pool, volume) for term in terms)
        joint = _AND.match(text, at)
        if joint is None:
            raise _bad(f"has no ' AND ' before {_shown(text, at)}; join terms with ' AND '")
        at = joint.end()


def _term(text: str, at: int) -> tuple[Term, int]:
    if found := _SOURCE.match(text, at):
        return _source_is(_unescape(found[1])), found.end()
    if found := _LABEL.match(text, at):
        if found[2]:
            return _has_label(found[1]), found.end()
        return _label_is(found[1], _unescape(found[3])), found.end()
    raise _bad(
        f'is wrong at {_shown(text, at)}; use source = "...", labels.KEY = "..." or labels.KEY:*'
    )


def _source_is(name: str) -> Term:
    return lambda pool, volume: (
        volume.source is not None and source_name(pool, volume.source) == name
    )


def _has_label(key: str) -> Term:
    return lambda _pool, volume: key in volume.labels


def _label_is(key: str, value: str) -> Term:
    return lambda _pool, volume: volume.labels.get(key) == value


def _unescape(text: str) -> str:
    return _ESCAPE.sub(r"\1", text)


def _shown(text: str, at: int) -> str:
    return ascii(text[at : at + 40]) if at < len(text) else "its end"


def _bad(problem: str) -> InvalidArgumentError:
    return InvalidArgumentError(f"the filter {problem}", reason=Reason.BAD_FILTER, field="filter")
