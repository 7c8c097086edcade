"""`hatch doctor`: every failure is found and comes with a fix; a good machine passes."""

from __future__ import annotations

import io
from importlib import metadata
from types import SimpleNamespace

import pytest
from rich.console import Console

from hatch_ray import doctor
from hatch_ray.doctor import Check


def test_every_failure_prints_its_mend_and_the_exit_code_is_1(monkeypatch):
    checks = (
        lambda: Check("Python", "3.11"),
        lambda: Check("libnuma", "[absent]", "apt-get install libnuma1"),
    )
    monkeypatch.setattr(doctor, "CHECKS", checks)
    page = io.StringIO()
    assert doctor.main(Console(file=page, width=200)) == 1
    assert "[absent]" in page.getvalue()
    assert "fix libnuma: apt-get install libnuma1" in page.getvalue()
    assert "1 of 2 checks failed" in page.getvalue()


def test_all_well_is_exit_code_0(monkeypatch):
    monkeypatch.setattr(doctor, "CHECKS", (lambda: Check("Python", "3.11"),))
    assert doctor.main(Console(file=io.StringIO())) == 0


def test_a_cpu_without_avx2(tmp_path, monkeypatch):
    (tmp_path / "cpuinfo").write_text("processor: 0\nflags\t\t: fpu sse4_2 avx\n", encoding="utf-8")
    monkeypatch.setattr(doctor.platform, "machine", lambda: "x86_64")
    check = doctor.check_cpu(tmp_path / "cpuinfo")
    assert not check.ok
    assert "AVX2" in check.fix


@pytest.mark.parametrize(("limit", "gib"), [("max", 8.0), (str(3 * 2**30), 2.0)])
def test_a_containers_memory_limit_counts(tmp_path, monkeypatch, limit, gib):
    monkeypatch.setattr(doctor.psutil, "virtual_memory", lambda: SimpleNamespace(available=8 * 2**30))
    (tmp_path / "memory.max").write_text(f"{limit}\n", encoding="utf-8")
    (tmp_path / "memory.current").write_text(f"{2**30}\n", encoding="utf-8")
    assert doctor.available_memory(tmp_path) == pytest.approx(gib)


def test_too_little_memory(monkeypatch):
    monkeypatch.setattr(doctor, "available_memory", lambda: 2.0)
    check = doctor.check_memory()
    assert not check.ok
    assert "2.0 GiB" in check.detail


def test_missing_shared_memory(tmp_path):
    check = doctor.check_shared_memory(tmp_path / "shm")
    assert not check.ok
    assert "mount" in check.fix


def test_a_version_other_than_the_locks(tmp_path):
    lines = [f"{name}=={doctor.installed(name)}" for name in doctor.PINNED if name != "ray"]
    for name in ("cpu.lock", "gpu.lock"):
        (tmp_path / name).write_text("\n".join([*lines, "ray==0.1.0"]), encoding="utf-8")
    check = doctor.check_versions(tmp_path)
    assert not check.ok
    assert check.detail == f"ray {metadata.version('ray')} (lock: 0.1.0)"


def test_a_package_that_is_absent(monkeypatch):
    monkeypatch.setattr(doctor, "installed", lambda name: None)
    check = doctor.check_versions()
    assert not check.ok
    assert "torchvision" in check.detail
    assert not doctor.check_vllm().ok


def test_a_broken_torchvision_is_told_how_to_be_mended(monkeypatch):
    why = "RuntimeError: operator torchvision::nms does not exist"
    monkeypatch.setattr(doctor, "in_own_process", lambda code: (False, why))
    check = doctor.check_torch()
    assert (check.ok, check.detail) == (False, why)
    assert "python -m hatch_ray.torchvision_mend" in check.fix


def test_a_torchaudio_that_does_not_load(monkeypatch):
    monkeypatch.setattr(doctor, "installed", lambda name: "2.11.0" if name == "torchaudio" else None)
    check = doctor.check_audio()  # it is absent here, so importing it fails for real
    assert not check.ok
    assert check.fix.startswith("pip uninstall --yes torchaudio")


def test_a_process_that_hangs_is_a_failed_check():
    assert doctor.in_own_process("import time; time.sleep(60)", deadline_s=0.5) == (False, "no answer within 0 s")
    assert doctor.in_own_process("raise OSError('libnuma.so.1: no such file')") == (
        False,
        "OSError: libnuma.so.1: no such file",
    )


GPU = "NVIDIA H100 80GB HBM3, 81559 MiB, 550.54.15"


@pytest.fixture
def gpu_machine(tmp_path, monkeypatch):
    """vLLM's GPU build, and a driver's nvidia-smi; torch answers what is asked for."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\necho '{GPU}'\n", encoding="utf-8")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(doctor, "has_cpu_engine", lambda: False)
    return lambda answer: monkeypatch.setattr(doctor, "in_own_process", lambda code: (True, answer))


@pytest.mark.parametrize(
    ("answer", "fix"),
    [
        ("13.0 0", "install an NVIDIA driver of version 580 or newer, which CUDA 13.0 needs"),
        ("12.8 0", "look at CUDA_VISIBLE_DEVICES"),
        ("None 0", "make clean install BACKEND=gpu"),
        ("12.8 1", ""),
    ],
)
def test_a_driver_that_is_too_old_and_a_gpu_that_torch_does_not_see(gpu_machine, answer, fix):
    gpu_machine(answer)
    check = doctor.check_gpu()
    assert GPU in check.detail and fix in check.fix and check.ok == (not fix)


def test_a_compiler_is_tried_and_needed_with_gpus_alone(tmp_path, monkeypatch):
    headers, path = doctor.sysconfig.get_path("include"), doctor.os.environ["PATH"]
    for engine_on_cpu in (True, False):
        monkeypatch.setattr(doctor, "has_cpu_engine", lambda cpu=engine_on_cpu: cpu)
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.delenv("CC", raising=False)
        absent = doctor.check_compiler()
        assert absent.ok == engine_on_cpu and "no gcc or clang" in absent.detail
        monkeypatch.setenv("CC", str(tmp_path / "icc"))
        assert doctor.check_compiler().ok == engine_on_cpu
        monkeypatch.delenv("CC")
        monkeypatch.setenv("PATH", path)
        if not doctor.shutil.which("gcc"):
            pytest.skip("no gcc here")
        assert doctor.check_compiler().detail.endswith("with Python's headers"), headers
        monkeypatch.setattr(doctor.sysconfig, "get_path", lambda name: str(tmp_path))
        lacks = doctor.check_compiler()
        monkeypatch.setattr(doctor.sysconfig, "get_path", lambda name: headers)
        assert lacks.ok == engine_on_cpu and "Python.h" in lacks.detail
    assert "apt-get install gcc python3." in lacks.fix


def test_another_nccl_than_torchs_is_named(gpu_machine, monkeypatch):
    gpu_machine("2.28.9")
    have = {"nvidia-nccl-cu13": "2.28.9"}
    monkeypatch.setattr(doctor, "installed", have.get)
    assert doctor.check_nccl() == Check("NCCL", "2.28.9")
    monkeypatch.setenv("LD_LIBRARY_PATH", "/usr/local/nccl/lib")
    have["nvidia-nccl-cu13"] = "2.27.5"
    check = doctor.check_nccl()
    assert check.detail == "2.28.9 is loaded, 2.27.5 is installed" and "LD_LIBRARY_PATH" in check.fix
    monkeypatch.setattr(doctor, "has_cpu_engine", lambda: True)
    assert doctor.check_nccl().ok
