"""`volcore host`: cutting a host off from its volumes, and letting it in again."""

from typing import TYPE_CHECKING, Annotated

import typer

from volcore.cli.output import (
    API_VERSION,
    Columns,
    Format,
    created,
    enum_word,
    say,
    short,
    show_json,
    show_list,
    show_one,
    show_table,
    to_plain,
)
from volcore.cli.session import (
    HostArgument,
    OutputOption,
    PoolOption,
    YesOption,
    confirm,
    connect,
)

if TYPE_CHECKING:
    from volcore.v1.fenced_host_pb2 import FencedClient, FencedHost, FencePlan

app = typer.Typer(name="host", no_args_is_help=True, help="Hosts that are cut off.")
COLUMNS: Columns = [
    ("HOST", lambda host: host.host),
    ("STATE", lambda host: _state(host)),
    ("CLIENTS", lambda host: ", ".join(host.client_addresses) or "-"),
    ("VOLUMES", lambda host: ", ".join(map(short, host.volumes)) or "-"),
    ("CREATED", created),
]
PLAN: Columns = [
    ("EFFECT", lambda row: row[0]),
    ("WHAT", lambda row: row[1]),
    ("WHY", lambda row: row[2]),
]
AddressOption = Annotated[
    list[str] | None,
    typer.Option(
        "--address",
        metavar="ADDRESS",
        help="The host's IP in Ceph's network, or one client's IP:PORT/NONCE. Repeatable.",
    ),
]


@app.command("fence")
def fence(
    context: typer.Context,
    host: HostArgument,
    address: AddressOption = None,
    host_is_off: Annotated[
        bool,
        typer.Option(
            "--host-is-off", help="State that clients of the host that nobody knows of are gone."
        ),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what will be hit.")] = False,
    pool: PoolOption = None,
    output: OutputOption = Format.TABLE,
    yes: YesOption = False,
) -> None:
    """Cut a host off that does not answer, and free its volumes; tells what it will hit first."""
    with connect(context, pool) as session:
        plan = session.client.plan_fence(session.pool, host, client_addresses=address or [])
        if dry_run and output is Format.JSON:
            show_json({"apiVersion": API_VERSION, "kind": "FencePlan", **to_plain(plan)})
        if output is Format.TABLE:
            show_table(PLAN, _rows(plan))
        elif not dry_run and not yes:  # whoever is asked sees it, and stdout stays one object
            for row in _rows(plan):
                say(": ".join(filter(None, row)))
        if dry_run:
            return
        confirm(f"Fence host {host}? Whatever it still runs on this fails.", yes=yes)
        made = session.client.fence_host(
            session.pool,
            host,
            etag=plan.etag,
            client_addresses=address or [],
            host_is_off=host_is_off,
        )
        show_one(made, output, "FencedHost", COLUMNS)


@app.command("unfence")
def unfence(
    context: typer.Context, host: HostArgument, pool: PoolOption = None, yes: YesOption = False
) -> None:
    """Let a host that was restarted have volumes again."""
    confirm(f"Unfence host {host}? It must have been restarted since it was fenced.", yes=yes)
    with connect(context, pool) as session:
        session.client.unfence_host(session.fenced_host(host))
    say(f"unfenced host {host}")


@app.command("get")
def get(
    context: typer.Context,
    host: HostArgument,
    pool: PoolOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Show one fenced host."""
    with connect(context, pool) as session:
        found = session.client.get_fenced_host(session.fenced_host(host))
        show_one(found, output, "FencedHost", COLUMNS)


@app.command("list")
def list_hosts(
    context: typer.Context, pool: PoolOption = None, output: OutputOption = Format.TABLE
) -> None:
    """List the hosts that are fenced."""
    with connect(context, pool) as session:
        found = session.client.list_fenced_hosts(session.parent())
        show_list(found, output, "FencedHost", COLUMNS)


def _rows(plan: "FencePlan") -> list[tuple[str, str, str]]:
    """Return the lines of a plan: what happens, to what, and why."""
    return [
        *(("cut off", one.address, _why(one)) for one in plan.clients),
        *(("free", one.split("/")[3], f"attached to {short(one)}") for one in plan.attachments),
        *(("ALSO HIT", one, "opened by one of these clients") for one in plan.other_volumes),
        *(
            ("not cut off", one.address, f"unclear whose; {_why(one)}")
            for one in plan.spared_clients
        ),
        *(
            ("UNKNOWN", short(one), "its client: say --address or --host-is-off")
            for one in plan.volumes_without_clients
        ),
    ]


def _why(client: "FencedClient") -> str:
    volumes = ", ".join(map(short, client.volumes))
    words = ("named" if client.declared else "", f"opened {volumes}" if volumes else "")
    return ", ".join(filter(None, words))


def _state(host: "FencedHost") -> str:
    from volcore.v1.fenced_host_pb2 import FencedHostState

    return enum_word(FencedHostState.DESCRIPTOR, host.state).lower()
