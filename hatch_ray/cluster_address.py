"""Which Ray cluster a command joins."""

from __future__ import annotations

import os
import socket

from hatch_ray.config import ConfigError

ANSWER_SECONDS = 10.0
GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
"""How a gRPC client begins: HTTP/2's preface and empty settings. A cluster's head answers with settings of its own."""
SETTINGS_FRAME = 4
LOCAL = "local"
"""Start a cluster on this machine. Without it Ray would look for the one that was last started here, even when that is
gone."""
SOCKET_CHARACTERS = 107
BELOW_TMPDIR = len("/ray/session_2025-01-01_00-00-00_000000_0000000/sockets/plasma_store")
"""Ray's longest socket below RAY_TMPDIR; Linux allows SOCKET_CHARACTERS for the whole."""


def cluster_address() -> str:
    """The address for `ray.init`: what RAY_ADDRESS names (a submitted job has it), else LOCAL.

    Raises ConfigError when no Ray cluster answers at that host and port (Ray itself would try for minutes), for Ray
    Client's addresses, and for a RAY_TMPDIR that is too long for Ray's sockets.
    """
    address = os.environ.get("RAY_ADDRESS") or LOCAL
    if address == LOCAL:
        _check_tmpdir(os.environ.get("RAY_TMPDIR", ""))
        return address
    if "://" in address:
        raise ConfigError(
            f"RAY_ADDRESS={address}: Ray Client and job addresses are not joined; name the head's HOST:PORT (usually "
            "6379), or submit the command with `ray job submit`"
        )
    host, _, port = address.rpartition(":")
    if host and "/" not in address and port.isdigit():
        _check_answer(address, host.strip("[]"), int(port))
    return address


def _check_answer(address: str, host: str, port: int) -> None:
    start = (
        "start it (`ray up`, or `ray start --head` on its first machine), or unset RAY_ADDRESS to work on this machine "
        "alone"
    )
    try:
        with socket.create_connection((host, port), timeout=ANSWER_SECONDS) as connection:
            if os.environ.get("RAY_USE_TLS", "0") not in ("", "0"):
                return  # a greeting would have to wait for TLS
            connection.sendall(GREETING)
            answer = connection.recv(9)
    except ConnectionResetError:
        answer = b""
    except (OSError, OverflowError) as error:
        raise ConfigError(f"RAY_ADDRESS={address}: no Ray cluster answers there ({error}); {start}") from error
    if len(answer) < 4 or answer[3] != SETTINGS_FRAME:
        raise ConfigError(
            f"RAY_ADDRESS={address}: something else than a Ray cluster answers there; a cluster's port is usually 6379 "
            f"(8265 is its dashboard's); {start}"
        )


def _check_tmpdir(folder: str) -> None:
    if folder and len(os.path.abspath(folder)) + BELOW_TMPDIR > SOCKET_CHARACTERS:
        raise ConfigError(
            f"RAY_TMPDIR={folder} is too long: Ray's sockets below it may have {SOCKET_CHARACTERS} characters; set one "
            f"of at most {SOCKET_CHARACTERS - BELOW_TMPDIR}, such as /tmp"
        )
