"""The files that the tidy tests read, and questions about their syntax trees."""

import ast
import functools
import subprocess
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GENERATED = ROOT / "volcore" / "v1"


@functools.cache
def project_files() -> tuple[Path, ...]:
    """Every file that git knows or would take."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    paths = {ROOT / name for name in listed.split("\0") if name}
    return tuple(sorted(path for path in paths if path.is_file()))


def files(*roots: str, suffix: str) -> list[Path]:
    """Project files below `roots` with `suffix`, the generated code left out."""
    return [
        path
        for path in project_files()
        if path.suffix == suffix
        and GENERATED not in path.parents
        and path.relative_to(ROOT).parts[0] in roots
    ]


def shown(path: Path, line: int | None = None) -> str:
    """The file's name within the project, for failure messages."""
    name = str(path.relative_to(ROOT))
    return name if line is None else f"{name}:{line}"


@functools.cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), filename=str(path))


def module_name(path: Path) -> str:
    """`volcore/api/volumes.py` is `volcore.api.volumes`."""
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, module) for each import of `volcore` in the file, wherever it stands.

    `from volcore import limits` counts as `volcore.limits`.
    """
    package = module_name(path).split(".")
    if path.name != "__init__.py":
        package.pop()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            start = ".".join([*base, *([node.module] if node.module else [])])
            found = [f"{start}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in found:
            if name.split(".")[0] == "volcore":
                yield node.lineno, name


def attributes(path: Path, owner: str) -> Iterator[tuple[int, str]]:
    """(line, NAME) for each `owner.NAME` in the file, and each `from owner import NAME`."""
    for node in ast.walk(tree(path)):
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id == owner
        ):
            yield node.lineno, node.attr
        elif isinstance(node, ast.ImportFrom) and node.module == owner and not node.level:
            for alias in node.names:
                yield node.lineno, alias.name
