"""A wheel has all that a run needs and nothing else: its commands find their files from any folder, without a clone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.house.test_setup import imported_modules
from tests.support.runs import REPOSITORY

PACKAGES = ("hatch_ray", "actors", "serve")
SOURCES = (*PACKAGES, "bench", "configs", "tools", "pyproject.toml", "README.md", "LICENSE")
BUILD = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an unpacked wheel, built from a copy of the sources."""
    copy, built, unpacked = (tmp_path_factory.mktemp(name) for name in ("copy", "built", "unpacked"))
    for name in SOURCES:
        source = REPOSITORY / name
        if source.is_dir():
            shutil.copytree(source, copy / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(source, copy / name)
    subprocess.run([sys.executable, "-c", BUILD, str(built)], cwd=copy, check=True, capture_output=True)
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(unpacked)
    return unpacked


def hatch(installed: Path, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """`hatch ...` of the wheel, from an empty folder."""
    environment = {**os.environ, "PYTHONPATH": str(installed), "COLUMNS": "200"}
    return subprocess.run(
        [sys.executable, "-m", "hatch_ray.cli", *words], cwd=folder, env=environment, capture_output=True, text=True,
        check=False,
    )  # fmt: skip


def test_a_wheel_has_the_packages_and_their_files_alone(installed: Path) -> None:
    folders = {path.name for path in installed.iterdir() if path.suffix != ".dist-info"}
    assert folders == set(PACKAGES)
    assert not list(installed.rglob("test_*")), "tests"
    for name in PACKAGES:
        ours = {path.relative_to(REPOSITORY) for path in (REPOSITORY / name).rglob("*.py")}
        assert ours == {path.relative_to(installed) for path in (installed / name).rglob("*.py")}
    configs = {path.relative_to(REPOSITORY) for path in (REPOSITORY / "configs").rglob("*.yaml")}
    assert configs == {path.relative_to(installed / "hatch_ray") for path in installed.rglob("configs/**/*.yaml")}


def test_the_demo_finds_its_config(installed: Path, tmp_path: Path) -> None:
    """The mistake is found when the config is read, before anything starts."""
    done = hatch(installed, tmp_path, "demo", "grpo.bata=1")
    assert done.returncode == 2 and "tiny.yaml: unknown key 'grpo.bata'; did you mean 'grpo.beta'?" in done.stderr
    assert str(installed) in done.stderr, "its own, not the clone's"
    shown = hatch(installed, tmp_path, "train", str(installed / "hatch_ray/configs/tiny.yaml"), "--dry-run")
    assert shown.returncode == 0 and "hatch-tiny" in shown.stdout, shown.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_plan_has_measured_costs(installed: Path, tmp_path: Path) -> None:
    done = hatch(installed, tmp_path, "plan", str(installed / "hatch_ray/configs/tiny.yaml"))
    assert done.returncode == 0 and "costs: measured in 8 runs" in done.stdout, done.stderr


def test_an_ablation_has_the_papers_variants(installed: Path, tmp_path: Path) -> None:
    done = hatch(installed, tmp_path, "ablate", str(installed / "hatch_ray/configs/tiny.yaml"), "--dry-run")
    assert done.returncode == 0 and "language in place of actions" in done.stdout, done.stderr


def test_a_config_that_is_not_there_is_said_with_where_they_are(installed: Path, tmp_path: Path) -> None:
    done = hatch(installed, tmp_path, "train", "configs/tiny.yaml")
    assert done.returncode == 2
    assert f"configs/tiny.yaml does not exist; those of hatch-ray are in {installed}/hatch_ray/configs" in done.stderr


def test_what_a_wheel_has_imports_nothing_that_it_lacks() -> None:
    for name in PACKAGES:
        for path in (REPOSITORY / name).rglob("*.py"):
            assert not imported_modules(path) & {"tools", "bench", "tests", "requirements"}, path
