"""Which Ray cluster a command joins."""

from __future__ import annotations

import os
import socket

from hatch_ray.config import ConfigError

ANSWER_SECONDS = 10.0
LOCAL = "local"
"""Start a cluster on this machine. Without it Ray would look for the one that was last started here, even when that is
gone."""


def cluster_address() -> str:
    """The address for `ray.init`: what RAY_ADDRESS names (a submitted job has it), else LOCAL.

    Raises ConfigError when nothing listens at that host and port: Ray itself would try for minutes.
    """
    address = os.environ.get("RAY_ADDRESS") or LOCAL
    host, _, port = address.rpartition(":")
    if host and "/" not in address and port.isdigit():
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_SECONDS).close()
        except (OSError, OverflowError) as error:
            raise ConfigError(
                f"RAY_ADDRESS={address}: no Ray cluster answers there ({error}); start it (`ray up`, or `ray start "
                "--head` on its first machine), or unset RAY_ADDRESS to work on this machine alone"
            ) from error
    return address
