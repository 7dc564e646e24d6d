"""The part of the API suite about hosts, groups and checks, and what all of it stands on.

See `api_sanity`.
"""

import secrets
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import pytest

from volcore import limits
from volcore.client import Client
from volcore.errors import (
    ConflictError,
    InvalidArgumentError,
    NotFoundError,
    NotSupportedError,
    OutOfRangeError,
    PreconditionError,
    Reason,
    VolcoreError,
)
from volcore.v1 import attachment_pb2, fenced_host_pb2, group_snapshot_pb2, operation_pb2

SIZE: Final = 8 * limits.MIB
REPEATS: Final = 10
CONCURRENT: Final = 8


@dataclass(frozen=True, slots=True)
class Stage:
    """One test's own volume, snapshot and image, and names for more."""

    client: Client
    pool: str
    prefix: str

    def volume(self, name: str = "v") -> str:
        """Return a volume name of this test."""
        return f"{self.pool}/volumes/{self.prefix}{name}"

    def image(self, name: str = "i") -> str:
        """Return an image name of this test."""
        return f"{self.pool}/images/{self.prefix}{name}"

    def group(self, name: str = "g") -> str:
        """Return a group snapshot name of this test."""
        return f"{self.pool}/groupSnapshots/{self.prefix}{name}"

    @property
    def snapshot(self) -> str:
        """Name of the snapshot of the own volume."""
        return f"{self.volume()}/snapshots/s"

    def names(self) -> list[str]:
        """Return the names of the volumes of this test."""
        all_names = (volume.name for volume in self.client.list_volumes(self.pool))
        return [name for name in all_names if name.startswith(self.volume(""))]

    def clear(self) -> None:
        """Delete everything that this test has made."""
        for attachment in self.client.list_attachments(f"{self.pool}/volumes/-"):
            volume = attachment.name.partition("/attachments/")[0]
            if volume.startswith(self.volume("")):
                self.client.detach_volume(volume, attachment.host)
        for group in list(self.client.list_group_snapshots(self.pool)):
            if group.name.startswith(self.group("")):
                self.client.delete_group_snapshot(group.name)
        for name in self.names():
            self.client.delete_volume(name, force=True)
        for image in list(self.client.list_images(self.pool)):
            if image.name.startswith(self.image("")):
                self.client.delete_image(image.name)


class HostsSanity:
    """Group snapshots, checks and hand-overs, for `ApiSanity`; override `client` and `pool`."""

    @pytest.fixture
    def client(self) -> Iterator[Client]:
        """A client of the server under test."""
        raise NotImplementedError

    @pytest.fixture
    def pool(self) -> str:
        """Name of the pool to work in."""
        raise NotImplementedError

    @pytest.fixture
    def stage(self, client: Client, pool: str) -> Iterator[Stage]:
        """A volume with a snapshot, and an image of that."""
        stage = Stage(client, pool, f"sanity-{secrets.token_hex(4)}-")
        client.create_volume(stage.volume(), size_bytes=SIZE)
        client.create_snapshot(stage.snapshot)
        client.publish_image(stage.image(), stage.snapshot)
        try:
            yield stage
        finally:
            stage.clear()

    def test_group_snapshot(self, stage: Stage) -> None:
        """Goal: groups are made and deleted as a whole, blindly repeatable. Method: both, often."""
        client, volumes = stage.client, [stage.volume(), stage.volume("n")]
        client.create_volume(volumes[1], size_bytes=SIZE)

        def create() -> group_snapshot_pb2.GroupSnapshot:
            return client.create_group_snapshot(stage.group(), volumes, labels={"a": "b"})

        if not client.get_pool(stage.pool).capabilities.group_snapshot:
            self._refused(create, NotSupportedError, Reason.CAPABILITY_ABSENT)
            return
        with ThreadPoolExecutor(CONCURRENT) as threads:
            made = [f.result() for f in [threads.submit(create) for _ in range(CONCURRENT)]]
        assert all(one == made[0] for one in [*made, client.get_group_snapshot(stage.group())])
        names = sorted(f"{volume}/snapshots/{stage.prefix}g" for volume in volumes)
        assert [snapshot.name for snapshot in made[0].snapshots] == names
        assert client.get_snapshot(names[0]).group_snapshot == stage.group()
        listed = client.list_group_snapshots(stage.pool, page_size=1)
        assert [g for g in listed if g.name == stage.group()] == made[:1]
        self._refused(
            lambda: client.create_group_snapshot(stage.group(), volumes[:1], labels={"a": "b"}),
            ConflictError,
            Reason.NAME_TAKEN,
        )
        error = self._refused(
            lambda: client.delete_snapshot(names[0]), PreconditionError, Reason.SNAPSHOT_IN_GROUP
        )
        assert [blocker.name for blocker in error.blockers] == [stage.group()]
        for _ in range(REPEATS):
            client.delete_group_snapshot(stage.group())
        assert not list(client.list_snapshots(volumes[1]))

    def test_verify(self, stage: Stage) -> None:
        """Goal: checks are operations; a pool without checksums of ours says so."""
        client = stage.client
        able = client.get_pool(stage.pool).capabilities.verify
        checks: tuple[Callable[[], operation_pb2.Operation], ...] = (
            lambda: client.verify_volume(stage.volume(), heal=True),
            lambda: client.verify_snapshot(stage.snapshot, heal=True),
            lambda: client.verify_image(stage.image(), heal=True),
            lambda: client.scrub_pool(stage.pool, heal=True),
        )
        for start in checks:
            if not able:
                with pytest.raises(NotSupportedError) as caught:
                    start()
                assert caught.value.reason is Reason.CAPABILITY_ABSENT
                continue
            ended = client.wait_operation(start().name, timeout_s=60)
            assert ended.phase == operation_pb2.OPERATION_PHASE_SUCCEEDED
            assert ended.check.heal
            assert ended.check.bad_block_count == 0
        with pytest.raises(OutOfRangeError if able else NotSupportedError):
            client.scrub_pool(stage.pool, max_rate_bytes=-1)
        with pytest.raises(NotFoundError if able else NotSupportedError):
            client.verify_volume(stage.volume("unknown"))

    def test_check_pool(self, stage: Stage) -> None:
        """Goal: a pool in use has no faults, however often it is asked."""
        client = stage.client
        for repair in (False, True):
            found = client.check_pool(stage.pool, repair=repair, objects=True)
            assert found.faults == []
            assert found.end.record_count > 0
        with pytest.raises(NotFoundError):
            client.check_pool("pools/unknown")

    def test_export_catalog(self, stage: Stage) -> None:
        """Goal: an export is whole, and is not put into a pool that is in use."""
        client = stage.client
        data = client.export_catalog(stage.pool)
        assert data.startswith(b'{"format":"volcore.catalog"')
        assert stage.volume().rpartition("/")[2].encode() in data
        client.create_volume(stage.volume("later"), size_bytes=SIZE)
        with pytest.raises((PreconditionError, NotSupportedError)):
            client.import_catalog(stage.pool, data)
        with pytest.raises((InvalidArgumentError, NotSupportedError)):
            client.import_catalog(stage.pool, b"")
        with pytest.raises(NotFoundError):
            client.export_catalog("pools/unknown")

    def test_rebuild_catalog(self, stage: Stage) -> None:
        """Goal: a catalog in use stays as it is. Method: rebuild where that is known, compare."""
        client = stage.client
        stage.volume()
        before = client.export_catalog(stage.pool).splitlines()[1:-1]
        with suppress(NotSupportedError):
            found = client.rebuild_catalog(stage.pool)
            assert found.faults == []
            assert found.end is not None
            assert found.end.record_count == len(before)
        assert client.export_catalog(stage.pool).splitlines()[1:-1] == before
        with pytest.raises(NotFoundError):
            client.rebuild_catalog("pools/unknown")

    def test_hand_over(self, stage: Stage) -> None:
        """Goal: one host may write, whatever is repeated. Method: hand over and back, then end."""
        client, volume = stage.client, stage.volume()
        client.attach_volume(volume, "a")

        def prepare() -> attachment_pb2.Attachment:
            return client.attach_volume(volume, "b", hand_over_from="a")

        made = [prepare() for _ in range(REPEATS)]
        assert all(one == made[0] for one in made)
        assert made[0].state == attachment_pb2.ATTACHMENT_STATE_STANDBY
        for host in ("b", "a", "b"):
            with ThreadPoolExecutor(CONCURRENT) as threads:
                calls = [
                    threads.submit(client.hand_over_volume, volume, host) for _ in range(CONCURRENT)
                ]
                assert len({call.result().SerializeToString() for call in calls}) == 1
            active = [
                one.host
                for one in client.list_attachments(volume)
                if one.state == attachment_pb2.ATTACHMENT_STATE_ACTIVE
            ]
            assert active == [host]
        self._refused(
            lambda: client.attach_volume(volume, "a"), PreconditionError, Reason.VOLUME_IN_USE
        )
        self._refused(
            lambda: client.hand_over_volume(volume, "c"),
            NotFoundError,
            Reason.ATTACHMENT_NOT_FOUND,
        )

    def test_fence(self, stage: Stage) -> None:
        """Goal: a fenced host loses its volume for good. Method: fence, take it, unfence, often."""
        client, volume = stage.client, stage.volume()
        host = f"{stage.prefix}h"
        name = f"{stage.pool}/fencedHosts/{host}"
        client.attach_volume(volume, host)
        plan = client.plan_fence(stage.pool, host)
        assert list(plan.attachments) == [f"{volume}/attachments/{host}"]
        assert not plan.clients
        self._refused(
            lambda: client.fence_host(stage.pool, host, etag="x"),
            PreconditionError,
            Reason.FENCE_UNCONFIRMED,
        )
        with pytest.raises(NotFoundError):
            client.get_fenced_host(name)

        def fence() -> fenced_host_pb2.FencedHost:
            return client.fence_host(stage.pool, host, etag=plan.etag, host_is_off=True)

        with ThreadPoolExecutor(CONCURRENT) as threads:
            calls = [threads.submit(fence) for _ in range(CONCURRENT)]
            made = [call.result() for call in calls]
        assert all(one == made[0] for one in [*made, fence(), client.get_fenced_host(name)])
        assert made[0].state == fenced_host_pb2.FENCED_HOST_STATE_FENCED
        assert list(made[0].volumes) == [volume]
        assert made[0] in list(client.list_fenced_hosts(stage.pool, page_size=1))
        assert not list(client.list_attachments(volume))
        self._refused(
            lambda: client.attach_volume(volume, host), PreconditionError, Reason.HOST_FENCED
        )
        client.attach_volume(volume, "other")
        for _ in range(REPEATS):
            client.unfence_host(name)
        self._refused(
            lambda: client.attach_volume(volume, host), PreconditionError, Reason.VOLUME_IN_USE
        )
        for address in ("x", "10.0.0.300", "10.0.0.1:x/1", "", "a/b"):
            with pytest.raises(InvalidArgumentError):
                client.plan_fence(stage.pool, host, client_addresses=[address])
        with pytest.raises(OutOfRangeError):
            client.plan_fence(stage.pool, host, client_addresses=["10.0.0.1"] * 65)
        for bad in ("", "a/b", "-x"):
            with pytest.raises(InvalidArgumentError):
                client.plan_fence(stage.pool, bad)

    def _refused(
        self,
        call: Callable[[], object],
        kind: type[VolcoreError],
        reason: Reason | None,
    ) -> VolcoreError:
        """Expect `call` to fail with one clear sentence, and return the error."""
        with pytest.raises(kind) as caught:
            call()
        error = caught.value
        assert reason is None or error.reason is reason, error
        assert error.message.strip()
        assert "\n" not in error.message
        assert "Traceback" not in error.message
        return error
