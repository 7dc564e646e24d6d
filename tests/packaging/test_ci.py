"""What the integration server runs."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / ".ci" / "run"
TARGETS = ("test", "test-openstack")
MAKE = """\
#!/bin/sh
echo "made $1"
for failing in $FAILING; do [ "$1" = "$failing" ] && exit 2; done
exit 0
"""


@pytest.mark.parametrize("failing", [(), TARGETS[:1], TARGETS[1:], TARGETS])
def test_both_results_come_last(tmp_path, failing):
    """Goal: both commands run, whichever fails, and each result counts. Method: another make."""
    (tmp_path / ".ci").mkdir()
    script = Path(shutil.copy(SCRIPT, tmp_path / ".ci"))
    make = tmp_path / "make"
    make.write_text(MAKE)
    make.chmod(0o755)
    environment = os.environ | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "FAILING": " ".join(failing),
    }
    done = subprocess.run([script], env=environment, capture_output=True, text=True)
    assert bool(done.returncode) == bool(failing)
    lines = done.stdout.splitlines()
    assert {f"made {target}" for target in TARGETS} <= set(lines)
    assert lines[-2:] == [
        f"== make {target}: {'FAILED' if target in failing else 'ok'}" for target in TARGETS
    ]
