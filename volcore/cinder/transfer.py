"""Import, export and move in a process of their own: `python -m volcore.cinder.transfer`.

grpc serves streams with threads, which eventlet makes green ones, and those wait for ever in a
native thread. A process without eventlet is right in both modes, and leaves the interpreter of
cinder-volume to its requests. It reads one JSON object and answers with one, and ends with
cinder-volume, however that ends: a second upload of a volume must not meet the first one.
"""

import contextlib
import ctypes
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from volcore import errors
from volcore.client import Client, ClientTls, RetryPolicy
from volcore.errors import NotFoundError, PreconditionError, Reason, VolcoreError
from volcore.v1 import image_pb2

FORMATS: Final = {
    "raw": image_pb2.IMAGE_FORMAT_RAW,
    "qcow2": image_pb2.IMAGE_FORMAT_QCOW2,
    "vmdk": image_pb2.IMAGE_FORMAT_VMDK,
    "vdi": image_pb2.IMAGE_FORMAT_VDI,
    "vhdx": image_pb2.IMAGE_FORMAT_VHDX,
}
_STANDS: Final = (Reason.VOLUME_IN_USE, Reason.VOLUME_HAS_SNAPSHOTS)
"""Why a volume was not deleted: each says that it is there."""
_TRIES: Final = RetryPolicy(tries_max=30)
_PR_SET_PDEATHSIG: Final = 1
"""Of prctl(2)."""


def import_file(
    client: Client, *, name: str, path: str, disk_format: str, labels: dict[str, str]
) -> None:
    """Import a file as an image.

    Raises:
        VolcoreError: from volcore.
    """
    client.import_image(name, path, format=FORMATS[disk_format], labels=labels)


def export(client: Client, *, volume: str, path: str, disk_format: str) -> None:
    """Write a volume as it is now into a file, sparsely; nothing else stays behind.

    Raises:
        VolcoreError: from volcore.
    """
    snapshot, image = _names(volume)
    forget(client, volume)
    try:
        client.create_snapshot(snapshot)
        client.publish_image(image, snapshot)
        with open(path, "wb") as file:
            client.export_image(image, file, format=FORMATS[disk_format])
    finally:
        forget(client, volume)


def move(client: Client, *, volume: str, there: str, size_bytes: int, path: str) -> None:
    """Make volume `there`, in another pool, of a detached one, and delete that.

    Cinder keeps asking for `volume` until it has heard of the end: a move that was cut off begins
    again while `volume` is there, and is done when only `there` is. The bytes go by way of the
    empty file at `path`.

    Raises:
        VolcoreError: from volcore; `volume` is as it was, or the answer to its delete was lost.
    """
    try:
        labels = dict(client.get_volume(volume).labels)
    except NotFoundError:
        client.get_volume(there)
        return
    pool, _, volume_id = there.partition("/volumes/")
    image = f"{pool}/images/move-{volume_id}"
    try:
        client.delete_volume(there, force=True)
        client.delete_image(image)
        export(client, volume=volume, path=path, disk_format="raw")
        client.import_image(image, path, format=FORMATS["raw"])
        client.create_volume(there, size_bytes=size_bytes, image=image, labels=labels)
        client.delete_image(image)
    except VolcoreError:
        with contextlib.suppress(VolcoreError):  # which the next try does first, if it must
            client.delete_image(image)
            client.delete_volume(there, force=True)
        raise
    try:
        client.delete_volume(volume)
    except PreconditionError as err:
        if err.reason in _STANDS:  # after any other error `there` may be all that is left
            with contextlib.suppress(VolcoreError):
                client.delete_volume(there, force=True)
        raise


def forget(client: Client, volume: str) -> None:
    """Delete what an export of a volume works with; gone is no error."""
    snapshot, image = _names(volume)
    client.delete_image(image)
    try:
        client.delete_snapshot(snapshot)
    except NotFoundError:  # with its volume
        return


def _names(volume: str) -> tuple[str, str]:
    pool, _, volume_id = volume.partition("/volumes/")
    return f"{volume}/snapshots/upload-{volume_id}", f"{pool}/images/upload-{volume_id}"


def told(answer: str) -> None:
    """Raise what the process has answered, if it is an error.

    Raises:
        VolcoreError: from volcore.
    """
    if error := json.loads(answer).get("error"):
        kind = getattr(errors, error["kind"])
        raise kind(error["message"], reason=Reason(error["reason"]), **error["context"])


def end_with(parent: int) -> None:
    """Let the kernel end this process when the thread that started it has ended."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it was faster
        os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    """Do what the object on stdin says."""
    asked: dict[str, Any] = json.load(sys.stdin)
    end_with(asked["parent"])
    tls = {key: Path(path) if path else None for key, path in asked["tls"].items()}
    actions: dict[str, Callable[..., None]] = {
        "import": import_file,
        "export": export,
        "move": move,
    }
    error = None
    with Client(
        asked["endpoint"],
        timeout_s=asked["timeout_s"],
        tls=ClientTls(**tls) if any(tls.values()) else None,
        retry=_TRIES,
    ) as client:
        try:
            actions[asked["action"]](client, **asked["arguments"])
        except VolcoreError as err:
            error = {
                "kind": type(err).__name__,
                "message": err.message,
                "reason": err.reason.value,
                "context": {key: err.context[key] for key in err.context if key == "request_id"},
            }
    json.dump({"error": error}, sys.stdout)


if __name__ == "__main__":
    main()
