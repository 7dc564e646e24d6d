"""The pages: one head each, links that lead somewhere, generated ones up to date."""

import re
import subprocess
import sys

import pytest

from .sources import ROOT, files, project_files, shown

PAGES = [*files("docs", suffix=".md"), *(path for path in project_files() if path.suffix == ".md"
                                          and path.parent == ROOT)]  # fmt: skip
FENCE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def prose(path):
    return FENCE.sub("", path.read_text())


@pytest.mark.parametrize("page", PAGES, ids=shown)
def test_one_head(page):
    """Goal: one subject per page. Method: count the h1 lines outside of code."""
    heads = re.findall(r"^# .+$", prose(page), re.MULTILINE)
    assert len(heads) == 1, f"{shown(page)} has {len(heads)} h1: {heads}"


@pytest.mark.parametrize("page", PAGES, ids=shown)
def test_links(page):
    """Goal: no dead link within the project. Method: follow every relative one."""
    dead = []
    for target in LINK.findall(prose(page)):
        if "://" in target or target.startswith(("#", "mailto:")):
            continue
        if not (page.parent / target.split("#")[0]).exists():
            dead.append(target)
    assert not dead, f"{shown(page)} links to {dead}"


def test_generated_pages():
    """Goal: the pages made from code say what it says. Method: let their maker check."""
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "docs.py", "--check"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, f"run 'make docs'\n{done.stdout}{done.stderr}"


def test_invariants_have_one_name_each():
    """Goal: an id names one invariant. Method: count the first cells of the page's tables."""
    rows = re.findall(r"^\| (INV-[A-Z]+-\d+) \|", prose(ROOT / "docs" / "invariants.md"), re.M)
    assert rows
    assert sorted(rows) == sorted(set(rows))


def test_named_invariants_exist():
    """Goal: no reference to an invariant that is gone. Method: look each id up on the page."""
    known = set(re.findall(r"INV-[A-Z]+-\d+", prose(ROOT / "docs" / "invariants.md")))
    named = {
        (name, shown(path))
        for path in project_files()
        if path.suffix in {".py", ".pyx", ".pxi", ".md"}
        for name in re.findall(r"INV-[A-Z]+-\d+", path.read_text())
    }
    assert named
    assert sorted((name, at) for name, at in named if name not in known) == []
