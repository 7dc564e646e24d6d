"""What the type of a volume asks of this backend: extra specs of ours, and limits of its QoS specs.

Extra specs without the prefix `volcore:` are Cinder's or the scheduler's. One of ours that is
unknown, or has a value that cannot be, is refused before anything is made: a typing error must not
pass for a setting, nor may a limit that nobody keeps pass for one.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

from cinder import exception

from volcore.errors import InvalidArgumentError, Reason
from volcore.model import names

PREFIX: Final = "volcore"
LABELS: Final = f"{PREFIX}:labels"
_RATES: Final = tuple(
    f"{what}_{unit}_sec" for what in ("total", "read", "write") for unit in ("bytes", "iops")
)
_ENDINGS: Final = ("", "_max", "_per_gb", "_per_gb_min")
QEMU_LIMITS: Final = {"size_iops_sec", *(rate + ending for rate in _RATES for ending in _ENDINGS)}
"""What Nova lets QEMU limit; those with `per_gb` are computed by Cinder."""


def properties(set_property: Callable[..., None]) -> dict[str, Any]:
    """Return the extra specs that this driver knows, as Cinder reports them."""
    found: dict[str, Any] = {}
    set_property(
        found,
        LABELS,
        "Labels",
        "KEY=VALUE pairs, joined by commas, that volumes of this type have in volcore.",
        "string",
    )
    return found


def check(volume: Any) -> dict[str, str]:
    """Return the labels that a volume shall have.

    Raises:
        VolumeDriverException: it cannot be made as its type says.
    """
    if volume.encryption_key_id:
        raise exception.VolumeDriverException(
            message="volcore has no encrypted volumes yet; use a volume type without encryption"
        )
    return check_type(volume.volume_type) if volume.volume_type_id else {}


def check_type(volume_type: Any) -> dict[str, str]:
    """Return the labels that volumes of a type have.

    Raises:
        VolumeDriverException: it asks for what no volume here can have.
    """
    specs: dict[str, str] = volume_type.extra_specs or {}
    for key in sorted(specs):
        if key.startswith(f"{PREFIX}:") and key != LABELS:
            raise _refused(volume_type, f"{key} is no extra spec of volcore; there is {LABELS}")
    _check_limits(volume_type)
    try:
        return labels(specs.get(LABELS))
    except InvalidArgumentError as err:
        raise _refused(volume_type, f"{LABELS}: {err.message}") from err


def labels(text: str | None) -> dict[str, str]:
    """Return the labels of an extra spec.

    Raises:
        InvalidArgumentError: BAD_LABEL.
    """
    found = {}
    for pair in (text or "").split(","):
        key, equals, value = pair.strip().partition("=")
        if equals:
            found[key] = value
        elif key:
            raise InvalidArgumentError(
                f"label {key!r} has no value; write KEY=VALUE,KEY=VALUE", reason=Reason.BAD_LABEL
            )
    return names.check_labels(found)


def relabelled(now: Mapping[str, str], old: str | None, new: str | None) -> dict[str, str]:
    """Return the labels after a change of the type's: the old ones go, those of others stay."""
    try:
        gone = labels(old)
    except InvalidArgumentError:  # no volume has them
        gone = {}
    return {key: now[key] for key in now if gone.get(key) != now[key]} | labels(new)


def _check_limits(volume_type: Any) -> None:
    if not volume_type.qos_specs_id:
        return
    with volume_type.obj_as_admin():
        qos = volume_type.qos_specs
    if qos.consumer == "front-end":
        return
    kept_by_none = sorted(set(qos.specs or {}) - QEMU_LIMITS)
    if qos.consumer == "back-end" or kept_by_none:
        raise _refused(
            volume_type,
            f"volcore limits nothing itself, as QoS specs {qos.name} of consumer {qos.consumer} "
            f"ask ({', '.join(kept_by_none or sorted(qos.specs or {}))}); "
            "make them of consumer front-end, which lets QEMU limit",
        )


def _refused(volume_type: Any, reason: str) -> Exception:
    error: Exception = exception.VolumeDriverException(
        message=f"volume type {volume_type.name}: {reason}"
    )
    return error
