"""What a Ray of the tests' own needs in its environment. Ray reads it when it is imported: prepare before that."""

import atexit
import os
import secrets
import shutil
import tempfile
from pathlib import Path

from hatch_ray.environment import prepare_environment


def prepare_ray() -> Path:
    """A folder for Ray's files and access token, which goes with this process: neither another cluster of this machine
    nor ~/.ray is touched. Its path is short, because Ray's sockets lie below it.
    """
    prepare_environment()
    scratch = Path(tempfile.mkdtemp(prefix="hatch-", dir="/tmp"))
    (scratch / "token").write_text(secrets.token_hex(32), encoding="utf-8")
    (scratch / "token").chmod(0o600)
    os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(scratch / "token"))
    os.environ.pop("RAY_ADDRESS", None)
    os.environ.setdefault("RAY_raylet_start_wait_time_s", "120")  # a busy machine is slower than the usual 30 s
    atexit.register(shutil.rmtree, scratch, ignore_errors=True)
    return scratch
