"""`volcore attachment`: who uses a volume, and how to reach it."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from volcore.cli.output import (
    API_VERSION,
    Columns,
    Format,
    created,
    enum_word,
    print_line,
    say,
    show_json,
    show_list,
    show_one,
)
from volcore.cli.session import (
    HostArgument,
    OutputOption,
    PoolOption,
    VolumeArgument,
    YesOption,
    confirm,
    connect,
)

if TYPE_CHECKING:
    from volcore.v1.attachment_pb2 import Attachment

app = typer.Typer(name="attachment", no_args_is_help=True, help="Hosts that use volumes.")


class Mode(StrEnum):
    """Access modes, as options."""

    READ_WRITE = "read-write"
    READ_ONLY = "read-only"
    SHARED = "read-write-shared"


class Connection(StrEnum):
    """Forms of connection info."""

    JSON = "json"
    QEMU = "qemu"
    LIBVIRT = "libvirt"


ConnectionOption = Annotated[
    Connection | None,
    typer.Option(
        help="Print only how to reach the volume: as JSON, as words for QEMU, or as libvirt XML."
    ),
]
TlsDirectoryOption = Annotated[
    Path | None,
    typer.Option(
        envvar="VOLCORE_NBD_TLS_DIRECTORY",
        help="With --connection, where the host keeps ca-cert.pem, client-cert.pem and "
        "client-key.pem for NBD over TLS. Default: /etc/pki/libvirt-nbd.",
    ),
]
COLUMNS: Columns = [
    ("VOLUME", lambda attachment: attachment.name.split("/")[3]),
    ("HOST", lambda attachment: attachment.host),
    ("ACCESS", lambda attachment: _access(attachment)),
    ("STATE", lambda attachment: _state(attachment)),
    ("CONNECTION", lambda attachment: _where(attachment)),
    ("CREATED", created),
]


@app.command("attach")
def attach(
    context: typer.Context,
    volume: VolumeArgument,
    host: HostArgument,
    mode: Annotated[Mode, typer.Option(help="What the host may do.")] = Mode.READ_WRITE,
    hand_over_from: Annotated[
        str | None,
        typer.Option(
            metavar="HOST",
            help="Host that writes now: the new one may read, and write after [bold]hand-over[/].",
        ),
    ] = None,
    client_address: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ADDRESS",
            help="The host's IP in Ceph's network, cut off if it is fenced. Repeatable.",
        ),
    ] = None,
    connection: ConnectionOption = None,
    tls_directory: TlsDirectoryOption = None,
    pool: PoolOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Give a host the right to use a volume, and say how to reach it."""
    from volcore.v1 import attachment_pb2

    modes = {
        Mode.READ_WRITE: attachment_pb2.ACCESS_MODE_READ_WRITE,
        Mode.READ_ONLY: attachment_pb2.ACCESS_MODE_READ_ONLY,
        Mode.SHARED: attachment_pb2.ACCESS_MODE_READ_WRITE_SHARED,
    }
    with connect(context, pool) as session:
        name = session.volume(volume)
        made = session.client.attach_volume(
            name,
            host,
            access_mode=modes[mode],
            hand_over_from=hand_over_from or "",
            client_addresses=client_address or [],
        )
    _show(made, connection, output, tls_directory)


@app.command("hand-over")
def hand_over(
    context: typer.Context,
    volume: VolumeArgument,
    host: HostArgument,
    pool: PoolOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Move the right to write to a host on standby: the moment of a live migration."""
    with connect(context, pool) as session:
        made = session.client.hand_over_volume(session.volume(volume), host)
        show_one(made, output, "Attachment", COLUMNS)


@app.command("get")
def get(
    context: typer.Context,
    volume: VolumeArgument,
    host: HostArgument,
    connection: ConnectionOption = None,
    tls_directory: TlsDirectoryOption = None,
    pool: PoolOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Show one attachment, or only how to reach the volume (--connection)."""
    with connect(context, pool) as session:
        found = session.client.get_attachment(session.attachment(volume, host))
    _show(found, connection, output, tls_directory)


@app.command("list")
def list_attachments(
    context: typer.Context,
    volume: Annotated[
        str | None, typer.Argument(metavar="[VOLUME]", help="Default: all volumes of the pool.")
    ] = None,
    pool: PoolOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """List the attachments of a volume, or of all volumes of a pool."""
    with connect(context, pool) as session:
        found = session.client.list_attachments(session.volume(volume or "-"))
        show_list(found, output, "Attachment", COLUMNS)


@app.command("detach")
def detach(
    context: typer.Context,
    volume: VolumeArgument,
    host: HostArgument,
    pool: PoolOption = None,
    yes: YesOption = False,
) -> None:
    """End a host's right to use a volume; what it wrote is flushed first."""
    confirm(f"Detach volume {volume} from host {host}? A VM that still uses it fails.", yes=yes)
    with connect(context, pool) as session:
        session.client.detach_volume(session.volume(volume), host)
    say(f"detached volume {volume} from host {host}")


def _show(
    attachment: "Attachment",
    connection: Connection | None,
    output: Format,
    tls_directory: Path | None,
) -> None:
    from volcore.cli import connection as forms

    tls_directory = tls_directory or forms.TLS_DIRECTORY
    match connection:
        case Connection.JSON:
            facts = forms.as_json(attachment, tls_directory)
            show_json({"apiVersion": API_VERSION, "kind": "Connection", **facts})
        case Connection.QEMU:
            print_line(forms.as_qemu(attachment, tls_directory))
        case Connection.LIBVIRT:
            print_line(forms.as_libvirt(attachment))
        case None:
            show_one(attachment, output, "Attachment", COLUMNS)


def _access(attachment: "Attachment") -> str:
    from volcore.v1.attachment_pb2 import AccessMode

    word = enum_word(AccessMode.DESCRIPTOR, attachment.access_mode)
    return word.lower().replace("_", "-")


def _state(attachment: "Attachment") -> str:
    from volcore.v1.attachment_pb2 import AttachmentState

    return enum_word(AttachmentState.DESCRIPTOR, attachment.state).lower()


def _where(attachment: "Attachment") -> str:
    match attachment.WhichOneof("connection"):
        case "nbd":
            return attachment.nbd.uri
        case "rbd":
            return f"rbd:{attachment.rbd.pool}/{attachment.rbd.image}"
        case _:
            return "-"
