"""The driver class that cinder-volume loads; each method is one or two calls to volcore.

Why so long: Cinder calls all of its methods on one class; what is more than a call is elsewhere.
"""

import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from cinder import exception, interface
from cinder.common import constants
from cinder.volume import driver, volume_utils
from oslo_config import cfg
from oslo_log import log as logging

from volcore import limits
from volcore.cinder import connection, groups, local_disk, manage, specs, uploads
from volcore.cinder.files import temporary_file
from volcore.cinder.image_cache import ImageCache
from volcore.cinder.images import Images, serves
from volcore.cinder.locations import sources
from volcore.cinder.options import OPTIONS, client_of, transfer
from volcore.cinder.service import Service
from volcore.cinder.transfer import forget
from volcore.client import Client
from volcore.errors import (
    DeadlineError,
    NotFoundError,
    PreconditionError,
    Reason,
    UnavailableError,
    VolcoreError,
)
from volcore.v1 import attachment_pb2, pool_pb2

LOG = logging.getLogger(__name__)
STATS_TIMEOUT_S: Final = 30.0
"""One that starts again is not `down`: Cinder would refuse what requests wait for meanwhile."""
CLEANUP_TIMEOUT_S: Final = 10.0
UPLOADS_MAX: Final = 4
"""Exports that one backend runs at once: each is a process, and a file."""


@interface.volumedriver
class VolcoreDriver(driver.VolumeDriver):
    """Volumes of one volcore pool; keeps no state that another process would miss.

    Its one lock, for the first use of an image, is of Cinder's coordinator.

    Version history:
        0.1.0 - volumes, snapshots, clones, extend, revert, rbd connections, manage, groups,
                multi-attach, images, migration between pools of one service, labels by type.
    """

    VERSION = "0.1.0"
    CI_WIKI_NAME = "Volcore_CI"
    SUPPORTS_ACTIVE_ACTIVE = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.configuration.append_config_values(OPTIONS)
        self._service = Service(lambda: client_of(self.configuration))
        self._pool: pool_pb2.Pool | None = None
        self._transfer = functools.partial(transfer, self.configuration)
        self._images = Images(
            self._service,
            parent=self._parent,
            import_timeout_s=self.configuration.safe_get("volcore_image_timeout"),
            owner=self.host or "",
            transfer=self._transfer,
            cache=ImageCache(
                self._service,
                parent=self._parent,
                size_gib=self.configuration.safe_get("volcore_image_cache_size_gb"),
                age_days=self.configuration.safe_get("volcore_image_cache_age_days"),
            ),
        )
        self._uploads = threading.BoundedSemaphore(UPLOADS_MAX)

    @staticmethod
    def get_driver_options() -> list[Any]:
        """Return the options of the driver."""
        return OPTIONS

    # Set-up and figures.

    def do_setup(self, context: Any) -> None:
        """Check the options; nothing is called yet."""
        if not self.configuration.safe_get("volcore_pool"):
            raise exception.InvalidConfigurationValue(option="volcore_pool", value="")

    def check_for_setup_error(self) -> None:
        """Prove that the service answers for the pool and can do what Cinder needs."""
        with _translated():
            pool = self._pool = self._service.call(self._get_pool)
        if not pool.capabilities.revert:
            raise exception.VolumeDriverException(
                message=f"pool {pool.name} cannot revert volumes; use one that can"
            )

    def _get_pool(self, client: Client) -> pool_pb2.Pool:
        return client.with_options(timeout_s=STATS_TIMEOUT_S).get_pool(self._parent)

    def _update_volume_stats(self) -> None:
        """Note the figures of the pool; called by get_volume_stats."""
        stats: dict[str, Any] = {
            "volume_backend_name": self.configuration.safe_get("volume_backend_name") or "volcore",
            "vendor_name": "volcore",
            "driver_version": self.VERSION,
            "storage_protocol": constants.CEPH,
            "total_capacity_gb": 0,
            "free_capacity_gb": 0,
            "reserved_percentage": self.configuration.safe_get("reserved_percentage"),
            "max_over_subscription_ratio": self.configuration.safe_get(
                "max_over_subscription_ratio"
            ),
            "thin_provisioning_support": True,
            "thick_provisioning_support": False,
            "multiattach": False,
            "online_extend_support": True,
            "consistent_group_snapshot_enabled": False,
            "QoS_support": False,
            "sparse_copy_volume": True,
            "location_info": self._location(),
            "backend_state": "down",
        }
        try:
            pool = self._service.call(self._get_pool)
        except VolcoreError as err:
            LOG.warning("No figures of %s: %s", self._parent, err.message)
        else:
            if pool.backend != "rbd":
                stats.update(storage_protocol=constants.FILE, online_extend_support=False)
            stats.update(
                total_capacity_gb=round(pool.capacity_bytes / limits.GIB, 2),
                free_capacity_gb=round(pool.available_bytes / limits.GIB, 2),
                provisioned_capacity_gb=round(pool.provisioned_bytes / limits.GIB, 2),
                multiattach=pool.capabilities.connection == "rbd",
                consistent_group_snapshot_enabled=pool.capabilities.group_snapshot,
                backend_state="up",
            )
        self._stats = stats

    def _init_vendor_properties(self) -> tuple[dict[str, Any], str]:
        """Tell which extra specs there are; Cinder asks once."""
        return specs.properties(self._set_property), specs.PREFIX

    # Volumes.

    def create_volume(self, volume: Any) -> None:
        """Create a blank volume."""
        self._create(volume)

    def create_volume_from_snapshot(self, volume: Any, snapshot: Any) -> None:
        """Create a volume from a snapshot, possibly larger."""
        with _translated():
            try:
                self._try_create(volume, snapshot=self._likely_snapshot(snapshot))
            except NotFoundError:
                self._try_create(volume, snapshot=self._snapshot(snapshot))

    def create_cloned_volume(self, volume: Any, src_vref: Any) -> None:
        """Create a volume from another one as it is now, possibly larger."""
        self._create(volume, volume=self._volume(src_vref))

    def _create(self, made: Any, *, snapshot: str = "", volume: str = "", image: str = "") -> None:
        with _translated():
            self._try_create(made, snapshot=snapshot, volume=volume, image=image)

    def _try_create(
        self, made: Any, *, snapshot: str = "", volume: str = "", image: str = ""
    ) -> None:
        labels = specs.check(made)
        name, size_bytes = self._volume(made), made.size * limits.GIB
        try:
            self._service.call(
                lambda c: c.create_volume(
                    name,
                    size_bytes=size_bytes,
                    snapshot=snapshot,
                    volume=volume,
                    image=image,
                    labels=labels,
                )
            )
        except (DeadlineError, UnavailableError):
            # Cinder may go on with another backend: what is made yet must not stay here.
            if left := self._service.call(lambda c: _forget(c, name)):
                LOG.warning("%s may be left behind: %s", name, left.message)
            raise

    def delete_volume(self, volume: Any) -> None:
        """Delete a volume; gone is no error."""
        name, shared = self._volume(volume), volume.multiattach
        with _translated(busy=exception.VolumeIsBusy(volume_name=volume.name)):
            try:
                self._service.call(lambda c: _delete_volume(c, name, shared=shared))
            except PreconditionError as err:
                if err.reason is not Reason.VOLUME_IN_USE or volume.volume_attachment:
                    raise
                self._end_own(volume)
                self._service.call(lambda c: _delete_volume(c, name, shared=shared))

    def _end_own(self, volume: Any) -> None:
        """Detach from this host a volume that Cinder has attached nowhere.

        A cinder-volume that was killed had it here, to copy it itself.
        """
        name = self._volume(volume)
        for one in self._service.call(lambda c: list(c.list_attachments(name))):
            if local_disk.is_here({"host": one.host}, self.host):
                LOG.info("%s is still attached to this host, which copied it once", name)
                local_disk.withdraw(self._disk(volume))
                self._service.call(functools.partial(connection.detach, volume=name, host=one.host))

    def extend_volume(self, volume: Any, new_size: int) -> None:
        """Grow a volume to `new_size` GiB, attached or not."""
        name = self._volume(volume)
        with _translated():
            self._service.call(lambda c: c.resize_volume(name, new_size * limits.GIB))

    def revert_to_snapshot(self, context: Any, volume: Any, snapshot: Any) -> None:
        """Make a volume what it was; its size stays."""
        name, source = self._volume(volume), self._snapshot(snapshot)
        size_bytes = volume.size * limits.GIB

        def revert(client: Client) -> None:
            if client.revert_volume(name, source).size_bytes < size_bytes:
                client.resize_volume(name, size_bytes)

        with _translated():
            self._service.call(revert)

    def snapshot_revert_use_temp_snapshot(self) -> bool:
        """Say no: a revert happens as a whole or not at all."""
        return False

    def update_migrated_volume(
        self, context: Any, volume: Any, new_volume: Any, original_volume_status: str
    ) -> dict[str, Any]:
        """Keep the new volume's name; Cinder remembers it as the volume's `_name_id`."""
        return {
            "_name_id": new_volume.name_id,
            "provider_location": new_volume.provider_location,
        }

    def migrate_volume(self, context: Any, volume: Any, host: Any) -> tuple[bool, None]:
        """Move a detached volume to another pool of the same service; else let Cinder copy it."""
        service, _, pool = str(host["capabilities"].get("location_info")).rpartition(":")
        here, _, parent = self._location().rpartition(":")
        if service != here or pool == parent or volume.status not in ("available", "maintenance"):
            return False, None
        name, size_bytes = self._volume(volume), volume.size * limits.GIB
        there = f"{pool}/volumes/{volume.name}"
        with (
            temporary_file(self._service, "move", self.host or "") as path,
            self._uploads,
            _translated(),
        ):
            self._transfer("move", volume=name, there=there, size_bytes=size_bytes, path=path)
        return True, None

    def retype(
        self, context: Any, volume: Any, new_type: Any, diff: Any, host: Any
    ) -> tuple[bool, None]:
        """Accept a type of the same pool that asks for nothing but what every volume has."""
        here = self.get_volume_stats().get("location_info")
        if host["capabilities"].get("location_info") != here or diff.get("encryption"):
            return False, None
        asked = diff["extra_specs"].get("replication_enabled")
        if asked and asked[1] not in (None, "", "<is> False"):
            return False, None
        try:
            specs.check_type(new_type)
        except exception.VolumeDriverException as err:
            LOG.warning("%s is not retyped: %s", volume.name, err)
            return False, None
        old, new = diff["extra_specs"].get(specs.LABELS, (None, None))
        if old != new:
            self._relabel(self._volume(volume), old, new)
        return True, None

    def _relabel(self, name: str, old: str | None, new: str | None) -> None:
        def work(client: Client) -> None:
            labels = dict(client.get_volume(name).labels)
            client.update_volume(name, specs.relabelled(labels, old, new))

        with _translated():
            self._service.call(work)

    # Snapshots.

    def create_snapshot(self, snapshot: Any) -> None:
        """Freeze a volume."""
        name = self._snapshot(snapshot)
        with _translated():
            self._service.call(lambda c: c.create_snapshot(name))

    def delete_snapshot(self, snapshot: Any) -> None:
        """Delete a snapshot; gone is no error, volumes made from it stay."""
        name = self._snapshot(snapshot)
        with _translated(busy=exception.SnapshotIsBusy(snapshot_name=snapshot.name)):
            self._service.call(lambda c: _delete_snapshot(c, name))

    # Groups. To change one is left to Cinder: it is nothing before it is frozen.

    def create_group(self, context: Any, group: Any) -> dict[str, str]:
        """Refuse a type that asks for what the pool cannot: no scheduler has looked at that."""
        with _translated():
            pool = self._pool = self._pool or self._service.call(self._get_pool)
        if groups.is_consistent(group) and not pool.capabilities.group_snapshot:
            raise exception.VolumeDriverException(
                message=f"{pool.name} ({pool.backend}) cannot freeze several volumes at one "
                "instant; use a group type without consistent_group_snapshot_enabled"
            )
        return {"status": "available"}

    def delete_group(self, context: Any, group: Any, volumes: Any) -> groups.Updates:
        """Delete the volumes of a group, and what a clone that was cut off has left."""
        self._thaw(groups.passing_name(group))
        return groups.delete_volumes(volumes, self.delete_volume)

    def create_group_from_src(
        self,
        context: Any,
        group: Any,
        volumes: Any,
        group_snapshot: Any = None,
        snapshots: Any = None,
        source_group: Any = None,
        source_vols: Any = None,
    ) -> groups.Updates:
        """Create volumes from a group snapshot, or from one instant of another group.

        Raises:
            NotImplementedError: the type asks for no more than Cinder does by itself.
        """
        if not groups.is_consistent(group):
            raise NotImplementedError
        if snapshots:
            for volume, snapshot in zip(volumes, snapshots, strict=True):
                self._create(volume, snapshot=self._snapshot(snapshot))
            return groups.same(volumes, "available")
        sources = [self._volume(source) for source in source_vols]
        instant = groups.passing_name(group)
        try:
            self._freeze(instant, sources)
            for volume, source in zip(volumes, sources, strict=True):
                self._create(volume, snapshot=f"{source}/snapshots/{instant}")
        finally:
            self._thaw(instant)
        return groups.same(volumes, "available")

    def create_group_snapshot(
        self, context: Any, group_snapshot: Any, snapshots: Any
    ) -> groups.Updates:
        """Freeze the volumes of a group at one instant, all or none.

        Raises:
            NotImplementedError: see create_group_from_src.
        """
        if not groups.is_consistent(group_snapshot):
            raise NotImplementedError
        name = groups.snapshot_name(group_snapshot)
        self._freeze(name, [f"{self._parent}/volumes/{one.volume_name}" for one in snapshots])
        return groups.same(snapshots, "available", provider_id=name)

    def delete_group_snapshot(
        self, context: Any, group_snapshot: Any, snapshots: Any
    ) -> groups.Updates:
        """Delete a group snapshot with its members, whatever its type says now."""
        self._thaw(groups.snapshot_name(group_snapshot))
        for one in snapshots:
            if not one.provider_id:
                self.delete_snapshot(one)
        return groups.same(snapshots, "deleted")

    def _freeze(self, name: str, volumes: list[str]) -> None:
        name = f"{self._parent}/groupSnapshots/{name}"
        with _translated():
            self._service.call(lambda c: c.create_group_snapshot(name, volumes))

    def _thaw(self, name: str) -> None:
        name = f"{self._parent}/groupSnapshots/{name}"
        with _translated():
            self._service.call(lambda c: c.delete_group_snapshot(name))

    # Images.

    def clone_image(
        self,
        context: Any,
        volume: Any,
        image_location: Any,
        image_meta: Any,
        image_service: Any,
    ) -> tuple[dict[str, Any], bool]:
        """Create a volume as a clone of an image, which the first use adopts or imports."""
        if not serves(image_meta):
            return {}, False
        specs.check(volume)  # before an image is fetched
        with _translated():
            self._images.clone(
                image_meta,
                volume.size * limits.GIB,
                adoptable=sources(image_location, image_meta),
                fetch=lambda file: image_service.download(context, image_meta["id"], file),
                create=lambda image: self._try_create(volume, image=image),
            )
        return {}, True

    def copy_volume_to_image(
        self, context: Any, volume: Any, image_service: Any, image_meta: Any
    ) -> None:
        """Upload a volume as it is now, attached or not, as raw or qcow2."""
        uploads.check(image_meta)
        name, disk_format = self._volume(volume), image_meta["disk_format"]
        with temporary_file(self._service, "upload", self.host or "") as path:
            with self._uploads, _translated():
                self._transfer("export", volume=name, path=path, disk_format=disk_format)
            uploads.send(context, image_service, image_meta, path, volume)

    # Connections.

    def ensure_export(self, context: Any, volume: Any) -> None:
        """Offer the disk of a local pool again after a start of this host; volcore publishes."""
        if self._disk(volume).exists():
            with _translated():
                found = self._service.call(lambda c: list(c.list_attachments(self._volume(volume))))
            for attachment in found:
                if attachment.HasField("nbd"):
                    self._as_file(volume, attachment)

    def create_export(self, context: Any, volume: Any, connector: Any) -> None:
        """Do nothing: attaching publishes."""

    def remove_export(self, context: Any, volume: Any) -> None:
        """Do nothing: detaching withdraws."""

    def validate_connector(self, connector: Any) -> None:
        """Refuse who cannot be served, with the reason, before anything is done."""
        if not connector.get("host"):
            raise exception.InvalidConnectorException(missing="host")
        with _translated():
            pool = self._pool = self._pool or self._service.call(self._get_pool)
        if pool.capabilities.connection != "rbd" and not local_disk.is_here(connector, self.host):
            raise exception.InvalidConnectorException(
                missing=f"a way to the disk: {pool.name} is a local pool, which only guests of "
                f"this host can use, and {connector['host']} is another one; use a type of an rbd "
                "pool, or start the server on this host"
            )

    def initialize_connection(
        self, volume: Any, connector: Any, initiator_data: Any = None
    ) -> dict[str, Any]:
        """Give a host the volume and tell it how to reach it."""
        self.validate_connector(connector)
        name, host = self._volume(volume), connection.host_of(connector)
        attach = connection.attach_shared if volume.multiattach else connection.attach
        if not volume.multiattach:
            connection.note(volume, connector)
        with _translated():
            attachment = self._service.call(lambda c: attach(c, name, host))
        if attachment.HasField("nbd"):
            return self._as_file(volume, attachment)
        return connection.rbd_data(
            attachment, volume.id, self.configuration.safe_get("rbd_secret_uuid")
        )

    def _as_file(self, volume: Any, attachment: attachment_pb2.Attachment) -> dict[str, Any]:
        """Return the connection of a guest of this host."""
        try:
            path = local_disk.offer(self._disk(volume), attachment.nbd)
        except local_disk.DiskError as err:
            with _translated():
                self._service.call(
                    lambda c: connection.detach(c, self._volume(volume), attachment.host)
                )
            raise exception.VolumeBackendAPIException(data=str(err)) from err
        return {
            "driver_volume_type": "gpfs",
            "data": {"volume_id": volume.id, "device_path": str(path), "format": "raw"},
        }

    def terminate_connection(self, volume: Any, connector: Any, **kwargs: Any) -> bool:
        """Take the volume from a host, or from all without a connector.

        Returns:
            Whether the host keeps it, since another guest there may have it, too.
        """
        name = self._volume(volume)
        if volume.multiattach and connection.is_shared_by_guests(volume, connector):
            return True
        of_all = connector is None or not connector.get("host")
        if of_all or local_disk.is_here(connector, self.host):
            local_disk.withdraw(self._disk(volume))
        with _translated():
            if of_all:
                self._service.call(lambda c: connection.detach_all(c, name))
            else:
                host = connection.host_of(connector)
                self._service.call(lambda c: connection.detach(c, name, host))
        return False

    # Manage.

    def manage_existing(self, volume: Any, existing_ref: Any) -> None:
        """Adopt an rbd image in place; its snapshots come along, and may be managed next."""
        name, labels = self._volume(volume), specs.check(volume)
        with _translated():
            self._service.call(lambda c: manage.adopt(c, name, existing_ref, labels))

    def manage_existing_get_size(self, volume: Any, existing_ref: Any) -> int:
        """Return the size of an rbd image in GiB, rounded up."""
        with _translated():
            found = self._service.call(lambda c: manage.find(c, self._parent, existing_ref))
        return manage.size_gib(found.size_bytes)

    def unmanage(self, volume: Any) -> None:
        """Give an rbd image back with its snapshots, called as Cinder calls the volume."""
        name = self._volume(volume)
        with _translated():
            self._service.call(lambda c: manage.release(c, name))

    def get_manageable_volumes(
        self,
        cinder_volumes: Any,
        marker: Any,
        limit: Any,
        offset: Any,
        sort_keys: Any,
        sort_dirs: Any,
    ) -> Any:
        """List the rbd images of the pool that are no volumes, and those that are."""
        with _translated():
            found = self._service.call(
                lambda c: manage.manageable_volumes(c, self._parent, cinder_volumes)
            )
        return volume_utils.paginate_entries_list(
            found, marker, limit, offset, sort_keys, sort_dirs
        )

    def manage_existing_snapshot(self, snapshot: Any, existing_ref: Any) -> None:
        """Give a snapshot that came with its volume the name that Cinder has for it."""
        name = self._snapshot(snapshot)
        with _translated():
            self._service.call(lambda c: manage.rename_snapshot(c, name, existing_ref))

    def manage_existing_snapshot_get_size(self, snapshot: Any, existing_ref: Any) -> int:
        """Return the size of a snapshot in GiB, rounded up."""
        volume = self._snapshot(snapshot).rpartition("/snapshots/")[0]
        with _translated():
            found = self._service.call(lambda c: manage.snapshot(c, volume, existing_ref))
        return manage.size_gib(found.size_bytes)

    def unmanage_snapshot(self, snapshot: Any) -> None:
        """Do nothing: it stays a snapshot of its volume, and goes and comes with that."""

    def get_manageable_snapshots(
        self,
        cinder_snapshots: Any,
        marker: Any,
        limit: Any,
        offset: Any,
        sort_keys: Any,
        sort_dirs: Any,
    ) -> Any:
        """List the snapshots of all volumes of the pool."""
        with _translated():
            found = self._service.call(
                lambda c: manage.manageable_snapshots(c, self._parent, cinder_snapshots)
            )
        return volume_utils.paginate_entries_list(
            found, marker, limit, offset, sort_keys, sort_dirs
        )

    # Names.

    def _location(self) -> str:
        """Return `volcore:ENDPOINT:pools/POOL`: where another backend's pool is, too."""
        return f"volcore:{self.configuration.safe_get('volcore_endpoint')}:{self._parent}"

    @property
    def _parent(self) -> str:
        return f"pools/{self.configuration.safe_get('volcore_pool')}"

    def _volume(self, volume: Any) -> str:
        return f"{self._parent}/volumes/{volume.name}"

    def _disk(self, volume: Any) -> Path:
        """Return where the disk of a local pool's volume is offered."""
        directory: str = self.configuration.safe_get("volcore_disk_directory")
        return Path(directory, volume.name)

    def _snapshot(self, snapshot: Any, volume_name: str = "") -> str:
        name = snapshot.provider_id or snapshot.name
        return f"{self._parent}/volumes/{volume_name or snapshot.volume_name}/snapshots/{name}"

    def _likely_snapshot(self, snapshot: Any) -> str:
        """Return its name without a read of its volume from Cinder's database.

        That takes longer than the clone, and Cinder makes the volumes of a snapshot one by one. A
        volume that was migrated may have another name; no other one has a snapshot of that name.
        """
        return self._snapshot(snapshot, cfg.CONF.volume_name_template % snapshot.volume_id)


_BUSY: Final = (
    Reason.VOLUME_IN_USE,
    Reason.VOLUME_HAS_SNAPSHOTS,
    Reason.SNAPSHOT_IN_GROUP,
    Reason.WRONG_STATE,
)


@contextmanager
def _translated(busy: Exception | None = None) -> Iterator[None]:
    """Raise volcore's errors as Cinder's, with volcore's sentence and request id.

    `busy` is raised where something stands in the way for now.
    """
    try:
        yield
    except VolcoreError as err:
        text = f"{err.message} ({err.reason}, request {err.context.get('request_id', '-')})"
        if busy is not None and isinstance(err, PreconditionError) and err.reason in _BUSY:
            LOG.info("Not done: %s", text)
            raise busy from err
        if err.reason is Reason.TOO_MANY_SNAPSHOTS:
            limit = err.context.get("limit", "volcore's")
            raise exception.SnapshotLimitReached(set_limit=limit) from err
        raise exception.VolumeBackendAPIException(data=text) from err


def _forget(client: Client, name: str) -> VolcoreError | None:
    """Delete what an unanswered create may have made; return why that is not possible now."""
    try:
        client.with_options(timeout_s=CLEANUP_TIMEOUT_S).delete_volume(name)
    except VolcoreError as err:
        return err
    return None


def _delete_volume(client: Client, name: str, *, shared: bool) -> None:
    try:
        connection.delete(client, name, shared=shared)
    except PreconditionError as err:
        if err.reason is not Reason.VOLUME_HAS_SNAPSHOTS:
            raise
        forget(client, name)  # of a killed cinder-volume: Cinder knows of none
        connection.delete(client, name, shared=shared)


def _delete_snapshot(client: Client, name: str) -> None:
    try:
        client.delete_snapshot(name)
    except NotFoundError:  # with its volume
        return
