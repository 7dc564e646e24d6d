"""Resource names: `pools/{pool}/volumes/{volume}/snapshots/{snapshot}` and their kin.

Every segment is checked on the way in, so a name that was parsed is a name that may exist.
"""

from typing import Final, NamedTuple

from volcore.errors import InvalidArgumentError, Reason
from volcore.model.names import check_name

ALL: Final = "-"
"""Stands for every resource of a collection in the parent of a list call."""
_SHOWN_MAX: Final = 80


class PoolName(NamedTuple):
    """`pools/{pool}`."""

    pool: str

    def __str__(self) -> str:
        return f"pools/{self.pool}"


class VolumeName(NamedTuple):
    """`pools/{pool}/volumes/{volume}`."""

    pool: str
    volume: str

    def __str__(self) -> str:
        return f"pools/{self.pool}/volumes/{self.volume}"


class SnapshotName(NamedTuple):
    """`pools/{pool}/volumes/{volume}/snapshots/{snapshot}`."""

    pool: str
    volume: str
    snapshot: str

    def __str__(self) -> str:
        return f"pools/{self.pool}/volumes/{self.volume}/snapshots/{self.snapshot}"


class GroupSnapshotName(NamedTuple):
    """`pools/{pool}/groupSnapshots/{group_snapshot}`."""

    pool: str
    group_snapshot: str

    def __str__(self) -> str:
        return f"pools/{self.pool}/groupSnapshots/{self.group_snapshot}"


class ImageName(NamedTuple):
    """`pools/{pool}/images/{image}`."""

    pool: str
    image: str

    def __str__(self) -> str:
        return f"pools/{self.pool}/images/{self.image}"


class AttachmentName(NamedTuple):
    """`pools/{pool}/volumes/{volume}/attachments/{host}`."""

    pool: str
    volume: str
    host: str

    def __str__(self) -> str:
        return f"pools/{self.pool}/volumes/{self.volume}/attachments/{self.host}"


class FencedHostName(NamedTuple):
    """`pools/{pool}/fencedHosts/{host}`."""

    pool: str
    host: str

    def __str__(self) -> str:
        return f"pools/{self.pool}/fencedHosts/{self.host}"


class OperationName(NamedTuple):
    """`pools/{pool}/operations/{operation}`."""

    pool: str
    operation: str

    def __str__(self) -> str:
        return f"pools/{self.pool}/operations/{self.operation}"


def parse_pool(name: str, *, field: str) -> PoolName:
    """Return the parts of a pool's name.

    Raises:
        InvalidArgumentError: BAD_NAME, here and in all parsers below.
    """
    return PoolName(*_parse(name, ("pools",), field))


def parse_volume(name: str, *, field: str) -> VolumeName:
    """Return the parts of a volume's name."""
    return VolumeName(*_parse(name, ("pools", "volumes"), field))


def parse_snapshot(name: str, *, field: str) -> SnapshotName:
    """Return the parts of a snapshot's name."""
    return SnapshotName(*_parse(name, ("pools", "volumes", "snapshots"), field))


def parse_group_snapshot(name: str, *, field: str) -> GroupSnapshotName:
    """Return the parts of a group snapshot's name."""
    return GroupSnapshotName(*_parse(name, ("pools", "groupSnapshots"), field))


def parse_image(name: str, *, field: str) -> ImageName:
    """Return the parts of an image's name."""
    return ImageName(*_parse(name, ("pools", "images"), field))


def parse_attachment(name: str, *, field: str) -> AttachmentName:
    """Return the parts of an attachment's name."""
    return AttachmentName(*_parse(name, ("pools", "volumes", "attachments"), field))


def parse_fenced_host(name: str, *, field: str) -> FencedHostName:
    """Return the parts of a fenced host's name."""
    return FencedHostName(*_parse(name, ("pools", "fencedHosts"), field))


def parse_operation(name: str, *, field: str) -> OperationName:
    """Return the parts of an operation's name."""
    return OperationName(*_parse(name, ("pools", "operations"), field))


def parse_pools(name: str, *, field: str) -> str | None:
    """Return the pool of a list call's parent; None stands for all pools (`pools/-`)."""
    return None if name == f"pools/{ALL}" else parse_pool(name, field=field).pool


def parse_volumes(name: str, *, field: str) -> tuple[str, str | None]:
    """Return pool and volume of a list call's parent; a volume of None stands for all (`-`)."""
    parent, separator, last = name.rpartition("/")
    if separator and last == ALL and parent.endswith("/volumes"):
        return parse_pool(parent.removesuffix("/volumes"), field=field).pool, None
    return parse_volume(name, field=field)


def split_child(name: str, collection: str) -> tuple[str, str]:
    """Return parent and id of a resource in `collection`, for a request that takes both.

    Only the form is looked at; the server judges the parts.
    """
    parent, separator, child = name.partition(f"/{collection}/")
    if not separator:
        raise _bad_form(name, f"pools/{{pool}}/.../{collection}/{{name}}", "name")
    return parent, child


def _parse(name: str, collections: tuple[str, ...], field: str) -> list[str]:
    parts = name.split("/")
    if len(parts) != 2 * len(collections) or tuple(parts[::2]) != collections:
        form = "/".join(f"{one}/{{{one.removesuffix('s')}}}" for one in collections)
        raise _bad_form(name, form, field)
    return [check_name(part, field=field) for part in parts[1::2]]


def _bad_form(name: str, form: str, field: str) -> InvalidArgumentError:
    shown = ascii(name if len(name) <= _SHOWN_MAX else name[:_SHOWN_MAX] + "...")
    return InvalidArgumentError(
        f"{field} {shown} must have the form {form}; correct it",
        reason=Reason.BAD_NAME,
        field=field,
    )
