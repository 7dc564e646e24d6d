"""The configuration: every mistake in one go, with its line."""

import json
import textwrap

import pytest

from volcore import config
from volcore.config import LocalPool, MemoryPool, RbdPool, load_config
from volcore.credentials import psk_is_supported
from volcore.errors import InvalidArgumentError, Reason
from volcore.testing.certificates import Authority


@pytest.fixture
def load(tmp_path):
    """Load a text as a configuration file."""

    def load(text, **options):
        path = tmp_path / "volcore.toml"
        path.write_text(textwrap.dedent(text))
        return load_config(path, environ={}, **options)

    return load


def mistakes(load, text, **options):
    """(line, problem) of every mistake."""
    with pytest.raises(InvalidArgumentError) as caught:
        load(text, **options)
    assert caught.value.reason is Reason.CONFIG_INVALID
    head, *rows = caught.value.message.splitlines()
    assert head.startswith(f"the configuration has {len(rows)} mistake")
    found = []
    for row in rows:
        place, _, problem = row.strip().partition(": ")
        path, _, line = place.rpartition(":")
        found.append((int(line) if path else place, problem))
    return found


def test_three_mistakes(load):
    """Goal: all mistakes at once. Method: an unknown key, a wrong type, a number out of range."""
    found = mistakes(load, """\
        [server]
        listen = [
            "127.0.0.1:7070",
        ]
        call_thread = 3
        call_threads = 0

        [log]
        level = 5
        """)  # fmt: skip
    assert [line for line, _ in found] == [5, 6, 9]
    assert "did you mean call_threads?" in found[0][1]
    assert "between 1 and 256" in found[1][1]
    assert "must be a string" in found[2][1]


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("[server]\nlisten = ['0.0.0.0:7070']", 2, "other machines can reach"),
        ("[server]\nlisten = ['[::]:7070']", 2, "other machines can reach"),
        ("[server]\nlisten = ['10.1.2.3:7070']", 2, "other machines can reach"),
        ("[server]\nlisten = []", 2, "is empty"),
        ("[server]\nlisten = ['unix:/a', 'unix:///a']", 2, "twice"),
        ("[server]\nlisten = ['unix:rel']", 2, "unix:///PATH"),
        (f"[server]\nlisten = ['unix:///{'x' * 200}']", 2, "107 bytes"),
        ("[server]\nlisten = ['localhost']", 2, "ADDRESS:PORT"),
        ("[server]\nlisten = ['127.0.0.1:99999']", 2, "65535"),
        ("[server]\nlisten = 'unix:///a'", 2, "must be a list"),
        ("[nbd]\nlisten = ['10.1.2.3:10809']", 2, "other machines can reach"),
        ("[server]\ntls_key = '/etc/hostname'", 2, "both of them"),
        ("[server]\ntls_key = '/nope'", 2, "no readable file"),
        ("[server]\ncall_threads = true", 2, "whole number"),
        ("[server]\nshutdown_grace_s = -1", 2, "between 0 and 3600"),
        ("server = 5", 1, "must be a table"),
        ("[sever]\n", 1, "did you mean server?"),
        ("pools = 3", 1, "one table for each pool"),
        ("[pools.p]\ndirectory = '/a'", 1, "needs the key backend"),
        ("[pools.p]\nbackend = 'zfs'", 2, "must be one of local, rbd, memory"),
        ("[pools.p]\nbackend = 'local'", 1, "needs the key directory"),
        ("[pools.p]\nbackend = 'local'\ndirectory = 'rel'", 3, "absolute"),
        ("[pools.p]\nbackend = 'memory'\ndirectory = '/a'", 3, "not known"),
        ("[pools.p]\nbackend = 'rbd'", 1, "needs the key pool"),
        ("[pools.'a b']\nbackend = 'memory'", 1, "no good name"),
        ("[server]\nx = ", 2, "not valid TOML"),
        ("[server]\ncall_threads = 1\ncall_threads = 2", 3, "not valid TOML"),
    ],
)
def test_one_mistake(load, text, line, words):
    found = mistakes(load, text)
    assert [number for number, _ in found] == [line]
    assert words in found[0][1]


def test_nbd_over_tls(load, tmp_path):
    """Goal: NBD leaves the machine with TLS only, and with clients known. Method: one by one."""
    authority = Authority.make(tmp_path / "ca")
    made = authority.server()
    head = '[nbd]\nlisten = ["0.0.0.0:1"]\nadvertise_host = "store-1"\n'
    pair = f'tls_certificate = "{made.certificate}"\ntls_key = "{made.key}"\n'
    authorities = f'tls_client_ca = "{made.client_ca}"\n'
    found = load(head + pair + authorities).nbd
    assert found.tls == made
    assert (found.advertise_host, found.tls_attached_only) == ("store-1", False)
    assert load(head + pair + authorities + 'tls_clients = "attached"').nbd.tls_attached_only
    assert load(head + pair + 'tls_clients = "any"').nbd.tls.client_ca is None

    def words(text):
        return [problem for _, problem in mistakes(load, text)]

    assert "needs tls_client_ca as well" in words(head + pair)[0]
    assert "no use" in words(head + pair + authorities + 'tls_clients = "any"')[0]
    assert (
        "set advertise_host" in words(head.replace("advertise_host", "#") + pair + authorities)[0]
    )
    assert "needs tls_certificate" in words("[nbd]\ntls_on_unix = true")[0]
    assert "true or false" in words("[nbd]\ntls_on_unix = 1")[0]
    assert "name or address" in words('[nbd]\nadvertise_host = "a b"')[0]
    made.key.chmod(0o644)
    for table in ("nbd", "server"):
        assert "chmod 0600" in words(f"[{table}]\n" + pair + authorities)[0]


@pytest.mark.skipif(psk_is_supported(), reason="this Python has pre-shared keys")
def test_pre_shared_keys_are_refused_without_support(load, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text(f"host-1:{'00' * 32}\n")
    found = mistakes(load, f'[nbd]\nlisten = ["10.0.0.1:1"]\ntls_psk_file = "{keys}"')
    assert len(found) == 1
    assert "needs Python 3.13" in found[0][1]


def test_same_directory_twice(load):
    found = mistakes(load, """\
        [pools.a]
        backend = "local"
        directory = "/srv/x"
        [pools.b]
        backend = "local"
        directory = "/srv/./x"
        """)  # fmt: skip
    assert found == [(6, "pools.b.directory is that of pool a already")]


def test_everything(load):
    """Goal: what is written is what is meant."""
    found = load("""\
        [server]
        listen = ["unix:///run/x.sock", "localhost:0", "[::1]:70"]
        call_threads = 4
        shutdown_grace_s = 1.5
        image_directories = ["/srv/images"]
        [log]
        format = "console"
        [nbd]
        listen = []
        [pools]
        fast = { backend = "local", directory = "/srv/fast" }
        [pools.ceph]
        backend = "rbd"
        pool = "volumes"
        user = "u"
        [pools.m]
        backend = "memory"
        """)
    assert [str(one) for one in found.server.listen] == [
        "unix:///run/x.sock",
        "127.0.0.1:0",
        "[::1]:70",
    ]
    assert (found.server.call_threads, found.server.shutdown_grace_s) == (4, 1.5)
    assert (found.log.level, found.log.format, found.nbd.listen) == ("info", "console", ())
    assert [type(pool) for pool in found.pools] == [LocalPool, RbdPool, MemoryPool]


def test_flags_win(load):
    found = load("[log]\nlevel = 'error'", overrides={"log.level": "debug"})
    assert found.log.level == "debug"
    wrong = mistakes(load, "[log]\nlevel = 'error'", overrides={"log.level": "loud"})
    assert wrong[0][0] == "command line"


def test_places(tmp_path, monkeypatch):
    """Goal: flag before environment before default. Method: three files."""
    monkeypatch.setattr(config, "DEFAULT_PATH", tmp_path / "none.toml")
    built_in = load_config(environ={"XDG_DATA_HOME": "/d", "XDG_RUNTIME_DIR": "/r"})
    assert built_in.source is None
    assert [pool.name for pool in built_in.pools] == ["default"]
    named = tmp_path / "named.toml"
    named.write_text("[pools.n]\nbackend = 'memory'")
    assert load_config(environ={"VOLCORE_CONFIG": str(named)}).source == named
    with pytest.raises(InvalidArgumentError, match="cannot be read"):
        load_config(tmp_path / "gone.toml", environ={"VOLCORE_CONFIG": str(named)})


@pytest.mark.parametrize(
    ("uid", "environ", "endpoint", "directory"),
    [
        (0, {}, "unix:///run/volcore/volcore.sock", "/var/lib/volcore/default"),
        (
            1000,
            {"XDG_RUNTIME_DIR": "/run/user/1000", "XDG_DATA_HOME": "/d"},
            "unix:///run/user/1000/volcore/volcore.sock",
            "/d/volcore/default",
        ),
        (
            1000,
            {"HOME": "/h"},
            "unix:///h/.local/share/volcore/run/volcore.sock",
            "/h/.local/share/volcore/default",
        ),
    ],
)
def test_defaults(monkeypatch, tmp_path, uid, environ, endpoint, directory):
    """Goal: client and server meet without any setting."""
    monkeypatch.setattr(config.os, "geteuid", lambda: uid)
    monkeypatch.setattr(config, "DEFAULT_PATH", tmp_path / "none.toml")
    found = load_config(environ=environ)
    assert config.client_endpoint(environ) == endpoint == str(found.server.listen[0])
    assert str(found.pools[0].directory) == directory
    assert config.client_endpoint({"VOLCORE_ENDPOINT": "h:1"}) == "h:1"


def test_lines_of_odd_texts():
    """Goal: the right line for every key. Method: quotes, dots, long strings, inline tables."""
    text = (
        'a.b = 1\n"c d" = """\nx = 1\n[y]\n"""\n'
        "[t.'u v']\n\n# z = 1\nw = [\n  1,\n]\nk = { l = 1 }\n"
    )
    lines = config.key_lines(text)
    assert lines[("a", "b")] == 1
    assert lines[("c d",)] == 2
    assert lines[("t", "u v")] == 6
    assert lines[("t", "u v", "w")] == 9
    assert lines[("t", "u v", "k", "l")] == 12
    assert ("x",) not in lines


@pytest.mark.parametrize(
    ("listen", "host", "expected"),
    [
        (["unix:///run/s"], "", "unix:///run/s"),
        (["unix:///run/s", "127.0.0.1:7"], "", "127.0.0.1:7"),
        (["127.0.0.1:0", "unix:///run/s"], "", "unix:///run/s"),
        (["127.0.0.1:0", "[::1]:8"], "", "[::1]:8"),
        (["127.0.0.1:7"], "store-1", "store-1:7"),
    ],
)
def test_where_other_servers_reach_this_one(listen, host, expected, tmp_path):
    """Goal: an address that leads here. Method: compare with the list of what is listened on."""
    path = tmp_path / "volcore.toml"
    more = f'advertise_host = "{host}"\n' if host else ""
    path.write_text(f"[server]\nlisten = {json.dumps(listen)}\n{more}")
    assert load_config(path).server.endpoint == expected
