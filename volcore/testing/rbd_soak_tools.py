"""Who else works on the pool during an rbd soak: users of the command `rbd`."""

import json
import subprocess
from pathlib import Path
from typing import Final

from volcore.limits import MIB
from volcore.testing.rbd_judge import TOOL_TIMEOUT_S, Disk, looked
from volcore.testing.rbd_soak_callers import (
    IMAGE_BYTES,
    SNAPSHOTS_MAX,
    Caller,
    Model,
    Worker,
    World,
)

FOREIGN_MAX: Final = 6
_ENOENT: Final = 2


class ToolUser(Worker):
    """Uses `rbd`: looks at volumes, and works on images of its own in the same pool.

    Args:
        world: shared.
        number: of the user.
        seed: of its dice.
        command: `rbd` with the options that every call needs.
        pool: Ceph's name of the pool.
        scratch: a file to write to.
        others: the callers, whose volumes it looks at.
    """

    def __init__(
        self,
        world: World,
        number: int,
        seed: int,
        *,
        command: list[str],
        pool: str,
        scratch: Path,
        others: list[Caller],
    ) -> None:
        super().__init__(world, f"u{number}", seed)
        self._command, self._pool = command, pool
        self._scratch, self._others = scratch, others
        self._children: dict[str, str] = {}
        """Foreign clone to its parent."""
        self.count = 0

    def work(self) -> None:
        """See `Worker.work`."""
        acts = (
            self._look, self._look, self._list, self._import, self._snapshot, self._snapshot,
            self._clone, self._unsnapshot, self._remove,
        )  # fmt: skip
        while not self.world.stopped.wait(self.dice.uniform(0.05, 0.4)):
            self.dice.choice(acts)()
            self.count += 1

    def _rbd(self, *words: str) -> None:
        self.recent.append(" ".join(words))
        done = subprocess.run(
            [*self._command, *words],
            capture_output=True, text=True, check=False, timeout=TOOL_TIMEOUT_S,
        )  # fmt: skip
        assert done.returncode == 0, (words, done.returncode, done.stderr[:500])

    def _list(self) -> None:
        done = looked(self._command, "ls", "--format", "json")
        assert done.returncode == 0, (done.returncode, done.stderr[:500])
        listed = set(json.loads(done.stdout))
        assert {model.image for model in self.models.values()} <= listed

    def _look(self) -> None:
        models = list(self.dice.choice(self._others).models.values())
        if not models:
            return
        image = self.dice.choice(models).image
        verb = self.dice.choice(("info", "du", "snap ls", "children"))
        words = [verb, "--all", image] if verb == "children" else [*verb.split(), image]
        self.recent.append(" ".join(words))
        done = looked(self._command, *words, "--format", "json")
        assert done.returncode in (0, _ENOENT), (words, done.returncode, done.stderr[:500])

    def _import(self) -> None:
        if len(self.models) >= FOREIGN_MAX:
            return
        name, disk = self.fresh("foreign"), Disk(IMAGE_BYTES, {self.dice.randrange(8) * MIB: 3})
        self._scratch.write_bytes(disk.piece(0, IMAGE_BYTES))
        self._rbd("import", "--no-progress", str(self._scratch), name)
        self.models[name] = Model(name, disk.size_bytes, dict(disk.tags))

    def _snapshot(self) -> None:
        if not self.models:
            return
        name = self.dice.choice(sorted(self.models))
        model = self.models[name]
        if len(model.snapshots) >= SNAPSHOTS_MAX:
            return
        snapshot = self.fresh("s")
        self._rbd("snap", "create", "--no-progress", f"{name}@{snapshot}")
        model.snapshots[snapshot] = (snapshot, model.frozen())

    def _clone(self) -> None:
        parents = sorted(n for n, m in self.models.items() if m.snapshots)
        if not parents or len(self.models) >= FOREIGN_MAX:
            return
        parent = self.dice.choice(parents)
        snapshot, (_, disk) = self.dice.choice(sorted(self.models[parent].snapshots.items()))
        name = self.fresh("foreign-clone")
        self._rbd("clone", f"{parent}@{snapshot}", f"{self._pool}/{name}")
        self.models[name] = Model(name, disk.size_bytes, dict(disk.tags))
        self._children[name] = parent

    def _unsnapshot(self) -> None:
        parents = sorted(n for n, m in self.models.items() if m.snapshots)
        if not parents:
            return
        name = self.dice.choice(parents)
        snapshot = self.dice.choice(sorted(self.models[name].snapshots))
        self._rbd("snap", "rm", "--no-progress", f"{name}@{snapshot}")
        del self.models[name].snapshots[snapshot]

    def _remove(self) -> None:
        free = sorted(
            name
            for name, model in self.models.items()
            if not model.snapshots and name not in self._children.values()
        )
        if free:
            self._remove_one(self.dice.choice(free))

    def _remove_one(self, name: str) -> None:
        self._rbd("rm", "--no-progress", name)
        del self.models[name]
        self._children.pop(name, None)

    def delete_all(self) -> None:
        """Delete what is left of the user's images, clones before their parents."""
        while self.models:
            name = next(name for name in self.models if name not in self._children.values())
            if self.models[name].snapshots:
                self._rbd("snap", "purge", "--no-progress", name)
            self._remove_one(name)
