"""Callers of the nemesis: random calls on few names, and what was asked and answered, written down.

A process with some threads, each a client of its own with default settings. Every try is one call
of the history, since a call that is repeated may take effect twice: what the client repeats by
itself stands there as often. A look that is repeated stands there once. Names change with time, so
that no name has a long history. Times are of the monotonic clock, which all processes share.
"""

import argparse
import random
import signal
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import grpc

from volcore.client import Client, ClientTls
from volcore.errors import Reason, VolcoreError
from volcore.limits import MIB
from volcore.testing.nemesis_log import Log, Made
from volcore.testing.volume_model import Answer, Ask, Right
from volcore.v1 import attachment_pb2, volume_pb2
from volcore.wire import status

T = TypeVar("T")
POOL: Final = "pools/p"
IMAGE: Final = f"{POOL}/images/nemesis"
SIZES: Final = (8 * MIB, 12 * MIB)
"""Of blank volumes; the first is the image's, too."""
EPOCH_S: Final = 20.0
SLOTS: Final = 16
"""Names at a time."""
EPOCHS_LISTED: Final = 3
PAUSE_S_MAX: Final = 0.5
HOSTS: Final = ("h0", "h1", "h2", "h3")
LABEL: Final = "v"
_REFUSALS: Final = frozenset({
    Reason.NAME_TAKEN, Reason.VOLUME_NOT_FOUND, Reason.VOLUME_IN_USE, Reason.ATTACHMENT_NOT_FOUND,
    Reason.WRONG_STATE,
})  # fmt: skip
"""They tell what the name is."""
_UNDONE: Final = frozenset({
    Reason.POOL_ELSEWHERE, Reason.OPERATION_PENDING, Reason.CATALOG_CONFLICT,
    Reason.TOO_MANY_REQUESTS,
})  # fmt: skip
"""Nothing was done."""
_TROUBLE: Final = frozenset({
    Reason.CLUSTER_UNREACHABLE, Reason.SERVER_UNREACHABLE, Reason.SHUTTING_DOWN,
    Reason.DEADLINE_PASSED, Reason.CANCELLED, Reason.POOL_LOCKED, Reason.POOL_UNUSABLE,
})  # fmt: skip
"""Nobody knows what was done. Whatever is in none of these must not come."""


class RecordingClient(Client):
    """Writes each try of a call down whose `asks` are set."""

    log: Log
    caller: str
    asks: tuple[tuple[str, Ask], ...] = ()

    def _tried(self, service: str, rpc: str, once: Callable[..., T], **options: Any) -> T:
        asks = self.asks
        if not asks:
            return super()._tried(service, rpc, once, **options)

        def recorded(method: Any, **more: Any) -> T:
            number = self.log.begin(self.caller, asks)
            try:
                result = once(method, **more)
            except grpc.RpcError as err:
                error = status.from_rpc_error(err)
                if error.reason not in _UNDONE:
                    self.log.end(number, [refusal(error)] * len(asks))
                else:
                    self.log.end(number, [])
                raise
            self.log.end(number, answers_of(result))
            return result

        return super()._tried(service, rpc, recorded, **options)


def refusal(error: VolcoreError) -> Answer | None:
    """Return what an error tells of a name, None if nothing."""
    return Answer(refused=error.reason) if error.reason in _REFUSALS else None


def answers_of(result: Any) -> list[Answer | None]:
    """Return what a result tells, for each name."""
    if isinstance(result, list):
        return [refusal(one) if isinstance(one, VolcoreError) else shown(one) for one in result]
    if isinstance(result, volume_pb2.Volume):
        return [shown(result)]
    if isinstance(result, attachment_pb2.Attachment):
        return [Answer(rights=(right(result),))]
    assert result is None, result
    return [Answer()]


def shown(volume: volume_pb2.Volume) -> Answer:
    """Return what a volume tells."""
    return Answer(uid=volume.uid, params=params_of(volume), label=volume.labels[LABEL])


def params_of(volume: volume_pb2.Volume) -> str:
    """Return source and size."""
    return params("image" if volume.HasField("source") else "blank", volume.size_bytes)


def params(source: str, size_bytes: int) -> str:
    """Return source and size as one word."""
    return f"{source}:{size_bytes}"


def right(one: attachment_pb2.Attachment) -> Right:
    """Return what an attachment tells."""
    return Right(
        one.host,
        one.access_mode == attachment_pb2.ACCESS_MODE_READ_ONLY,
        one.state == attachment_pb2.ATTACHMENT_STATE_STANDBY,
        one.hand_over_from,
    )


def name_of(epoch: int, slot: int) -> str:
    """Return the name of a volume within the pool."""
    return f"n{epoch:03}-{slot:02}"


def full(name: str) -> str:
    """Return its resource name."""
    return f"{POOL}/volumes/{name}"


class Caller:
    """One caller."""

    def __init__(self, client: RecordingClient, number: int, seed: int, clock: "Clock") -> None:
        self.name = f"caller{number}"
        self._client = client
        self._clock = clock
        self._dice = random.Random(f"{seed}-{number}")  # noqa: S311 - repeatable on purpose
        self._count = 0

    def run(self) -> None:
        """Make calls until told to stop."""
        acts = (
            *(self._create,) * 3, *(self._deploy,) * 3, *(self._delete,) * 3, self._delete_uid,
            *(self._get,) * 4, *(self._update,) * 2, *(self._update_seen,) * 2,
            *(self._attach,) * 3, self._take_over, self._hand_over, *(self._detach,) * 3,
            *(self._attachments,) * 2, self._list,
        )  # fmt: skip
        while not self._clock.stopped.wait(self._dice.uniform(0, PAUSE_S_MAX)):
            act = self._dice.choice(acts)
            begin_ns = time.monotonic_ns()
            failed = odd = ""
            try:
                act(self._pick())
            except VolcoreError as err:
                if err.reason not in _REFUSALS | {Reason.CATALOG_CONFLICT}:  # of update_seen
                    failed = err.reason
                if err.reason not in _REFUSALS | _UNDONE | _TROUBLE:
                    odd = f"{err.reason}: {err.message}"
            except Exception as err:
                odd = f"{type(err).__name__}: {err}"
            kind = act.__name__.strip("_")
            self._client.log.put(Made(kind, begin_ns, time.monotonic_ns(), failed, odd))

    def _pick(self) -> str:
        """Return a name of this time, sometimes of the time before."""
        epoch = self._clock.epoch() - (self._dice.random() < 0.1)
        return name_of(max(epoch, 0), self._dice.randrange(SLOTS))

    def _fresh(self) -> str:
        self._count += 1
        return f"{self.name}-{self._count}"

    def _do(self, asks: Iterable[tuple[str, Ask]], call: Callable[[], object]) -> None:
        self._client.asks = tuple(asks)
        try:
            call()
        finally:
            self._client.asks = ()

    def _look(
        self, asks: Iterable[tuple[str, Ask]], look: Callable[[], tuple[list[Answer], T]]
    ) -> T:
        """Make a call that changes nothing; it stands in the log once, if it succeeds."""
        begin_ns = time.monotonic_ns()
        answers, found = look()
        log = self._client.log
        log.end(log.begin(self.name, asks, begin_ns), answers)
        return found

    def _create(self, name: str) -> None:
        label, labels = self._label()
        if self._dice.random() < 0.5:
            ask = Ask(kind="create", params=params("image", SIZES[0]), label=label)
            self._do(
                [(name, ask)],
                lambda: self._client.create_volume(full(name), image=IMAGE, labels=labels),
            )
        else:
            size_bytes = self._dice.choice(SIZES)
            ask = Ask(kind="create", params=params("blank", size_bytes), label=label)
            self._do(
                [(name, ask)],
                lambda: self._client.create_volume(
                    full(name), size_bytes=size_bytes, labels=labels
                ),
            )

    def _deploy(self, name: str) -> None:
        label, labels = self._label()
        names = sorted({name, self._pick(), self._pick()})
        ask = Ask(kind="create", params=params("image", SIZES[0]), label=label)
        self._do(
            [(one, ask) for one in names],
            lambda: self._client.deploy_volumes(IMAGE, names, labels=labels),
        )

    def _label(self) -> tuple[str, dict[str, str]]:
        label = self._fresh()
        return label, {LABEL: label}

    def _delete(self, name: str) -> None:
        self._do([(name, Ask(kind="delete"))], lambda: self._client.delete_volume(full(name)))

    def _delete_uid(self, name: str) -> None:
        uid = self._get(name).uid
        self._do(
            [(name, Ask(kind="delete", uid=uid))],
            lambda: self._client.delete_volume(full(name), uid=uid),
        )

    def _get(self, name: str) -> volume_pb2.Volume:
        def look() -> tuple[list[Answer], volume_pb2.Volume | VolcoreError]:
            try:
                found = self._client.get_volume(full(name))
            except VolcoreError as err:
                if (answer := refusal(err)) is None:
                    raise
                return [answer], err
            return [shown(found)], found

        found = self._look([(name, Ask(kind="get"))], look)
        if isinstance(found, VolcoreError):
            raise found
        return found

    def _update(self, name: str) -> None:
        label, labels = self._label()
        self._do(
            [(name, Ask(kind="update", label=label))],
            lambda: self._client.update_volume(full(name), labels),
        )

    def _update_seen(self, name: str) -> None:
        found = self._get(name)
        label, labels = self._label()
        ask = Ask(kind="update", label=label, seen=(found.uid, found.labels[LABEL]))
        self._do(
            [(name, ask)],
            lambda: self._client.update_volume(full(name), labels, etag=found.etag),
        )

    def _attach(self, name: str, source: str = "") -> None:
        host = self._dice.choice(HOSTS)
        if host == source:
            return
        read_only = not source and self._dice.random() < 0.2
        mode = (
            attachment_pb2.ACCESS_MODE_READ_ONLY
            if read_only
            else attachment_pb2.ACCESS_MODE_READ_WRITE
        )
        ask = Ask(kind="attach", host=host, read_only=read_only, hand_over_from=source)
        self._do(
            [(name, ask)],
            lambda: self._client.attach_volume(
                full(name), host, access_mode=mode, hand_over_from=source
            ),
        )

    def _take_over(self, name: str) -> None:
        rights = self._attachments(name)
        self._attach(name, rights[0].host if rights else self._dice.choice(HOSTS))

    def _hand_over(self, name: str) -> None:
        rights = self._attachments(name)
        host = rights[-1].host if rights else self._dice.choice(HOSTS)
        self._do(
            [(name, Ask(kind="hand_over", host=host))],
            lambda: self._client.hand_over_volume(full(name), host),
        )

    def _detach(self, name: str) -> None:
        rights = self._attachments(name)
        host = self._dice.choice(rights).host if rights else self._dice.choice(HOSTS)
        self._do(
            [(name, Ask(kind="detach", host=host))],
            lambda: self._client.detach_volume(full(name), host),
        )

    def _attachments(self, name: str) -> tuple[Right, ...]:
        def look() -> tuple[list[Answer], tuple[Right, ...]]:
            try:
                rights = tuple(right(one) for one in self._client.list_attachments(full(name)))
            except VolcoreError as err:
                if (answer := refusal(err)) is None:
                    raise
                return [answer], ()
            return [Answer(rights=rights)], rights

        return self._look([(name, Ask(kind="attachments"))], look)

    def _list(self, _name: str) -> None:
        """Look at all names of the last times at once."""
        newest = self._clock.epoch()
        epochs = range(max(newest - EPOCHS_LISTED + 1, 0), newest + 1)
        names = [name_of(epoch, slot) for epoch in epochs for slot in range(SLOTS)]

        def look() -> tuple[list[Answer], None]:
            return listed(self._client, names), None

        self._look([(name, Ask(kind="get")) for name in names], look)


def listed(client: Client, names: Iterable[str]) -> list[Answer]:
    """Return what a list of all volumes tells of some names."""
    found = {one.name.rpartition("/")[2]: one for one in client.list_volumes(POOL, page_size=1000)}
    missing = Answer(refused=Reason.VOLUME_NOT_FOUND)
    return [shown(found[name]) if name in found else missing for name in names]


@dataclass(frozen=True, slots=True)
class Clock:
    """When it began, for all processes, and whether it is over."""

    start_ns: int
    stopped: threading.Event

    def epoch(self) -> int:
        """Return which names are of this time."""
        return int((time.monotonic_ns() - self.start_ns) / 1e9 / EPOCH_S)


def main() -> None:
    """Make calls until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--endpoint", required=True)
    parser.add_argument("--tls", type=Path, required=True)
    parser.add_argument("--start-ns", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--first", type=int, required=True)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--log", type=Path, required=True)
    options = parser.parse_args()
    clock = Clock(options.start_ns, threading.Event())
    signal.signal(signal.SIGTERM, lambda *_: clock.stopped.set())
    log = Log(options.log)
    callers = []
    for number in range(options.first, options.first + options.count):
        client = RecordingClient(
            options.endpoint,
            tls=ClientTls(
                ca=options.tls / "ca-cert.pem",
                certificate=options.tls / "client-cert.pem",
                key=options.tls / "client-key.pem",
            ),
        )
        client.log, client.caller = log, f"caller{number}"
        callers.append(Caller(client, number, options.seed, clock))
    threads = [threading.Thread(target=caller.run) for caller in callers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()
