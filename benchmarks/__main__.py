"""Run benchmarks: `python -m benchmarks [SCENARIOS... | NAME [OPTIONS...]]`.

Without a word, or with scenarios of `benchmarks.rbd`: volumes on Ceph against their bars. With the
name of a module `bench_*.py`: that one, with its own options.
"""

import runpy
import sys
from pathlib import Path

PREFIX = "bench_"


def main() -> int:
    """Run what the command line names; 2 for an unknown name."""
    words = sys.argv[1:]
    found = sorted(path.stem for path in Path(__file__).parent.glob(f"{PREFIX}*.py"))
    names = [name.removeprefix(PREFIX) for name in found]
    if words and words[0] in names:
        sys.argv = words
        runpy.run_module(f"benchmarks.{PREFIX}{words[0]}", run_name="__main__")
        return 0
    from benchmarks.rbd import __main__ as rbd

    if words and not words[0].startswith("-") and words[0] not in rbd.SCENARIOS:
        known = ", ".join((*rbd.SCENARIOS, *names))
        print(f"no benchmark {words[0]!r}; there are: {known}", file=sys.stderr)
        return 2
    return rbd.main()


if __name__ == "__main__":
    sys.exit(main())
