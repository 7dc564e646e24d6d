"""The cage: what a converter could do if its image took it over. Method: run other tools in it."""

import json
import os
import shutil
import subprocess
import sys
import tempfile

import pytest

from volcore.images import cage
from volcore.limits import GIB

LANDLOCK = bool(cage.ctypes.CDLL(None).syscall(cage._LANDLOCK_CREATE, None, 0, 1) > 0)


@pytest.fixture
def image():
    with tempfile.TemporaryFile() as file:
        os.fchmod(file.fileno(), 0o644)
        file.write(b"the image")
        file.flush()
        yield file


def caged(image, *command, parent=None, memory_bytes_max=2 * GIB):
    plan: cage.Plan = {
        "parent": parent or os.getpid(),
        "file": image.fileno(),
        "memory_bytes_max": memory_bytes_max,
        "cpu_s_max": 60,
    }
    tool = os.path.realpath(shutil.which(command[0]))
    return subprocess.run(
        [sys.executable, "-I", "-S", cage.__file__, json.dumps(plan), tool, *command[1:]],
        pass_fds=[image.fileno()], capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_the_image_can_be_read(image):
    done = caged(image, "cat", f"/dev/fd/{image.fileno()}")
    assert (done.returncode, done.stdout) == (0, "the image"), done.stderr


@pytest.mark.skipif(not LANDLOCK, reason="this kernel has no Landlock")
@pytest.mark.parametrize("path", ["/etc/passwd", "/etc/hostname", "/proc/version", "/tmp"])
def test_nothing_else_can_be_read(path, image):
    done = caged(image, "cat", path) if path != "/tmp" else caged(image, "ls", path)
    assert done.returncode != 0
    assert "denied" in done.stderr


def test_nothing_can_be_written(image, tmp_path):
    tmp_path.chmod(0o777)
    done = caged(image, "dd", "if=/dev/null", f"of={tmp_path / 'new'}")
    assert done.returncode != 0 or not LANDLOCK
    done = caged(image, "dd", f"if=/dev/fd/{image.fileno()}", f"of=/dev/fd/{image.fileno()}")
    assert done.returncode != 0 or not LANDLOCK
    image.seek(0)
    assert image.read() == b"the image"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has something to lose")
def test_root_is_lost(image):
    assert caged(image, "id", "-u").stdout == "65534\n"
    os.fchmod(image.fileno(), 0o600)
    done = caged(image, "grep", "CapEff", "/dev/null")
    assert done.returncode == 1, done.stderr  # it starts as a root without capabilities
    assert caged(image, "id", "-u").stdout == "0\n"
    assert caged(image, "chroot", "/usr", "true").returncode != 0


def test_limits(image):
    assert caged(image, "bash", "-c", "ulimit -v").stdout == f"{2 * GIB // 1024}\n"
    assert caged(image, "bash", "-c", "ulimit -c").stdout == "0\n"
    assert caged(image, "bash", "-c", "ulimit -f").stdout == "0\n"
    assert caged(image, "bash", "-c", "ulimit -t").stdout == "60\n"
    assert caged(image, "nice").stdout == f"{min(19, os.nice(0) + 10)}\n"


def test_wrong_parent(image):
    assert caged(image, "true", parent=1).returncode == -9
