"""What a server is killed in: each call of the API that changes something, in one or more forms.

`READING` names the calls that change nothing; a test walks the services and fails when a call is
in neither list.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from volcore.errors import VolcoreError
from volcore.limits import MIB
from volcore.testing.failpoint_world import POOL, World
from volcore.v1 import image_service_pb2, operation_pb2

SIZE: Final = 8 * MIB
READING: Final = frozenset(
    {
        *("GetAttachment", "GetFencedHost", "GetGroupSnapshot", "GetImage", "GetOperation"),
        *("GetPool", "GetSnapshot", "GetVolume", "WaitOperation", "DiffSnapshot", "ExportCatalog"),
        *("ListAdoptableImages", "ListAttachments", "ListFencedHosts", "ListGroupSnapshots"),
        *("ListImages", "ListOperations", "ListPools", "ListSnapshots", "ListVolumes"),
    }
)

Act = Callable[[World], Any]


def _nothing(_world: World) -> None:
    """Need nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A call, and what must be there before; both may be done with any tag."""

    rpc: str
    form: str = ""
    call: Act
    """Returns what a caller learns; the same after any number of repetitions."""
    prepare: Act = _nothing
    needs: str = ""
    """A field of PoolCapabilities, or the name of the backend."""
    is_whole: bool = True
    """All or nothing; else each object is."""
    is_alone: bool = False
    """The pool must hold nothing else."""

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.rpc} {self.form}".strip()


def _blank(world: World, name: str = "v", size_bytes: int = SIZE) -> None:
    world.client.create_volume(world.volume(name), size_bytes=size_bytes)


def _frozen(world: World) -> None:
    _blank(world)
    world.client.create_snapshot(world.snapshot())


def _published(world: World) -> None:
    _frozen(world)
    world.client.publish_image(world.image(), world.snapshot())


def _imported(world: World) -> None:
    world.client.import_image(world.image(), world.source)


def _cloned(world: World) -> None:
    _imported(world)
    world.client.create_volume(world.volume(), image=world.image())


def _clone_of_snapshot(world: World) -> None:
    _frozen(world)
    world.client.create_volume(world.volume("c"), snapshot=world.snapshot())


def _ended(world: World, operation: operation_pb2.Operation) -> str:
    found = world.client.wait_operation(operation.name, timeout_s=60)
    return operation_pb2.OperationPhase.Name(found.phase)


def _deploy(world: World) -> Any:
    names = [world.volume(str(n)).rpartition("/")[2] for n in range(3)]
    found = world.client.deploy_volumes(world.image(), names)
    for one in found:
        if isinstance(one, VolcoreError):
            raise one
    return found


def _grown(world: World) -> None:
    _frozen(world)
    world.client.resize_volume(world.volume(), 2 * SIZE)


def _written(world: World) -> None:
    """A volume whose chunks were all written, but the last one after its snapshot only."""
    _blank(world)
    name = world.client.get_volume(world.volume()).backend_name
    world.storage.write(name, 0, b"old")
    world.client.create_snapshot(world.snapshot())
    for at in (0, SIZE // 2):
        world.storage.write(name, at, b"new")


def _revert_and_read(world: World) -> Any:
    made = world.client.revert_volume(world.volume(), world.snapshot())
    return made, [world.storage.read(made.backend_name, at, 3).hex() for at in (0, SIZE // 2)]


def _two(world: World) -> None:
    _blank(world)
    _blank(world, "w")


def _make_group(world: World) -> Any:
    return world.client.create_group_snapshot(world.group, [world.volume(), world.volume("w")])


def _grouped(world: World) -> None:
    _two(world)
    _make_group(world)


def _deleted(world: World) -> None:
    _frozen(world)
    world.client.delete_volume(world.volume(), force=True)


def _export(world: World) -> bool:
    """Return whether the image is what was imported."""
    target = world.file("raw")
    world.client.export_image(world.image(), target)
    found = target.read_bytes()
    target.unlink()
    return found == world.source.read_bytes()


def _import(world: World) -> tuple[Any, bool]:
    return world.client.import_image(world.image(), world.source), _export(world)


def _upload(world: World) -> tuple[Any, bool]:
    pieces = iter([world.source.read_bytes()])
    return world.client.import_image(world.image(), pieces), _export(world)


def _attach(world: World) -> Any:
    return world.client.attach_volume(world.volume(), world.host)


def _attached(world: World) -> None:
    _blank(world)
    _attach(world)


def _on_standby(world: World) -> None:
    _attached(world)
    world.client.attach_volume(world.volume(), f"{world.tag}-h2", hand_over_from=world.host)


def _their_volume(world: World) -> None:
    world.storage.make_theirs(f"theirs-{world.tag}")


def _release(world: World) -> None:
    world.client.release_volume(world.volume(), backend_name=f"theirs-{world.tag}")


def _their_image(world: World) -> None:
    world.storage.make_theirs(f"theirs-{world.tag}", elsewhere=True)


def _adopt_image(world: World) -> Any:
    source = image_service_pb2.RbdSnapshot(
        pool=world.storage.their_pool, image=f"theirs-{world.tag}", snapshot="s"
    )
    return world.client.adopt_image(world.image(), source)


def _declared(world: World) -> None:
    _blank(world)
    address = f"192.0.2.{1 + int(hashlib.sha256(world.tag.encode()).hexdigest(), 16) % 250}"
    world.client.attach_volume(world.volume(), world.host, client_addresses=[address])
    world.file("etag").write_text(world.client.plan_fence(POOL, world.host).etag)


def _fence(world: World) -> Any:
    etag = world.file("etag").read_text()
    return world.client.fence_host(POOL, world.host, etag=etag, host_is_off=True)


def _fenced(world: World) -> None:
    _declared(world)
    _fence(world)


def _scrubbing(world: World) -> None:
    _imported(world)
    world.client.scrub_pool(POOL, max_rate_bytes=MIB)


def _cancel(world: World) -> str:
    running = [one for one in world.client.list_operations(POOL) if one.action == "scrub"]
    newest = max(running, key=lambda one: one.create_time.ToNanoseconds())
    return _ended(world, world.client.cancel_operation(newest.name))


def _mismatched(world: World) -> None:
    _blank(world)
    world.storage.grow(world.client.get_volume(world.volume()).backend_name, 2 * SIZE)


def _mend(world: World) -> int:
    world.client.check_pool(POOL, repair=True)
    return world.client.get_volume(world.volume()).size_bytes


def _lost(world: World) -> None:
    _published(world)
    world.file("export").write_bytes(world.client.export_catalog(POOL))
    world.storage.lose_records("")


def _records_lost(world: World) -> None:
    _published(world)
    world.storage.lose_records(world.tag)


def _rebuild(world: World) -> int:
    return len(world.client.rebuild_catalog(POOL).faults)


SCENARIOS: Final = (
    Scenario(
        rpc="CreateVolume",
        form="blank",
        call=lambda w: w.client.create_volume(w.volume(), size_bytes=SIZE, labels={"a": "b"}),
    ),
    Scenario(
        rpc="CreateVolume",
        form="of an image",
        prepare=_imported,
        call=lambda w: w.client.create_volume(w.volume(), image=w.image()),
    ),
    Scenario(
        rpc="CreateVolume",
        form="of a snapshot",
        prepare=_frozen,
        call=lambda w: w.client.create_volume(w.volume("c"), snapshot=w.snapshot()),
    ),
    Scenario(
        rpc="CreateVolume",
        form="of a volume",
        prepare=_blank,
        call=lambda w: w.client.create_volume(w.volume("c"), volume=w.volume()),
    ),
    Scenario(
        rpc="CreateVolume",
        form="of an image, larger",
        prepare=_imported,
        call=lambda w: w.client.create_volume(w.volume(), image=w.image(), size_bytes=2 * SIZE),
    ),
    Scenario(rpc="DeployVolumes", prepare=_imported, call=_deploy, is_whole=False),
    Scenario(
        rpc="UpdateVolume",
        prepare=_blank,
        call=lambda w: w.client.update_volume(w.volume(), {"c": "d"}),
    ),
    Scenario(
        rpc="ResizeVolume",
        prepare=_frozen,
        call=lambda w: w.client.resize_volume(w.volume(), 2 * SIZE),
    ),
    Scenario(
        rpc="RevertVolume",
        prepare=_grown,
        call=lambda w: w.client.revert_volume(w.volume(), w.snapshot()),
    ),
    Scenario(
        rpc="RevertVolume",
        form="of new chunks",
        needs="rbd",
        prepare=_written,
        call=_revert_and_read,
    ),
    Scenario(
        rpc="FlattenVolume",
        prepare=_cloned,
        call=lambda w: _ended(w, w.client.flatten_volume(w.volume())),
    ),
    Scenario(
        rpc="VerifyVolume",
        needs="verify",
        prepare=_cloned,
        call=lambda w: _ended(w, w.client.verify_volume(w.volume(), heal=True)),
    ),
    Scenario(
        rpc="DeleteVolume",
        form="into the trash",
        prepare=_frozen,
        call=lambda w: w.client.delete_volume(w.volume(), force=True),
    ),
    Scenario(
        rpc="DeleteVolume",
        form="purge",
        prepare=_cloned,
        call=lambda w: w.client.delete_volume(w.volume(), purge=True),
    ),
    Scenario(
        rpc="DeleteVolume",
        form="purge a parent",
        prepare=_clone_of_snapshot,
        call=lambda w: w.client.delete_volume(w.volume(), force=True, purge=True),
    ),
    Scenario(
        rpc="UndeleteVolume",
        prepare=_deleted,
        call=lambda w: w.client.undelete_volume(w.volume()),
    ),
    Scenario(
        rpc="AdoptVolume",
        needs="adopt",
        prepare=_their_volume,
        call=lambda w: w.client.adopt_volume(w.volume(), f"theirs-{w.tag}"),
    ),
    Scenario(
        rpc="ReleaseVolume",
        needs="adopt",
        prepare=_frozen,
        call=_release,
    ),
    Scenario(
        rpc="CreateSnapshot",
        prepare=_blank,
        call=lambda w: w.client.create_snapshot(w.snapshot(), labels={"a": "b"}),
    ),
    Scenario(
        rpc="RenameSnapshot",
        prepare=_frozen,
        call=lambda w: w.client.rename_snapshot(w.snapshot(), "t"),
    ),
    Scenario(
        rpc="VerifySnapshot",
        needs="verify",
        prepare=_frozen,
        call=lambda w: _ended(w, w.client.verify_snapshot(w.snapshot(), heal=True)),
    ),
    Scenario(
        rpc="DeleteSnapshot",
        prepare=_frozen,
        call=lambda w: w.client.delete_snapshot(w.snapshot()),
    ),
    Scenario(
        rpc="DeleteSnapshot",
        form="with a clone",
        prepare=_clone_of_snapshot,
        call=lambda w: w.client.delete_snapshot(w.snapshot()),
    ),
    Scenario(rpc="CreateGroupSnapshot", needs="group_snapshot", prepare=_two, call=_make_group),
    Scenario(
        rpc="DeleteGroupSnapshot",
        needs="group_snapshot",
        prepare=_grouped,
        call=lambda w: w.client.delete_group_snapshot(w.group),
    ),
    Scenario(rpc="ImportImage", form="a file", call=_import),
    Scenario(rpc="ImportImage", form="an upload", call=_upload),
    Scenario(
        rpc="PublishImage",
        prepare=_frozen,
        call=lambda w: w.client.publish_image(w.image(), w.snapshot()),
    ),
    Scenario(rpc="AdoptImage", needs="adopt", prepare=_their_image, call=_adopt_image),
    Scenario(rpc="ExportImage", prepare=_imported, call=_export),
    Scenario(
        rpc="VerifyImage",
        needs="verify",
        prepare=_imported,
        call=lambda w: _ended(w, w.client.verify_image(w.image(), heal=True)),
    ),
    Scenario(
        rpc="DeleteImage",
        form="with a clone",
        prepare=_cloned,
        call=lambda w: w.client.delete_image(w.image()),
    ),
    Scenario(
        rpc="DeleteImage",
        form="published",
        prepare=_published,
        call=lambda w: w.client.delete_image(w.image()),
    ),
    Scenario(rpc="AttachVolume", prepare=_blank, call=_attach),
    Scenario(
        rpc="HandOverVolume",
        prepare=_on_standby,
        call=lambda w: w.client.hand_over_volume(w.volume(), f"{w.tag}-h2"),
    ),
    Scenario(
        rpc="DetachVolume",
        prepare=_attached,
        call=lambda w: w.client.detach_volume(w.volume(), w.host),
    ),
    Scenario(rpc="FenceHost", needs="rbd", prepare=_declared, call=_fence),
    Scenario(
        rpc="UnfenceHost",
        needs="rbd",
        prepare=_fenced,
        call=lambda w: w.client.unfence_host(f"{POOL}/fencedHosts/{w.host}"),
    ),
    Scenario(rpc="CancelOperation", needs="verify", prepare=_scrubbing, call=_cancel),
    Scenario(
        rpc="ScrubPool",
        needs="verify",
        prepare=_imported,
        call=lambda w: _ended(w, w.client.scrub_pool(POOL, heal=True)),
    ),
    Scenario(rpc="CheckPool", form="with repair", needs="rbd", prepare=_mismatched, call=_mend),
    Scenario(
        rpc="ImportCatalog",
        needs="rbd",
        prepare=_lost,
        call=lambda w: w.client.import_catalog(POOL, w.file("export").read_bytes()),
        is_alone=True,
    ),
    Scenario(
        rpc="RebuildCatalog",
        needs="rbd",
        prepare=_records_lost,
        call=_rebuild,
        is_whole=False,
    ),
)
