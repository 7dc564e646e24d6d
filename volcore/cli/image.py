"""`volcore image`: golden images in and out."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from volcore.cli.check import HealOption, WaitOption, conclude
from volcore.cli.output import (
    Columns,
    Format,
    created,
    enum_word,
    labels_text,
    say,
    short,
    show_list,
    show_one,
)
from volcore.cli.progress import ByteProgress
from volcore.cli.session import (
    ImageArgument,
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

if TYPE_CHECKING:
    from volcore.v1.image_pb2 import Image, ImageFormat

app = typer.Typer(name="image", no_args_is_help=True, help="Golden images.")


class FileFormat(StrEnum):
    """Formats of image files that can be imported."""

    RAW = "raw"
    QCOW2 = "qcow2"
    VMDK = "vmdk"
    VDI = "vdi"
    VHDX = "vhdx"


class ExportFormat(StrEnum):
    """Formats of image files that can be written."""

    RAW = "raw"
    QCOW2 = "qcow2"


COLUMNS: Columns = [
    ("NAME", lambda image: short(image.name)),
    ("SIZE>", lambda image: format_bytes(image.size_bytes)),
    ("FROM", lambda image: _origin(image)),
    ("CREATED", created),
    ("LABELS", lambda image: labels_text(image.labels)),
]
DETAILS: Columns = [
    *COLUMNS,
    ("DIGEST", lambda image: image.digest or "-"),
    ("UID", lambda image: image.uid),
    ("BACKEND NAME", lambda image: image.backend_name),
    ("ADOPTED FROM", lambda image: image.adopted_from or "-"),
]


@app.command("import")
def import_image(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="Disk image: raw, qcow2, vmdk, vdi or vhdx.")],
    image: Annotated[
        str | None, typer.Argument(metavar="[IMAGE]", help="Name. Default: the file's.")
    ] = None,
    format_name: Annotated[
        FileFormat | None,
        typer.Option("--format", help="What the file must be. Default: find out."),
    ] = None,
    on_server: Annotated[
        bool, typer.Option("--on-server", help="FILE is a path on the server; nothing is sent.")
    ] = False,
    digest: Annotated[
        str | None, typer.Option(help="Refuse any other content: blake3-4m:...")
    ] = None,
    label: LabelOption = None,
    pool: PoolOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Import a disk image; it is inspected first, checksummed, and visible when complete."""
    name = image if image is not None else file.stem
    wanted = labels(label)
    with connect(context, pool) as session, ByteProgress(f"importing {name}") as progress:
        made = session.client.import_image(
            session.image(name),
            None if on_server else file,
            server_path=str(file) if on_server else "",
            format=_format(format_name),
            expected_digest=digest or "",
            labels=wanted,
            on_progress=lambda now: progress.update(now.done_bytes, now.total_bytes),
        )
    show_one(made, output, "Image", DETAILS)


@app.command("export")
def export(
    context: typer.Context,
    image: ImageArgument,
    file: Annotated[Path, typer.Argument(help="File to write; complete, or not there.")],
    format_name: Annotated[ExportFormat, typer.Option("--format", help="Form of the file.")] = (
        ExportFormat.RAW
    ),
    pool: PoolOption = None,
    yes: YesOption = False,
) -> None:
    """Write an image to a file, raw (sparse) or qcow2."""
    if file.exists():
        confirm(f"Overwrite {file}?", yes=yes)
    with connect(context, pool) as session, ByteProgress(f"exporting {image}") as progress:
        session.client.export_image(
            session.image(image), file, format=_format(format_name), on_bytes=progress.update
        )
    say(f"wrote {file}")


@app.command("publish")
def publish(
    context: typer.Context,
    image: ImageArgument,
    volume: VolumeArgument,
    snapshot: SnapshotArgument,
    label: LabelOption = None,
    pool: PoolOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Make an image from a snapshot, without copying."""
    with connect(context, pool) as session:
        made = session.client.publish_image(
            session.image(image),
            session.snapshot(volume, snapshot),
            labels=labels(label),
        )
        show_one(made, output, "Image", DETAILS)


@app.command("adopt")
def adopt(
    context: typer.Context,
    image: ImageArgument,
    source: Annotated[
        str,
        typer.Argument(help="POOL/IMAGE@SNAPSHOT of Ceph, or rbd://FSID/POOL/IMAGE/SNAPSHOT."),
    ],
    label: LabelOption = None,
    pool: PoolOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Make an image of a raw rbd image's snapshot that others made, without copying."""
    from volcore.client.rbd import rbd_snapshot

    with connect(context, pool) as session:
        made = session.client.adopt_image(
            session.image(image), rbd_snapshot(source), labels=labels(label)
        )
        show_one(made, output, "Image", DETAILS)


@app.command("list")
def list_images(
    context: typer.Context, pool: PoolOption = None, output: OutputOption = Format.TABLE
) -> None:
    """List images, of all pools unless one is named."""
    with connect(context, pool) as session:
        show_list(session.client.list_images(session.parent()), output, "Image", COLUMNS)


@app.command("get")
def get(
    context: typer.Context,
    image: ImageArgument,
    pool: PoolOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Show one image, with the digest of its content."""
    with connect(context, pool) as session:
        show_one(session.client.get_image(session.image(image)), output, "Image", DETAILS)


@app.command("verify")
def verify(
    context: typer.Context,
    image: ImageArgument,
    heal: HealOption = False,
    wait: WaitOption = True,
    pool: PoolOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Compare all that an image shows with its checksums; exit code 1 when damage remains."""
    with connect(context, pool) as session:
        operation = session.client.verify_image(session.image(image), heal=heal)
        conclude(session, operation, output, wait=wait)


@app.command("delete")
def delete(
    context: typer.Context,
    image: ImageArgument,
    pool: PoolOption = None,
    yes: YesOption = False,
) -> None:
    """Delete an image; volumes made from it keep working."""
    confirm(f"Delete image {image}?", yes=yes)
    with connect(context, pool) as session:
        session.client.delete_image(session.image(image))
    say(f"deleted image {image}")


def _format(chosen: FileFormat | ExportFormat | None) -> "ImageFormat":
    from volcore.v1 import image_pb2

    formats = {
        None: image_pb2.IMAGE_FORMAT_UNSPECIFIED,
        "raw": image_pb2.IMAGE_FORMAT_RAW,
        "qcow2": image_pb2.IMAGE_FORMAT_QCOW2,
        "vmdk": image_pb2.IMAGE_FORMAT_VMDK,
        "vdi": image_pb2.IMAGE_FORMAT_VDI,
        "vhdx": image_pb2.IMAGE_FORMAT_VHDX,
    }
    return formats[chosen]


def _origin(image: "Image") -> str:
    from volcore.v1.image_pb2 import ImageFormat

    if image.adopted_from:
        return "rbd"
    word = enum_word(ImageFormat.DESCRIPTOR, image.source_format).lower()
    return "snapshot" if word == "unspecified" else word
