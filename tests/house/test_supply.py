"""No code comes with data, nothing listens beyond this machine unasked, and no secret is written or passed on."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from hatch_ray.cli import app
from hatch_ray.config import load_config, save_config
from hatch_ray.config_sections import ServeConfig
from hatch_ray.environment import variables

PICKLES = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
Call = tuple[str, str, dict[str, str]]
"""Where it stands, its dotted name, and the source of each keyword's value."""
SECRETS = {
    "HF_TOKEN": "hf_canary0123456789", "HUGGING_FACE_HUB_TOKEN": "hf_canary_old", "WANDB_API_KEY": "wandbcanary",
    "AWS_SECRET_ACCESS_KEY": "awscanary", "AWS_SESSION_TOKEN": "sessioncanary", "RAY_AUTH_TOKEN": "raycanary" * 8,
}  # fmt: skip


@pytest.fixture(scope="module")
def nodes(repository: Path) -> list[tuple[str, ast.AST]]:
    """Every node of the product's, the tools' and the benchmarks' sources, with where it stands."""
    return [
        (f"{path.relative_to(repository)}:{getattr(node, 'lineno', 0)}", node)
        for folder in ("hatch_ray", "actors", "serve", "tools", "bench")
        for path in sorted((repository / folder).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    ]


@pytest.fixture(scope="module")
def calls(nodes: list[tuple[str, ast.AST]]) -> list[Call]:
    """Every call."""
    return [
        (place, ast.unparse(node.func), {k.arg or "**": ast.unparse(k.value) for k in node.keywords})
        for place, node in nodes
        if isinstance(node, ast.Call)
    ]


def test_nothing_is_unpickled_from_a_file(nodes: list[tuple[str, ast.AST]], calls: list[Call]) -> None:
    for place, node in nodes:
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        assert not {name.split(".")[0] for name in names} & PICKLES, place
    for place, name, given in calls:
        assert given.get("allow_pickle", "False") == "False", place
        assert name not in ("torch.load", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "eval", "exec"), place
    assert "load_file" in {name for _, name, _ in calls}  # what state is read with


def test_no_code_and_no_pickle_comes_with_a_model(repository: Path, calls: list[Call]) -> None:
    weights = 0
    for place, name, given in calls:
        assert given.get("trust_remote_code", "False") == "False", place
        if re.fullmatch(r"(Auto|Qwen)(Model\w*|\w*Generation)\.from_pretrained", name):
            weights += 1
            assert given.get("use_safetensors") == "True", place
    assert weights
    for path in [*repository.glob("configs/*.yaml"), repository / "cluster.yaml", repository / "Makefile"]:
        assert "trust_remote_code" not in path.read_text(encoding="utf-8"), path


def test_dashboard_and_service_listen_on_this_machine_alone(repository: Path, calls: list[Call]) -> None:
    assert ServeConfig().host == "127.0.0.1"
    for path in repository.glob("configs/*.yaml"):
        assert "host" not in (yaml.safe_load(path.read_text(encoding="utf-8")).get("serve") or {}), path
    started = 0
    for place, name, given in calls:
        assert given.get("dashboard_host", "'127.0.0.1'") == "'127.0.0.1'", place
        if name == "ray.init" and given.get("address", "'local'") == "'local'":
            started += 1
            assert given["include_dashboard"] == "False", place
    assert started
    heads = [line for line in (repository / "cluster.yaml").read_text().splitlines() if "ray start --head" in line]
    assert heads and all("--dashboard-host=127.0.0.1" in line for line in heads)


def test_secrets_are_not_passed_to_rays_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    passed = variables()
    assert passed and not set(passed) & set(SECRETS) and not set(passed.values()) & set(SECRETS.values())
    monkeypatch.setenv("NCCL_DEBUG", "INFO")
    assert variables(["NCCL_*", "GLOO_SOCKET_IFNAME"]) == passed | {"NCCL_DEBUG": "INFO"}
    assert not set(variables(["*"])) & set(SECRETS) and variables(["*"])["NCCL_DEBUG"] == "INFO"
    assert variables(["HF_TOKEN"]) == passed | {"HF_TOKEN": SECRETS["HF_TOKEN"]}, "who names a secret wants it"


@pytest.mark.rest
def test_workers_of_a_cluster_get_the_variables_that_the_config_names(ray_cluster: Any) -> None:
    code = (
        "import os, ray; from actors.stages.recipe import start_ray; from hatch_ray.config import make_config\n"
        "start_ray(make_config({'environment': ['NCCL_*', 'WANDB_*']}), needs=[])\n"
        "asked = {'NCCL_DEBUG', 'WANDB_API_KEY', 'OTHER'}\n"
        "print(ray.get(ray.remote(lambda: sorted(asked & set(os.environ))).remote()))"
    )
    own = {"NCCL_DEBUG": "INFO", "WANDB_API_KEY": "canary", "OTHER": "1"}
    environment = os.environ | own | {"RAY_ADDRESS": ray_cluster.get_runtime_context().gcs_address}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, text=True, capture_output=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("['NCCL_DEBUG']"), done.stdout


def test_secrets_are_not_in_the_resolved_config_or_the_output(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HATCH_DEBUG", "1")
    shown = CliRunner().invoke(app, ["train", "configs/tiny.yaml", f"run_dir={tmp_path / 'run'}", "--dry-run"])
    assert shown.exit_code == 0 and "hatch-tiny" in shown.output
    save_config(load_config("configs/tiny.yaml", []), tmp_path / "config.yaml")
    text = shown.output + (tmp_path / "config.yaml").read_text(encoding="utf-8")
    for name, value in SECRETS.items():
        assert name not in text and value not in text, name
