"""What all commands share: the connection, names, questions and the options' types."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from volcore.cli.output import Format, say, short
from volcore.cli.units import parse_size
from volcore.errors import InvalidArgumentError, Reason

if TYPE_CHECKING:
    from volcore.client import Client

PoolOption = Annotated[
    str | None,
    typer.Option(
        envvar="VOLCORE_POOL",
        help="Pool to work in. Default: the only one, if the server has one.",
    ),
]
OutputOption = Annotated[
    Format, typer.Option("--output", "-o", help="Form of what is printed to stdout.")
]
LabelOption = Annotated[
    list[str] | None, typer.Option("--label", "-l", metavar="KEY=VALUE", help="Repeatable.")
]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
VolumeArgument = Annotated[str, typer.Argument(metavar="VOLUME", help="Name of the volume.")]
SnapshotArgument = Annotated[str, typer.Argument(metavar="SNAPSHOT", help="Name of the snapshot.")]
ImageArgument = Annotated[str, typer.Argument(metavar="IMAGE", help="Name of the image.")]
HostArgument = Annotated[str, typer.Argument(metavar="HOST", help="Name of the host.")]
SizeOption = Annotated[str | None, typer.Option(metavar="SIZE", help="With a unit: 10GiB, 512MiB.")]

_FULL: Final = "pools/"
"""What begins so is a full resource name and is taken as it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The global options."""

    endpoint: str | None
    timeout_s: float | None
    debug: bool
    tls_ca: Path | None = None
    tls_certificate: Path | None = None
    tls_key: Path | None = None


class Session:
    """An open connection, and how short names become resource names."""

    def __init__(self, client: "Client", pool: str | None) -> None:
        self.client = client
        self._given = pool
        self._found = ""

    @property
    def pool(self) -> str:
        """Resource name of the pool that was named, or of the only one.

        Raises:
            InvalidArgumentError: there is not exactly one.
        """
        if not self._found:
            self._found = self._given or self._only_pool()
            if not self._found.startswith(_FULL):
                self._found = _FULL + self._found
        return self._found

    def parent(self, *, all_pools: bool = True) -> str:
        """Return the pool to list: the named one, else all (or the only one)."""
        return f"{_FULL}-" if all_pools and not self._given else self.pool

    def image(self, name: str) -> str:
        """Return the resource name of an image."""
        return self._name(name, "images")

    def volume(self, name: str) -> str:
        """Return the resource name of a volume."""
        return self._name(name, "volumes")

    def snapshot(self, volume: str, snapshot: str) -> str:
        """Return the resource name of a snapshot."""
        return f"{self.volume(volume)}/snapshots/{snapshot}"

    def snapshot_path(self, path: str) -> str:
        """Return the resource name of the snapshot that `VOLUME/SNAPSHOT` means."""
        if path.startswith(_FULL):
            return path
        volume, slash, snapshot = path.partition("/")
        if not slash:
            raise InvalidArgumentError(
                f"{path!r} names no snapshot; write VOLUME/SNAPSHOT", reason=Reason.BAD_NAME
            )
        return self.snapshot(volume, snapshot)

    def group_snapshot(self, name: str) -> str:
        """Return the resource name of a group snapshot."""
        return self._name(name, "groupSnapshots")

    def attachment(self, volume: str, host: str) -> str:
        """Return the resource name of an attachment."""
        return f"{self.volume(volume)}/attachments/{host}"

    def fenced_host(self, name: str) -> str:
        """Return the resource name of a fenced host."""
        return self._name(name, "fencedHosts")

    def operation(self, name: str) -> str:
        """Return the resource name of an operation."""
        return self._name(name, "operations")

    def _name(self, name: str, collection: str) -> str:
        return name if name.startswith(_FULL) else f"{self.pool}/{collection}/{name}"

    def _only_pool(self) -> str:
        names = [short(pool.name) for pool in self.client.list_pools()]
        if len(names) == 1:
            return names[0]
        raise InvalidArgumentError(
            f"the server has {len(names)} pools ({', '.join(names)}); choose one with --pool",
            reason=Reason.BAD_FIELD,
            field="pool",
        )


@contextmanager
def connect(context: typer.Context, pool: str | None = None) -> Iterator[Session]:
    """Open the connection that the global options ask for."""
    from volcore.client import Client, ClientTls
    from volcore.config import client_endpoint

    settings = settings_of(context)
    files = (settings.tls_ca, settings.tls_certificate, settings.tls_key)
    tls = None
    if any(files):
        ca, certificate, key = files
        tls = ClientTls(ca=ca, certificate=certificate, key=key)
    with Client(settings.endpoint or client_endpoint(), tls=tls) as client:
        if settings.timeout_s is not None:
            client = client.with_options(timeout_s=settings.timeout_s)
        yield Session(client, pool)


def settings_of(context: typer.Context) -> Settings:
    """Return the global options of the command that runs."""
    found = context.find_root().obj
    assert isinstance(found, Settings), "the root callback sets them"
    return found


def confirm(question: str, *, yes: bool) -> None:
    """Ask before something that cannot be taken back.

    Raises:
        InvalidArgumentError: there is nobody to ask, and --yes was not said.
        typer.Exit: the answer is no.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise InvalidArgumentError(
            f"stdin is no terminal, so nobody can answer {question!r}; say --yes",
            reason=Reason.BAD_FIELD,
            field="yes",
        )
    if not typer.confirm(question, err=True):
        say("nothing was changed")
        raise typer.Exit(1)


def labels(given: Sequence[str] | None) -> dict[str, str]:
    """Return what `--label KEY=VALUE` says.

    Raises:
        InvalidArgumentError: BAD_LABEL, without `=`, or a key twice.
    """
    found: dict[str, str] = {}
    for text in given or ():
        key, equals, value = text.partition("=")
        if not equals:
            raise InvalidArgumentError(
                f"label {text!r} has no value; write KEY=VALUE (the value may be empty)",
                reason=Reason.BAD_LABEL,
            )
        if key in found:
            raise InvalidArgumentError(
                f"label {key!r} is given twice; give it once", reason=Reason.BAD_LABEL
            )
        found[key] = value
    return found


def size(given: str | None) -> int:
    """Return the bytes that `--size` says; 0 when it was not given."""
    return parse_size(given) if given is not None else 0
