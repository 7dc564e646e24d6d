"""Clones in two round trips: librbd's own metadata writes, sent side by side, no image opened.

`wire` builds bytes, `waves` sends writes at once, `plan` says what a clone writes, `facts` knows
parents, `cloner` makes clones, `recovery` finishes or undoes what a crash left, `proof` compares
with librbd before anything of it is used, `path` puts it together for one pool.

Invariants (docs/invariants.md):
1. INV-DIRECT-1 (must): a clone that is shown has a header, an object map and a link in its parent.
2. INV-DIRECT-2 (must): nothing is written that librbd, on this cluster, was not seen to write the
   same way.
3. INV-DIRECT-3 (should): no name, header, map or link stays of a clone that is not shown.
"""

from volcore.backends.rbd.direct.path import DirectPath

__all__ = ["DirectPath"]
