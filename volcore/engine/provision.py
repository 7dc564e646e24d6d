"""Making volumes, one or many at once: the main job.

On a backend that shares the catalog's store, a whole deployment is one transaction. On others all
records and intents are written in one commit, and the clones are made side by side; see `making`.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import compress
from typing import Final

from volcore import limits
from volcore.backends.contract import SupportsMakeMany
from volcore.engine import warm
from volcore.engine.carrier import first_load
from volcore.engine.changes import settle, settle_leftover
from volcore.engine.making import key_of
from volcore.engine.pool import (
    Known,
    Pool,
    image_lock,
    is_attached,
    now_ns,
    put,
    sync_ahead,
    unchanged,
    volume_lock,
)
from volcore.engine.views import CreateVolume, SourceRef
from volcore.errors import (
    ConflictError,
    InvalidArgumentError,
    NotFoundError,
    OperationPendingError,
    OutOfRangeError,
    Reason,
    VolcoreError,
)
from volcore.model import names
from volcore.model.records import (
    Image,
    Intent,
    IntentAction,
    Record,
    Snapshot,
    Source,
    SourceKind,
    State,
    Volume,
)

CLONES_AT_ONCE: Final = 8
"""librbd's clone rate stops growing between 4 and 16 threads."""
COMBINED_MAX: Final = 16
"""Volumes of one call that goes together with others; nobody waits for larger deployments."""

SourceRecord = Image | Snapshot | Volume | None
_SOURCES: Final[dict[SourceKind, type[Record]]] = {
    SourceKind.IMAGE: Image,
    SourceKind.SNAPSHOT: Snapshot,
    SourceKind.VOLUME: Volume,
}


def deploy(
    pool: Pool,
    image: str,
    volume_names: Sequence[str],
    *,
    size_bytes: int,
    labels: dict[str, str],
) -> list[Volume | VolcoreError]:
    """Create one volume of `image` for each name; see `Volumes.deploy`."""
    if not 1 <= len(volume_names) <= limits.DEPLOY_VOLUMES_MAX:
        raise InvalidArgumentError(
            f"{len(volume_names)} volumes were asked for; ask for 1 to {limits.DEPLOY_VOLUMES_MAX}",
            reason=Reason.BAD_FIELD,
            field="volume_ids",
        )
    if len(set(volume_names)) != len(volume_names):
        raise InvalidArgumentError(
            "a volume name stands twice in the request; name each once",
            reason=Reason.BAD_FIELD,
            field="volume_ids",
        )
    names.check_name(image, field="image")
    if not pool.stock.has(image) and pool.lately(Image, image) is None:
        pool.image(image)
    source = SourceRef(kind=SourceKind.IMAGE, key=image)
    requests = [
        CreateVolume(name=name, source=source, size_bytes=size_bytes, labels=labels)
        for name in volume_names
    ]
    return make(pool, requests)


def make(pool: Pool, requests: Sequence[CreateVolume]) -> list[Volume | VolcoreError]:
    """Make all volumes of one deployment, which have the same source.

    Returns a result for each request, in order. What fails leaves nothing behind.
    """
    results: dict[str, Volume | VolcoreError] = {}
    for request in requests:
        try:
            _check(request)
        except VolcoreError as err:
            results[request.name] = err
    todo = [request for request in requests if request.name not in results]
    if todo:
        exclusive = [volume_lock(request.name) for request in todo]
        with pool.locks.hold(exclusive, _source_locks(todo[0].source)):
            for attempt in (_claim, _make_unseen):
                if todo and not pool.catalog.lately.any_taken([one.name for one in todo]):
                    results |= attempt(pool, todo)
                    todo = [request for request in todo if request.name not in results]
            if todo:
                _make_locked(pool, todo, results)
    return [results[request.name] for request in requests]


def _claim(pool: Pool, requests: Sequence[CreateVolume]) -> Mapping[str, Volume | VolcoreError]:
    """Make all volumes of warm clones if there are enough; nothing is returned for the others."""
    source, size_bytes = requests[0].source, requests[0].size_bytes
    if source is None or source.kind is not SourceKind.IMAGE:
        return {}
    if any(request.size_bytes != size_bytes for request in requests):
        return {}
    try:
        volumes = warm.claim(
            pool,
            source.key,
            size_bytes,
            count=len(requests),
            plan=lambda image, backend_ids: [
                _plan(request, image, backend_id)
                for request, backend_id in zip(requests, backend_ids, strict=True)
            ],
        )
    except VolcoreError as err:
        return {request.name: err for request in requests}
    return {volume.name: volume for volume in volumes or ()}


def _make_unseen(
    pool: Pool, requests: Sequence[CreateVolume]
) -> Mapping[str, Volume | VolcoreError]:
    """Make volumes without a look at the catalog, blank or of a source that was seen lately.

    The commit of the intents checks that there is nothing of their names, and that the source has
    not changed. Returns nothing when that does not hold, or the source is not known: then nothing
    was made, and `_make_locked` looks.
    """
    source = requests[0].source
    if pool.backend.caps.joins_catalog:
        return {}
    found: SourceRecord = None
    if source is not None:
        if source.kind is SourceKind.VOLUME:
            return {}
        seen = pool.lately(_SOURCES[source.kind], source.key)
        assert isinstance(seen, SourceRecord)
        if seen is None:
            return {}
        found = seen
    try:
        planned = [_plan(request, found) for request in requests]
        outcomes = _make_combined(pool, planned, found)
    except (NotFoundError, OperationPendingError, OutOfRangeError):
        return {}
    _note_missed(pool, found, planned)
    return {volume.name: outcome for volume, outcome in zip(planned, outcomes, strict=True)}


def _make_locked(
    pool: Pool, requests: Sequence[CreateVolume], results: dict[str, Volume | VolcoreError]
) -> None:
    """Make the volumes whose names are free; adds to `results`."""
    planned: list[Volume] = []
    found_source: list[SourceRecord] = []
    known = _look_up(pool, requests)
    for request in requests:
        try:
            existing = _existing(pool, request, known)
            if existing is not None:
                results[request.name] = existing
                continue
            if not found_source:
                found_source.append(_resolve(pool, request.source, known))
            planned.append(_plan(request, found_source[0]))
        except VolcoreError as err:
            results[request.name] = err
    if not planned:
        return
    _note_missed(pool, found_source[0], planned)
    try:
        outcomes = _make_combined(pool, planned, found_source[0])
        results |= {volume.name: out for volume, out in zip(planned, outcomes, strict=True)}
    except VolcoreError as err:
        results |= {volume.name: err for volume in planned}


def _note_missed(pool: Pool, source: SourceRecord, planned: Sequence[Volume]) -> None:
    """Tell the stock which clones of an image it did not have."""
    if isinstance(source, Image):
        for size_bytes, count in Counter(volume.size_bytes for volume in planned).items():
            pool.stock.missed(source, size_bytes, count)


def _make_combined(
    pool: Pool, planned: Sequence[Volume], source: SourceRecord
) -> Sequence[Volume | VolcoreError]:
    """Make them, together with those that other calls make of the same source, or blank, now."""
    make = _make_joined if pool.backend.caps.joins_catalog else _make_with_intents
    is_live = isinstance(source, Volume)  # those together show one instant, after all were asked
    if (is_live and not pool.makes_many) or len(planned) > COMBINED_MAX:
        return make(pool, planned, source)
    key = b"" if source is None else source.encode()
    return pool.combiner.run(key, planned, lambda some: make(pool, some, source))


def _make_joined(
    pool: Pool, planned: Sequence[Volume], source: SourceRecord
) -> Sequence[Volume | VolcoreError]:
    """Make all or none in one transaction."""
    if isinstance(source, Volume):
        sync_ahead(pool, [source])
    with pool.catalog.transaction():
        check = [] if source is None else [unchanged(source)]
        pool.catalog.commit([*check, *(put(volume) for volume in planned)])
        for volume in planned:
            _act(pool, volume, source)
    return planned


def _make_with_intents(
    pool: Pool, planned: Sequence[Volume], source: SourceRecord
) -> Sequence[Volume | VolcoreError]:
    """Write all down, make each, then show those that were made; the others leave nothing."""
    intents = [_intent(pool, volume) for volume in planned]
    unwritten = True

    def begin() -> None:
        nonlocal unwritten
        check = [] if source is None else [unchanged(source)]
        try:
            pool.making.commit([*check, *map(put, planned), *map(put, intents)])
        except OperationPendingError:
            raise
        except BaseException:
            unwritten = False  # or nobody knows
            raise
        unwritten = False

    pool.making.begin(intents)
    try:
        outcomes = _act_on_all(pool, planned, source, begin)
    except BaseException:
        (pool.making.unwritten if unwritten else pool.making.failed)(intents)
        raise
    whole = [isinstance(outcome, Volume) for outcome in outcomes]
    pool.making.ended(list(compress(intents, whole)))
    pool.note_made(compress(planned, whole))
    failed = [intent for intent, one in zip(intents, whole, strict=True) if not one]
    pool.making.failed(failed)
    for intent in failed:
        _undo(pool, intent)
    return outcomes


def _act_on_all(
    pool: Pool, planned: Sequence[Volume], source: SourceRecord, begin: Callable[[], None]
) -> list[Volume | VolcoreError]:
    """Make volumes in the backend, all at once where it can; return what became of each.

    `begin` writes the intents down. What it raises is raised, and nothing was made.
    """

    def act(volume: Volume) -> Volume | VolcoreError:
        try:
            _act(pool, volume, source)
        except VolcoreError as err:
            return err
        return volume

    if pool.makes_many is not None:
        return _make_many(pool, pool.makes_many, planned, source, begin)
    begin()
    if len(planned) == 1:
        return [act(planned[0])]
    with ThreadPoolExecutor(CLONES_AT_ONCE) as executor:
        return list(executor.map(act, planned))


def _make_many(
    pool: Pool,
    backend: SupportsMakeMany,
    planned: Sequence[Volume],
    source: SourceRecord,
    begin: Callable[[], None],
) -> list[Volume | VolcoreError]:
    """Make all volumes at once; the intents are written beside the backend's names."""
    targets = {volume.backend_id: volume.size_bytes for volume in planned}
    records = {} if pool.carrier is None else {one.backend_id: first_load(one) for one in planned}
    begun = False

    def reserve() -> None:
        nonlocal begun
        begin()
        begun = True

    try:
        if source is None:
            failed = backend.create_many(targets, reserve=reserve, records=records)
        else:
            origin, point = _place(source)
            attached = isinstance(source, Volume) and is_attached(pool, source.name)
            failed = backend.clone_many(
                origin, point, targets, reserve=reserve, records=records, attached=attached
            )
    except VolcoreError as err:
        if not begun:
            raise
        return [err for _ in planned]
    return [failed.get(volume.backend_id, volume) for volume in planned]


def _undo(pool: Pool, intent: Intent) -> None:
    """Take back what failed; if that fails too, recovery or the repeated call does it."""
    try:
        settle(pool, intent)
    except VolcoreError:
        return


def _act(pool: Pool, volume: Volume, source: SourceRecord) -> None:
    """Make the volume in the backend."""
    if source is None:
        pool.backend.create(volume.backend_id, volume.size_bytes)
    else:
        origin, point = _place(source)
        pool.backend.clone(origin, point, volume.backend_id, volume.size_bytes)


def _place(source: Image | Snapshot | Volume) -> tuple[str, str | None]:
    """Return the volume and the snapshot in the backend; None for a volume as it is."""
    match source:
        case Image():
            return source.backend_volume_id, source.backend_snapshot_id
        case Snapshot():
            return source.backend_volume_id, source.backend_id
        case Volume():
            return source.backend_id, None


def _check(request: CreateVolume) -> None:
    """Refuse what is wrong whatever the state of the pool."""
    names.check_name(request.name, field="volume_id")
    names.check_labels(request.labels)
    if request.size_bytes or request.source is None:
        names.check_size(request.size_bytes)


def _look_up(pool: Pool, requests: Sequence[CreateVolume]) -> Known:
    """Look all names and the source up at once, where that saves round trips."""
    if pool.backend.caps.joins_catalog:
        return {}
    places: list[tuple[type[Record], str]] = [(Volume, request.name) for request in requests]
    source = requests[0].source
    if source is not None and all(map(names.is_name, source.key.split("/"))):
        places.append((_SOURCES[source.kind], source.key))
    return pool.find_many(places)


def _existing(pool: Pool, request: CreateVolume, known: Known) -> Volume | None:
    """Return the volume that an earlier, equal request made; settle what one left half-made."""
    found = pool.find(Volume, request.name, known)
    if found is None:
        return None
    if found.state is not State.READY:
        settle_leftover(pool, found.id)
        found = pool.find(Volume, request.name)
        if found is None:
            return None
    source = found.source
    same_source = (
        source is None
        if request.source is None
        else source is not None
        and (source.kind, source.name) == (request.source.kind, request.source.key)
    )
    if not same_source or found.request_size_bytes != request.size_bytes:
        raise ConflictError(
            f"volume {request.name!r} exists with another source or size; use another name, "
            "or repeat the call with the same parameters",
            reason=Reason.NAME_TAKEN,
            name=request.name,
        )
    return found


def _resolve(pool: Pool, source: SourceRef | None, known: Known) -> SourceRecord:
    """Return the ready record of the source."""
    if source is None:
        return None
    match source.kind:
        case SourceKind.IMAGE:
            return pool.image(names.check_name(source.key, field="image"), known)
        case SourceKind.VOLUME:
            return pool.volume(names.check_name(source.key, field="volume"), known)
        case SourceKind.SNAPSHOT:
            volume, _, snapshot = source.key.partition("/")
            names.check_name(volume, field="volume")
            return pool.snapshot(volume, names.check_name(snapshot, field="snapshot"), known)


def _plan(request: CreateVolume, source: SourceRecord, backend_id: str = "") -> Volume:
    """Return the record of the volume as it will be; without `backend_id` it gets a new one."""
    if source is not None and request.size_bytes and request.size_bytes < source.size_bytes:
        raise OutOfRangeError(
            f"size_bytes {request.size_bytes} is smaller than the source's {source.size_bytes}; "
            "ask for that or more",
            reason=Reason.SHRINK_REFUSED,
            size_bytes=source.size_bytes,
        )
    record_id = names.new_id()
    return Volume(
        name=request.name,
        id=record_id,
        backend_id=backend_id or names.backend_id(request.name, record_id),
        size_bytes=request.size_bytes or (source.size_bytes if source is not None else 0),
        request_size_bytes=request.size_bytes,
        state=State.READY,
        source=_origin(source),
        labels=dict(request.labels),
        create_time_ns=now_ns(),
    )


def _origin(source: SourceRecord) -> Source | None:
    match source:
        case None:
            return None
        case Image():
            kind = SourceKind.IMAGE
        case Snapshot():
            kind = SourceKind.SNAPSHOT
        case Volume():
            kind = SourceKind.VOLUME
    return Source(kind=kind, name=source.key, id=source.id)


def _source_locks(source: SourceRef | None) -> list[str]:
    """Return the locks that keep the source from being deleted meanwhile."""
    if source is None:
        return []
    if source.kind is SourceKind.IMAGE:
        return [image_lock(source.key)]
    return [volume_lock(source.key.partition("/")[0])]


def _intent(pool: Pool, volume: Volume) -> Intent:
    return Intent(
        id=key_of(volume.id),
        action=IntentAction.MAKE_VOLUME,
        subject_key=volume.key,
        subject_id=volume.id,
        backend_volume_id=volume.backend_id,
        owner=pool.server_id,
        create_time_ns=volume.create_time_ns,
    )
