"""TLS: who gets in, what is told to the others, and that nothing of it is left behind."""

import os
import random
import shutil
import socket
import ssl
import subprocess
import time
import warnings
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from volcore import credentials
from volcore.backends.memory import MemoryBackend
from volcore.catalog.sqlite import SqliteCatalog
from volcore.credentials import PskFile, TlsFiles, read_keys, server_context
from volcore.database import Database
from volcore.engine.engine import Engine, EngineSettings
from volcore.engine.views import CreateVolume
from volcore.errors import InvalidArgumentError
from volcore.exporter import NbdExporter
from volcore.limits import MIB
from volcore.model.records import AccessMode
from volcore.nbd import ExportTable, NbdServer, TcpAddress, TlsPolicy, UnixAddress
from volcore.testing.certificates import Authority

from . import client as c
from .client import HungUpError, RawClient
from .conftest import Place, wait_for
from .devices import WatchedDevice
from .test_tools import run

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="apt-get install openssl")
TLS_REQUIRED, POLICY = 0x80000005, 0x80000002
only_memory = pytest.mark.parametrize("backend", ["memory"], indirect=True)


@pytest.fixture
def kind() -> type[WatchedDevice]:
    """TLS is always served by Python."""
    return WatchedDevice


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.make(tmp_path_factory.mktemp("tls") / "ca")


@pytest.fixture(scope="module")
def files(authority: Authority) -> TlsFiles:
    return authority.server()


@pytest.fixture(scope="module")
def client_directory(authority: Authority) -> Path:
    return authority.client("host-1", names="DNS:Host-One.example")


@pytest.fixture
def device_type() -> type[WatchedDevice]:
    """The compiled loop serves plain sockets only."""
    return WatchedDevice


@pytest.fixture
def secured(place: Place, files: TlsFiles) -> Iterator[NbdServer]:
    """The exports of `place` over TLS, on TCP and a unix socket."""
    path = place.path.with_name("tls.sock")
    policy = TlsPolicy(credentials=files, on_unix=True)
    server = NbdServer(
        *(TcpAddress("127.0.0.1", 0), UnixAddress(path)),
        exports=place.exports,
        tls=policy,
        option_timeout_s=2,
    )
    with server:
        yield server


def tcp(server: NbdServer) -> tuple[str, int]:
    address = server.addresses[0]
    assert isinstance(address, TcpAddress)
    return address.host, address.port


def client_context(directory: Path | None, authority: Authority) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=authority.certificate)
    if directory is not None:
        context.load_cert_chain(directory / "client-cert.pem", directory / "client-key.pem")
    return context


class TlsClient(RawClient):
    """A raw client that starts TLS at once."""

    def __init__(self, address, context: ssl.SSLContext) -> None:
        super().__init__(address)
        try:
            assert self.option(c.STARTTLS) == [(c.ACK, b"")]
            self.sock = context.wrap_socket(self.sock, server_hostname="localhost")
        except BaseException:
            self.sock.close()
            raise


@pytest.fixture
def connect(secured: NbdServer, authority: Authority, client_directory: Path):
    context = client_context(client_directory, authority)
    return lambda: TlsClient(tcp(secured), context)


def test_before_tls_there_is_nothing_else(secured: NbdServer) -> None:
    """Goal: no fact about an export in the clear. Method: try every option."""
    with RawClient(tcp(secured)) as client:
        for option in (c.LIST, c.INFO, c.GO, c.STRUCTURED, c.LIST_META, c.SET_META, 77):
            assert client.option(option, c.info_data("disk"))[-1][0] == TLS_REQUIRED
        assert client.option(c.STARTTLS, b"x")[-1][0] == c.ERR_INVALID
        assert client.option(c.ABORT) == [(c.ACK, b"")]
    with RawClient(tcp(secured)) as client:
        client.send_option(c.EXPORT_NAME, b"disk")
        assert client.hung_up()


def test_without_tls_nobody_can_start_it(place: Place) -> None:
    with RawClient(place.path) as client:
        assert client.option(c.STARTTLS)[-1][0] == c.ERR_UNSUP


def test_bytes_survive(place: Place, connect) -> None:
    """Goal: all sizes, alone and many in flight. Method: compare with what was written."""
    dice = random.Random(3)
    with connect().go() as client:
        data = dice.randbytes(8 * MIB + 5)
        client.write(12345, data)
        assert client.read(12345, len(data)) == data
        cookies = {}
        for _ in range(40):
            start, length = dice.randrange(MIB), dice.choice([1, 512, 16384, 16385, 70_000])
            cookies[client.request(c.READ, 12345 + start, length)] = (start, length)
        for _ in range(40):
            reply = client.reply()
            start, length = cookies.pop(reply.cookie)
            assert reply.data(12345 + start, length) == data[start : start + length]
        client.request(c.DISC)
        assert client.sock.recv(1) == b""  # a close_notify: no error, no reset


def test_a_device_with_a_compiled_path_is_served_over_tls_too(
    place: Place, secured: NbdServer, authority: Authority, client_directory: Path
) -> None:
    """Goal: compiled code never talks past TLS. Method: a bare device, plain and over TLS."""
    backend = place.backend
    opener = partial(backend.open_device, "v1")
    place.exports.publish("bare", lambda read_only: opener(read_only=read_only), read_only=False)
    context = client_context(client_directory, authority)
    data = random.Random(4).randbytes(MIB)
    with TlsClient(tcp(secured), context).go("bare") as inside, place.connect("bare") as outside:
        inside.write(4096, data)
        assert outside.read(4096, MIB) == data
        outside.write(0, data)
        assert inside.read(0, MIB) == data


def test_writes_and_reads_at_once(connect) -> None:
    """Goal: one TLS object under a reader and several senders. Method: both ways at full load."""
    pattern = random.Random(5).randbytes(MIB)
    with connect().go(meta=False) as client:
        for index in range(16):
            client.write(index * MIB, pattern)
        client.sock.setblocking(False)
        both = BothWays(client)
        for number in range(200):
            if number % 2:
                client.request(c.WRITE, (number % 16 + 16) * MIB, data=pattern)
            else:
                client.request(c.READ, number % 16 * MIB, MIB)
        for reply in both.replies(200):
            assert reply.errno == 0
            if not reply.simple:
                assert reply.data(reply.pieces[0][1], MIB) == pattern


class BothWays:
    """Interleaves sending and receiving on the client's non-blocking socket."""

    def __init__(self, client: RawClient) -> None:
        self.client = client
        self.out, self.data = bytearray(), bytearray()
        client.send = self.out.extend  # type: ignore[assignment, method-assign]
        client.receive = self.take  # type: ignore[method-assign]

    def replies(self, count: int) -> Iterator[c.Reply]:
        for _ in range(count):
            yield self.client.reply()

    def take(self, count: int) -> bytes:
        while len(self.data) < count:
            if self.out:
                with suppress(ssl.SSLWantWriteError, ssl.SSLWantReadError):
                    del self.out[: self.client.sock.send(self.out[:65536])]
            with suppress(ssl.SSLWantReadError):
                self.data += self.client.sock.recv(65536)
        taken = bytes(self.data[:count])
        del self.data[:count]
        return taken


@only_memory
def test_tls_is_started_once(connect) -> None:
    with connect() as client:
        assert client.option(c.STARTTLS)[-1][0] == c.ERR_INVALID
        client.go()
        assert client.read(0, 3) == bytes(3)


@only_memory
def test_old_tls_is_refused(secured: NbdServer, authority: Authority, client_directory) -> None:
    context = client_context(client_directory, authority)
    context.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings(action="ignore"):
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises((ssl.SSLError, ConnectionResetError)):
        TlsClient(tcp(secured), context)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with TlsClient(tcp(secured), context).go() as client:
        assert client.sock.version() == "TLSv1.2"
        assert client.read(0, 3) == bytes(3)


@only_memory
@pytest.mark.parametrize("who", ["nobody", "stranger", "expired", "server"])
def test_strangers_are_refused(
    place: Place, secured: NbdServer, authority: Authority, tmp_path: Path, who: str, capsys
) -> None:
    """Goal: no export without a valid certificate, one log line. Method: four wrong ones."""
    directory = None
    if who == "stranger":
        directory = Authority.make(tmp_path / "other").client("host-1")
    elif who == "expired":
        directory = authority.client("late", days=-1)
    elif who == "server":
        directory = tmp_path / "wrong-use"
        directory.mkdir()
        made = authority.server("again")
        shutil.copy(made.certificate, directory / "client-cert.pem")
        shutil.copy(made.key, directory / "client-key.pem")
    context = client_context(directory, authority)
    with (
        pytest.raises((ssl.SSLError, HungUpError, ConnectionResetError)),
        TlsClient(tcp(secured), context) as client,
    ):
        client.go()  # with TLS 1.3 the client hears of it after its own part of the handshake
    wait_for(lambda: secured.connection_count == 0)
    assert not place.opened
    assert capsys.readouterr().out.count("TLS handshake failed") == 1


@only_memory
@pytest.mark.parametrize("how", ["garbage", "hang-up", "silence", "trickle", "hello only"])
def test_bad_handshakes_end_in_time(secured: NbdServer, how: str) -> None:
    with RawClient(tcp(secured)) as client:
        assert client.option(c.STARTTLS) == [(c.ACK, b"")]
        if how == "garbage":
            client.send(os.urandom(2000))
        elif how == "trickle":
            client.send(b"\x16\x03\x01\x02\x00")
            client.sock.settimeout(0.3)
            with suppress(HungUpError, ConnectionResetError):
                while secured.connection_count:
                    client.send(b"\x01")
                    with suppress(TimeoutError):
                        client.sock.recv(100)
        elif how == "hello only":
            hello = ssl.MemoryBIO()
            tls = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), hello, server_hostname="x")
            with pytest.raises(ssl.SSLWantReadError):
                tls.do_handshake()
            client.send(hello.read())
        if how != "hang-up":
            assert how == "trickle" or client.hung_up()
    wait_for(lambda: secured.connection_count == 0, timeout_s=4)


@only_memory
def test_renewed_files_count_from_the_next_connection_on(
    place: Place, authority: Authority, client_directory: Path, tmp_path: Path
) -> None:
    """Goal: rotation without a restart, no outage half-way. Method: swap file after file."""
    first, second = authority.server("first"), authority.server("second")
    files = TlsFiles(
        certificate=tmp_path / "c.pem", key=tmp_path / "k.pem", client_ca=authority.certificate
    )
    shutil.copy(first.certificate, files.certificate)
    shutil.copy(first.key, files.key)
    context = client_context(client_directory, authority)
    server = NbdServer(
        TcpAddress("127.0.0.1", 0), exports=place.exports, tls=TlsPolicy(credentials=files)
    )

    def name_shown() -> str:
        with TlsClient(tcp(server), context).go() as client:
            assert client.read(0, 1) == b"\0"
            return dict(part[0] for part in client.sock.getpeercert()["subject"])["commonName"]

    with server:
        assert name_shown() == "first"
        shutil.copy(second.certificate, files.certificate)
        assert name_shown() == "first"
        shutil.copy(second.key, files.key)
        assert name_shown() == "second"


@only_memory
def test_only_attached_hosts_are_served(
    place: Place, authority: Authority, client_directory: Path, files: TlsFiles
) -> None:
    """Goal: a host sees and opens what is attached to it. Method: change the names."""
    hosts = {"other"}
    place.exports.publish("mine", place.opener, read_only=False, clients=lambda: hosts)
    context = client_context(client_directory, authority)
    policy = TlsPolicy(credentials=files, attached_only=True)
    server = NbdServer(TcpAddress("127.0.0.1", 0), exports=place.exports, tls=policy)

    def answers() -> tuple[int, int]:
        with TlsClient(tcp(server), context) as client:
            listed = [data[4:] for kind, data in client.option(c.LIST) if kind == c.SERVER]
            assert listed == ([b"mine"] if hosts != {"other"} else [])
            client.option(c.STRUCTURED)
            meta = client.option(c.SET_META, c.meta_data("mine", "base:allocation"))[-1][0]
            return meta, client.option(c.GO, c.info_data("mine"))[-1][0]

    with server:
        assert answers() == (c.ERR_UNKNOWN, POLICY)
        for name in ("host-1", "HOST-1", "host-one.example"):
            hosts.clear()
            hosts.add(name)
            assert answers() == (c.ACK, c.ACK)
        with TlsClient(tcp(server), context) as client:
            assert client.option(c.GO, c.info_data("disk"))[-1][0] == POLICY
    with RawClient(place.path).go("mine") as client:  # this machine's own socket asks for no name
        assert client.read(0, 1) == b"\0"


def read_on(client: RawClient) -> None:
    """Read until the server hangs up, soon; requests that are faster than that are refused."""
    until_s = time.monotonic() + 10
    while time.monotonic() < until_s:
        assert client.call(c.READ, 0, 4096).errno == c.ESHUTDOWN


def test_detached_host_is_disconnected(
    authority: Authority, client_directory: Path, files: TlsFiles
) -> None:
    """Goal: the end of an attachment ends its connections. Method: two hosts share an export."""
    exports = ExportTable()
    policy = TlsPolicy(credentials=files, attached_only=True)
    server = NbdServer(TcpAddress("127.0.0.1", 0), exports=exports, tls=policy)
    engine = Engine(EngineSettings(server_id="test"))
    backend = MemoryBackend()
    backend.open()
    context = client_context(client_directory, authority)
    with server:
        exporter = NbdExporter(exports, server)
        engine.add_pool("p", backend, SqliteCatalog(Database(None)), exporter)
        engine.volumes.create("p", CreateVolume(name="v", size_bytes=MIB))
        for host in ("host-1", "host-one.example", "other"):
            engine.attachments.attach("p", "v", host, AccessMode.READ_ONLY)
        with TlsClient(tcp(server), context) as client:
            client.go("p/v")
            engine.attachments.detach("p", "v", "host-one.example")
            assert client.read(0, 4096) == bytes(4096), "its other name is attached still"
            engine.attachments.detach("p", "v", "host-1")
            with pytest.raises((OSError, HungUpError)):
                read_on(client)
        with TlsClient(tcp(server), context) as client:
            assert client.option(c.GO, c.info_data("p/v"))[-1][0] == POLICY
    engine.close(5)
    backend.close()


@only_memory
def test_anyone_may_be_served(place: Place, authority: Authority, files: TlsFiles) -> None:
    public = TlsFiles(certificate=files.certificate, key=files.key)
    server = NbdServer(
        TcpAddress("127.0.0.1", 0), exports=place.exports, tls=TlsPolicy(credentials=public)
    )
    with server, TlsClient(tcp(server), client_context(None, authority)).go() as client:
        assert client.read(0, 1) == b"\0"


def test_withdrawal_ends_tls_connections(place: Place, connect) -> None:
    with connect().go() as client:
        client.write(0, b"kept")
        place.exports.withdraw("disk", timeout_s=5)
        assert client.hung_up()
    assert place.device.closed


@pytest.mark.skipif(not shutil.which("nbdinfo"), reason="apt-get install libnbd-bin")
@pytest.mark.parametrize("number", [0, 1], ids=["tcp", "unix"])
def test_libnbd(
    place: Place, secured: NbdServer, client_directory: Path, tmp_path: Path, number: int
) -> None:
    """Judge: libnbd. Method: ask, copy in with eight connections, copy out, compare."""
    uri = secured.uris("disk")[number]
    assert uri.startswith(("nbds://", "nbds+unix://"))
    uri += f"{'&' if '?' in uri else '?'}tls-certificates={client_directory}"
    assert "protocol: newstyle-fixed with TLS" in run("nbdinfo", "--no-content", uri)
    source = tmp_path / "source"
    source.write_bytes(random.Random(9).randbytes(16 * MIB))
    run("nbdcopy", "--flush", "--connections=4", source, uri)
    run("nbdcopy", uri, tmp_path / "back")
    assert (tmp_path / "back").read_bytes()[: 16 * MIB] == source.read_bytes()
    plain = secured.uris("disk")[number].replace("nbds", "nbd")
    done = subprocess.run(["nbdinfo", plain], capture_output=True, text=True, timeout=20)
    assert done.returncode
    assert "not supported" in done.stderr


@pytest.mark.qemu
@pytest.mark.skipif(not shutil.which("qemu-img"), reason="apt-get install qemu-utils")
@pytest.mark.parametrize("number", [0, 1], ids=["tcp", "unix"])
def test_qemu(place: Place, secured: NbdServer, client_directory: Path, number: int) -> None:
    """Judge: QEMU. Method: write with qemu-io, compare with qemu-img."""
    address = secured.addresses[number]
    if isinstance(address, TcpAddress):
        server = f"server.type=inet,server.host=localhost,server.port={address.port}"
    else:
        server = f"server.type=unix,server.path={address.path},tls-hostname=localhost"
    creds = f"tls-creds-x509,id=t,endpoint=client,dir={client_directory},verify-peer=on"
    options = f"driver=nbd,{server},export=disk,tls-creds=t"
    words = ("qemu-io", "--object", creds, "--image-opts")
    run(*words, "-c", "write -P 0x42 4096 8M", "-c", "flush", options)
    run(*words, "-c", "read -P 0x42 4096 8M", "-c", "read -P 0 0 4096", options)
    run("qemu-img", "info", "--object", creds, "--image-opts", options)
    with pytest.raises(AssertionError, match=r"TLS"):
        run("qemu-io", "--image-opts", "-c", "read 0 1", options.replace(",tls-creds=t", ""))


def test_files_that_cannot_be_used(authority: Authority, files: TlsFiles, tmp_path: Path) -> None:
    """Goal: a clear sentence for each. Method: open keys, strange keys, no files."""
    key = tmp_path / "key.pem"
    shutil.copy(files.key, key)
    for mode in (0o644, 0o604, 0o620):
        key.chmod(mode)
        wrong = TlsFiles(certificate=files.certificate, key=key)
        with pytest.raises(InvalidArgumentError, match="chmod 0600"):
            server_context(wrong)
    key.chmod(0o600)
    server_context(TlsFiles(certificate=files.certificate, key=key))
    other = authority.client("other") / "client-key.pem"
    found = credentials.problems(
        TlsFiles(certificate=files.certificate, key=other, client_ca=other)
    )
    assert [field for field, _ in found] == ["key", "client_ca"]
    found = credentials.problems(TlsFiles(certificate=files.certificate, key=tmp_path / "none"))
    assert "cannot be read" in found[0][1]


def test_keys_of_a_psk_file() -> None:
    assert read_keys(f"# who\n\na:b:{'0f' * 16}\n") == {"a:b": b"\x0f" * 16}
    for wrong in ("", "a", "a:zz", f":{'00' * 16}", f"a:{'00' * 15}"):
        with pytest.raises(ValueError, match=r"line 1|empty"):
            read_keys(wrong)


@pytest.mark.skipif(credentials.psk_is_supported(), reason="this Python has pre-shared keys")
def test_pre_shared_keys_need_a_python_that_has_them(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match=r"Python 3\.13 or newer"):
        server_context(PskFile(tmp_path / "keys"))


@pytest.mark.skipif(not credentials.psk_is_supported(), reason="needs Python 3.13")
def test_pre_shared_keys(place: Place, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"host-1:{'ab' * 32}\n")
    keys.chmod(0o600)
    policy = TlsPolicy(credentials=PskFile(keys))
    server = NbdServer(TcpAddress("127.0.0.1", 0), exports=place.exports, tls=policy)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(credentials.PSK_CIPHERS)
    context.set_psk_client_callback(lambda _: ("host-1", b"\xab" * 32))  # type: ignore[attr-defined]
    with server:
        with TlsClient(tcp(server), context).go() as client:
            assert client.read(0, 1) == b"\0"
        context.set_psk_client_callback(lambda _: ("host-2", b"\xab" * 32))  # type: ignore[attr-defined]
        with pytest.raises((ssl.SSLError, OSError)):
            TlsClient(tcp(server), context)


@only_memory
def test_connections_leave_nothing(secured: NbdServer, connect) -> None:
    """Goal: no memory per connection that has ended. Method: resident size over two hundred."""

    def resident_kib() -> int:
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))

    def cycle(count: int) -> None:
        for number in range(count):
            if number % 3:
                with connect().go() as client:
                    client.read(0, 10)
            else:
                with socket.create_connection(tcp(secured)) as plain:
                    plain.sendall(
                        b"\0\0\0\3" + c.IHAVEOPT.to_bytes(8, "big") + b"\0\0\0\5" + bytes(4)
                    )
        wait_for(lambda: secured.connection_count == 0)

    cycle(60)
    before_kib = resident_kib()
    cycle(200)
    assert resident_kib() - before_kib < 8 * 1024
