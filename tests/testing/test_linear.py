"""The checker of histories: it finds what is planted, and agrees with brute force."""

import random
import time
from dataclasses import replace
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from volcore.errors import Reason
from volcore.testing.linear import Call, check
from volcore.testing.volume_model import Answer, Ask, NameModel, Right

MODEL = NameModel()
BLANK = Ask(kind="create", params="blank", label="l0")
OTHER = Ask(kind="create", params="image", label="l9")
GET = Ask(kind="get")
DELETE = Ask(kind="delete")
MISSING = Answer(refused=Reason.VOLUME_NOT_FOUND)
DONE = Answer()
TAKEN = Answer(refused=Reason.NAME_TAKEN)
B_WRITES = Right("b", hand_over_from="a")


def shown(uid="u1", params="blank", label="l0"):
    return Answer(uid=uid, params=params, label=label)


def update(label, seen=None):
    return Ask(kind="update", label=label, seen=seen)


def attach(host, source="", *, read_only=False):
    return Ask(kind="attach", host=host, hand_over_from=source, read_only=read_only)


def right(host, *, standby=False, source="", read_only=False):
    return Answer(rights=(Right(host, read_only, standby, source),))


def history(*calls):
    """Calls are (begin, end, ask, answer); an end of None means that nobody got the answer."""
    return [
        Call(begin, begin if end is None else end, ask, None if end is None else answer, f"c{n}")
        for n, (begin, end, ask, answer) in enumerate(calls)
    ]


CREATED = (0, 1, BLANK, shown())
VIOLATIONS = {
    "lost update": [
        CREATED,
        (2, 3, update("l1"), shown(label="l1")),
        (4, 5, update("l2", seen=("u1", "l0")), shown(label="l2")),
    ],
    "stale read": [
        CREATED,
        (2, 3, update("l1"), shown(label="l1")),
        (4, 5, GET, shown()),
    ],
    "two winners of a name": [
        (0, 9, BLANK, shown()),
        (1, 8, OTHER, shown("u2", "image", "l9")),
        (10, 11, GET, shown()),
    ],
    "two volumes of a name": [
        (0, 9, BLANK, shown()),
        (1, 8, BLANK, shown("u2")),
    ],
    "two writers attached": [
        CREATED,
        (2, 9, attach("a"), right("a")),
        (3, 8, attach("b"), right("b")),
    ],
    "two writers after a hand-over": [
        CREATED,
        (2, 3, attach("a"), right("a")),
        (4, 5, attach("b", "a"), right("b", standby=True, source="a")),
        (6, 7, Ask(kind="hand_over", host="b"), right("b", source="a")),
        (8, 9, attach("a"), right("a")),
    ],
    "resurrected delete": [
        CREATED,
        (2, 3, DELETE, DONE),
        (4, 5, GET, shown()),
    ],
    "resurrected behind a new one": [
        CREATED,
        (2, 3, DELETE, DONE),
        (4, None, BLANK, None),
        (5, 6, GET, shown()),
    ],
    "a volume lost": [CREATED, (2, 3, GET, MISSING)],
    "a volume nobody made": [(0, 1, GET, shown())],
    "a label that nobody wrote": [CREATED, (2, 3, GET, shown(label="l7"))],
    "deleted though attached": [
        CREATED,
        (2, 3, attach("a"), right("a")),
        (4, 5, DELETE, DONE),
    ],
    "an attachment lost": [
        CREATED,
        (2, 3, attach("a"), right("a")),
        (4, 5, Ask(kind="attachments"), DONE),
    ],
    "in use by nobody": [CREATED, (2, 3, DELETE, Answer(refused=Reason.VOLUME_IN_USE))],
    "refused for a taken name that is free": [
        (0, 1, BLANK, Answer(refused=Reason.NAME_TAKEN)),
    ],
    "a delete of another one": [
        CREATED,
        (2, 3, Ask(kind="delete", uid="u0"), DONE),
        (4, 5, GET, MISSING),
    ],
    "two reads that go back": [
        CREATED,
        (2, 20, update("l1"), shown(label="l1")),
        (3, 4, GET, shown(label="l1")),
        (5, 6, GET, shown()),
    ],
    "an unanswered delete before it was asked": [
        CREATED,
        (2, 3, GET, MISSING),
        (4, None, DELETE, None),
    ],
}
RIGHT = {
    "unanswered create, seen late": [
        (0, None, BLANK, None),
        (1, 2, GET, MISSING),
        (3, 4, GET, shown()),
        (5, 6, DELETE, DONE),
        (7, 8, GET, MISSING),
    ],
    "unanswered delete takes effect late": [
        CREATED,
        (2, None, DELETE, None),
        (3, 4, GET, shown()),
        (5, 6, GET, MISSING),
        (7, 8, BLANK, shown("u2")),
    ],
    "a repeated create": [CREATED, (2, 3, BLANK, shown()), (4, 5, OTHER, TAKEN)],
    "overlap: either may be first": [
        (0, 9, BLANK, shown()),
        (0, 9, GET, MISSING),
        (0, 9, update("l1"), shown(label="l1")),
        (1, 2, GET, MISSING),
    ],
    "attach, hand over, back, detach": [
        CREATED,
        (2, 3, attach("a"), right("a")),
        (4, 5, attach("c"), Answer(refused=Reason.VOLUME_IN_USE)),
        (6, 7, attach("b", "a"), right("b", standby=True, source="a")),
        (8, 9, Ask(kind="hand_over", host="b"), right("b", source="a")),
        (10, 11, Ask(kind="attachments"), Answer(rights=(Right("a", standby=True), B_WRITES))),
        (12, 13, Ask(kind="hand_over", host="a"), right("a")),
        (14, 15, Ask(kind="detach", host="a"), DONE),
        (16, 17, Ask(kind="detach", host="b"), DONE),
        (18, 19, attach("c", read_only=True), right("c", read_only=True)),
        (20, 21, attach("d", read_only=True), right("d", read_only=True)),
        (22, 23, DELETE, Answer(refused=Reason.VOLUME_IN_USE)),
    ],
    "a delete that ends in vain may have come before": [
        (0, 5, DELETE, DONE),
        (1, 2, BLANK, shown()),
        (6, 7, GET, shown()),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", VIOLATIONS)
def test_planted(name):
    """Goal: what must not be is found. Method: one history each, which ends with it."""
    found = check(history(*VIOLATIONS[name]), MODEL)
    assert found is not None
    assert "cannot be" in str(found)


@pytest.mark.parametrize("name", RIGHT)
def test_right(name):
    """Goal: what may be passes. Method: histories with overlap and without answers."""
    assert check(history(*RIGHT[name]), MODEL) is None


ASKS = (
    BLANK, OTHER, GET, DELETE, Ask(kind="delete", uid="u1"), update("l1"), update("l2"),
    update("l3", seen=("u1", "l1")), attach("a"), attach("b"), attach("b", "a"),
    Ask(kind="hand_over", host="b"), Ask(kind="detach", host="a"), Ask(kind="attachments"),
)  # fmt: skip
REFUSALS = (Reason.VOLUME_NOT_FOUND, Reason.VOLUME_IN_USE, Reason.NAME_TAKEN, Reason.WRONG_STATE)
SHOWN = [
    shown(uid, params, label)
    for uid in ("u1", "u2")
    for params, label in (("blank", "l0"), ("blank", "l1"), ("image", "l9"))
]
RIGHTS = [right("a"), right("b"), right("b", standby=True, source="a"), right("b", source="a")]
ANSWERS = [DONE, MISSING, *(Answer(refused=one) for one in REFUSALS[1:]), *SHOWN, *RIGHTS]


def suits(ask, answer):
    """Leave out answers of another kind of call, so that more of what is drawn is nearly right."""
    if answer.refused:
        return ask.kind != "create" or answer.refused == Reason.NAME_TAKEN
    if ask.kind in {"create", "get", "update"}:
        return bool(answer.uid)
    if ask.kind in {"attach", "hand_over"}:
        return len(answer.rights) == 1 and answer.rights[0].host == ask.host
    return not answer.uid and (ask.kind == "attachments" or not answer.rights)


PAIRS = [(ask, answer) for ask in ASKS for answer in ANSWERS if suits(ask, answer)]


@st.composite
def histories(draw):
    """Up to six calls; most answers are those that the model gives at some instant."""
    dice = draw(st.randoms(use_true_random=False))
    count = draw(st.integers(1, 6))
    spans = sorted((dice.randrange(12), dice.randrange(1, 6)) for _ in range(count))
    state, calls = MODEL.start, []
    for begin, length in spans:
        pairs = list(PAIRS)
        dice.shuffle(pairs)
        ask, answer = pairs[0]
        if dice.random() < 0.85:
            for ask, answer in pairs:
                if then := [*MODEL.step(state, ask, answer)]:
                    state = then[0]
                    break
        calls.append((begin, None if dice.random() < 0.2 else begin + length, ask, answer))
    return history(*calls)


def by_force(calls):
    """Try every order of every choice of the unanswered."""
    for order in permutations(range(len(calls))):
        states = {MODEL.start}
        for at, number in enumerate(order):
            call = calls[number]
            later = (calls[n] for n in order[at + 1 :])
            if any(one.answer is not None and one.end_ns < call.begin_ns for one in later):
                break
            then = {s for state in states for s in MODEL.step(state, call.ask, call.answer)}
            states = then | states if call.answer is None else then
            if not states:
                break
        else:
            return True
    return False


def test_as_brute_force():
    """Goal: the verdict is right. Method: compare with all orders of small random histories."""
    verdicts = []

    @given(histories())
    def compare(calls):
        verdicts.append(by_force(calls))
        assert (check(calls, MODEL) is None) == verdicts[-1], calls

    compare()
    assert verdicts.count(True) >= 10
    assert verdicts.count(False) >= 10


class Busy:
    """A right history of many calls on one name, with calls that overlap and some unanswered."""

    def __init__(self, seed):
        self.dice = random.Random(seed)
        self.uids = 0

    def answer(self, state, ask):
        """Return an answer of the model, and the state after it."""
        volume = state.volume
        if ask.kind == "create" and volume is None:
            self.uids += 1
            answer = shown(f"u{self.uids}", ask.params, ask.label)
        elif volume is not None and ask.kind in {"create", "get", "update"}:
            label = ask.label if ask.kind == "update" else volume.label
            answer = shown(volume.uid, volume.params, label)
        elif ask.kind == "attachments" and volume is not None:
            answer = Answer(rights=volume.rights)
        elif ask.kind in {"attach", "hand_over"} and volume is not None:
            for standby in (False, True):
                mine = volume.right(ask.host)
                source = mine.hand_over_from if mine else ask.hand_over_from
                answer = right(ask.host, standby=standby, source=source)
                if [*MODEL.step(state, ask, answer)]:
                    break
        else:
            answer = DONE
        for one in (answer, *(Answer(refused=reason) for reason in Reason)):
            if then := [*MODEL.step(state, ask, one)]:
                return one, then[0]
        raise AssertionError((state, ask))

    def history(self, count, callers=16):
        state, calls = MODEL.start, []
        free = [0] * callers
        for instant in range(0, count * 10, 10):
            caller = self.dice.randrange(callers)
            begin = max(free[caller], instant - self.dice.randrange(60))
            end = instant + 1 + self.dice.randrange(60)
            if begin > instant:
                continue
            ask = self.dice.choice(ASKS)
            answer, state = self.answer(state, ask)
            free[caller] = end + 1
            lost = self.dice.random() < 0.02 and answer.uid == ""
            calls.append(Call(begin, end, ask, None if lost else answer, f"c{caller}"))
        return calls


@pytest.mark.parametrize("seed", range(3))
def test_many_calls(seed):
    """Goal: 16 callers on one name, judged fast, and one wrong answer found. Method: plant it."""
    calls = Busy(seed).history(300)
    began_s = time.monotonic()
    assert check(calls, MODEL) is None
    reads = [
        n for n, call in enumerate(calls) if call.ask == GET and call.answer and call.answer.uid
    ]
    at = reads[len(reads) // 2]
    calls[at] = replace(calls[at], answer=replace(calls[at].answer, label="nobody's"))
    found = check(calls, MODEL)
    assert found is not None
    assert found.call == calls[at]
    assert time.monotonic() - began_s < 60
