"""Programs of the distribution that judge the files which volcore installs."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SHARE = ROOT / "share"


def need(*programs: str) -> None:
    """Skip the test where a program is missing, but not in a run that has to prove everything."""
    missing = [name for name in programs if not shutil.which(name)]
    if not missing and os.geteuid() == 0:
        return
    text = f"needs root and {', '.join(missing) or 'nothing else'}: scripts/setup test installs it"
    if missing and (os.environ.get("CI") or os.environ.get("VOLCORE_REQUIRE_CEPH")):
        pytest.fail(text)
    pytest.skip(text)


def run(*words: object, code: int | None = 0, **options) -> subprocess.CompletedProcess[str]:
    """Run a program and return what it said; `code` None: whatever it ends with."""
    done = subprocess.run(
        [*map(str, words)],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, **options,
    )  # fmt: skip
    assert code is None or done.returncode == code, (words, done)
    return done
