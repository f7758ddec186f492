"""A cluster of Ray: reached, or started on this machine. Ray is imported by who calls this."""

from __future__ import annotations

import logging
import os
import socket
from importlib.util import find_spec
from typing import Any

from .errors import BackendError, shown

HERE = "local"  # in place of an address: Ray is started on this machine, and ends with the program
CONNECTED = 10  # seconds, within which a cluster answers


def check_ray() -> None:
    """Raises BackendError where Ray is missing."""
    if not find_spec("ray"):
        raise BackendError('Ray is not installed: pip install "conformer-fast[ray]"')


def reach(address: str) -> None:
    """Connects this program. Ray's usage statistics are off, unless RAY_USAGE_STATS_ENABLED says otherwise.

    address: of the cluster's head, "10.0.0.1:6379"; "auto": of the one that this machine is in; HERE

    Raises BackendError for a cluster that does not answer.
    """
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # or Ray calls out
    here: dict[str, Any] = {"include_dashboard": False} if address == HERE else {}
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    try:
        if colon:  # Ray would wait for minutes
            socket.create_connection((host, int(port)), CONNECTED).close()
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **here)
    except (OSError, RuntimeError, ValueError, OverflowError) as error:
        raise BackendError(f"no Ray cluster answers at {shown(address)}: {shown(error)}") from error
