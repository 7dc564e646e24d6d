"""A QEMU process with a guest in it, steered over QMP: start, migrate, stop."""

import json
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Self

from volcore.testing.guest import GuestFiles, qemu_command

ANSWER_S: Final = 30.0
"""How long QEMU may take to answer, or to become what is waited for."""
_POLL_S: Final = 0.01


class QemuError(RuntimeError):
    """QEMU did not do what it was told; the text has what it said."""


class Qemu:
    """One virtual machine; its console goes to `NAME.console` in `directory`.

    Args:
        blockdev: options of the block device behind its only disk.
        incoming: it waits for a guest that migrates to it, instead of booting one.
        objects: options of the objects that the block device refers to.
        wrapper: words before the command, such as those that make it run on another host.
    """

    def __init__(
        self,
        guest: GuestFiles,
        directory: Path,
        name: str,
        blockdev: dict[str, Any],
        *,
        incoming: bool = False,
        objects: Sequence[dict[str, Any]] = (),
        wrapper: Sequence[str] = (),
    ) -> None:
        self._directory = directory
        self._name = name
        self._log_path = directory / f"{name}.log"
        self.console_path = directory / f"{name}.console"
        arguments = [
            *("-serial", f"file:{self.console_path}"),
            *("-qmp", f"unix:{self._qmp_path},server=on,wait=off"),
            *(word for one in objects for word in ("-object", json.dumps(one))),
            *("-blockdev", json.dumps({"node-name": "disk", **blockdev})),
            *("-device", "virtio-blk-pci,drive=disk"),
            *(["-incoming", "defer"] if incoming else []),
        ]
        command = qemu_command(guest, arguments, writes_sequence=True)
        self._command = [*wrapper, *command]
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._pending = b""
        self.events: list[dict[str, Any]] = []

    @property
    def _qmp_path(self) -> Path:
        return self._directory / f"{self._name}.qmp"

    def __enter__(self) -> Self:
        with self._log_path.open("wb") as log:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        try:
            self._connect()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._socket is not None:
            self._socket.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def call(self, command: str, **arguments: Any) -> Any:
        """Return what a QMP command returns; names with `_` are sent with `-`.

        Raises:
            QemuError: it failed, or QEMU is gone.
        """
        assert self._socket is not None
        named = {key.replace("_", "-"): value for key, value in arguments.items()}
        self._socket.sendall(json.dumps({"execute": command, "arguments": named}).encode())
        while True:
            answer = self._receive()
            if "event" in answer:
                self.events.append(answer)
            elif "return" in answer:
                return answer["return"]
            else:
                raise QemuError(f"{command}: {answer}")

    def wait_for(self, command: str, statuses: Sequence[str]) -> Any:
        """Return the answer of a query once its status is one of `statuses`."""
        end_s = time.monotonic() + ANSWER_S
        while True:
            answer = self.call(command)
            if answer.get("status") in statuses:
                return answer
            if answer.get("status") == "failed" or time.monotonic() > end_s:
                raise QemuError(f"{command} says {answer}, not {statuses}: {self._said()}")
            time.sleep(_POLL_S)

    def event_time_s(self, name: str) -> float:
        """Return when the newest event of this name happened."""
        stamps = [event["timestamp"] for event in self.events if event["event"] == name]
        return float(stamps[-1]["seconds"] + stamps[-1]["microseconds"] / 1e6)

    def console(self) -> str:
        """Return what the guest has printed here."""
        return self.console_path.read_text(errors="replace")

    def _connect(self) -> None:
        end_s = time.monotonic() + ANSWER_S
        while self._socket is None:
            made = socket.socket(socket.AF_UNIX)
            made.settimeout(ANSWER_S)
            try:
                made.connect(str(self._qmp_path))
                self._socket = made
            except OSError as err:
                made.close()
                assert self._process is not None
                if self._process.poll() is not None or time.monotonic() > end_s:
                    raise QemuError(f"QEMU did not start: {self._said()}") from err
                time.sleep(_POLL_S)
        self._receive()  # its greeting
        self.call("qmp_capabilities")

    def _receive(self) -> Any:
        assert self._socket is not None
        while b"\n" not in self._pending:
            piece = self._socket.recv(1 << 16)
            if not piece:
                raise QemuError(f"QEMU is gone: {self._said()}")
            self._pending += piece
        line, _, self._pending = self._pending.partition(b"\n")
        return json.loads(line)

    def _said(self) -> str:
        return self._log_path.read_text(errors="replace")[-2000:]
