"""What `verify` and `scrub` share: wait, show what was found, and say by the exit code."""

from typing import TYPE_CHECKING, Annotated, Final

import typer

from volcore.cli.operation import DETAILS, wait_for
from volcore.cli.output import Columns, Format, enum_word, say, short, show_one, show_table
from volcore.cli.units import format_bytes

if TYPE_CHECKING:
    from volcore.cli.session import Session
    from volcore.v1.check_pb2 import Check, DamagedBlocks
    from volcore.v1.operation_pb2 import Operation

DAMAGED: Final = 1
"""Exit code when damage remains."""
NAMES_SHOWN: Final = 3

HealOption = Annotated[
    bool,
    typer.Option(
        "--heal", help="Rewrite bad blocks whose right content is found elsewhere and proven."
    ),
]
WaitOption = Annotated[bool, typer.Option(help="Show the progress until it is done.")]

DAMAGE: Columns = [
    ("KIND", lambda damage: _kind(damage)),
    ("OFFSET>", lambda damage: str(damage.offset_bytes)),
    ("LENGTH>", lambda damage: str(damage.length_bytes)),
    ("LAYER>", lambda damage: str(damage.layer or "-")),
    ("HEALED", lambda damage: "yes" if damage.healed else "no"),
    ("SEEN BY", lambda damage: _seen_by(damage)),
    ("DETAIL", lambda damage: damage.detail or "-"),
]


def conclude(session: "Session", operation: "Operation", output: Format, *, wait: bool) -> None:
    """Wait for a check, unless told not to, and print it.

    Raises:
        typer.Exit: with DAMAGED, it has found what is not healed.
        VolcoreError: it failed, or was cancelled.
    """
    if wait:
        operation = wait_for(session, operation.name)
    check = operation.check
    if output is not Format.TABLE or not wait:
        show_one(operation, output, "Operation", DETAILS)
    elif check.damage:
        show_table(DAMAGE, check.damage)
    if wait:
        say(_sentence(check))
        if check.bad_block_count > check.healed_block_count:
            raise typer.Exit(DAMAGED)


def _sentence(check: "Check") -> str:
    bad, healed = check.bad_block_count, check.healed_block_count
    text = f"{format_bytes(check.checked_bytes)} compared: "
    if not bad:
        return text + "no damage"
    text += f"{bad} bad block{'s' if bad > 1 else ''}, {healed} healed"
    hidden = check.damage_count - len(check.damage)
    if hidden:
        text += f"; {hidden} more places are not listed"
    if bad > healed and not check.heal:
        text += "; --heal repairs what can be proven"
    return text


def _kind(damage: "DamagedBlocks") -> str:
    from volcore.v1.check_pb2 import DamageKind

    return enum_word(DamageKind.DESCRIPTOR, damage.kind).lower()


def _seen_by(damage: "DamagedBlocks") -> str:
    """Return `volume vm-1, snapshot vm-1/s, image debian and 3 more`."""
    words = []
    for name in damage.names[:NAMES_SHOWN]:
        parts = name.split("/")
        noun = "snapshot" if len(parts) > 4 else parts[2].removesuffix("s")
        words.append(f"{noun} {parts[3]}" + (f"/{short(name)}" if len(parts) > 4 else ""))
    hidden = damage.name_count - len(words)
    text = ", ".join(words) or "-"
    return f"{text} and {hidden} more" if hidden > 0 and words else text
