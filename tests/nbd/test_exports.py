"""Publishing, withdrawing, starting and stopping, also under load."""

import os
import socket
import stat
import threading
import time
from pathlib import Path

import pytest

from volcore.errors import (
    BackendIOError,
    ConflictError,
    DeadlineError,
    InvalidArgumentError,
    NotFoundError,
    PreconditionError,
    Reason,
)
from volcore.limits import KIB, MIB
from volcore.nbd import ExportTable, NbdServer, TcpAddress, UnixAddress, private_export
from volcore.nbd.buffers import BufferPool

from . import client as c
from .client import HungUpError, RawClient
from .conftest import Place, wait_for


class Load:
    """Clients that write and read until they are thrown out; counts what was acknowledged."""

    def __init__(self, place: Place, client_count: int) -> None:
        self.acknowledged: list[int] = [0] * client_count
        self.errors: set[int] = set()
        self.failures: list[BaseException] = []
        self._place = place
        self._threads = [
            threading.Thread(target=self._work, args=(index,)) for index in range(client_count)
        ]

    def start(self) -> "Load":
        for thread in self._threads:
            thread.start()
        wait_for(lambda: all(self.acknowledged))
        return self

    def join(self) -> None:
        for thread in self._threads:
            thread.join(20)
            assert not thread.is_alive()
        assert not self.failures

    def _work(self, index: int) -> None:
        at = index * MIB
        try:
            with self._place.connect() as client:
                while True:
                    count = self.acknowledged[index] + 1
                    client.request(c.WRITE, at, data=count.to_bytes(8) * (8 * KIB))
                    client.request(c.READ, at + MIB // 2, 4096)
                    client.request(c.FLUSH)
                    for _ in range(3):
                        if errno := client.reply().errno:
                            self.errors.add(errno)
                            assert errno == c.ESHUTDOWN
                            client.hung_up()
                            return
                    self.acknowledged[index] = count
        except HungUpError:
            pass
        except BaseException as error:
            self.failures.append(error)

    def check(self) -> None:
        """What was acknowledged is there; the write after it may be."""
        with self._place.backend.open_device("v1", read_only=True) as device:
            for index, count in enumerate(self.acknowledged):
                found = int.from_bytes(device.read(index * MIB, 8))
                assert found in (count, count + 1)


def test_withdraw_under_load(place: Place) -> None:
    load = Load(place, 6).start()
    place.exports.withdraw("disk", timeout_s=10)
    assert place.device.closed
    assert place.device.running == 0
    assert place.exports.names() == []
    load.join()
    load.check()
    place.exports.withdraw("disk", timeout_s=0)
    with RawClient(place.path) as client:
        assert client.option(c.GO, c.info_data("disk"))[-1][0] == c.ERR_UNKNOWN
    assert len(place.opened) == 1


def test_stop_under_load(place: Place) -> None:
    load = Load(place, 6).start()
    place.server.stop(10)
    assert place.server.connection_count == 0
    assert place.device.closed
    assert not place.path.exists()
    load.join()
    load.check()
    place.server.stop(0)


def test_one_export_is_withdrawn_and_the_other_goes_on(place: Place) -> None:
    place.exports.publish("other", place.opener, read_only=True)
    with place.connect() as client, place.connect("other") as other:
        client.write(0, b"kept")
        place.exports.withdraw("disk", timeout_s=5)
        assert client.hung_up()
        assert other.read(0, 4) == b"kept"
    place.exports.publish("disk", place.opener, read_only=False)
    with place.connect() as client:
        assert client.read(0, 4) == b"kept"


def test_what_is_in_flight_ends_and_the_rest_is_refused(place: Place) -> None:
    gate = threading.Event()
    with place.connect() as client:
        client.read(0, 1)
        place.device.before = lambda method, _: method != "write" or gate.wait(10) or None
        running = client.request(c.WRITE, 0, data=b"r" * MIB)
        wait_for(lambda: place.device.running == 1)
        late = [client.request(c.READ, 0, 512) for _ in range(3)]
        withdrawal = threading.Thread(
            target=place.exports.withdraw, args=("disk",), kwargs={"timeout_s": 10}
        )
        withdrawal.start()
        wait_for(lambda: place.exports.names() == [])
        time.sleep(0.05)
        assert withdrawal.is_alive()
        assert not place.device.closed
        with pytest.raises(ConflictError):
            place.exports.publish("disk", place.opener, read_only=False)
        gate.set()
        replies = {reply.cookie: reply.errno for reply in (client.reply() for _ in range(4))}
        assert replies == {running: 0} | dict.fromkeys(late, c.ESHUTDOWN)
        assert client.hung_up()
        withdrawal.join()
    assert place.device.closed


def test_a_withdrawal_that_takes_too_long_says_so_and_can_be_repeated(place: Place) -> None:
    gate = threading.Event()
    with place.connect() as client:
        client.read(0, 1)
        place.device.before = lambda method, _: gate.wait(20) and None
        client.request(c.FLUSH)
        wait_for(lambda: place.device.running == 1)
        with pytest.raises(DeadlineError):
            place.exports.withdraw("disk", timeout_s=0.05)
        assert client.hung_up()
        assert not place.device.closed
        with pytest.raises(ConflictError):
            place.exports.publish("disk", place.opener, read_only=False)
        with pytest.raises(DeadlineError):
            place.server.stop(0.05)
        gate.set()
        place.exports.withdraw("disk", timeout_s=10)
        assert place.device.closed
        place.server.stop(10)


def test_a_flush_that_fails_at_the_end_reaches_who_withdraws(place: Place) -> None:
    def broken_close() -> None:
        close()
        raise BackendIOError("the last flush failed", reason=Reason.BACKEND_IO)

    with place.connect() as client:
        client.write(0, b"x")
        close = place.device.close
        place.device.close = broken_close  # type: ignore[method-assign]
        with pytest.raises(BackendIOError, match="last flush"):
            place.exports.withdraw("disk", timeout_s=5)
    place.exports.withdraw("disk", timeout_s=5)
    place.exports.publish("disk", place.opener, read_only=False)


def test_withdrawals_at_once_and_during_opening(place: Place) -> None:
    gate = threading.Event()

    def slow(read_only: bool):
        assert gate.wait(10)
        return place.opener(read_only)

    place.exports.publish("slow", slow, read_only=False)
    with RawClient(place.path) as client:
        client.send_option(c.GO, c.info_data("slow"))
        time.sleep(0.05)
        threads = [
            threading.Thread(
                target=place.exports.withdraw, args=("slow",), kwargs={"timeout_s": 10}
            )
            for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        time.sleep(0.05)
        assert all(thread.is_alive() for thread in threads)
        gate.set()
        for thread in threads:
            thread.join()
        assert place.device.closed
        kind = int.from_bytes(client.receive(20)[12:16])
        assert kind == c.ERR_UNKNOWN


def test_publish_refuses_a_taken_or_unprintable_name(place: Place) -> None:
    with pytest.raises(ConflictError):
        place.exports.publish("disk", place.opener, read_only=False)
    for name in ("a\nb", "a\0", "x" * 4097):
        with pytest.raises(InvalidArgumentError):
            place.exports.publish(name, place.opener, read_only=False)
    place.exports.withdraw("never was", timeout_s=0)
    with pytest.raises(NotFoundError):
        place.exports.open("never was", None)  # type: ignore[arg-type]


def test_sixty_four_connections(place: Place) -> None:
    clients = [place.connect() for _ in range(64)]
    assert place.server.connection_count == 64
    for index, client in enumerate(clients):
        client.request(c.WRITE, index * 65536, data=bytes([index + 1]) * 65536)
    for client in clients:
        assert client.reply().errno == 0
    for index, client in enumerate(reversed(clients)):
        assert client.read((63 - index) * 65536, 65536) == bytes([64 - index]) * 65536
    assert len(place.opened) == 1
    for index, client in enumerate(clients):
        if index % 2:
            client.send(b"\0" * 28)
        client.sock.close()
    place.wait_closed()


def test_one_connection_too_many_is_hung_up_on(place: Place, tmp_path: Path) -> None:
    address = UnixAddress(tmp_path / "small")
    with NbdServer(address, exports=place.exports, connections_max=2) as server:
        one, two = RawClient(address.path).go(), RawClient(address.path).go()
        with RawClient(address.path, flags=None) as three:
            assert three.hung_up()
        one.sock.close()
        wait_for(lambda: server.connection_count == 1)
        with RawClient(address.path) as four:
            four.go().read(0, 4096)
        two.sock.close()


def test_the_socket_is_for_its_owner_only(place: Place, tmp_path: Path) -> None:
    assert stat.S_IMODE(place.path.stat().st_mode) == 0o600
    address = UnixAddress(tmp_path / "new" / "sock")
    with NbdServer(address, exports=place.exports):
        assert stat.S_IMODE(address.path.parent.stat().st_mode) == 0o700
    address.path.parent.chmod(0o750)
    with pytest.raises(PreconditionError, match="0700"):
        NbdServer(address, exports=place.exports).start()


def test_a_dead_socket_is_replaced_and_a_live_one_is_not(place: Place, tmp_path: Path) -> None:
    dead = tmp_path / "dead"
    with socket.socket(socket.AF_UNIX) as leftover:
        leftover.bind(str(dead))
    with NbdServer(UnixAddress(dead), exports=place.exports):
        RawClient(dead).go().sock.close()
    with pytest.raises(PreconditionError, match="another server"):
        NbdServer(UnixAddress(place.path), exports=place.exports).start()
    file = tmp_path / "file"
    file.write_text("precious")
    with pytest.raises(InvalidArgumentError):
        NbdServer(UnixAddress(file), exports=place.exports).start()
    assert file.read_text() == "precious"
    with place.connect() as client:
        client.read(0, 1)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org", ""])
def test_it_does_not_listen_to_the_world(host: str) -> None:
    with pytest.raises(InvalidArgumentError, match="loopback"):
        NbdServer(TcpAddress(host, 0), exports=ExportTable())


def test_a_path_that_is_too_long_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="107"):
        NbdServer(UnixAddress(tmp_path / ("x" * 108)), exports=ExportTable())


def test_a_server_starts_once(place: Place) -> None:
    with pytest.raises(PreconditionError):
        place.server.start()
    NbdServer(exports=place.exports).stop(1)


def test_no_descriptors_left_is_no_end(place: Place) -> None:
    """Goal: accept survives EMFILE. Method: use up all descriptors, then free them."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    waiting = socket.socket(socket.AF_UNIX)
    waiting.settimeout(10)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 1, hard))
    taken = []
    try:
        try:
            while True:
                taken.append(os.open("/dev/null", os.O_RDONLY))
        except OSError:
            pass
        waiting.connect(str(place.path))
        time.sleep(0.2)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in taken:
            os.close(fd)
    with waiting:
        assert len(waiting.recv(18)) == 18


def test_private_export(place: Place) -> None:
    with place.backend.open_device("v1", read_only=False) as device:
        with private_export(device) as path:
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
            with RawClient(path) as client:
                client.go("").write(0, b"private")
        assert not path.parent.exists()
        assert device.read(0, 7) == b"private"
        with private_export(device, read_only=True) as path, RawClient(path) as client:
            assert client.go("").call(c.WRITE, 0, data=b"x").errno == c.EPERM


def test_private_export_cleans_up_after_a_failure(place: Place) -> None:
    with place.backend.open_device("v1", read_only=False) as device:
        context = private_export(device)
        path = context.__enter__()
        with RawClient(path) as client:
            client.go("")
            error = ZeroDivisionError()
            assert not context.__exit__(ZeroDivisionError, error, None)
            assert client.hung_up()
        assert not path.parent.exists()


def test_the_pool_keeps_little() -> None:
    pool = BufferPool(kept_bytes_max=4 * MIB)
    buffers = [pool.take(2 * MIB - 5) for _ in range(4)]
    assert [len(buffer) for buffer in buffers] == [2 * MIB] * 4
    for buffer in buffers:
        pool.give(buffer)
    assert pool.kept_bytes == 4 * MIB
    again = pool.take(2 * MIB)
    assert any(again is buffer for buffer in buffers)
    assert pool.kept_bytes == 2 * MIB
    assert len(pool.take(100)) == 100
