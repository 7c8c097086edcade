"""Let a CUDA-built torchvision be imported beside a CPU build of PyTorch.

The package registry's torchvision wheel (Linux, x86-64) links its C++ operators to CUDA. Beside `torch+cpu` they cannot
load, and `import torchvision` stops at `register_fake("torchvision::nms")`; transformers and vLLM stop with it. All
that Qwen2-VL's processors use is torchvision's Python part, which works once the schemas of two operators exist.

`python -m hatch_ray.torchvision_mend` looks whether this environment has that pair of wheels; if so it copies this file
into site-packages with a `.pth` line that runs `watch_for_torchvision()` when the interpreter starts. It has to be
there, not in our own imports, because vLLM and Ray start processes of their own. It acts at the first import of
torchvision, and only if torch has no CUDA *and* torchvision's own operators do not load; beside PyTorch's own CPU
wheels, or on a GPU machine, nothing happens. To be rid of it, install torchvision's CPU wheel from PyTorch's index
and run the command again. Standard library only.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

INSTALLED_NAME = "_hatch_torchvision_mend"
SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def define_missing_operators(torchvision_folder: Path) -> None:
    """Define the two schemas `import torchvision` asks for, if needed."""
    import torch

    if torch.version.cuda is not None:
        return
    library = torchvision_folder / "_C.so"
    try:
        if library.exists():
            torch.ops.load_library(library)  # a CPU (or ROCm) build: its own operators are there now
            return
    except OSError:
        pass  # linked to CUDA libraries that this machine lacks: the very case to fix
    for operator in ("nms", "qnms"):
        torch.library.define(f"torchvision::{operator}", SCHEMA)


class _TorchvisionWatcher(importlib.abc.MetaPathFinder):
    """Waits for the first import of torchvision, acts just before it, and lets the usual finders go on."""

    def find_spec(self, fullname: str, *_: object) -> None:
        if fullname == "torchvision":
            sys.meta_path.remove(self)
            spec = importlib.util.find_spec("torchvision")
            if spec is not None and spec.submodule_search_locations:
                define_missing_operators(Path(spec.submodule_search_locations[0]))


def watch_for_torchvision() -> None:
    """Put the watcher in front of Python's finders (called by the `.pth` file at interpreter start).

    In a virtual environment Python reads every `.pth` file twice; one watcher is enough.
    """
    if not any(isinstance(finder, _TorchvisionWatcher) for finder in sys.meta_path):
        sys.meta_path.insert(0, _TorchvisionWatcher())


def needed() -> bool:
    """Whether this environment's torchvision cannot be imported beside its torch without the fix.

    Asked of a fresh interpreter without `.pth` files (`-S`), so that an installed fix does not hide the answer.
    """
    code = (
        "import sys; sys.path += sys.argv[1:]\n"
        "import torch\n"
        "if torch.version.cuda is not None: sys.exit(0)\n"
        "try: import torchvision\n"
        "except RuntimeError as error: sys.exit(3 if 'torchvision::nms' in str(error) else 1)\n"
    )
    folders = dict.fromkeys((sysconfig.get_path("purelib"), sysconfig.get_path("platlib")))
    answer = subprocess.run([sys.executable, "-S", "-c", code, *folders], capture_output=True, text=True, check=False)
    if answer.returncode not in (0, 3):
        last = (answer.stderr.strip().splitlines() or [f"exit code {answer.returncode}"])[-1]
        raise RuntimeError(f"torch and torchvision cannot be imported, for a reason the fix does not know: {last}")
    return answer.returncode == 3


def install(site_packages: Path) -> None:
    """Copy this file and its `.pth` line into `site_packages`."""
    shutil.copyfile(__file__, site_packages / f"{INSTALLED_NAME}.py")
    line = f"import {INSTALLED_NAME}; {INSTALLED_NAME}.watch_for_torchvision()\n"
    (site_packages / f"{INSTALLED_NAME}.pth").write_text(line, encoding="utf-8")


def remove(site_packages: Path) -> None:
    """Take the fix out of `site_packages`, if it is there."""
    for suffix in (".py", ".pth"):
        (site_packages / f"{INSTALLED_NAME}{suffix}").unlink(missing_ok=True)


def main() -> None:
    """Install the fix where it is needed, remove it where it is not, and say which."""
    site_packages = Path(sysconfig.get_path("purelib"))
    if needed():
        install(site_packages)
        print("torchvision: built for CUDA, torch for CPU; fixed (hatch_ray/torchvision_mend.py)")
    else:
        remove(site_packages)
        print("torchvision: agrees with torch, nothing to fix")


if __name__ == "__main__":
    main()
