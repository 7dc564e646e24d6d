"""The records of a pool as an audit compares them, and what contradicts itself among them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, TypeVar

from volcore.engine.pool import Pool, group_lock, image_lock, volume_lock
from volcore.errors import PreconditionError
from volcore.limits import AUDIT_FAULTS_MAX
from volcore.model.faults import Fault, FaultKind
from volcore.model.fences import FencedHost
from volcore.model.records import (
    Attachment,
    GroupSnapshot,
    Health,
    Image,
    Intent,
    IntentAction,
    Kind,
    Operation,
    Record,
    Snapshot,
    State,
    TrashedVolume,
    Volume,
    WarmClone,
)

R = TypeVar("R", bound=Record)
_PAGE: Final = 1000
_ALL: Final[tuple[type[Record], ...]] = (
    Volume,
    Snapshot,
    GroupSnapshot,
    Image,
    Attachment,
    Operation,
    Intent,
    TrashedVolume,
    Health,
    WarmClone,
    FencedHost,
)
assert {one.KIND for one in _ALL} == set(Kind)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """The record that names a volume of the backend."""

    resource: str
    key: str
    size_bytes: int | None = None
    """None: not compared."""
    is_needed: bool = True
    """False: it may not exist yet, or any more."""
    is_volume: bool = False
    is_warm: bool = False
    kind: Kind | None = None
    """Of a record that its storage carries."""


class Records:
    """What the catalog says, read once."""

    def __init__(self, at: Pool) -> None:
        self._at = at
        self.count = 0
        self.references: dict[str, Reference] = {}
        """By the id in the backend."""
        self.snapshots: dict[str, dict[str, str]] = {}
        """Resource names of the snapshots of each volume, by their ids in the backend."""
        self.busy: set[str] = set()
        """Volumes of the backend that an intent names: they are being changed."""
        self._found: list[Fault] = []
        self._newer: list[Fault] = []
        self._unread: dict[tuple[str, str], bytes] = {}
        """Of newer servers, and not even readable."""
        self._subjects: set[str] = set()
        self._volume_ids: dict[str, str] = {}
        self._image_ids: set[str] = set()
        self._read()

    def faults(self) -> Iterator[Fault]:
        """Yield what is wrong among the records."""
        yield from self._found

    def newer_faults(self) -> Iterator[Fault]:
        """Yield what is of a newer server."""
        yield from self._newer

    @property
    def is_sure(self) -> bool:
        """Whether all records could be read: else what none names may be named all the same."""
        return not self._unread

    def is_named_unread(self, backend_id: str) -> bool:
        """Return whether a record that cannot be read has these words in it."""
        words = backend_id.encode()
        return any(words in raw for raw in self._unread.values())

    def _look_for_newer(self) -> None:
        for record in _ALL:
            after = ""
            while page := self._at.catalog.list(record.KIND, after=after, limit=_PAGE):
                after = page[-1][0]
                for key, raw in page:
                    self._take_raw(record, key, raw)
        for kind, key, raw in self._at.catalog.unknown(AUDIT_FAULTS_MAX):
            self._unread[kind, key] = raw
            self._note_newer(kind, key, f"There is no kind {kind!r} for this server")

    def _take_raw(self, record: type[Record], key: str, raw: bytes) -> None:
        try:
            added = record.decode(raw, key).added
        except PreconditionError as err:
            self._unread[record.KIND, key] = raw
            self._note_newer(record.KIND, key, err.message)
            return
        if added:
            self._note_newer(record.KIND, key, f"It has {', '.join(added)}; it can be read only")

    def _note_newer(self, kind: str, key: str, why: str) -> None:
        self._newer.append(
            Fault(
                kind=FaultKind.RECORD_NEWER,
                concerns=f"{kind} {key}",
                key=key,
                meaning=f"A newer server has written it: {why.rstrip('.')}.",
                remedy="Not repaired: it is left alone, byte for byte; check with that server.",
            )
        )

    def _read(self) -> None:
        self._look_for_newer()
        running = {one.subject_id for one in self._each(Operation) if not one.finished}
        for intent in self._each(Intent):
            self._take_intent(intent, running)
        for volume in self._each(Volume):
            self._take_volume(volume)
        for snapshot in self._each(Snapshot):
            self._take_snapshot(snapshot)
        for trashed in self._each(TrashedVolume):
            self._take_trashed(trashed)
        for image in self._each(Image):
            self._take_image(image)
        for clone in self._each(WarmClone):
            self._take_warm(clone)
        for attachment in self._each(Attachment):
            self._take_attachment(attachment)
        for _ in self._each(FencedHost):
            pass  # it contradicts nothing: the server looks after it by itself

    def _each(self, record: type[R]) -> Iterator[R]:
        after = ""
        while page := self._at.list(record, after=after, limit=_PAGE, leave_newer=True):
            yield from page
            after = page[-1].key
            self.count += len(page)

    def _take_intent(self, intent: Intent, running: set[str]) -> None:
        self.busy.add(intent.backend_volume_id)
        self._subjects.add(intent.subject_id)
        at = self._at
        if intent.added:
            return
        if (
            not running.isdisjoint({intent.id, intent.subject_id})
            or at.locks.is_held(lock_of(intent))
            or (at.making.hides(intent.subject_id) and not at.making.has_failed(intent.subject_id))
        ):
            return
        self._found.append(
            Fault(
                kind=FaultKind.INTENT_WITHOUT_OWNER,
                concerns=f"intent {intent.id}",
                part=str(intent.create_time_ns),
                key=intent.key,
                meaning=f"{intent.action} of {intent.subject_key!r} was begun by server "
                f"{intent.owner!r} and not ended; nobody works on it.",
                remedy="It is settled as the next start of a server would: a creation is taken "
                "back unless it is whole, all else is carried out.",
                mendable=True,
            )
        )

    def _take_volume(self, volume: Volume) -> None:
        resource = f"pools/{self._at.name}/volumes/{volume.name}"
        self._volume_ids[volume.name] = volume.id
        self.references[volume.backend_id] = Reference(
            resource=resource,
            key=volume.key,
            size_bytes=volume.size_bytes,
            is_needed=self._is_ready(volume, resource),
            is_volume=True,
            kind=Kind.VOLUME,
        )

    def _take_snapshot(self, snapshot: Snapshot) -> None:
        resource = f"pools/{self._at.name}/volumes/{snapshot.volume}/snapshots/{snapshot.name}"
        if (Kind.VOLUME, snapshot.volume) in self._unread:
            return
        if self._volume_ids.get(snapshot.volume) != snapshot.volume_id:
            self._found.append(
                Fault(
                    kind=FaultKind.SNAPSHOT_WITHOUT_VOLUME,
                    concerns=resource,
                    key=snapshot.key,
                    part=snapshot.id,
                    meaning="It is a snapshot of a volume that has no record any more.",
                    remedy="Its record is deleted if the storage has no such snapshot; else it is "
                    "left, and the volume's record must be restored.",
                    mendable=True,
                )
            )
        elif self._is_ready(snapshot, resource):
            known = self.snapshots.setdefault(snapshot.backend_volume_id, {})
            known[snapshot.backend_id] = resource

    def _take_trashed(self, trashed: TrashedVolume) -> None:
        volume = trashed.volume
        resource = f"pools/{self._at.name}/volumes/{volume.name} in the trash"
        self.references[volume.backend_id] = Reference(
            resource=resource, key=trashed.key, size_bytes=volume.size_bytes, kind=Kind.TRASH
        )
        self.snapshots[volume.backend_id] = {
            one.backend_id: f"{resource}, its snapshot {one.name}" for one in trashed.snapshots
        }

    def _take_image(self, image: Image) -> None:
        resource = f"pools/{self._at.name}/images/{image.name}"
        is_ready = self._is_ready(image, resource)
        self._image_ids.add(image.id)
        self.references[image.backend_volume_id] = Reference(
            resource=resource, key=image.key, is_needed=is_ready, kind=Kind.IMAGE
        )
        if is_ready:
            known = {image.backend_snapshot_id: f"{resource}, its content"}
            self.snapshots[image.backend_volume_id] = known

    def _take_warm(self, clone: WarmClone) -> None:
        resource = f"warm clone {clone.key}"
        self.references[clone.backend_id] = Reference(
            resource=resource,
            key=clone.key,
            size_bytes=clone.size_bytes,
            is_needed=clone.state is State.READY and clone.image_id in self._image_ids,
            is_warm=True,
        )
        if (Kind.IMAGE, clone.image) in self._unread:
            return
        if clone.image_id not in self._image_ids and not self._at.stock.holds(clone.id):
            self._found.append(
                Fault(
                    kind=FaultKind.WARM_CLONE_WITHOUT_IMAGE,
                    concerns=resource,
                    key=clone.key,
                    part=clone.image_id,
                    meaning="The image of this clone, which no volume uses yet, is gone.",
                    remedy="The clone is deleted; nobody has ever written to it.",
                    mendable=True,
                )
            )

    def _take_attachment(self, attachment: Attachment) -> None:
        if self._volume_ids.get(attachment.volume) == attachment.volume_id:
            return
        if (Kind.VOLUME, attachment.volume) in self._unread:
            return
        self._found.append(
            Fault(
                kind=FaultKind.ATTACHMENT_WITHOUT_VOLUME,
                concerns=f"pools/{self._at.name}/volumes/{attachment.volume}/attachments/"
                f"{attachment.host}",
                key=attachment.key,
                part=attachment.volume_id,
                meaning=f"Host {attachment.host!r} is attached to a volume that is gone.",
                remedy="The attachment's record is deleted.",
                mendable=True,
            )
        )

    def _is_ready(self, record: Volume | Snapshot | Image, resource: str) -> bool:
        """Return whether a record's storage must exist; one in between needs an intent."""
        if record.state is State.READY:
            return True
        hidden = isinstance(record, Volume) and self._at.making.hides(record.id)
        explained = hidden or record.id in self._subjects or self.is_named_unread(record.id)
        if not explained:
            self._found.append(
                Fault(
                    kind=FaultKind.RECORD_WITHOUT_INTENT,
                    concerns=resource,
                    key=record.key,
                    part=record.id,
                    meaning=f"Its record says {record.state}, but no intent says what was being "
                    "done with it.",
                    remedy="Not repaired: whether its storage is whole is not known; look at it, "
                    "and restore the record from an export or delete it with volcore.",
                )
            )
        return False


def lock_of(intent: Intent) -> str:
    """Return the lock key of what an intent changes."""
    match intent.action:
        case IntentAction.CREATE_IMAGE | IntentAction.DELETE_IMAGE:
            return image_lock(intent.subject_key)
        case IntentAction.CREATE_GROUP_SNAPSHOT | IntentAction.DELETE_GROUP_SNAPSHOT:
            return group_lock(intent.subject_key)
    return volume_lock(intent.subject_key.partition("/")[0])
