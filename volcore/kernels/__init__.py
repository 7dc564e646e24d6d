"""Kernels: the inner loops of volcore, compiled, each beside a readable oracle in Python.

Use the faces `crc32c`, `zero`, `chunkmap`, `mapscan` and `extents`; they bind to compiled code or
to the oracles as `select` decides. Kernels hold no policy and raise only TypeError, ValueError,
BufferError, OverflowError and MemoryError. Design and measurements: docs/design/0003-kernels.md.
"""

from volcore.kernels.select import kernel_name
from volcore.kernels.selftest import run_self_test

__all__ = ["kernel_name", "run_self_test"]
