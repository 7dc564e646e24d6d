"""The suite that every server of `volcore.v1` passes, one in production included.

    class TestMine(ApiSanity):
        @pytest.fixture
        def client(self):
            with Client("unix:///run/volcore/volcore.sock") as client:
                yield client

        @pytest.fixture
        def pool(self):
            return "pools/default"

It makes small volumes, snapshots and images whose names begin with `sanity-`, and deletes them
again. What cannot be had on a live endpoint (signals, other clocks) is not tested here.
"""

import contextlib
import secrets
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import pytest

from volcore import limits
from volcore.errors import (
    ConflictError,
    InvalidArgumentError,
    NotFoundError,
    OutOfRangeError,
    PreconditionError,
    Reason,
    VolcoreError,
)
from volcore.testing.api_hosts import CONCURRENT, REPEATS, SIZE, HostsSanity, Stage
from volcore.v1 import attachment_pb2, operation_pb2

BAD_NAMES: Final = ("", "x" * 300, "../x", "a/b", "tab\there", "nul\0", "-dash", "\N{PILE OF POO}")
BAD_SIZES: Final = (-1, -limits.BLOCK_SIZE_BYTES, 4097, 2**63 - 1, 2**63, 65 * limits.TIB)

Act = Callable[[Stage], Any]
MUTATIONS: Final[dict[str, Act]] = {
    "create blank": lambda s: s.client.create_volume(s.volume("n"), size_bytes=SIZE),
    "create from snapshot": lambda s: s.client.create_volume(s.volume("n"), snapshot=s.snapshot),
    "create from image": lambda s: s.client.create_volume(s.volume("n"), image=s.image()),
    "create from volume": lambda s: s.client.create_volume(s.volume("n"), volume=s.volume()),
    "deploy": lambda s: s.client.deploy_volumes(
        s.image(), name_prefix=f"{s.prefix}d", count=3, labels={"a": "b"}
    ),
    "update": lambda s: s.client.update_volume(s.volume(), {"k": "v"}),
    "resize": lambda s: s.client.resize_volume(s.volume(), 2 * SIZE),
    "revert": lambda s: s.client.revert_volume(s.volume(), s.snapshot).size_bytes,
    "delete": lambda s: s.client.delete_volume(s.volume(), force=True),
    "create snapshot": lambda s: s.client.create_snapshot(f"{s.volume()}/snapshots/n"),
    "delete snapshot": lambda s: s.client.delete_snapshot(s.snapshot),
    "publish": lambda s: s.client.publish_image(s.image("n"), s.snapshot),
    "import": lambda s: s.client.import_image(s.image("n"), [b"golden" * 1000]),
    "delete image": lambda s: s.client.delete_image(s.image()),
    "attach": lambda s: s.client.attach_volume(s.volume(), "host-1"),
    "detach": lambda s: s.client.detach_volume(s.volume(), "host-1"),
}


class ApiSanity(HostsSanity):
    """Override `client` and `pool`."""

    @pytest.mark.parametrize("act", MUTATIONS.values(), ids=MUTATIONS)
    def test_repeated(self, stage: Stage, act: Act) -> None:
        """Goal: any mutating call may be repeated blindly. Method: ten times, equal answers."""
        answers = [act(stage) for _ in range(REPEATS)]
        assert all(answer == answers[0] for answer in answers)

    @pytest.mark.parametrize("act", MUTATIONS.values(), ids=MUTATIONS)
    def test_concurrent(self, stage: Stage, act: Act) -> None:
        """Goal: repeats may overlap. Method: eight at once, then equal answers."""
        with ThreadPoolExecutor(CONCURRENT) as threads:
            answers = [f.result() for f in [threads.submit(act, stage) for _ in range(CONCURRENT)]]
        assert all(answer == answers[0] for answer in answers)

    def test_flatten(self, stage: Stage) -> None:
        """Goal: flatten is an operation that can be waited for, and repeated."""
        if not stage.client.get_pool(stage.pool).capabilities.flatten:
            pytest.skip("the pool cannot flatten")
        stage.client.create_volume(stage.volume("n"), image=stage.image())
        for _ in range(2):
            started = stage.client.flatten_volume(stage.volume("n"))
            ended = stage.client.wait_operation(started.name, timeout_s=60)
            assert ended.phase == operation_pb2.OPERATION_PHASE_SUCCEEDED
        assert stage.client.cancel_operation(ended.name) == ended
        assert stage.client.get_operation(ended.name) == ended

    @pytest.mark.parametrize("bad", BAD_NAMES, ids=ascii)
    def test_bad_names(self, stage: Stage, bad: str) -> None:
        """Goal: no bad name gets in anywhere. Method: each one in each place that takes a name."""
        client = stage.client
        calls: list[Callable[[], object]] = [
            lambda: client.create_volume(f"{stage.pool}/volumes/{bad}", size_bytes=SIZE),
            lambda: client.get_volume(f"{stage.pool}/volumes/{bad}"),
            lambda: client.delete_volume(f"{stage.pool}/volumes/{bad}"),
            lambda: client.create_snapshot(f"{stage.volume()}/snapshots/{bad}"),
            lambda: client.get_group_snapshot(f"{stage.pool}/groupSnapshots/{bad}"),
            lambda: client.publish_image(f"{stage.pool}/images/{bad}", stage.snapshot),
            lambda: client.import_image(f"{stage.pool}/images/{bad}", [b"x"]),
            lambda: client.attach_volume(stage.volume(), bad),
            lambda: client.deploy_volumes(stage.image(), [bad]),
            lambda: client.get_pool(f"pools/{bad}"),
        ]
        before = stage.names()
        for call in calls:
            self._refused(call, InvalidArgumentError, Reason.BAD_NAME)
        assert stage.names() == before

    @pytest.mark.parametrize("bad", BAD_SIZES)
    def test_bad_sizes(self, stage: Stage, bad: int) -> None:
        """Goal: no size that cannot be. Method: each one where a size goes."""
        before = stage.names()
        self._refused(
            lambda: stage.client.create_volume(stage.volume("n"), size_bytes=bad),
            OutOfRangeError,
            Reason.SIZE_NOT_ALLOWED,
        )
        self._refused(
            lambda: stage.client.resize_volume(stage.volume(), bad),
            OutOfRangeError,
            Reason.SIZE_NOT_ALLOWED,
        )
        assert stage.names() == before
        assert stage.client.get_volume(stage.volume()).size_bytes == SIZE

    def test_blank_without_size(self, stage: Stage) -> None:
        """Goal: a blank volume needs a size."""
        self._refused(
            lambda: stage.client.create_volume(stage.volume("n")),
            OutOfRangeError,
            Reason.SIZE_NOT_ALLOWED,
        )

    def test_shrink(self, stage: Stage) -> None:
        """Goal: nothing shrinks, by resize or by a clone."""
        self._refused(
            lambda: stage.client.resize_volume(stage.volume(), SIZE // 2),
            OutOfRangeError,
            Reason.SHRINK_REFUSED,
        )
        self._refused(
            lambda: stage.client.create_volume(
                stage.volume("n"), image=stage.image(), size_bytes=SIZE // 2
            ),
            OutOfRangeError,
            Reason.SHRINK_REFUSED,
        )
        assert stage.names() == [stage.volume()]

    def test_unknown(self, stage: Stage) -> None:
        """Goal: what does not exist is named as such; deleting it succeeds."""
        client, gone = stage.client, stage.volume("gone")
        unknown = "pools/sanity-no-such-pool"
        for reason, call in (
            (Reason.POOL_NOT_FOUND, lambda: client.get_pool(unknown)),
            (Reason.POOL_NOT_FOUND, lambda: list(client.list_volumes(unknown))),
            (
                Reason.POOL_NOT_FOUND,
                lambda: client.create_volume(f"{unknown}/volumes/v", size_bytes=SIZE),
            ),
            (Reason.VOLUME_NOT_FOUND, lambda: client.get_volume(gone)),
            (Reason.VOLUME_NOT_FOUND, lambda: client.undelete_volume(gone)),
            (Reason.VOLUME_NOT_FOUND, lambda: client.attach_volume(gone, "h")),
            (Reason.VOLUME_NOT_FOUND, lambda: list(client.list_snapshots(gone))),
            (Reason.SNAPSHOT_NOT_FOUND, lambda: client.get_snapshot(f"{gone}/snapshots/s")),
            (Reason.IMAGE_NOT_FOUND, lambda: client.get_image(stage.image("gone"))),
            (
                Reason.ATTACHMENT_NOT_FOUND,
                lambda: client.get_attachment(f"{stage.volume()}/attachments/h"),
            ),
            (
                Reason.OPERATION_NOT_FOUND,
                lambda: client.get_operation(f"{stage.pool}/operations/none"),
            ),
        ):
            self._refused(call, NotFoundError, reason)
        client.delete_volume(gone)
        client.delete_image(stage.image("gone"))
        client.delete_snapshot(f"{stage.volume()}/snapshots/gone")
        client.detach_volume(stage.volume(), "never-attached")

    def test_other_parameters(self, stage: Stage) -> None:
        """Goal: the same name with other parameters is a conflict, and changes nothing."""
        client = stage.client
        client.attach_volume(stage.volume(), "h")
        before = client.get_volume(stage.volume())
        for call in (
            lambda: client.create_volume(stage.volume(), size_bytes=2 * SIZE),
            lambda: client.create_volume(stage.volume(), image=stage.image()),
            lambda: client.create_snapshot(stage.snapshot, labels={"other": "label"}),
            lambda: client.import_image(stage.image(), [b"other content"]),
            lambda: client.attach_volume(
                stage.volume(), "h", access_mode=attachment_pb2.ACCESS_MODE_READ_ONLY
            ),
        ):
            self._refused(call, ConflictError, Reason.NAME_TAKEN)
        assert client.get_volume(stage.volume()) == before

    def test_source_in_other_pool(self, stage: Stage) -> None:
        """Goal: sources come from the same pool."""
        other = f"pools/other/images/{stage.prefix}i"
        self._refused(
            lambda: stage.client.create_volume(stage.volume("n"), image=other),
            InvalidArgumentError,
            Reason.SOURCE_IN_OTHER_POOL,
        )

    def test_attached(self, stage: Stage) -> None:
        """Goal: what blocks is named. Method: delete and attach again while attached."""
        client = stage.client
        attachment = client.attach_volume(stage.volume(), "h")
        for call in (
            lambda: client.delete_volume(stage.volume(), force=True),
            lambda: client.revert_volume(stage.volume(), stage.snapshot),
            lambda: client.attach_volume(stage.volume(), "other"),
        ):
            error = self._refused(call, PreconditionError, Reason.VOLUME_IN_USE)
            assert [blocker.name for blocker in error.blockers] == [attachment.name]
        assert client.get_attachment(attachment.name) == attachment
        client.detach_volume(stage.volume(), "h")
        error = self._refused(
            lambda: client.delete_volume(stage.volume()),
            PreconditionError,
            Reason.VOLUME_HAS_SNAPSHOTS,
        )
        assert [blocker.name for blocker in error.blockers] == [stage.snapshot]

    def test_deploy_one_by_one(self, stage: Stage) -> None:
        """Goal: each volume of a deployment succeeds or fails by itself, in order."""
        taken = f"{stage.prefix}b"
        stage.client.create_volume(f"{stage.pool}/volumes/{taken}", size_bytes=SIZE)
        results = stage.client.deploy_volumes(
            stage.image(), [f"{stage.prefix}a", taken, f"{stage.prefix}c"]
        )
        assert [isinstance(result, VolcoreError) for result in results] == [False, True, False]
        assert isinstance(results[1], ConflictError)
        assert results[1].context["volume"] == taken
        for bad in ([], ["a", "a"]):
            self._refused(
                lambda bad=bad: stage.client.deploy_volumes(stage.image(), bad),  # type: ignore[misc]
                InvalidArgumentError,
                None,
            )
        self._refused(
            lambda: stage.client.deploy_volumes(stage.image(), name_prefix="x", count=1001),
            OutOfRangeError,
            Reason.BAD_FIELD,
        )

    def test_pages(self, stage: Stage) -> None:
        """Goal: pages of any size show everything once, in order; filters narrow them."""
        made = [stage.volume(f"p{at:02}") for at in range(11)]
        for at, name in enumerate(made):
            stage.client.create_volume(name, size_bytes=SIZE, labels={"odd": str(at % 2)})
        for page_size in (1, 3, 11, 1000):
            listed = [v.name for v in stage.client.list_volumes(stage.pool, page_size=page_size)]
            assert listed == sorted(listed)
            assert [name for name in listed if name in made] == made
        wide = [v.name for v in stage.client.list_volumes("pools/-", page_size=4)]
        assert [name for name in wide if name in made] == made
        odd = stage.client.list_volumes(stage.pool, filter='labels.odd = "1"', page_size=2)
        assert [v.name for v in odd if v.name in made] == made[1::2]
        stage.client.create_volume(stage.volume("n"), image=stage.image())
        chosen = stage.client.list_volumes(stage.pool, filter=f'source = "{stage.image()}"')
        assert [v.name for v in chosen] == [stage.volume("n")]

    def test_bad_lists(self, stage: Stage) -> None:
        """Goal: bad page sizes and filters are refused."""
        self._refused(
            lambda: list(stage.client.list_volumes(stage.pool, page_size=-1)),
            OutOfRangeError,
            Reason.BAD_FIELD,
        )
        for bad in ("colour = 3", 'labels.a = "b" OR x', 'labels.a = "b" AND', "x" * 2000):
            self._refused(
                lambda bad=bad: list(stage.client.list_volumes(stage.pool, filter=bad)),  # type: ignore[misc]
                InvalidArgumentError,
                Reason.BAD_FILTER,
            )

    def test_bad_labels_and_etag(self, stage: Stage) -> None:
        """Goal: labels have limits, and an old etag changes nothing."""
        client = stage.client
        for bad in ({"": "x"}, {"k" * 64: ""}, {"k": "v" * 129}, {"k": "\n"}, {"-": "x"}):
            self._refused(
                lambda bad=bad: client.update_volume(stage.volume(), bad),  # type: ignore[misc]
                InvalidArgumentError,
                Reason.BAD_LABEL,
            )
        old = client.get_volume(stage.volume()).etag
        new = client.update_volume(stage.volume(), {"a": "b"}, etag=old)
        self._refused(
            lambda: client.update_volume(stage.volume(), {"a": "c"}, etag=old),
            VolcoreError,
            Reason.CATALOG_CONFLICT,
        )
        assert client.get_volume(stage.volume()) == new

    def test_import_export(self, stage: Stage, tmp_path: Any) -> None:
        """Goal: bytes come out as they went in. Method: import, export, compare."""
        content = secrets.token_bytes(3 * limits.MIB) + bytes(limits.MIB) + b"end" + bytes(509)
        seen: list[operation_pb2.Operation] = []
        image = stage.client.import_image(
            stage.image("n"), [content[at : at + 70_000] for at in range(0, len(content), 70_000)],
            on_progress=seen.append,
        )  # fmt: skip
        assert image.name == stage.image("n")
        assert seen
        target = tmp_path / "out.raw"
        stage.client.export_image(image.name, target)
        assert target.read_bytes().rstrip(b"\0") == content.rstrip(b"\0")
        assert target.stat().st_size == image.size_bytes

    def test_request_id(self, stage: Stage) -> None:
        """Goal: the client's request id comes back with an error."""
        client = stage.client.with_options(request_id="sanity.1234")
        with pytest.raises(NotFoundError) as caught:
            client.get_volume(stage.volume("gone"))
        assert caught.value.context["request_id"] == "sanity.1234"

    def test_large_message(self, stage: Stage) -> None:
        """Goal: a request of 100 MiB is one clear error. Method: send one."""
        self._refused(
            lambda: stage.client.update_volume(stage.volume(), {"k": "x" * (100 * limits.MIB)}),
            VolcoreError,
            Reason.MESSAGE_TOO_LARGE,
        )

    def test_frames(self, stage: Stage) -> None:
        """Goal: an import that breaks off leaves nothing. Method: a source that fails midway."""

        def broken() -> Iterator[bytes]:
            yield bytes(limits.MIB)
            raise OSError("the source is gone")

        with contextlib.suppress(VolcoreError), pytest.raises(OSError, match="gone"):
            stage.client.import_image(stage.image("n"), broken())
        self._refused(
            lambda: stage.client.get_image(stage.image("n")), NotFoundError, Reason.IMAGE_NOT_FOUND
        )
