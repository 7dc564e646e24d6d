"""The options of the driver in its section of cinder.conf, and the client that they describe."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from oslo_concurrency import processutils
from oslo_config import cfg

from volcore.cinder.service import RESTART_TRIES
from volcore.cinder.transfer import told
from volcore.client import Client, ClientTls
from volcore.client.channel import DEFAULT_ENDPOINT

OPTIONS: list[Any] = [
    cfg.StrOpt(
        "volcore_endpoint",
        default=DEFAULT_ENDPOINT,
        help="Where volcore is: unix:///path or host:port, several joined by commas.",
    ),
    cfg.StrOpt("volcore_pool", help="Name of the volcore pool of this backend. Required."),
    cfg.IntOpt(
        "volcore_timeout",
        default=60,
        min=1,
        help="Seconds that one request may take, repetitions included.",
    ),
    cfg.IntOpt(
        "volcore_image_timeout",
        default=3600,
        min=1,
        help="Seconds that a request waits while another one imports the same Glance image.",
    ),
    cfg.IntOpt(
        "volcore_image_cache_size_gb",
        default=0,
        min=0,
        help="GiB that the disks of imported Glance images may have together before those that "
        "no volume needs are deleted, least recently used first; 0: no bound.",
    ),
    cfg.IntOpt(
        "volcore_image_cache_age_days",
        default=0,
        min=0,
        help="Days since its last use after which an imported Glance image that no volume needs "
        "is deleted; 0: no bound.",
    ),
    cfg.StrOpt(
        "volcore_disk_directory",
        default="$state_path/volcore_disks",
        help="Where the disks of a local pool are offered to guests of this host; libvirt's "
        "QEMU user must be able to enter it.",
    ),
    cfg.StrOpt("volcore_tls_ca", help="PEM file of the authority that signed volcore's key."),
    cfg.StrOpt("volcore_tls_certificate", help="PEM file of the certificate shown to volcore."),
    cfg.StrOpt("volcore_tls_key", help="PEM file of the key of volcore_tls_certificate."),
    # Word for word as the stock RBD driver has it: a process may load both.
    cfg.StrOpt(
        "rbd_secret_uuid",
        help="The libvirt uuid of the secret for the rbd_user "
        "volumes. Defaults to the cluster FSID.",
    ),
]


def client_of(configuration: Any) -> Client:
    """Return a new client for a backend's section.

    Raises:
        InvalidArgumentError: the endpoint or a TLS file is wrong.
    """
    paths = [configuration.safe_get(f"volcore_tls_{name}") for name in ("ca", "certificate", "key")]
    ca, certificate, key = (Path(path) if path else None for path in paths)
    tls = ClientTls(ca=ca, certificate=certificate, key=key) if any(paths) else None
    return Client(
        configuration.safe_get("volcore_endpoint"),
        timeout_s=configuration.safe_get("volcore_timeout"),
        tls=tls,
        retry=RESTART_TRIES,
    )


def transfer(configuration: Any, action: str, **arguments: Any) -> None:
    """Import or export with a process of its own (`volcore.cinder.transfer`); never blocks a hub.

    Raises:
        VolcoreError: from volcore.
        ProcessExecutionError: the process ended without an answer.
    """
    asked = {
        "action": action,
        "arguments": arguments,
        "parent": os.getpid(),
        "endpoint": configuration.safe_get("volcore_endpoint"),
        "timeout_s": configuration.safe_get("volcore_image_timeout"),
        "tls": {
            name: configuration.safe_get(f"volcore_tls_{name}")
            for name in ("ca", "certificate", "key")
        },
    }
    command = [sys.executable, "-m", "volcore.cinder.transfer"]
    # Not oslo's execute: that runs Python between fork and exec, which hangs amid grpc's threads.
    done = subprocess.run(command, input=json.dumps(asked), capture_output=True, text=True)
    if done.returncode:
        raise processutils.ProcessExecutionError(
            stdout=done.stdout,
            stderr=done.stderr,
            exit_code=done.returncode,
            cmd=" ".join(command),
        )
    told(done.stdout)
