"""Judge the reports of one sanitizer run: errors, and leaks that come by way of our modules."""

import re
import sys
from pathlib import Path

OURS = re.compile(r"\b_ext/|/volcore/kernels/_native/")
LEAK = re.compile(r"^(?:Direct|Indirect) leak of .*?(?=^$|\Z)", re.MULTILINE | re.DOTALL)
ERROR = re.compile(
    r"^.*(?:ERROR: AddressSanitizer|runtime error:|LeakSanitizer has encountered).*$", re.MULTILINE
)
TEXT_MAX = 6000


def findings(text: str) -> list[str]:
    """Return the errors in a report, then the leaks that are ours."""
    found = [text[:TEXT_MAX]] if ERROR.search(text) else []
    for leak in LEAK.findall(text):
        if OURS.search(leak):
            found.append(leak)
    return found


def main(directory: Path) -> int:
    """Print what was found in the reports of a directory; return the exit code."""
    reports = sorted(directory.iterdir())
    found = [one for path in reports for one in findings(path.read_text(errors="replace"))]
    for one in found:
        print(one, file=sys.stderr)
    print(f"asan: {len(reports)} reports, {len(found)} errors or leaks of ours")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
