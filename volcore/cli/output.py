"""What commands print to stdout: tables for people; JSON and bare names for programs.

The JSON has `apiVersion` and `kind` first, then the fields of the message under their names in
`proto/volcore/v1`: numbers are numbers, enum values lose their prefix (`READ_WRITE`), times are
RFC 3339 in UTC. Fields are added within an `apiVersion`, never renamed or removed.
"""

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from volcore.cli.units import format_time

if TYPE_CHECKING:
    from google.protobuf.message import Message
    from rich.console import Console

API_VERSION: Final = "volcore/v1"
PIPE_WIDTH: Final = 1000
"""Columns when stdout is no terminal: nothing is cut."""

Columns = Sequence[tuple[str, Callable[[Any], str]]]
"""Heads and how to get a cell from a message. Heads that end in `>` are aligned to the right."""


class Format(StrEnum):
    """Forms of output."""

    TABLE = "table"
    JSON = "json"
    NAME = "name"


def show_list(items: Iterable["Message"], output: Format, kind: str, columns: Columns) -> None:
    """Print messages as a table, as one JSON document, or their resource names a line each."""
    if output is Format.JSON:
        plain = [to_plain(item) for item in items]
        show_json({"apiVersion": API_VERSION, "kind": f"{kind}List", "items": plain})
    elif output is Format.NAME:
        for item in items:
            print_line(_name(item))
    else:
        show_table(columns, items)


def show_one(item: "Message", output: Format, kind: str, columns: Columns) -> None:
    """Print one message as lines of head and value, as JSON, or only its resource name."""
    if output is Format.JSON:
        show_json({"apiVersion": API_VERSION, "kind": kind, **to_plain(item)})
    elif output is Format.NAME:
        print_line(_name(item))
    else:
        show_facts([(head.rstrip(">"), cell(item)) for head, cell in columns])


def show_table(columns: Columns, items: Iterable[Any]) -> None:
    """Print a table without lines, so that it can be cut by columns."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for head, _ in columns:
        table.add_column(
            head.rstrip(">"),
            justify="right" if head.endswith(">") else "left",
            overflow="fold",
            no_wrap=True,
        )
    for item in items:
        table.add_row(*(_escaped(cell(item)) for _, cell in columns))
    console = stdout()
    with console.capture() as captured:
        console.print(table)
    for line in captured.get().splitlines():
        print_line(line.rstrip())


def show_facts(facts: Sequence[tuple[str, str]]) -> None:
    """Print lines of name and value."""
    width = max(len(name) for name, _ in facts)
    for name, value in facts:
        print_line(f"{name.lower():<{width}}  {value}")


def show_json(document: dict[str, Any]) -> None:
    """Print one JSON document."""
    print_line(json.dumps(document, indent=2, ensure_ascii=False))


def print_line(text: str) -> None:
    """Print data as it is: no markup, no wrapping."""
    sys.stdout.write(f"{text}\n")


def say(text: str) -> None:
    """Tell the person at the terminal something that is not data."""
    sys.stderr.write(f"{text}\n")


def stdout() -> "Console":
    """Return a console on stdout; colours only on a terminal."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else PIPE_WIDTH
    return Console(file=sys.stdout, highlight=False, width=width, soft_wrap=False)


def to_plain(message: "Message") -> dict[str, Any]:
    """Return a message as JSON values, every plain field present."""
    plain: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        if field.has_presence and not message.HasField(field.name):
            continue
        value = getattr(message, field.name)
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            plain[field.name] = dict(sorted(value.items()))
        elif field.is_repeated:
            plain[field.name] = [_value(field, item) for item in value]
        else:
            plain[field.name] = _value(field, value)
    return plain


def _value(field: Any, value: Any) -> Any:
    if field.message_type is not None:
        if field.message_type.full_name == "google.protobuf.Timestamp":
            return value.ToJsonString()
        if field.message_type.full_name == "google.rpc.Status":
            return _status(value)
        return to_plain(value)
    if field.enum_type is not None:
        return enum_word(field.enum_type, value)
    return value


def _status(status: Any) -> dict[str, Any]:
    from volcore.wire.status import from_status

    error = from_status(status)
    return {"status": error.status, "reason": str(error.reason), "message": error.message}


def enum_word(enum: Any, number: int) -> str:
    """Return `READ_WRITE` for ACCESS_MODE_READ_WRITE."""
    names = {value.number: value.name for value in enum.values}
    prefix = names[0].removesuffix("UNSPECIFIED")
    return str(names.get(number, number)).removeprefix(prefix)


def short(name: str) -> str:
    """Return the last part of a resource name."""
    return name.rpartition("/")[2]


def created(item: Any) -> str:
    """Return when a resource was made, in local time."""
    return format_time(item.create_time.ToDatetime(UTC))


def labels_text(labels: Any) -> str:
    """Return `a=1,b=2`, or `-`."""
    return ",".join(f"{key}={value}" for key, value in sorted(labels.items())) or "-"


def _name(item: Any) -> str:
    return str(item.name)


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)
