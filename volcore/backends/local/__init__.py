"""The embedded backend: one directory, one process, no root; format: docs/formats/local.md."""

from volcore.backends.local.backend import LocalBackend
from volcore.backends.local.store import LocalStore

__all__ = ["LocalBackend", "LocalStore"]
