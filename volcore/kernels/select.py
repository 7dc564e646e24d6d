"""Choose between the compiled kernels and their oracles, once, at import.

`VOLCORE_KERNEL=native|pure` is a demand: what it asks for runs, or the import fails with one of
three refusals (unknown word, not built, cannot run on this CPU). Unset, native is preferred;
where it cannot run, the oracles serve, correct and some thousand times slower, and a warning says
so.
"""

import logging
import os
from importlib import import_module
from types import ModuleType

from volcore.errors import InvalidArgumentError, NotSupportedError, Reason

ENVIRONMENT_VARIABLE = "VOLCORE_KERNEL"
NATIVE = "native"
PURE = "pure"
KERNELS = ("crc32c", "zero", "chunkmap", "mapscan", "extents", "datapath")

_log = logging.getLogger(__name__)


def choose(demand: str | None) -> str:
    """Return `NATIVE` or `PURE` for a demand; None means no demand.

    Raises:
        InvalidArgumentError: the demand is an unknown word (CONFIG_INVALID).
        NotSupportedError: native is demanded, but is not built or cannot run on this CPU
            (CAPABILITY_ABSENT; the context item `problem` tells which).
    """
    if demand not in (None, NATIVE, PURE):
        raise InvalidArgumentError(
            f"{ENVIRONMENT_VARIABLE}={demand!r} is an unknown word; "
            f"set it to {NATIVE} or {PURE}, or unset it.",
            reason=Reason.CONFIG_INVALID,
            variable=ENVIRONMENT_VARIABLE,
        )
    if demand == PURE:
        return PURE
    problem, sentence = "not_built", _why_not_built()
    if sentence is None:
        problem, sentence = "cpu", _why_not_on_this_cpu()
    if sentence is None:
        return NATIVE
    if demand == NATIVE:
        raise NotSupportedError(
            f"{ENVIRONMENT_VARIABLE}={NATIVE}, but {sentence}",
            reason=Reason.CAPABILITY_ABSENT,
            problem=problem,
        )
    _log.warning("Slow pure-Python kernels are in use: %s", sentence)
    return PURE


def load(name: str) -> ModuleType:
    """Import the chosen implementation of the kernel `name`."""
    return import_module(_module_name(CHOICE, name))


def kernel_name() -> str:
    """Return the choice for people to read, e.g. 'native (avx512-vpclmulqdq)' or 'pure'."""
    if CHOICE == PURE:
        return PURE
    return f"{NATIVE} ({load('crc32c').implementation()})"


def _module_name(choice: str, name: str) -> str:
    room = "_native" if choice == NATIVE else "pure"
    return f"volcore.kernels.{room}.{name}"


def _why_not_built() -> str | None:
    """Try to import every compiled kernel: all of them or none is used."""
    try:
        for name in KERNELS:
            import_module(_module_name(NATIVE, name))
    except ImportError as err:
        return (
            f"the compiled kernels are not built for this Python ({err}); "
            "install a wheel, or build with a C compiler: pip install -e ."
        )
    return None


def _why_not_on_this_cpu() -> str | None:
    """Say what a build made for another CPU lacks on this one."""
    feature = import_module(_module_name(NATIVE, "crc32c")).missing_cpu_feature()
    if feature is None:
        return None
    return (
        f"the compiled kernels cannot run on this CPU, which lacks {feature}; "
        "build them without -march flags"
    )


CHOICE = choose(os.environ.get(ENVIRONMENT_VARIABLE))
