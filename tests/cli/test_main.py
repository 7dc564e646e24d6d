"""What holds for every command: exit codes, refusals, the shape of errors, help, completion."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from volcore import errors
from volcore.cli import report
from volcore.cli.main import hoist

from .server import BIN, volcore

PAGE = Path(__file__).resolve().parents[2] / "docs" / "cli.md"
NOUNS = {
    "image": "import export publish adopt list get verify delete",
    "volume": "create deploy list get label resize revert flatten verify delete tree",
    "snapshot": "create list get verify delete",
    "attachment": "attach detach list get",
    "pool": "list get scrub",
    "operation": "list get wait cancel",
}


def volcore_process(*words, env=None):
    """Run the installed command, for what happens before and around Python."""
    return subprocess.run(
        [BIN / "volcore", *words], env={**os.environ, **(env or {})},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60,
    )  # fmt: skip


def leaves(kind=errors.VolcoreError):
    for one in kind.__subclasses__():
        yield one
        yield from leaves(one)


def test_every_error_class_has_an_exit_code():
    """Goal: no error without its code. Method: walk the taxonomy."""
    assert {one.status for one in leaves()} == set(report.EXIT_CODES)
    codes = list(report.EXIT_CODES.values())
    assert len(codes) == len(set(codes))
    assert report.USAGE not in codes


def test_page_has_the_same_exit_codes():
    """Goal: docs/cli.md lists the codes that are given. Method: compare its table."""
    rows = re.findall(r"^\| (\d+) \| ([A-Z_]+)\b[^|]* \| ([^|]*) \|$", PAGE.read_text(), re.M)
    assert {status: int(code) for code, status, _ in rows} == report.EXIT_CODES
    by_status = {one.status: one.recovery for one in leaves()}
    for _, status, advice in rows:
        assert status == "INTERNAL" or advice == by_status[status]


@pytest.mark.parametrize("noun", NOUNS)
def test_help_teaches(noun):
    """Goal: each verb explains itself. Method: ask each for help."""
    overview = volcore(noun, "--help").stdout
    for verb in NOUNS[noun].split():
        assert re.search(rf"\b{verb}\b", overview)
        shown = volcore(noun, verb, "--help")
        assert shown.returncode == 0
        assert f"volcore {noun} {verb}" in shown.stdout


def test_help_is_quick():
    """Goal: the command starts at once. Method: its processor time; nothing heavy is imported."""
    times_s = []
    for _ in range(3):
        before = os.times()
        assert volcore_process("--help").returncode == 0
        after = os.times()
        times_s.append(sum(after[2:4]) - sum(before[2:4]))
    assert min(times_s) < 1.5
    code = (
        "import sys, volcore.cli.main\n"
        "print([name for name in ('grpc', 'google.protobuf') if name in sys.modules])"
    )
    done = subprocess.run([BIN / "python", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_global_options_stand_anywhere():
    """Goal: no lesson about the order of options. Method: hoist them."""
    assert hoist(["volume", "list", "--endpoint", "x:1", "-o", "json", "--debug"]) == [
        "--endpoint", "x:1", "--debug", "volume", "list", "-o", "json",
    ]  # fmt: skip
    assert hoist(["a", "--timeout=3", "--", "--debug"]) == ["--timeout=3", "a", "--", "--debug"]
    assert hoist(["a", "--endpoint"]) == ["--endpoint", "a"]


@pytest.mark.parametrize(
    ("words", "code", "needles"),
    [
        (["volume", "create", "x", "--size", "10"], 3, ["no unit", "10GiB", "BAD_FIELD"]),
        (["volume", "resize", "x", "10GB"], 3, ["not a unit", "10GiB"]),
        (["volume", "create", "x"], 3, ["needs a size"]),
        (["volume", "create", "x", "--image", "a", "--volume", "b"], 3, ["choose one"]),
        (["volume", "deploy", "a"], 3, ["--count"]),
        (["volume", "delete", "x"], 3, ["--yes", "stdin is no terminal"]),
        (["snapshot", "delete", "x", "y"], 3, ["--yes"]),
        (["image", "delete", "x"], 3, ["--yes"]),
        (["attachment", "detach", "x", "y"], 3, ["--yes"]),
        (["volume", "revert", "x", "y"], 3, ["--yes"]),
        (["volume", "fnord"], 2, ["fnord"]),
        (["volume", "list", "--endpoint", "nonsense"], 3, ["unix:///path or host:port"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_refusals_without_a_server(words, code, needles):
    """Goal: what is wrong from the start needs no server. Method: point at none."""
    done = volcore(*words, environment={"VOLCORE_ENDPOINT": "unix:///nonexistent/volcore.sock"})
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    for needle in needles:
        assert needle in done.stderr
    assert "Traceback" not in done.stderr


def test_no_server():
    """Goal: one sentence about a server that is not there. Method: point at none."""
    done = volcore(
        "--endpoint", "unix:///nonexistent/volcore.sock", "--timeout", "1", "pool", "list"
    )
    assert done.returncode == report.EXIT_CODES["UNAVAILABLE"]
    said = done.stderr.splitlines()
    assert said[0].startswith("error: the server cannot be reached")
    assert said[1].split() == ["reason:", "SERVER_UNREACHABLE"]
    assert said[2].startswith("  next:")
    assert re.fullmatch(r"  request: [0-9a-f]+", said[3])


def test_debug_shows_the_traceback():
    """Goal: a traceback only when asked for. Method: ask for it."""
    done = volcore("volume", "create", "x", "--size", "10", "--debug")
    assert "Traceback" in done.stderr
    assert done.returncode == 3


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell):
    """Goal: the shell knows the nouns. Method: get the script, then complete as the shell would."""
    script = volcore_process(
        "--show-completion", shell, env={"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    )
    assert "volcore" in script.stdout.lower()


def test_completion_of_nouns():
    """Goal: `volcore vol<TAB>` is `volume`. Method: the protocol that bash's script speaks."""
    done = volcore_process(
        env={"_VOLCORE_COMPLETE": "complete_bash", "COMP_WORDS": "volcore vol", "COMP_CWORD": "1"}
    )
    assert done.stdout.split() == ["volume"]


def test_version():
    """Goal: what to put into a bug report. Method: ask."""
    shown = volcore_process("version", "--output", "json")
    assert '"protocol": "volcore.v1"' in shown.stdout
    assert '"kernels": "' in shown.stdout
