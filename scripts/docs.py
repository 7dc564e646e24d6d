#!/usr/bin/env python3
"""Regenerate the pages that come from code; with --check, compare them and change nothing."""

import argparse
import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from volcore import config_reference, errors  # noqa: E402
from volcore.wire import status  # noqa: E402

_HEAD = """# Errors

<!-- Generated from volcore/errors.py by scripts/docs; do not edit. -->

Every failure is one of the errors below. On the wire it is a gRPC status whose details carry
`google.rpc.ErrorInfo` with domain `volcore`, a stable reason and the facts of the case (the request
id among them), `PreconditionFailure` with what blocks, and `RetryInfo` where the same call may
succeed later without any change. Sentences may change; reasons never do. Every mutating call may be
repeated blindly, so `UNAVAILABLE` and `DEADLINE_EXCEEDED` are always safe to repeat.

"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare, change nothing")
    arguments = parser.parse_args()
    stale = []
    for name, text in {
        "docs/configuration.md": config_reference.render(),
        "docs/errors.md": render_errors(),
    }.items():
        path = ROOT / name
        if path.exists() and path.read_text() == text:
            continue
        stale.append(name)
        if not arguments.check:
            path.write_text(text)
    if stale:
        print(("not up to date: " if arguments.check else "wrote ") + ", ".join(stale))
    return 1 if stale and arguments.check else 0


def render_errors() -> str:
    """Return docs/errors.md."""
    kinds = [kind for kind in vars(errors).values() if is_leaf(kind)]
    raised = find_raised({kind.__name__ for kind in kinds})
    parts = [_HEAD, "| error | status | what it means | what to do |\n| --- | --- | --- | --- |\n"]
    parts += [
        f"| `{kind.__name__}` | {kind.status} | {first_line(kind)} | {kind.recovery} |\n"
        for kind in kinds
    ]
    parts.append("\n## Reasons\n\n| reason | errors |\n| --- | --- |\n")
    for reason in errors.Reason:
        by = ", ".join(f"`{name}`" for name in sorted(raised.get(reason.value, ())))
        parts.append(f"| `{reason}` | {by or '-'} |\n")
    return "".join(parts)


def is_leaf(kind: object) -> bool:
    return (
        isinstance(kind, type)
        and issubclass(kind, errors.VolcoreError)
        and (kind is not errors.VolcoreError)
    )


def find_raised(kinds: set[str]) -> dict[str, set[str]]:
    """Return which classes carry which reason, as the sources of the package say."""
    raised: dict[str, set[str]] = {}
    for path in sorted((ROOT / "volcore").rglob("*.py")):
        if "testing" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            kind = getattr(node.func, "id", getattr(node.func, "attr", ""))
            for keyword in node.keywords:
                value = keyword.value
                if kind in kinds and keyword.arg == "reason" and isinstance(value, ast.Attribute):
                    raised.setdefault(value.attr, set()).add(kind)
    for code, reason in status.BARE_REASONS.items():
        raised.setdefault(reason.value, set()).update(
            kind.__name__ for kind in map(vars(errors).get, kinds) if kind and kind.status == code
        )
    raised["MESSAGE_TOO_LARGE"].add("ExhaustedError")
    return raised


def first_line(kind: type) -> str:
    return (kind.__doc__ or "").strip().splitlines()[0].rstrip(".")


if __name__ == "__main__":
    sys.exit(main())
