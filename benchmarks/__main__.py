"""Run benchmarks: `python -m benchmarks [NAME [OPTIONS...]]`; without a name, all with defaults."""

import runpy
import sys
from pathlib import Path

PREFIX = "bench_"


def main() -> int:
    """Run the benchmark that the command line names, or all; 2 for an unknown name."""
    found = sorted(path.stem for path in Path(__file__).parent.glob(f"{PREFIX}*.py"))
    names = [name.removeprefix(PREFIX) for name in found]
    chosen, options = sys.argv[1:2] or names, sys.argv[2:]
    if unknown := set(chosen) - set(names):
        print(f"no benchmark {unknown.pop()!r}; there are: {', '.join(names)}", file=sys.stderr)
        return 2
    for name in chosen:
        print(f"== {name}", flush=True)
        sys.argv = [name, *options]
        runpy.run_module(f"benchmarks.{PREFIX}{name}", run_name="__main__")
    return 0


if __name__ == "__main__":
    sys.exit(main())
