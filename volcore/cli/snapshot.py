"""`volcore snapshot`: frozen points of volumes."""

from enum import StrEnum
from typing import Annotated

import typer

from volcore.cli import group_snapshot
from volcore.cli.check import HealOption, WaitOption, conclude
from volcore.cli.output import (
    Columns,
    Format,
    created,
    labels_text,
    say,
    short,
    show_list,
    show_one,
    show_table,
)
from volcore.cli.session import (
    LabelOption,
    OutputOption,
    PoolOption,
    SnapshotArgument,
    VolumeArgument,
    YesOption,
    confirm,
    connect,
    labels,
)
from volcore.cli.units import format_bytes

app = typer.Typer(name="snapshot", no_args_is_help=True, help="Frozen points of volumes.")
app.add_typer(group_snapshot.app)

COLUMNS: Columns = [
    ("VOLUME", lambda snapshot: snapshot.name.split("/")[3]),
    ("NAME", lambda snapshot: short(snapshot.name)),
    ("SIZE>", lambda snapshot: format_bytes(snapshot.size_bytes)),
    ("CREATED", created),
    ("LABELS", lambda snapshot: labels_text(snapshot.labels)),
]


EXTENT_COLUMNS: Columns = [
    ("OFFSET>", lambda extent: str(extent.offset_bytes)),
    ("LENGTH>", lambda extent: str(extent.length_bytes)),
    ("KIND", lambda extent: "data" if extent.kind == 1 else "zero"),
]


class DiffFormat(StrEnum):
    """Forms of a diff: extents have no names."""

    TABLE = "table"
    JSON = "json"


DiffFormatOption = Annotated[
    DiffFormat, typer.Option("--output", "-o", help="`json` for programs.")
]


@app.command("create")
def create(
    context: typer.Context,
    volume: VolumeArgument,
    snapshot: SnapshotArgument,
    label: LabelOption = None,
    pool: PoolOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Freeze the content of a volume, also while it is attached."""
    with connect(context, pool) as session:
        name = session.snapshot(volume, snapshot)
        made = session.client.create_snapshot(name, labels=labels(label))
        show_one(made, output, "Snapshot", COLUMNS)


@app.command("list")
def list_snapshots(
    context: typer.Context,
    volume: Annotated[
        str | None, typer.Argument(metavar="[VOLUME]", help="Default: all volumes of the pool.")
    ] = None,
    pool: PoolOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """List the snapshots of a volume, or of all volumes of a pool."""
    with connect(context, pool) as session:
        found = session.client.list_snapshots(session.volume(volume or "-"))
        show_list(found, output, "Snapshot", COLUMNS)


@app.command("get")
def get(
    context: typer.Context,
    volume: VolumeArgument,
    snapshot: SnapshotArgument,
    pool: PoolOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Show one snapshot."""
    with connect(context, pool) as session:
        found = session.client.get_snapshot(session.snapshot(volume, snapshot))
        show_one(found, output, "Snapshot", COLUMNS)


@app.command("rename")
def rename(
    context: typer.Context,
    volume: VolumeArgument,
    snapshot: SnapshotArgument,
    new_name: Annotated[str, typer.Argument(metavar="NEW_NAME", help="Its new name.")],
    pool: PoolOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Give a snapshot another name; what it is stays."""
    with connect(context, pool) as session:
        renamed = session.client.rename_snapshot(session.snapshot(volume, snapshot), new_name)
        show_one(renamed, output, "Snapshot", COLUMNS)


@app.command("diff")
def diff(
    context: typer.Context,
    volume: VolumeArgument,
    snapshot: SnapshotArgument,
    base: Annotated[
        str | None,
        typer.Option(metavar="SNAPSHOT", help="Earlier snapshot of the volume. Default: none."),
    ] = None,
    pool: PoolOption = None,
    output: DiffFormatOption = DiffFormat.TABLE,
) -> None:
    """List what changed since an earlier snapshot, or all that a snapshot holds."""
    with connect(context, pool) as session:
        found = session.client.diff_snapshot(
            session.snapshot(volume, snapshot),
            base_snapshot=session.snapshot(volume, base) if base else "",
        )
    if output is DiffFormat.JSON:
        show_list(found, Format.JSON, "SnapshotExtent", EXTENT_COLUMNS)
        return
    show_table(EXTENT_COLUMNS, found)
    data = sum(one.length_bytes for one in found if one.kind == 1)
    zero = sum(one.length_bytes for one in found) - data
    say(f"{len(found)} extents: {format_bytes(data)} data, {format_bytes(zero)} zeroes")


@app.command("verify")
def verify(
    context: typer.Context,
    volume: VolumeArgument,
    snapshot: SnapshotArgument,
    heal: HealOption = False,
    wait: WaitOption = True,
    pool: PoolOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Compare all that a snapshot shows with its checksums; exit code 1 when damage remains."""
    with connect(context, pool) as session:
        name = session.snapshot(volume, snapshot)
        operation = session.client.verify_snapshot(name, heal=heal)
        conclude(session, operation, output, wait=wait)


@app.command("delete")
def delete(
    context: typer.Context,
    volume: VolumeArgument,
    snapshot: SnapshotArgument,
    pool: PoolOption = None,
    yes: YesOption = False,
) -> None:
    """Delete a snapshot; volumes and images made from it keep working."""
    confirm(f"Delete snapshot {snapshot} of volume {volume}?", yes=yes)
    with connect(context, pool) as session:
        session.client.delete_snapshot(session.snapshot(volume, snapshot))
    say(f"deleted snapshot {snapshot} of volume {volume}")
