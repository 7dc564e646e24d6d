"""Names, errors, page tokens and filters on the wire."""

import contextlib
import dataclasses

import pytest
from google.rpc import status_pb2
from hypothesis import given
from hypothesis import strategies as st

from volcore import errors, limits
from volcore.errors import Blocker, InvalidArgumentError, OutOfRangeError, Reason, VolcoreError
from volcore.model.records import Source, SourceKind, State, Volume
from volcore.v1 import volume_service_pb2 as volumes
from volcore.wire import names, paging, status
from volcore.wire.filter import parse_filter
from volcore.wire.paging import Position

KINDS = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, VolcoreError) and kind is not VolcoreError
]
NAME = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", fullmatch=True)


@given(pool=NAME, volume=NAME, snapshot=NAME)
def test_names_round_trip(pool, volume, snapshot):
    """Goal: a name that is written can be read. Method: any parts."""
    made = names.SnapshotName(pool, volume, snapshot)
    assert names.parse_snapshot(str(made), field="name") == made
    assert names.split_child(str(made), "snapshots") == (
        str(names.VolumeName(pool, volume)),
        snapshot,
    )


@pytest.mark.parametrize(
    "bad",
    ["", "pools", "pools/", "pools/p/volumes/../x", "pools/p/volumes/v/", "/pools/p/volumes/v",
     "pools/p/images/v", "pools/p/volumes/" + "x" * 300, "pools/p/volumes/a\nb"],
)  # fmt: skip
def test_bad_names(bad):
    with pytest.raises(InvalidArgumentError) as caught:
        names.parse_volume(bad, field="name")
    assert caught.value.reason is Reason.BAD_NAME
    assert len(caught.value.message) < 300


def test_wildcards():
    assert names.parse_pools("pools/-", field="parent") is None
    assert names.parse_pools("pools/p", field="parent") == "p"
    assert names.parse_volumes("pools/p/volumes/-", field="parent") == ("p", None)
    assert names.parse_volumes("pools/p/volumes/v", field="parent") == ("p", "v")


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_errors_round_trip(kind):
    """Goal: an error arrives as it was raised. Method: every class, there and back."""
    reason = Reason.BACKEND_IO if kind is errors.BackendIOError else Reason.WRONG_STATE
    blockers = [Blocker("snapshot", "pools/p/volumes/v/snapshots/s")]
    sent = kind("it is so", reason=reason, retryable=True, blockers=blockers, size_bytes=5)
    got = status.from_status(status.to_status(sent, request_id="r1"))
    assert type(got) is kind
    assert (got.message, got.reason, got.retryable) == ("it is so", reason, True)
    assert got.blockers == sent.blockers
    assert got.context == {"size_bytes": "5", "blockers_total": "1", "request_id": "r1"}


def test_details_fit_into_metadata():
    """Goal: no error is too long to arrive. Method: 400 blockers with the longest names."""
    blockers = [Blocker("snapshot", f"pools/{'p' * 100}/{'v' * 100}/{n}") for n in range(400)]
    error = errors.PreconditionError(
        "x" * 5000, reason=Reason.VOLUME_HAS_SNAPSHOTS, blockers=blockers, path="y" * 5000
    )
    abort = status.to_abort(error, request_id="r")
    assert sum(len(key) + len(value) for key, value in abort.trailing_metadata) < 6000
    got = status.from_status(status.to_status(error, request_id="r"))
    assert 0 < len(got.blockers) < 400
    assert got.context["blockers_total"] == "400"


def test_foreign_statuses():
    """Goal: what is not ours becomes ours. Method: bare, unknown and newer statuses."""
    unknown = status.from_status(status_pb2.Status(code=2, message="eh"))
    assert type(unknown) is errors.InvariantViolationError
    gone = status.from_status(status_pb2.Status(code=14, message="no route"))
    assert (gone.reason, gone.retryable) == (Reason.SERVER_UNREACHABLE, True)
    large = status.from_status(
        status_pb2.Status(code=8, message="CLIENT: Sent message larger than max (9 vs. 4)")
    )
    assert large.reason is Reason.MESSAGE_TOO_LARGE
    newer = status.error_of("NOT_FOUND", "SHINY_NEW", "no such thing")
    assert type(newer) is errors.NotFoundError
    assert newer.context["newer_reason"] == "SHINY_NEW"


def test_page_tokens():
    """Goal: a token goes on where its page ended, and only there."""
    request = volumes.ListVolumesRequest(parent="pools/p", filter="labels.a:*", page_size=5)
    token = paging.encode_token(request, Position("p", "v1"), now_s=1000)
    assert paging.decode_token(request, token, now_s=1000) == Position("p", "v1")
    request.page_size = 7
    assert paging.decode_token(request, token, now_s=1000) == Position("p", "v1")
    late_s = 1000 + limits.PAGE_TOKEN_AGE_S_MAX + 1
    other = volumes.ListVolumesRequest(parent="pools/q", filter="labels.a:*")
    for asked, bad, now_s, words in (
        (request, token, late_s, "expired"),
        (request, token, 0, "expired"),
        (other, token, 1000, "another request"),
        (request, "!!!", 1000, "not one"),
        (request, token[:-3], 1000, "not one"),
        (request, "é", 1000, "not one"),
        (request, "x" * 5000, 1000, "not one"),
    ):
        with pytest.raises(InvalidArgumentError, match=words) as caught:
            paging.decode_token(asked, bad, now_s=now_s)
        assert caught.value.reason is Reason.BAD_PAGE_TOKEN


@given(token=st.text(max_size=200))
def test_any_token_is_refused_clearly(token):
    request = volumes.ListVolumesRequest(parent="pools/p")
    with contextlib.suppress(InvalidArgumentError):
        assert paging.decode_token(request, token) == Position()


def test_page_size():
    assert paging.page_size(volumes.ListVolumesRequest()) == limits.PAGE_SIZE_DEFAULT
    assert paging.page_size(volumes.ListVolumesRequest(page_size=10**6)) == limits.PAGE_SIZE_MAX
    with pytest.raises(OutOfRangeError):
        paging.page_size(volumes.ListVolumesRequest(page_size=-1))


VOLUME = Volume(
    name="v", id="1", backend_id="b", size_bytes=4096, state=State.READY, create_time_ns=0,
    source=Source(kind=SourceKind.SNAPSHOT, name="w/s", id="2"),
    labels={"a": "b", "team/x": 'say "hi" AND \\go'},
)  # fmt: skip


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('labels.a = "b"', True),
        ('labels.a="c"', False),
        ("labels.a:*", True),
        ("labels.z:*", False),
        ('labels.team/x = "say \\"hi\\" AND \\\\go"', True),
        ('source = "pools/p/volumes/w/snapshots/s"', True),
        ('source = "pools/q/volumes/w/snapshots/s"', False),
        ('source = "pools/p/volumes/w/snapshots/s" AND labels.a:*  AND  labels.a = "b"', True),
        ('labels.a:* AND labels.a = "c"', False),
    ],
)
def test_filters(text, expected):
    wanted = parse_filter(text)
    assert wanted is not None
    assert wanted("p", VOLUME) is expected
    assert not wanted("p", dataclasses.replace(VOLUME, source=None, labels={}))


@given(text=st.text(max_size=100))
def test_any_filter_is_judged_clearly(text):
    with contextlib.suppress(InvalidArgumentError):
        assert (parse_filter(text) is None) is (not text.strip())
