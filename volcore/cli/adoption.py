"""`volcore volume adopt` and its kin: taking over rbd images that others made, and giving back."""

from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Annotated, Final

import typer

from volcore.cli import report
from volcore.cli.output import Columns, Format, print_line, say, short, show_list, show_one
from volcore.cli.session import (
    LabelOption,
    OutputOption,
    PoolOption,
    VolumeArgument,
    YesOption,
    confirm,
    connect,
    labels,
)
from volcore.cli.units import format_bytes
from volcore.cli.volume import COLUMNS
from volcore.errors import VolcoreError

if TYPE_CHECKING:
    from volcore.v1.adoptable_image_pb2 import AdoptableImage

IMAGES: Columns = [
    ("RBD IMAGE", lambda image: image.backend_name),
    ("PROVISIONED>", lambda image: format_bytes(image.size_bytes)),
    ("SNAPSHOTS>", lambda image: str(len(image.snapshots))),
    ("OBSTACLE", lambda image: image.obstacle or "-"),
    ("WHY", lambda image: image.detail or "-"),
]
_DELETED: Final = ".deleted"
"""Ends the name of an image that OpenStack's RBD driver keeps for its clones only."""
PatternOption = Annotated[
    str, typer.Option(metavar="GLOB", help="Only names like this; quote it for the shell.")
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Only tell what would be done.")]


def add_to(volume_app: typer.Typer, pool_app: typer.Typer) -> None:
    """Make the functions below verbs of volumes and of pools."""
    volume_app.command("adoptable")(adoptable)
    volume_app.command("adopt")(adopt)
    volume_app.command("release")(release)
    pool_app.command("adopt")(adopt_all)
    pool_app.command("release")(release_all)


def adoptable(
    context: typer.Context, pool: PoolOption = None, output: OutputOption = Format.TABLE
) -> None:
    """List the rbd images of a pool that are no volumes, and what keeps them from being adopted."""
    with connect(context, pool) as session:
        found = session.client.list_adoptable_images(session.pool)
        if output is Format.NAME:
            for image in found:
                print_line(image.backend_name)
            return
        show_list(found, output, "AdoptableImage", IMAGES)


def adopt(
    context: typer.Context,
    backend_name: Annotated[str, typer.Argument(metavar="RBD_IMAGE", help="Name of the image.")],
    new_name: Annotated[
        str, typer.Option("--as", metavar="NAME", help="The volume's name. Default: the image's.")
    ] = "",
    label: LabelOption = None,
    pool: PoolOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Make an rbd image that others made a volume in place, with its snapshots; copies nothing."""
    with connect(context, pool) as session:
        made = session.client.adopt_volume(
            session.volume(new_name or backend_name), backend_name, labels=labels(label)
        )
        show_one(made, output, "Volume", COLUMNS)


def release(
    context: typer.Context,
    volume: VolumeArgument,
    backend_name: Annotated[
        str, typer.Option("--as", metavar="NAME", help="The image's name. Default: as it is.")
    ] = "",
    pool: PoolOption = None,
    yes: YesOption = False,
) -> None:
    """Forget a volume, but leave its rbd image with its snapshots to others; deletes nothing."""
    confirm(f"Release volume {volume}? volcore will not know it any more.", yes=yes)
    with connect(context, pool) as session:
        left = session.client.release_volume(session.volume(volume), backend_name=backend_name)
        if not left:
            say(f"there is no volume {volume}")
            return
        print_line(left)


def adopt_all(
    context: typer.Context,
    pattern: PatternOption = "volume-*",
    dry_run: DryRunOption = False,
    pool: PoolOption = None,
    yes: YesOption = False,
) -> None:
    """Adopt every rbd image of a pool as a volume of the same name, one after another.

    Each is adopted as a whole or not at all; to repeat the command goes on with what is left.
    Images named `*.deleted` are left alone: OpenStack's RBD driver keeps them for their clones.
    """
    with connect(context, pool) as session:
        images = [
            image
            for image in session.client.list_adoptable_images(session.pool)
            if fnmatchcase(image.backend_name, pattern)
            and not image.backend_name.endswith(_DELETED)
        ]
        able = [image for image in images if image.adoptable]
        _tell_obstacles(image for image in images if not image.adoptable)
        if not dry_run:
            confirm(f"Adopt {len(able)} rbd images of {short(session.pool)}?", yes=yes)

        def act(name: str) -> object:
            return session.client.adopt_volume(session.volume(name), name)

        names = [image.backend_name for image in able]
        _each(names, "would be adopted" if dry_run else "adopted", None if dry_run else act)
    if len(able) < len(images):
        raise typer.Exit(1)


def release_all(
    context: typer.Context,
    pattern: PatternOption = "volume-*",
    dry_run: DryRunOption = False,
    pool: PoolOption = None,
    yes: YesOption = False,
) -> None:
    """Release every volume of a pool; each rbd image gets the name of its volume.

    Each is released as a whole or not at all; to repeat the command goes on with what is left.
    """
    with connect(context, pool) as session:
        found = [short(volume.name) for volume in session.client.list_volumes(session.pool)]
        names = [name for name in found if fnmatchcase(name, pattern)]
        if not dry_run:
            confirm(f"Release {len(names)} volumes of {short(session.pool)}?", yes=yes)

        def act(name: str) -> object:
            return session.client.release_volume(session.volume(name), backend_name=name)

        _each(names, "would be released" if dry_run else "released", None if dry_run else act)


def _each(names: list[str], done: str, act: Callable[[str], object] | None) -> None:
    """Do one after another, whatever becomes of the others; exit with the first error's code."""
    failed: list[VolcoreError] = []
    for name in names:
        try:
            if act is not None:
                act(name)
        except VolcoreError as err:
            say(f"{name}:")
            report.report(err)
            failed.append(err)
        else:
            print_line(name)
    say(f"{len(names) - len(failed)} of {len(names)} {done}")
    if failed:
        raise typer.Exit(report.exit_code(failed[0]))


def _tell_obstacles(images: "Iterable[AdoptableImage]") -> None:
    for image in images:
        say(f"{image.backend_name}: not adopted ({image.obstacle}): {image.detail}")
