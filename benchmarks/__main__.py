"""Run benchmarks: `python -m benchmarks [SCENARIOS... | NAME [OPTIONS...]]`.

Without a word, or with scenarios of `benchmarks.rbd`: volumes on Ceph against their bars. With
`openstack`: Cinder with our driver. With the name of a module `bench_*.py`: that one. Both have
options of their own.
"""

import runpy
import sys
from pathlib import Path

PREFIX = "bench_"
OPENSTACK = "openstack"


def main() -> int:
    """Run what the command line names; 2 for an unknown name."""
    words = sys.argv[1:]
    found = sorted(path.stem for path in Path(__file__).parent.glob(f"{PREFIX}*.py"))
    names = [name.removeprefix(PREFIX) for name in found]
    if words and words[0] in (*names, OPENSTACK):
        sys.argv = words
        module = OPENSTACK if words[0] == OPENSTACK else PREFIX + words[0]
        runpy.run_module(f"benchmarks.{module}", run_name="__main__")
        return 0
    from benchmarks.rbd import __main__ as rbd

    if words and not words[0].startswith("-") and words[0] not in rbd.SCENARIOS:
        known = ", ".join((*rbd.SCENARIOS, *names, OPENSTACK))
        print(f"no benchmark {words[0]!r}; there are: {known}", file=sys.stderr)
        return 2
    return rbd.main()


if __name__ == "__main__":
    sys.exit(main())
