"""Build the project's own environment from a lock file: `python3.11 requirements/install.py [--backend cpu|gpu]`.

`make` calls this; it needs nothing but a working Python 3.11 or 3.12 and a package registry. It makes `.venv`, installs
uv there (ten times faster than pip on two hundred packages), makes the environment equal to the lock file, installs
this project in editable form and, on CPU, fixes the registry's CUDA-built torchvision if that is the one that came
(`hatch_ray/torchvision_mend.py`).

Where packages come from is whatever this machine's pip is told (`pip config list`, `PIP_*`): uv does not read pip's
settings, so they are handed over. No registry is named here.
"""

from __future__ import annotations

import argparse
import ast
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / "requirements"
UV_PIN = "uv==0.13.8"
SUPPORTED = ((3, 11), (3, 12))

# pip's setting -> uv's environment variable. Several values are separated by spaces in both.
UV_VARIABLES = {
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_INDEX",
    "find-links": "UV_FIND_LINKS",
    "no-index": "UV_NO_INDEX",
    "cert": "SSL_CERT_FILE",
    "proxy": "ALL_PROXY",
    "trusted-host": "UV_INSECURE_HOST",
}


def uv_settings(pip_config: str) -> dict[str, str]:
    """Translate the text of `pip config list` into uv's environment variables.

    A line reads `section.key='value'`, the section being `global`, `install` or `:env:` (a `PIP_*` variable, which
    wins, as it does in pip). Keys that uv has no use for are left out.
    """
    found: dict[str, tuple[bool, str]] = {}
    for line in pip_config.splitlines():
        name, separator, value = line.partition("=")
        section, _, key = name.strip().rpartition(".")
        if not separator or key not in UV_VARIABLES:
            continue
        from_environment = section == ":env:"
        if key not in found or from_environment or not found[key][0]:
            found[key] = (from_environment, " ".join(str(ast.literal_eval(value.strip())).split()))
    settings = {UV_VARIABLES[key]: value for key, (_, value) in found.items() if value}
    if "UV_FIND_LINKS" in settings:  # the one list that uv separates by commas
        settings["UV_FIND_LINKS"] = settings["UV_FIND_LINKS"].replace(" ", ",")
    # pip takes the best version any index has; uv by default stops at the first index that knows the name.
    settings["UV_INDEX_STRATEGY"] = "unsafe-best-match"
    return settings


def uv_environment(python: Path) -> dict[str, str]:
    """This process's environment plus pip's settings for uv; `UV_*` variables that are already set win."""
    listed = subprocess.run([python, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True)
    return {**uv_settings(listed.stdout), **os.environ}


def torch_pin(lock: Path) -> str:
    """The lock's line for torch, for example `torch==2.13.0+cpu`."""
    for line in lock.read_text(encoding="utf-8").splitlines():
        if line.startswith("torch=="):
            return line
    raise SystemExit(f"{lock} has no line for torch: run `make lock`")


def torch_source(uv: Path, pin: str, python: Path, environment: dict[str, str]) -> list[str]:
    """uv's options that tell where PyTorch's CPU build comes from.

    None when the configured registry or links have it; otherwise PyTorch's own CPU index, which uv knows by itself.
    """
    known = subprocess.run(
        [uv, "pip", "compile", "--quiet", "--no-deps", "--python", python, "-"],
        input=pin, env=environment, text=True, capture_output=True, check=False,
    )  # fmt: skip
    return [] if known.returncode == 0 else ["--torch-backend", "cpu"]


def make_environment(folder: Path) -> Path:
    """Make `folder` a virtual environment of the running Python unless it is one already; return its interpreter."""
    python = folder / "bin" / "python"
    code = "import sys, pip; print(*sys.version_info[:2])"
    if python.exists():
        answer = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
        if answer.stdout.split() == [str(part) for part in sys.version_info[:2]]:
            return python
    made = subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=False)
    if made.returncode:
        minor = f"{sys.version_info.major}.{sys.version_info.minor}"
        raise SystemExit(
            f"{sys.executable} -m venv failed: install its venv package (on Debian and Ubuntu: "
            f"apt-get install python{minor}-venv) or name another Python: make PYTHON=/path/to/python{minor}"
        )
    return python


def run(*command: str | Path, environment: dict[str, str] | None = None) -> None:
    """Run one step, its output shown; stop with a pointer to the documentation if it fails."""
    finished = subprocess.run(command, cwd=ROOT, env=environment, check=False)
    if finished.returncode:
        step = " ".join(str(part) for part in command[:4])
        raise SystemExit(f"installation stopped at `{step} ...` (see above); docs/troubleshooting.md lists the causes")


def install(backend: str, folder: Path) -> None:
    """Bring `folder` to exactly what `requirements/<backend>.lock` says, plus this project (editable)."""
    lock = REQUIREMENTS / f"{backend}.lock"
    python = make_environment(folder)
    uv = python.parent / "uv"
    if not uv.exists():
        run(python, "-m", "pip", "install", "--quiet", UV_PIN)
    environment = {**uv_environment(python), "VIRTUAL_ENV": str(folder)}
    source = torch_source(uv, torch_pin(lock), python, environment) if backend == "cpu" else []
    # Compiled once here (40 s), or else every process that may not write bytecode compiles vLLM anew (10 s each).
    run(uv, "pip", "sync", "--compile-bytecode", "--python", python, *source, lock, environment=environment)
    run(
        uv, "pip", "install", "--quiet", "--python", python, "--no-deps", "--no-build-isolation", "--editable", ROOT,
        environment=environment,
    )  # fmt: skip
    if backend == "cpu":
        run(python, "-m", "hatch_ray.torchvision_mend")


def main() -> None:
    """Read the command line, install, and say how long it took."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--backend", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--folder", type=Path, default=ROOT / ".venv", help="the environment's folder")
    options = parser.parse_args()
    if sys.version_info[:2] not in SUPPORTED:
        raise SystemExit(f"Python 3.11 or 3.12 is needed, this is {sys.version.split()[0]}: make PYTHON=python3.11")
    started = time.monotonic()
    install(options.backend, options.folder.resolve())
    print(f"environment ready in {time.monotonic() - started:.0f} s: {options.folder}")


if __name__ == "__main__":
    main()
