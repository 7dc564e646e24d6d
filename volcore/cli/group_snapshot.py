"""`volcore snapshot group`: several volumes, frozen at one instant."""

from typing import TYPE_CHECKING, Annotated

import typer

from volcore.cli.output import (
    Columns,
    Format,
    created,
    labels_text,
    say,
    short,
    show_list,
    show_one,
)
from volcore.cli.session import (
    LabelOption,
    OutputOption,
    PoolOption,
    YesOption,
    confirm,
    connect,
    labels,
)

if TYPE_CHECKING:
    from volcore.v1.group_snapshot_pb2 import GroupSnapshot

app = typer.Typer(
    name="group", no_args_is_help=True, help="Several volumes, frozen at one instant."
)

GroupArgument = Annotated[str, typer.Argument(metavar="GROUP", help="Name of the group snapshot.")]
COLUMNS: Columns = [
    ("NAME", lambda group: short(group.name)),
    ("VOLUMES", lambda group: _volumes(group)),
    ("CREATED", created),
    ("LABELS", lambda group: labels_text(group.labels)),
]


@app.command("create")
def create(
    context: typer.Context,
    group: GroupArgument,
    volumes: Annotated[list[str], typer.Argument(metavar="VOLUME...", help="What to freeze.")],
    label: LabelOption = None,
    pool: PoolOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Freeze several volumes at one instant, all or none; each gets a snapshot of that name."""
    with connect(context, pool) as session:
        made = session.client.create_group_snapshot(
            session.group_snapshot(group),
            [session.volume(volume) for volume in volumes],
            labels=labels(label),
        )
        show_one(made, output, "GroupSnapshot", COLUMNS)


@app.command("list")
def list_group_snapshots(
    context: typer.Context, pool: PoolOption = None, output: OutputOption = Format.TABLE
) -> None:
    """List the group snapshots of a pool, or of all pools."""
    with connect(context, pool) as session:
        found = session.client.list_group_snapshots(session.parent())
        show_list(found, output, "GroupSnapshot", COLUMNS)


@app.command("get")
def get(
    context: typer.Context,
    group: GroupArgument,
    pool: PoolOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Show one group snapshot."""
    with connect(context, pool) as session:
        found = session.client.get_group_snapshot(session.group_snapshot(group))
        show_one(found, output, "GroupSnapshot", COLUMNS)


@app.command("delete")
def delete(
    context: typer.Context,
    group: GroupArgument,
    pool: PoolOption = None,
    yes: YesOption = False,
) -> None:
    """Delete a group snapshot and its snapshots; what was made from them keeps working."""
    confirm(f"Delete group snapshot {group} and all its snapshots?", yes=yes)
    with connect(context, pool) as session:
        session.client.delete_group_snapshot(session.group_snapshot(group))
    say(f"deleted group snapshot {group}")


def _volumes(group: "GroupSnapshot") -> str:
    return ",".join(snapshot.name.split("/")[3] for snapshot in group.snapshots)
