"""Clones and snapshots in a few round trips: librbd's own writes, side by side, no image opened.

`wire` builds bytes, `waves` sends writes at once, `plan` says what a clone writes, `facts` knows
parents, `cloner` makes clones, `recovery` finishes or undoes what a crash left, `stock` keeps
snapshot numbers, `snapshotter` makes snapshots, `clearing` ends them, `proof` compares with librbd,
by `likeness`, before anything of it is used, `path` puts it together for one pool.

Invariants (docs/invariants.md):
1. INV-DIRECT-1 (must): a clone that is shown has a header, an object map and a link in its parent.
2. INV-DIRECT-2 (must): nothing is written that librbd, on this cluster, was not seen to write the
   same way.
3. INV-DIRECT-3 (should): no name, header, map or link stays of a clone that is not shown.
4. INV-DIRECT-4 (must): a direct snapshot is of one instant: nobody writes from the copy of its map
   until all who could have been told.
5. INV-DIRECT-5 (must): after a direct snapshot no diff misses a change.
6. INV-DIRECT-6 (must): no snapshot number is used twice.
7. INV-DIRECT-7 (should): an object map tells of no change that is older than the newest snapshot.
"""

from volcore.backends.rbd.direct.path import DirectPath

__all__ = ["DirectPath"]
