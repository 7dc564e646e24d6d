"""What users install: the sdist builds a wheel, and the wheel works on its own."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SERVE = """
import sys
from volcore.kernels import kernel_name, run_self_test
import volcore
assert volcore.__file__.startswith(sys.argv[1]), volcore.__file__
run_self_test()
print(kernel_name())
"""


def run(*words: object, **options) -> str:
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel that comes out of the sdist that comes out of what git tracks."""
    target = tmp_path_factory.mktemp("dist")
    run(ROOT / "scripts" / "build", target)
    (built,) = target.glob("*.whl")
    return built


@pytest.mark.timeout(600)
def test_wheel_has_what_it_needs(wheel):
    """Compiled kernels, types and generated code are in it; tests and C sources are not."""
    names = zipfile.ZipFile(wheel).namelist()
    for kernel in ("chunkmap", "crc32c", "extents", "mapscan", "zero"):
        assert any(n.startswith(f"volcore/kernels/_native/{kernel}.") for n in names), kernel
    assert "volcore/py.typed" in names
    assert "volcore/v1/volume_pb2.py" in names
    assert not [n for n in names if n.startswith(("tests/", "_ext/", "benchmarks/"))]
    share = {n.partition(".data/data/share/volcore/")[2] for n in names}
    assert share - {""} == {
        "ocf/volcore", "systemd/volcore.service", "sysusers.d/volcore.conf",
        "tmpfiles.d/volcore.conf",
    }  # fmt: skip


@pytest.mark.timeout(600)
def test_wheel_runs_outside_of_the_checkout(wheel, tmp_path):
    """Unpacked somewhere else, its kernels are native and its command starts."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site"), "VOLCORE_KERNEL": "native"}
    options = {"cwd": tmp_path, "env": environment}
    assert "native" in run(sys.executable, "-c", SERVE, tmp_path / "site", **options)
    assert "0.1.0" in run(sys.executable, "-m", "volcore.cli.main", "version", **options)
