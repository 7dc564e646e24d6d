"""What a volume's name does that serves one call at a time: the judge of histories (`linear.py`).

One name is one thing: the volume that has it, its labels and its attachments, which no call of
another name touches. A deployment is one call for each of its names, a list of volumes one look at
each. Who made the volume is known by its uid, which is never used again.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

from volcore.errors import Reason

LOOKS: Final = frozenset({"get", "attachments"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What was asked of a name."""

    kind: str
    """create, update, delete, attach, hand_over, detach, get, attachments."""
    params: str = ""
    """Of create: source and size; a repeat is compared with it."""
    label: str = ""
    seen: tuple[str, str] | None = None
    """Of update: only if nothing has changed since this uid and label were seen."""
    uid: str = ""
    """Of delete: only this one."""
    host: str = ""
    read_only: bool = False
    hand_over_from: str = ""


@dataclass(frozen=True, slots=True)
class Right:
    """An attachment."""

    host: str
    read_only: bool = False
    standby: bool = False
    hand_over_from: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came back: a reason why not, or what there is now."""

    refused: str = ""
    uid: str = ""
    params: str = ""
    label: str = ""
    rights: tuple[Right, ...] = ()
    """Of attach and hand_over the one; of attachments all, by host."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    """A volume; without uid it was made by a call whose answer nobody got or looked at since."""

    params: str
    label: str
    uid: str = ""
    rights: tuple[Right, ...] = ()

    def right(self, host: str) -> Right | None:
        """Return the attachment of a host."""
        return next((one for one in self.rights if one.host == host), None)

    def but(self, *rights: Right) -> "Volume":
        """Return it with these in the place of what their hosts had."""
        kept = {one.host: one for one in (*self.rights, *rights)}
        return replace(self, rights=tuple(kept[host] for host in sorted(kept)))

    @property
    def writers(self) -> int:
        """How many may write."""
        return sum(not one.read_only and not one.standby for one in self.rights)


@dataclass(frozen=True, slots=True)
class State:
    """The volume that has the name, and the uids of those that had it."""

    volume: Volume | None = None
    gone: frozenset[str] = frozenset()


class NameModel:
    """One name in a pool without a trash."""

    start = State()

    def only_looks(self, ask: Ask, answer: Answer) -> bool:
        """See `linear.Model`."""
        return ask.kind in LOOKS or bool(answer.refused)

    def step(self, state: State, ask: Ask, answer: Answer | None) -> Iterable[State]:
        """See `linear.Model`."""
        if ask.kind == "create":
            return _create(state, ask, answer)
        if ask.kind == "delete":
            return _delete(state, ask, answer)
        if state.volume is None:
            missing = answer is None or answer.refused == Reason.VOLUME_NOT_FOUND
            return [state] if missing else []
        if ask.kind in LOOKS:
            return [] if answer is None else _look(state, state.volume, ask, answer)
        why_not, then = _CHANGES[ask.kind](state.volume, ask)
        assert then.writers <= 1, then
        if answer is None:
            return [replace(state, volume=then)]
        if answer.refused or why_not:
            return [state] if answer.refused == why_not else []
        fits = _fits_label if ask.kind == "update" else _fits_right
        return [one for one in _known(state, then, answer.uid) if fits(one.volume, ask, answer)]


def _create(state: State, ask: Ask, answer: Answer | None) -> list[State]:
    volume = state.volume
    if volume is None:
        if answer is None:
            return [replace(state, volume=Volume(params=ask.params, label=ask.label))]
        if answer.refused or answer.uid in state.gone:
            return []
        volume = Volume(params=ask.params, label=ask.label, uid=answer.uid)
        return [replace(state, volume=volume)] if _shows(volume, answer) else []
    if answer is None:
        return [state]
    if volume.params != ask.params or answer.refused:
        other = volume.params != ask.params and answer.refused == Reason.NAME_TAKEN
        return [state] if other else []
    return [one for one in _known(state, volume, answer.uid) if _shows(volume, answer)]


def _delete(state: State, ask: Ask, answer: Answer | None) -> list[State]:
    volume = state.volume
    if volume is None or (ask.uid and volume.uid and ask.uid != volume.uid):
        return [] if answer is not None and answer.refused else [state]
    if volume.rights:
        refused = answer is None or answer.refused == Reason.VOLUME_IN_USE
        found = [state] if refused else []
    elif answer is not None and answer.refused:
        found = []
    else:
        uid = volume.uid or ask.uid
        found = [State(gone=state.gone | {uid} if uid else state.gone)]
    if ask.uid and not volume.uid and not (answer is not None and answer.refused):
        found.append(state)  # it may be another one
    return found


def _look(state: State, volume: Volume, ask: Ask, answer: Answer) -> list[State]:
    if answer.refused:
        return []
    if ask.kind == "attachments":
        return [state] if answer.rights == volume.rights else []
    return [one for one in _known(state, volume, answer.uid) if _shows(volume, answer)]


def _known(state: State, volume: Volume, uid: str) -> list[State]:
    """Return the state with this volume, now that it shows its uid; nothing if it is another's."""
    if not uid or uid == volume.uid:
        return [replace(state, volume=volume)]
    if volume.uid or uid in state.gone:
        return []
    return [replace(state, volume=replace(volume, uid=uid))]


def _shows(volume: Volume, answer: Answer) -> bool:
    return (answer.params, answer.label) == (volume.params, volume.label)


def _fits_label(volume: Volume | None, _ask: Ask, answer: Answer) -> bool:
    return volume is not None and _shows(volume, answer)


def _fits_right(volume: Volume | None, ask: Ask, answer: Answer) -> bool:
    if volume is None or ask.kind == "detach":
        return volume is not None
    return answer.rights == (volume.right(ask.host),)


def _update(volume: Volume, ask: Ask) -> tuple[str, Volume]:
    if ask.seen is not None:
        uid, label = ask.seen
        if volume.label != label or (volume.uid and volume.uid != uid):
            return Reason.OPERATION_PENDING, volume
        volume = replace(volume, uid=uid)
    return "", replace(volume, label=ask.label)


def _attach(volume: Volume, ask: Ask) -> tuple[str, Volume]:
    mine = volume.right(ask.host)
    others = [one for one in volume.rights if one is not mine]
    if mine is not None:
        if mine.read_only != ask.read_only:
            return Reason.NAME_TAKEN, volume
        if ask.hand_over_from and ask.hand_over_from != mine.hand_over_from:
            return Reason.NAME_TAKEN, volume
        waits = mine.standby and not ask.hand_over_from
        return (Reason.VOLUME_IN_USE if waits else ""), volume
    if ask.hand_over_from:
        writer = volume.right(ask.hand_over_from)
        if writer is None or writer.standby or writer.read_only:
            return Reason.WRONG_STATE, volume
        if len(others) > 1:
            return Reason.VOLUME_IN_USE, volume
    elif others and not (ask.read_only and all(one.read_only for one in others)):
        return Reason.VOLUME_IN_USE, volume
    standby = bool(ask.hand_over_from)
    return "", volume.but(Right(ask.host, ask.read_only, standby, ask.hand_over_from))


def _hand_over(volume: Volume, ask: Ask) -> tuple[str, Volume]:
    mine = volume.right(ask.host)
    if mine is None:
        return Reason.ATTACHMENT_NOT_FOUND, volume
    if mine.read_only:
        return Reason.WRONG_STATE, volume
    if not mine.standby:
        return "", volume
    writer = next((one for one in volume.rights if not one.standby), None)
    moved = volume if writer is None else volume.but(replace(writer, standby=True))
    return "", moved.but(replace(mine, standby=False))


def _detach(volume: Volume, ask: Ask) -> tuple[str, Volume]:
    return "", replace(volume, rights=tuple(r for r in volume.rights if r.host != ask.host))


_CHANGES: Final = {
    "update": _update, "attach": _attach, "hand_over": _hand_over, "detach": _detach,
}  # fmt: skip
