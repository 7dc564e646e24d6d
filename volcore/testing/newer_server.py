"""The server as a later version of it may be: it writes records that today's does not know.

A volume with the label `format` gets a record of the next format, one with the label `zone` a field
more. It reads both, and keeps what it wrote.
"""

import json
from typing import Any, Final

from volcore.model import record
from volcore.model.records import Volume

NEXT_FORMAT: Final = record.FORMAT + 1
FORMAT_LABEL: Final = "format"
ZONE_LABEL: Final = "zone"
_ZONE: Final = "zone"
_encode, _decode = Volume.encode, Volume.decode.__func__  # type: ignore[attr-defined]


def _encoded(volume: Volume) -> bytes:
    body: dict[str, Any] = json.loads(_encode(volume))
    if FORMAT_LABEL in volume.labels:
        body["v"] = NEXT_FORMAT
    if ZONE_LABEL in volume.labels:
        body[_ZONE] = volume.labels[ZONE_LABEL]
    return _packed(body)


def _decoded(kind: type[Volume], raw: bytes, key: str = "") -> Volume:
    body = json.loads(raw)
    if body.get("v") == NEXT_FORMAT:
        body["v"] = record.FORMAT
    body.pop(_ZONE, None)
    made: Volume = _decode(kind, _packed(body), key)
    return made


def _packed(body: dict[str, Any]) -> bytes:
    return json.dumps(body, sort_keys=True, separators=(",", ":")).encode()


if __name__ == "__main__":
    Volume.encode = _encoded  # type: ignore[method-assign, assignment]
    Volume.decode = classmethod(_decoded)  # type: ignore[assignment]
    from volcore.cli.main import main

    main()
