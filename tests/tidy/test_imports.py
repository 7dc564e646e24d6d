"""Imports point one way: each room names the rooms it may use; there is no list of exceptions."""

import pytest

from .sources import ROOT, files, imports, module_name, shown

FOUNDATION = {"errors", "limits"}
VALUES = FOUNDATION | {"model"}

# A room is the longest of these names that begins a module's name. What stands in `testing` may
# import anything; `daemon` is the composition root and knows every room of the server.
ARROWS: dict[str, set[str]] = {
    "": set(),
    "v1": set(),
    "limits": set(),
    "errors": set(),
    "credentials": FOUNDATION,
    "model": FOUNDATION,
    "kernels": FOUNDATION,
    "seal": FOUNDATION,
    "writeback": FOUNDATION,
    "database": FOUNDATION | {"seal"},
    "backends": set(),
    "backends.contract": VALUES,
    "backends.adopting": VALUES,
    "backends.fencing": VALUES,
    "backends.auditing": VALUES,
    "backends.carrying": VALUES,
    "backends.verifying": VALUES,
    "backends.refusals": VALUES | {"backends.contract"},
    "backends.memory": VALUES | {"kernels", "backends.contract", "backends.refusals"},
    "backends.local": VALUES
    | {
        "kernels", "backends.contract", "backends.refusals", "backends.verifying", "database",
        "seal",
    },
    "backends.rbd": VALUES
    | {
        "kernels", "backends.adopting", "backends.auditing", "backends.carrying",
        "backends.contract", "backends.refusals",
    },
    "catalog": set(),
    "catalog.contract": VALUES,
    "catalog.sqlite": VALUES | {"catalog.contract", "database"},
    "catalog.omap": VALUES | {"catalog.contract"},
    "nbd": VALUES | {"kernels", "backends.contract", "credentials"},
    "images": VALUES | {"kernels", "backends.contract", "nbd", "writeback"},
    "engine": VALUES
    | {
        "kernels", "backends.adopting", "backends.auditing", "backends.carrying",
        "backends.contract", "backends.fencing", "backends.verifying", "catalog.contract", "images",
    },
    "wire": VALUES | {"v1"},
    "client": VALUES | {"v1", "wire", "writeback"},
    "cinder": VALUES | {"client", "v1", "writeback"},
    "observability": FOUNDATION,
    "systemd": FOUNDATION,
    "config": VALUES | {"config_reference", "credentials"},
    "config_reference": FOUNDATION,
    "api": VALUES
    | {
        "backends.adopting", "backends.contract", "credentials", "v1", "wire", "engine",
        "observability",
    },
    "cli": VALUES | {"v1", "wire", "client", "config"},
    "cli.main": FOUNDATION | {"cli", "cli.serve", "cli.version"},
    # Two commands do not talk to a server: they are one.
    "cli.serve": VALUES | {"cli", "config", "daemon"},
    "cli.version": FOUNDATION | {"", "cli", "kernels"},
    "exporter": VALUES | {"backends.contract", "engine", "nbd"},
    "daemon": {
        "api", "backends", "backends.contract", "backends.local", "backends.memory",
        "backends.rbd", "backends.refusals", "catalog", "catalog.contract", "catalog.omap",
        "catalog.sqlite", "config", "config_reference", "credentials", "database", "engine",
        "errors", "exporter", "images", "kernels", "limits", "model", "nbd",
        "observability", "systemd", "v1", "wire", "",
    },
}  # fmt: skip
FREE = {"testing"}


def room(module: str) -> str:
    """The room of a module, or of a name imported from one."""
    words = module.split(".")[1:]
    for end in range(len(words), 0, -1):
        if (name := ".".join(words[:end])) in ARROWS or name in FREE:
            return name
    # A room without arrows yet, or a name of the package (`from volcore import __version__`).
    place = ROOT.joinpath("volcore", *words[:1])
    return words[0] if words and (place.is_dir() or place.with_suffix(".py").exists()) else ""


@pytest.mark.parametrize("path", files("volcore", suffix=".py"), ids=shown)
def test_arrows(path):
    """Goal: no import against the direction. Method: read every import statement of the file."""
    here = room(module_name(path))
    if here in FREE:
        return
    assert here in ARROWS, f"{shown(path)}: room {here!r} is new; give it its arrows in ARROWS"
    wrong = [
        f"{shown(path, line)}: {here or 'volcore'} must not import {there!r} ({name})"
        for line, name in imports(path)
        if (there := room(name)) not in ARROWS[here] | {here}
    ]
    assert not wrong, "\n".join(wrong)


def test_no_circles():
    """Goal: the table itself points one way. Method: depth-first walk over it."""
    done: set[str] = set()

    def walk(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, f"circle: {' -> '.join([*above, name])}"
        if name in done:
            return
        for below in ARROWS[name] - {name}:
            walk(below, (*above, name))
        done.add(name)

    for name in ARROWS:
        walk(name, ())


def test_pages_draw_the_same_arrows():
    """Goal: the picture in docs/architecture.md is the table. Method: compare its rows."""
    page = (ROOT / "docs" / "architecture.md").read_text()
    rows = {}
    for line in page.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| `") and len(cells) == 3:
            rows[cells[0].strip("`/")] = {
                word.strip(" `") for word in cells[2].split(",") if word.strip()
            }
    expected = {name: allowed for name, allowed in ARROWS.items() if allowed and name != "daemon"}
    written = {
        name: {word for word in allowed if word not in ("errors", "limits", "nothing")}
        for name, allowed in rows.items()
        if name in expected
    }
    missing = expected.keys() - rows.keys()
    assert not missing, f"docs/architecture.md says nothing about {sorted(missing)}"
    assert written == {name: allowed - FOUNDATION - {""} for name, allowed in expected.items()}
