"""The choice of kernels, the faces, and the self-test."""

import inspect
import os
import subprocess
import sys
from array import array
from importlib import import_module

import pytest

from volcore.errors import IntegrityError, InvalidArgumentError, NotSupportedError, Reason
from volcore.kernels import kernel_name, run_self_test, select

from .conftest import native, oracle


def test_a_demand_for_pure_needs_nothing_built(monkeypatch):
    monkeypatch.setattr(select, "_why_not_built", lambda: "not built")
    assert select.choose("pure") == "pure"


@pytest.mark.parametrize("word", ["", "Native", "fast", "pure "])
def test_an_unknown_word_is_refused(word):
    with pytest.raises(InvalidArgumentError, match="unknown word") as caught:
        select.choose(word)
    assert caught.value.reason == Reason.CONFIG_INVALID


@pytest.mark.parametrize(
    ("built", "cpu", "problem"),
    [("they are not built", None, "not_built"), (None, "the CPU lacks avx2", "cpu")],
)
def test_native_that_cannot_run(monkeypatch, caplog, built, cpu, problem):
    """Goal: demanded, it refuses, and says which of two; not demanded, it falls back and warns."""
    monkeypatch.setattr(select, "_why_not_built", lambda: built)
    monkeypatch.setattr(select, "_why_not_on_this_cpu", lambda: cpu)
    with pytest.raises(NotSupportedError) as caught:
        select.choose("native")
    assert caught.value.reason == Reason.CAPABILITY_ABSENT
    assert caught.value.context == {"problem": problem}
    assert select.choose(None) == "pure"
    assert "Slow pure-Python kernels" in caplog.text


def test_native_is_preferred(monkeypatch):
    monkeypatch.setattr(select, "_why_not_built", lambda: None)
    monkeypatch.setattr(select, "_why_not_on_this_cpu", lambda: None)
    assert select.choose(None) == select.choose("native") == "native"


def test_a_missing_cpu_feature_is_named(monkeypatch):
    kernel = native("crc32c")
    assert kernel.missing_cpu_feature() is None
    monkeypatch.setattr(kernel, "missing_cpu_feature", lambda: "avx9")
    assert "avx9" in select._why_not_on_this_cpu()


def run_python(code, **variables):
    environment = {k: v for k, v in os.environ.items() if k != select.ENVIRONMENT_VARIABLE}
    return subprocess.run(
        [sys.executable, "-c", code],
        env=environment | {"PYTHONPATH": os.pathsep.join(sys.path)} | variables,
        capture_output=True,
        text=True,
        check=False,
    )


HIDE = "import sys; sys.modules['volcore.kernels._native.zero'] = None; "
SHOW = "import volcore.kernels as k; k.run_self_test(); print(k.kernel_name())"


def test_the_environment_decides():
    assert run_python(SHOW, VOLCORE_KERNEL="pure").stdout == "pure\n"
    assert run_python(HIDE + SHOW).stdout == "pure\n"
    refused = run_python(HIDE + SHOW, VOLCORE_KERNEL="native")
    assert refused.returncode != 0
    assert "not built" in refused.stderr
    refused = run_python(SHOW, VOLCORE_KERNEL="quick")
    assert refused.returncode != 0
    assert "unknown word" in refused.stderr
    native("crc32c")
    assert run_python(SHOW, VOLCORE_KERNEL="native").stdout.startswith("native (")


def test_kernel_name_tells_the_crc_implementation(monkeypatch):
    monkeypatch.setattr(select, "CHOICE", "pure")
    assert kernel_name() == "pure"
    monkeypatch.setattr(select, "CHOICE", "native")
    assert kernel_name() == f"native ({native('crc32c').implementation()})"


def test_self_test_passes():
    run_self_test()


WRONG = [
    ("crc32c", "crc32c", lambda data, value=0: 0x8A9136AA),
    ("crc32c", "crc32c_blocks", lambda data, size, out: None),
    ("crc32c", "find_bad_block", lambda data, size, expected: -1),
    ("crc32c", "copy_crc32c_blocks", lambda target, source, size, out: None),
    ("crc32c", "crc32c_combine", lambda first, second, length: second),
    ("zero", "is_zero", lambda data: True),
    ("zero", "find_zero_blocks", lambda data, size, out: 2),
    ("chunkmap", "overlay", lambda *args: 0),
    ("chunkmap", "resolve_runs", lambda *args: []),
    ("chunkmap", "freeze", lambda *args: (3, 1)),
    ("chunkmap", "diff", lambda *args: 0),
    ("chunkmap", "merge", lambda *args: None),
    ("mapscan", "read_states", lambda *args: (b"", b"")),
    ("mapscan", "fill", lambda *args: None),
    ("extents", "map_extents", lambda *args, **keywords: []),
    ("extents", "object_to_image", lambda *args, **keywords: 0),
    ("extents", "merge_extents", lambda items: items),
]


@pytest.mark.parametrize(("kernel", "name", "wrong"), WRONG)
def test_self_test_refuses_a_wrong_kernel(monkeypatch, kernel, name, wrong):
    """Goal: each kernel is really tested. Method: break one function at a time."""
    monkeypatch.setattr(import_module(f"volcore.kernels.{kernel}"), name, wrong)
    with pytest.raises(IntegrityError) as caught:
        run_self_test()
    assert caught.value.reason == Reason.BAD_CHECKSUM


def test_native_oracle_and_face_have_the_same_names(pair):
    name, compiled, pure = pair
    face = import_module(f"volcore.kernels.{name}")

    def public(module):
        return {
            each
            for each, value in vars(module).items()
            if not each.startswith("_")
            and callable(value)
            and getattr(value, "__module__", None) == module.__name__
        }

    compiled_names = {n for n in dir(compiled) if callable(getattr(compiled, n)) and n[0] != "_"}
    assert public(face) == public(pure)
    assert public(face) == compiled_names - {"missing_cpu_feature"}
    for function in public(face):
        parameters = inspect.signature(getattr(face, function)).parameters
        assert list(parameters) == list(inspect.signature(getattr(pure, function)).parameters)
        assert inspect.getdoc(getattr(face, function))


ROW = "09a4758b050000000000000002"
"""Chunk 5 of layer 7, all ZERO."""


def test_faces_pass_everything_through():
    """Goal: no face drops or swaps an argument. Method: call each, compare with the oracle."""
    faces = {name: import_module(f"volcore.kernels.{name}") for name in select.KERNELS}
    stripes = {"object_size_bytes": 12, "stripe_unit_bytes": 4, "stripe_count": 3}
    calls = [
        ("crc32c", "crc32c", lambda: (b"abc", 5), {}),
        ("crc32c", "crc32c_combine", lambda: (1, 2, 3), {}),
        ("crc32c", "crc32c_blocks", lambda: (b"abcd", 2, array("I", [0, 0])), {}),
        ("crc32c", "find_bad_block", lambda: (b"abcd", 2, array("I", [0, 0])), {}),
        (
            "crc32c",
            "copy_crc32c_blocks",
            lambda: (bytearray(4), b"abcd", 2, array("I", [0, 0])),
            {},
        ),
        ("zero", "is_zero", lambda: (b"\0",), {}),
        ("zero", "find_zero_blocks", lambda: (b"\0\0\1\0", 2, bytearray(2)), {}),
        ("chunkmap", "mark", lambda: (bytearray(4), 1, 2, 1), {}),
        (
            "chunkmap",
            "overlay",
            lambda: (array("H", [65535] * 2), array("I", [0, 0]), b"\1\2", array("I", [3, 4]), 5),
            {},
        ),
        ("chunkmap", "resolve_runs", lambda: (array("H", [1, 1, 2]), 1, 2), {}),
        ("chunkmap", "state_runs", lambda: (b"\1\1\2", 1, 2), {}),
        ("chunkmap", "freeze", lambda: (b"\1\2", array("I", [3, 4])), {}),
        ("chunkmap", "diff", lambda: (bytearray(2), b"\0\1"), {}),
        (
            "chunkmap",
            "merge",
            lambda: (bytearray(2), array("I", [1, 2]), b"\0\1", array("I", [3, 4])),
            {},
        ),
        ("mapscan", "read_states", lambda: (bytes.fromhex(ROW), 7), {}),
        (
            "mapscan",
            "fill",
            lambda: (bytearray(1024), array("Q", [0]), b"\1" * 1024, 0),
            {},
        ),
        ("extents", "map_extents", lambda: (5, 20), stripes),
        ("extents", "object_to_image", lambda: (5, 7), stripes),
        ("extents", "merge_extents", lambda: ([(4, 4, 1), (0, 4, 1)],), {}),
    ]
    for name, function, make, keywords in calls:
        args, again = make(), make()
        result = getattr(faces[name], function)(*args, **keywords)
        assert result == getattr(oracle(name), function)(*again, **keywords), function
        assert args == again, function
    face = faces["crc32c"]
    face.use_implementation(face.implementation())
    assert face.implementation() in face.implementations()
