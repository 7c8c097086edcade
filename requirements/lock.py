"""Write requirements/cpu.lock and requirements/gpu.lock from pyproject.toml: `make lock`.

One lock serves Python 3.11 and 3.12: it is resolved for 3.11 (Linux, x86-64), then resolved again for 3.12 within its
own pins; a package that 3.12 would want and the lock lacks stops the run. A pin that still fits is kept: delete a lock
file first to have everything at its newest. Pins are exact, without hashes: PyTorch's CPU wheel is published under one
version on several indexes with different hashes.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from install import REQUIREMENTS, ROOT, torch_source, uv_environment

PYTHON = Path(sys.executable)
UV = PYTHON.parent / "uv"
HEADER = """\
# Exact versions for Python 3.11 and 3.12 on Linux x86-64 ({backend}), resolved from pyproject.toml.
# Written by `make lock`; do not edit.
"""


def resolve(backend: str, python_version: str, out: Path, *options: str | Path) -> list[str]:
    """Resolve pyproject's dependencies with the extras `backend` and `dev`; return the pins, one line each.

    They are written to `out`; pins that are there already are kept where they fit.
    """
    environment = uv_environment(PYTHON)
    # A lock is for everybody: one machine's extra index, which may hold a version in part, must not shape it.
    environment.pop("UV_INDEX", None)
    if backend == "gpu":
        # A CPU build of torch among the configured links would win over the registry's CUDA build.
        environment.pop("UV_FIND_LINKS", None)
    command = [
        UV, "pip", "compile", "--quiet", "--no-header", "--no-annotate", "--extra", backend, "--extra", "dev",
        "--python-version", python_version, "--python-platform", "x86_64-unknown-linux-gnu", "--output-file", out,
        *options, "pyproject.toml",
    ]  # fmt: skip
    if backend == "cpu":
        command += torch_source(UV, "torch==2.13.0+cpu", PYTHON, environment)
    solved = subprocess.run(command, cwd=ROOT, env=environment, text=True, capture_output=True, check=False)
    if solved.returncode:
        raise SystemExit(f"{backend}, Python {python_version}: {solved.stderr.strip()}")
    return [line for line in out.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]


def write_lock(backend: str) -> None:
    """Resolve for 3.11, check against 3.12, then replace the lock file."""
    lock = REQUIREMENTS / f"{backend}.lock"
    overrides: list[str | Path] = ["--override", REQUIREMENTS / "overrides.txt"] if backend == "cpu" else []
    with tempfile.TemporaryDirectory() as scratch:
        pinned = Path(scratch) / lock.name
        if lock.exists():
            shutil.copy(lock, pinned)
        pins = resolve(backend, "3.11", pinned, *overrides)
        options: list[str | Path] = [*overrides, "--constraint", pinned]
        if backend == "cpu":
            # Links that hold PyTorch's CPU wheel for 3.11 alone must not stop the check of all the other packages.
            without_torch = Path(scratch) / "without_torch.txt"
            without_torch.write_text('torch ; sys_platform == "never"\n', encoding="utf-8")
            options += ["--override", without_torch]
        missing = sorted(set(resolve(backend, "3.12", Path(scratch) / "3.12.lock", *options)) - set(pins))
    if missing:
        raise SystemExit(f"{backend}: Python 3.12 also wants {', '.join(missing)}: pin them in pyproject.toml")
    lock.write_text(HEADER.format(backend=backend) + "\n".join(pins) + "\n", encoding="utf-8")
    print(f"{lock.relative_to(ROOT)}: {len(pins)} packages")


if __name__ == "__main__":
    for each in ("cpu", "gpu"):
        write_lock(each)
