"""`volcore admin`: whether records and storage of a pool agree, and what to do when not."""

import sys
from typing import TYPE_CHECKING, Annotated, Final

import typer

from volcore.cli.output import Format, print_line, say, show_list
from volcore.cli.session import OutputOption, connect

if TYPE_CHECKING:
    from volcore.client.audit import PoolCheck
    from volcore.v1.pool_fault_pb2 import PoolFault

app = typer.Typer(name="admin", no_args_is_help=True, help="Look after a pool.")

FAULTY: Final = 1
"""Exit code when faults remain."""


@app.command("check")
def check(
    context: typer.Context,
    pool: Annotated[
        str | None, typer.Argument(metavar="[POOL]", help="Default: the only one.")
    ] = None,
    repair: Annotated[
        bool,
        typer.Option("--repair", help="Mend what is safe; never deletes data that may be wanted."),
    ] = False,
    objects: Annotated[
        bool,
        typer.Option("--objects", help="Look for objects that deleted images have left, too."),
    ] = False,
    output: OutputOption = Format.TABLE,
) -> None:
    """Compare the records of a pool with its storage; exit code 1 when a fault remains.

    The pool stays in use. What a change under way explains is not reported.
    """
    with connect(context, pool) as session:
        found = session.client.check_pool(session.pool, repair=repair, objects=objects)
        if output is Format.JSON:
            show_list(found.faults, output, "PoolFault", [])
        else:
            for fault in found.faults:
                _show(fault, output)
        say(_sentence(found, repair=repair))
        if found.end.truncated or not all(fault.repaired for fault in found.faults):
            raise typer.Exit(FAULTY)


@app.command("export")
def export(
    context: typer.Context,
    pool: Annotated[
        str | None, typer.Argument(metavar="[POOL]", help="Default: the only one.")
    ] = None,
) -> None:
    """Print the records of a pool as JSON lines, to keep them outside of it."""
    with connect(context, pool) as session:
        sys.stdout.write(session.client.export_catalog(session.pool).decode())


@app.command("import")
def import_(
    context: typer.Context,
    source: Annotated[
        typer.FileBinaryRead, typer.Argument(metavar="FILE", help="An export; - reads stdin.")
    ],
    pool: Annotated[
        str | None, typer.Argument(metavar="[POOL]", help="Default: the only one.")
    ] = None,
) -> None:
    """Put the records of an export into the empty catalog of a pool whose own was lost."""
    with connect(context, pool) as session:
        count = session.client.import_catalog(session.pool, source.read())
        say(f"{count} records; now compare them with the storage: volcore admin check")


@app.command("rebuild")
def rebuild(
    context: typer.Context,
    pool: Annotated[
        str | None, typer.Argument(metavar="[POOL]", help="Default: the only one.")
    ] = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Make a lost catalog again from what the images carry; exit code 1 when something is left out.

    A catalog with other records is not changed. May be repeated.
    """
    with connect(context, pool) as session:
        found = session.client.rebuild_catalog(session.pool)
        if output is Format.JSON:
            show_list(found.faults, output, "PoolFault", [])
        else:
            for fault in found.faults:
                _show(fault, output, word="Left out")
        assert found.end is not None
        say(
            f"{found.end.record_count} records from {found.end.stored_count} stored volumes, "
            f"{len(found.faults)} findings; now compare them with the storage: volcore admin check"
        )
        if found.faults:
            raise typer.Exit(FAULTY)


def _show(fault: "PoolFault", output: Format, *, word: str = "") -> None:
    """Print three lines, since sentences are too long for columns; or what it concerns."""
    if output is Format.NAME:
        print_line(fault.concerns)
        return
    print_line(f"{fault.kind}  {fault.concerns}")
    print_line(f"  {fault.meaning}")
    word = word or ("Repaired" if fault.repaired else "Repair" if fault.repairable else "No repair")
    remedy = fault.remedy.removeprefix("Not repaired: ").removeprefix("Not rebuilt: ")
    print_line(f"  {word}: {remedy}")


def _sentence(found: "PoolCheck", *, repair: bool) -> str:
    end, faults = found.end, found.faults
    text = f"{end.record_count} records and {end.stored_count} stored volumes compared: "
    if not faults:
        return text + "no faults"
    repaired = sum(fault.repaired for fault in faults)
    text += f"{len(faults)} fault{'s' if len(faults) > 1 else ''}, {repaired} repaired"
    if end.truncated:
        text += "; there are more: repair, then repeat"
    elif not repair and any(fault.repairable for fault in faults):
        text += "; --repair mends what can be"
    return text
