"""`volcore operation`: long work that goes on by itself."""

import time
from typing import TYPE_CHECKING, Annotated, Final

import typer

from volcore.cli.output import (
    Columns,
    Format,
    created,
    enum_word,
    say,
    short,
    show_list,
    show_one,
)
from volcore.cli.progress import ByteProgress
from volcore.cli.session import OutputOption, PoolOption, Session, connect
from volcore.cli.units import format_bytes
from volcore.errors import CancelledError, DeadlineError, Reason

if TYPE_CHECKING:
    from volcore.v1.operation_pb2 import Operation

app = typer.Typer(name="operation", no_args_is_help=True, help="Long work: look, wait, cancel.")

WAIT_STEP_S: Final = 0.5
"""How long one call waits; in between the progress is shown."""

OperationArgument = Annotated[
    str, typer.Argument(metavar="OPERATION", help="Id of the operation, or its resource name.")
]
COLUMNS: Columns = [
    ("ID", lambda operation: short(operation.name)),
    ("ACTION", lambda operation: operation.action),
    ("TARGET", lambda operation: _target(operation)),
    ("PHASE", lambda operation: _phase(operation)),
    ("DONE>", lambda operation: _done(operation)),
    ("CREATED", created),
]
DETAILS: Columns = [
    *COLUMNS,
    ("ERROR", lambda operation: operation.error.message or operation.obstacle or "-"),
]


@app.command("list")
def list_operations(
    context: typer.Context,
    unfinished: Annotated[
        bool, typer.Option("--unfinished", help="Only those that have not ended.")
    ] = False,
    pool: PoolOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """List operations, running and finished ones of the last day."""
    with connect(context, pool) as session:
        found = session.client.list_operations(session.parent())
        if unfinished:
            found = (operation for operation in found if not operation.HasField("end_time"))
        show_list(found, output, "Operation", COLUMNS)


@app.command("get")
def get(
    context: typer.Context,
    operation: OperationArgument,
    pool: PoolOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Show one operation."""
    with connect(context, pool) as session:
        found = session.client.get_operation(session.operation(operation))
        show_one(found, output, "Operation", DETAILS)


@app.command("wait")
def wait(
    context: typer.Context,
    operation: OperationArgument,
    wait_timeout: Annotated[
        float | None, typer.Option(help="Seconds to wait at most. Default: until it ends.", min=0)
    ] = None,
    pool: PoolOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Wait until an operation ends; fails as the operation failed."""
    with connect(context, pool) as session:
        ended = wait_for(session, session.operation(operation), timeout_s=wait_timeout)
        show_one(ended, output, "Operation", DETAILS)


@app.command("cancel")
def cancel(
    context: typer.Context,
    operation: OperationArgument,
    pool: PoolOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Ask an operation to stop; nothing half-made is left."""
    with connect(context, pool) as session:
        found = session.client.cancel_operation(session.operation(operation))
        show_one(found, output, "Operation", DETAILS)


def wait_for(session: Session, name: str, *, timeout_s: float | None = None) -> "Operation":
    """Show the progress of an operation until it has succeeded, and return it.

    Raises:
        VolcoreError: the operation's own error, if it failed.
        CancelledError: it was cancelled.
        DeadlineError: it has not ended in time; it goes on.
    """
    from volcore.v1 import operation_pb2
    from volcore.wire.status import from_status

    deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
    final = {
        operation_pb2.OPERATION_PHASE_SUCCEEDED,
        operation_pb2.OPERATION_PHASE_FAILED,
        operation_pb2.OPERATION_PHASE_CANCELLED,
    }
    with ByteProgress("waiting") as progress:
        while True:
            left_s = WAIT_STEP_S if deadline_s is None else deadline_s - time.monotonic()
            step_s = max(0.0, min(WAIT_STEP_S, left_s))
            now = session.client.wait_operation(name, timeout_s=step_s)
            progress.update(now.done_bytes, now.total_bytes)
            if now.phase in final:
                break
            if left_s <= 0:
                raise DeadlineError(
                    f"operation {short(name)} has not ended after {timeout_s:g} s; it goes on: "
                    "wait again, or cancel it",
                    reason=Reason.DEADLINE_PASSED,
                )
    if now.phase == operation_pb2.OPERATION_PHASE_FAILED:
        raise from_status(now.error)
    if now.phase == operation_pb2.OPERATION_PHASE_CANCELLED:
        raise CancelledError(
            f"operation {short(name)} was cancelled; nothing of it is left",
            reason=Reason.CANCELLED,
        )
    say(f"{now.action} of {short(now.target)} is done")
    return now


def _target(operation: "Operation") -> str:
    """Return the name within the pool, or of the pool where that is the target."""
    return "/".join(operation.target.split("/")[2:]) or str(operation.target)


def _phase(operation: "Operation") -> str:
    from volcore.v1.operation_pb2 import OperationPhase

    word = enum_word(OperationPhase.DESCRIPTOR, operation.phase).lower()
    return f"{word} (cancelling)" if operation.cancel_requested and word == "running" else word


def _done(operation: "Operation") -> str:
    if not operation.total_bytes:
        return format_bytes(operation.done_bytes)
    return f"{format_bytes(operation.done_bytes)} of {format_bytes(operation.total_bytes)}"
