"""`volcore pool`: where volumes live and how full it is."""

from typing import TYPE_CHECKING, Annotated

import typer

from volcore.cli.output import Columns, Format, short, show_list, show_one
from volcore.cli.session import OutputOption, connect
from volcore.cli.units import format_bytes

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


def _abilities(pool: "Pool") -> str:
    can = pool.capabilities
    words = [word for word in ("checksums", "flatten", "revert") if getattr(can, word)]
    return ", ".join(words) or "-"
