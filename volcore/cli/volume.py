"""`volcore volume`: the disks."""

from datetime import UTC
from typing import TYPE_CHECKING, Annotated

import typer

from volcore.cli import report
from volcore.cli.check import HealOption, WaitOption, conclude
from volcore.cli.operation import DETAILS as OPERATION_DETAILS
from volcore.cli.operation import wait_for
from volcore.cli.output import (
    Columns,
    Format,
    created,
    labels_text,
    say,
    short,
    show_list,
    show_one,
    stdout,
)
from volcore.cli.session import (
    ImageArgument,
    LabelOption,
    OutputOption,
    PoolOption,
    Session,
    SnapshotArgument,
    VolumeArgument,
    YesOption,
    confirm,
    connect,
    labels,
    size,
)
from volcore.cli.units import format_bytes, format_time, parse_size
from volcore.errors import InvalidArgumentError, Reason, VolcoreError

if TYPE_CHECKING:
    from volcore.v1.volume_pb2 import Volume, VolumeView

app = typer.Typer(name="volume", no_args_is_help=True, help="The disks.")

COLUMNS: Columns = [
    ("NAME", lambda volume: short(volume.name)),
    ("PROVISIONED>", lambda volume: format_bytes(volume.size_bytes)),
    ("SOURCE", lambda volume: _source(volume)),
    ("CREATED", created),
    ("LABELS", lambda volume: labels_text(volume.labels)),
]
FIGURES: Columns = [
    *COLUMNS[:2],
    ("ALLOCATED>", lambda volume: format_bytes(volume.allocated_bytes)),
    ("EXCLUSIVE>", lambda volume: _exclusive(volume)),
    *COLUMNS[2:],
]
DETAILS: Columns = [
    *FIGURES,
    ("DEPTH>", lambda volume: str(volume.depth)),
    ("UID", lambda volume: volume.uid),
    ("BACKEND NAME", lambda volume: volume.backend_name),
    ("ETAG", lambda volume: volume.etag),
]

DELETED: Columns = [
    *COLUMNS[:2],
    ("UID", lambda volume: volume.uid),
    ("DELETED", lambda volume: format_time(volume.delete_time.ToDatetime(UTC))),
    ("PURGED", lambda volume: format_time(volume.purge_time.ToDatetime(UTC))),
    COLUMNS[-1],
]
UidOption = Annotated[str, typer.Option("--uid", help="Only the volume with this uid.")]


@app.command("create")
def create(
    context: typer.Context,
    volume: VolumeArgument,
    size_text: Annotated[
        str | None,
        typer.Option("--size", metavar="SIZE", help="10GiB; default: the source's size."),
    ] = None,
    image: Annotated[str | None, typer.Option(help="Clone this image.")] = None,
    snapshot: Annotated[
        str | None, typer.Option(metavar="VOLUME/SNAPSHOT", help="Clone this snapshot.")
    ] = None,
    source: Annotated[
        str | None, typer.Option("--volume", help="Clone this volume as it is now.")
    ] = None,
    label: LabelOption = None,
    pool: PoolOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Create a volume: blank, or as a thin clone of an image, a snapshot or a volume."""
    given = [word for word in (image, snapshot, source) if word is not None]
    if len(given) > 1:
        raise InvalidArgumentError(
            "only one of --image, --snapshot and --volume can be the source; choose one",
            reason=Reason.BAD_FIELD,
            field="source",
        )
    if not given and size_text is None:
        raise InvalidArgumentError(
            "a blank volume needs a size; add --size 10GiB, or a source",
            reason=Reason.BAD_FIELD,
            field="size",
        )
    size_bytes = size(size_text)
    with connect(context, pool) as session:
        made = session.client.create_volume(
            session.volume(volume),
            image=session.image(image) if image is not None else "",
            snapshot=session.snapshot_path(snapshot) if snapshot is not None else "",
            volume=session.volume(source) if source is not None else "",
            size_bytes=size_bytes,
            labels=labels(label),
        )
        show_one(made, output, "Volume", COLUMNS)


@app.command("deploy")
def deploy(
    context: typer.Context,
    image: ImageArgument,
    volumes: Annotated[
        list[str] | None, typer.Argument(metavar="[VOLUME]...", help="Names of the new volumes.")
    ] = None,
    count: Annotated[
        int | None, typer.Option(help="How many, named PREFIX-0001 and so on.", min=1)
    ] = None,
    prefix: Annotated[
        str | None, typer.Option(help="Beginning of their names. Default: the image's name.")
    ] = None,
    size_text: Annotated[
        str | None, typer.Option("--size", metavar="SIZE", help="Default: the image's size.")
    ] = None,
    label: LabelOption = None,
    pool: PoolOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Deploy one image to many new volumes in one call: by name, or by --count."""
    if bool(volumes) == (count is not None):
        raise InvalidArgumentError(
            "name the volumes, or say how many with --count; one of the two",
            reason=Reason.BAD_FIELD,
            field="count",
        )
    size_bytes = size(size_text)
    with connect(context, pool) as session:
        results = session.client.deploy_volumes(
            session.image(image),
            volumes or [],
            name_prefix=(prefix or short(image)) if count is not None else "",
            count=count or 0,
            size_bytes=size_bytes,
            labels=labels(label),
        )
    failed = [result for result in results if isinstance(result, VolcoreError)]
    made = [result for result in results if not isinstance(result, VolcoreError)]
    show_list(made, output, "Volume", COLUMNS)
    for error in failed:
        say(f"volume {error.context.get('volume')}:")
        report.report(error)
    if failed:
        say(f"{len(made)} of {len(results)} volumes exist now; the same command may be repeated")
        raise typer.Exit(report.exit_code(failed[0]))


@app.command("list")
def list_volumes(
    context: typer.Context,
    source: Annotated[
        str | None, typer.Option(help="Only clones of this image (or VOLUME/SNAPSHOT).")
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option("--label", "-l", metavar="KEY[=VALUE]", help="Only with it; repeatable."),
    ] = None,
    wide: Annotated[bool, typer.Option("--wide", "-w", help="Also depth, ids and etag.")] = False,
    figures: Annotated[
        bool, typer.Option(help="Ask the storage for allocated and exclusive bytes: slow on rbd.")
    ] = True,
    deleted: Annotated[bool, typer.Option("--deleted", help="Only those in the trash.")] = False,
    pool: PoolOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """List volumes, of all pools unless one is named.

    Provisioned is what a volume may hold, allocated what its own writes occupy, exclusive what
    deleting it with its snapshots would free.
    """
    with connect(context, pool) as session:
        if deleted:
            found = session.client.list_volumes(
                session.parent(all_pools=source is None),
                filter=_filter(session, source, label or []),
                show_deleted=True,
            )
            in_trash = (volume for volume in found if volume.HasField("delete_time"))
            show_list(in_trash, output, "Volume", DELETED)
            return
        found = session.client.list_volumes(
            session.parent(all_pools=source is None),
            filter=_filter(session, source, label or []),
            view=_view(full=wide or figures),
        )
        columns = FIGURES if figures else COLUMNS
        show_list(found, output, "Volume", DETAILS if wide else columns)


@app.command("get")
def get(
    context: typer.Context,
    volume: VolumeArgument,
    pool: PoolOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Show one volume."""
    with connect(context, pool) as session:
        found = session.client.get_volume(session.volume(volume), view=_view(full=True))
        show_one(found, output, "Volume", DETAILS)


@app.command("label")
def label(
    context: typer.Context,
    volume: VolumeArgument,
    changes: Annotated[
        list[str], typer.Argument(metavar="KEY=VALUE|KEY-...", help="KEY- takes a label away.")
    ],
    pool: PoolOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Set and take away labels; those not named stay."""
    gone = [text[:-1] for text in changes if text.endswith("-") and "=" not in text]
    new = labels([text for text in changes if not (text.endswith("-") and "=" not in text)])
    with connect(context, pool) as session:
        name = session.volume(volume)
        now = session.client.get_volume(name)
        wanted = {key: value for key, value in now.labels.items() if key not in gone} | new
        # The etag makes sure that nobody else's change is lost.
        changed = session.client.update_volume(name, wanted, etag=now.etag)
        show_one(changed, output, "Volume", COLUMNS)


@app.command("resize")
def resize(
    context: typer.Context,
    volume: VolumeArgument,
    new_size: Annotated[str, typer.Argument(metavar="SIZE", help="With a unit: 10GiB.")],
    pool: PoolOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Grow a volume."""
    size_bytes = parse_size(new_size)
    with connect(context, pool) as session:
        changed = session.client.resize_volume(session.volume(volume), size_bytes)
        show_one(changed, output, "Volume", COLUMNS)


@app.command("revert")
def revert(
    context: typer.Context,
    volume: VolumeArgument,
    snapshot: SnapshotArgument,
    pool: PoolOption = None,
    yes: YesOption = False,
    output: OutputOption = Format.TABLE,
) -> None:
    """Make a volume equal to one of its snapshots again."""
    confirm(f"Revert volume {volume} to {snapshot}? What was written since is lost.", yes=yes)
    with connect(context, pool) as session:
        snapshot_name = session.snapshot(volume, snapshot)
        changed = session.client.revert_volume(session.volume(volume), snapshot_name)
        show_one(changed, output, "Volume", COLUMNS)


@app.command("flatten")
def flatten(
    context: typer.Context,
    volume: VolumeArgument,
    wait: WaitOption = True,
    pool: PoolOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Copy what a volume shares with its ancestors, so that it stands alone."""
    with connect(context, pool) as session:
        operation = session.client.flatten_volume(session.volume(volume))
        if wait:
            operation = wait_for(session, operation.name)
        show_one(operation, output, "Operation", OPERATION_DETAILS)


@app.command("verify")
def verify(
    context: typer.Context,
    volume: VolumeArgument,
    heal: HealOption = False,
    wait: WaitOption = True,
    pool: PoolOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Compare all that a volume shows with its checksums; exit code 1 when damage remains."""
    with connect(context, pool) as session:
        operation = session.client.verify_volume(session.volume(volume), heal=heal)
        conclude(session, operation, output, wait=wait)


@app.command("delete")
def delete(
    context: typer.Context,
    volumes: Annotated[list[str], typer.Argument(metavar="VOLUME...", help="Names.")],
    force: Annotated[bool, typer.Option("--force", help="Delete the snapshots too.")] = False,
    purge: Annotated[
        bool, typer.Option("--purge", help="For good, past the trash; with --uid also from there.")
    ] = False,
    uid: UidOption = "",
    pool: PoolOption = None,
    yes: YesOption = False,
) -> None:
    """Delete volumes; what was made from them keeps working.

    Where the pool has a trash, they stay there for a while: see `undelete`, and `list --deleted`.
    """
    if uid and len(volumes) > 1:
        raise InvalidArgumentError(
            "--uid is of one volume; name just that", reason=Reason.BAD_FIELD, field="uid"
        )
    what = f"volume {volumes[0]}" if len(volumes) == 1 else f"{len(volumes)} volumes"
    confirm(
        f"Delete {what}{' with all snapshots' if force else ''}{' for good' if purge else ''}?",
        yes=yes,
    )
    with connect(context, pool) as session:
        for volume in volumes:
            session.client.delete_volume(session.volume(volume), force=force, uid=uid, purge=purge)
            say(f"deleted volume {volume}")
            if purge and not uid:
                _say_left(session, volume)


@app.command("undelete")
def undelete(
    context: typer.Context,
    volume: VolumeArgument,
    uid: UidOption = "",
    new_name: Annotated[
        str, typer.Option("--as", metavar="NAME", help="Its new name. Default: the old one.")
    ] = "",
    pool: PoolOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Bring a volume back from the trash with its snapshots; the latest of its name."""
    with connect(context, pool) as session:
        back = session.client.undelete_volume(session.volume(volume), uid=uid, volume_id=new_name)
        show_one(back, output, "Volume", COLUMNS)


@app.command("tree")
def tree(context: typer.Context, pool: PoolOption = None) -> None:
    """Draw what came from what: images, volumes, snapshots."""
    from volcore.cli.tree import draw

    with connect(context, pool) as session:
        pools = [session.pool] if pool else [one.name for one in session.client.list_pools()]
        for name in pools:
            stdout().print(draw(session.client, name))


def _say_left(session: Session, volume: str) -> None:
    """Tell what of this name is in the trash: without a uid, no purge reaches that."""
    name = session.volume(volume)
    found = session.client.list_volumes(name.rpartition("/volumes/")[0], show_deleted=True)
    left = [one.uid for one in found if one.name == name and one.HasField("delete_time")]
    if left:
        say(f"in the trash are more of this name; purge them with --uid: {', '.join(left)}")


def _view(*, full: bool) -> "VolumeView":
    from volcore.v1 import volume_pb2

    return volume_pb2.VOLUME_VIEW_FULL if full else volume_pb2.VOLUME_VIEW_BASIC


def _filter(session: Session, source: str | None, wanted: list[str]) -> str:
    """Return the filter of the list call."""
    terms = []
    if source is not None:
        is_snapshot = "/" in source and not source.startswith("pools/")
        name = session.snapshot_path(source) if is_snapshot else session.image(source)
        terms.append(f'source = "{name}"')
    for text in wanted:
        key, equals, value = text.partition("=")
        quoted = value.replace("\\", "\\\\").replace('"', '\\"')
        terms.append(f'labels.{key} = "{quoted}"' if equals else f"labels.{key}:*")
    return " AND ".join(terms)


def _exclusive(volume: "Volume") -> str:
    return format_bytes(volume.exclusive_bytes) if volume.HasField("exclusive_bytes") else "-"


def _source(volume: "Volume") -> str:
    """Return `image debian`, `snapshot vm-1/before`, or `-` for a blank volume."""
    parts = volume.source.name.split("/")
    kinds = {4: parts[2:3], 6: ["snapshots"]}.get(len(parts))
    if not kinds:
        return "-"
    return f"{kinds[0].removesuffix('s')} {'/'.join(parts[3::2])}"
