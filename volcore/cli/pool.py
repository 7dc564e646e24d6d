"""`volcore pool`: where volumes live and how full it is."""

from datetime import UTC
from typing import TYPE_CHECKING, Annotated

import typer

from volcore.cli.check import HealOption, WaitOption, conclude
from volcore.cli.output import Columns, Format, short, show_list, show_one
from volcore.cli.session import OutputOption, connect, size
from volcore.cli.units import format_bytes, format_duration, format_time

if TYPE_CHECKING:
    from volcore.v1.pool_pb2 import Pool

app = typer.Typer(name="pool", no_args_is_help=True, help="Places for volumes.")

COLUMNS: Columns = [
    ("NAME", lambda pool: short(pool.name)),
    ("BACKEND", lambda pool: pool.backend),
    ("VOLUMES>", lambda pool: str(pool.volume_count)),
    ("IMAGES>", lambda pool: str(pool.image_count)),
    ("PROVISIONED>", lambda pool: format_bytes(pool.provisioned_bytes)),
    ("ALLOCATED>", lambda pool: format_bytes(pool.allocated_bytes)),
    ("AVAILABLE>", lambda pool: format_bytes(pool.available_bytes)),
    ("CAPACITY>", lambda pool: format_bytes(pool.capacity_bytes)),
]
DETAILS: Columns = [
    *COLUMNS,
    ("CONNECTION", lambda pool: pool.capabilities.connection),
    ("CAN", lambda pool: _abilities(pool)),
    ("DEPTH AT MOST", lambda pool: str(pool.capabilities.depth_max)),
    ("SNAPSHOTS AT MOST", lambda pool: f"{pool.capabilities.snapshots_max} per volume"),
    ("DAMAGED BLOCKS", lambda pool: _damaged(pool)),
    ("LAST SCRUB", lambda pool: _last_scrub(pool)),
    ("TRASH", lambda pool: _trash(pool)),
    ("SHORT CLONES", lambda pool: _short_path(pool)),
    ("WARM CLONES", lambda pool: _warm_clones(pool)),
]


@app.command("list")
def list_pools(context: typer.Context, output: OutputOption = Format.TABLE) -> None:
    """List all pools with their figures."""
    with connect(context) as session:
        show_list(session.client.list_pools(), output, "Pool", COLUMNS)


@app.command("get")
def get(
    context: typer.Context,
    pool: Annotated[
        str | None, typer.Argument(metavar="[POOL]", help="Default: the only one.")
    ] = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Show one pool: figures and abilities."""
    with connect(context, pool) as session:
        show_one(session.client.get_pool(session.pool), output, "Pool", DETAILS)


@app.command("scrub")
def scrub(
    context: typer.Context,
    pool: Annotated[
        str | None, typer.Argument(metavar="[POOL]", help="Default: the only one.")
    ] = None,
    heal: HealOption = False,
    rate: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Read at most so much in a second: 100MiB.")
    ] = None,
    wait: WaitOption = True,
    output: OutputOption = Format.TABLE,
) -> None:
    """Compare everything in a pool with its checksums; exit code 1 when damage remains."""
    with connect(context, pool) as session:
        operation = session.client.scrub_pool(session.pool, heal=heal, max_rate_bytes=size(rate))
        conclude(session, operation, output, wait=wait)


def _damaged(pool: "Pool") -> str:
    return str(pool.health.damaged_block_count) if pool.HasField("health") else "-"


def _last_scrub(pool: "Pool") -> str:
    """Return when the last scrub ended, how long it took and how much it compared."""
    health = pool.health
    if not health.HasField("last_scrub_time"):
        return "-"
    when = format_time(health.last_scrub_time.ToDatetime(UTC))
    spent = format_duration(health.last_scrub_duration.ToNanoseconds() / 1e9)
    return f"{when}, {format_bytes(health.last_scrub_checked_bytes)} in {spent}"


def _trash(pool: "Pool") -> str:
    """Return how many volumes are in the trash, and how long they stay there."""
    count = pool.deleted_volume_count
    if not pool.HasField("trash_retention"):
        return f"off, {count} volumes left" if count else "off"
    return f"{count} volumes, for {format_duration(pool.trash_retention.ToNanoseconds() / 1e9)}"


def _short_path(pool: "Pool") -> str:
    """Return whether clones take the short path, and why, or why not."""
    if not pool.HasField("short_path"):
        return "-"
    found = pool.short_path
    state = type(found).State.Name(found.state).removeprefix("STATE_").lower()
    return f"{state}: {found.detail}" if found.detail else state


def _warm_clones(pool: "Pool") -> str:
    """Return how many clones are ready, should be, and may be."""
    if not pool.HasField("warm_clones"):
        return "-"
    found = pool.warm_clones
    return f"{found.ready_count} of {found.target_count}, at most {found.count_max}"


def _abilities(pool: "Pool") -> str:
    can = pool.capabilities
    abilities = ("checksums", "flatten", "revert", "verify", "group_snapshot", "diff", "adopt")
    words = [word.replace("_", " ") for word in abilities if getattr(can, word)]
    return ", ".join(words) or "-"
