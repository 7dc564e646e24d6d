"""Who may write: the gates of exports under real clients, with the compiled loop and without."""

import threading

import pytest

from volcore.backends.local import LocalBackend, LocalStore
from volcore.backends.memory import MemoryBackend
from volcore.errors import DeadlineError
from volcore.limits import MIB
from volcore.nbd import ExportTable, NbdServer, UnixAddress
from volcore.nbd.gate import WriteGate

from .client import EPERM, FLUSH, FUA, TRIM, WRITE, ZEROES, RawClient

B = 4096
NAMES = ("source", "target")


@pytest.fixture(params=["local", "memory"])
def table(request, tmp_path):
    """One volume under two names, as a hand-over has it: the first may write."""
    backend = MemoryBackend()
    if request.param == "local":
        backend = LocalBackend(LocalStore.open(tmp_path / "pool"))
    backend.open()
    backend.create("v", 64 * MIB)
    exports = ExportTable()
    for name in NAMES:
        exports.publish(
            name,
            lambda read_only: backend.open_device("v", read_only=read_only),
            read_only=False,
            writable=name == NAMES[0],
        )
    exports.path = tmp_path / "run" / "socket"
    with NbdServer(UnixAddress(exports.path), exports=exports):
        yield exports
    backend.close()


def connect(table, name) -> RawClient:
    return RawClient(table.path).go(name)


def test_roles_change(table):
    """Goal: one writer, two readers. Method: hand over and back, trying every change each time."""
    with connect(table, NAMES[0]) as first, connect(table, NAMES[1]) as second:
        clients = [first, second]
        names = list(NAMES)
        for number in range(4):
            (writer, reader), data = clients, bytes([number + 1]) * B
            for flags in (0, FUA):
                writer.write(number * B, data, flags=flags)
                for refused in (
                    reader.call(WRITE, 0, data=bytes(B), flags=flags),
                    reader.call(WRITE, 1, data=b"odd", flags=flags),
                    reader.call(WRITE, 0, data=bytes(MIB), flags=flags),
                    reader.call(TRIM, 0, MIB, flags=flags),
                    reader.call(ZEROES, 0, MIB, flags=flags),
                ):
                    assert refused.errno == EPERM
                    assert "another host" in refused.message
            assert reader.call(FLUSH).errno == 0
            assert reader.read(number * B, B) == writer.read(number * B, B) == data
            table.set_writable(names[0], writable=False, timeout_s=5)
            assert [c.call(WRITE, 0, data=data).errno for c in clients] == [EPERM, EPERM]
            table.set_writable(names[1], writable=True, timeout_s=5)
            clients.reverse()
            names.reverse()


def test_nothing_lands_after(table):
    """Goal: at the switch the last write has ended. Method: clients write on while it happens."""
    stop = threading.Event()
    failures = []

    def write(number: int) -> None:
        try:
            with connect(table, NAMES[0]) as client:
                refused = 0
                while not stop.is_set():
                    size_bytes = B if number % 2 else MIB
                    for _ in range(8):  # several in flight
                        client.request(WRITE, number * 4 * MIB, data=b"s" * size_bytes)
                    refused += sum(client.reply().errno == EPERM for _ in range(8))
                assert refused, "the switch was not noticed"
        except BaseException as err:
            failures.append(err)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    with connect(table, NAMES[1]) as target:
        target.read(0, B)
        table.set_writable(NAMES[0], writable=False, timeout_s=20)
        table.set_writable(NAMES[1], writable=True, timeout_s=20)
        for number in range(4):
            target.write(number * 4 * MIB, b"t" * MIB)
        for _ in range(200):
            for number in range(4):
                assert target.read(number * 4 * MIB, B) == b"t" * B
        stop.set()
        for thread in threads:
            thread.join()
        assert not failures, failures
        assert all(target.read(n * 4 * MIB, MIB) == b"t" * MIB for n in range(4))


def test_a_write_that_does_not_end():
    """A gate is shut at once; whoever waits is told that a write is still in."""
    gate = WriteGate(writable=True)
    assert gate.enter()
    assert not gate.shut(0.01)
    assert not gate.enter()
    waiting = threading.Timer(0.05, gate.leave)
    waiting.start()
    assert gate.shut(10)
    gate.open()
    assert gate.enter()


def test_stuck_device(table, monkeypatch):
    """A device that does not come back makes the switch fail; the source stays shut until told."""
    monkeypatch.setattr(WriteGate, "shut", lambda _gate, _timeout_s: False)
    with pytest.raises(DeadlineError):
        table.set_writable(NAMES[0], writable=False, timeout_s=0)
    table.set_writable("nobody", writable=False, timeout_s=0)
