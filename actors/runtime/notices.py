"""Lines for the user from Ray's workers, which have no terminal: what they log as "hatch_ray" reaches the driver.

They lie in the cluster's own key-value store on the way: they also arrive when a disk is full.
"""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

from ray.experimental import internal_kv

NAMESPACE = "hatch-ray"
log = logging.getLogger("hatch_ray")


class Relay(logging.Handler):
    """Puts every line where `arrived` finds it."""

    def __init__(self, run: Path) -> None:
        super().__init__(logging.WARNING)
        self.run = run

    def emit(self, record: logging.LogRecord) -> None:
        """Hand over one line."""
        key = f"{self.run}\n{time.time_ns()}-{os.getpid()}"
        try:
            internal_kv._internal_kv_put(key, self.format(record), namespace=NAMESPACE)
        except Exception:  # noqa: BLE001 - logging's way: the error and the line go to the worker's stderr
            self.handleError(record)


def relay_to_driver(run: Path) -> None:
    """From now on this worker's lines go to the driver of the run."""
    for handler in [handler for handler in log.handlers if isinstance(handler, Relay)]:
        log.removeHandler(handler)
    log.addHandler(Relay(run))


def arrived(run: Path) -> list[str]:
    """The lines that workers have sent since the last call, in their order."""
    keys = sorted(internal_kv._internal_kv_list(f"{run}\n", namespace=NAMESPACE))
    lines = []
    for key in keys:
        lines.append(internal_kv._internal_kv_get(key, namespace=NAMESPACE).decode())
        internal_kv._internal_kv_del(key, namespace=NAMESPACE)
    return lines
