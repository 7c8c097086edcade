"""A random Qwen3-VL goes through the whole house as Qwen2.5-VL does: PaStA, SFT, GRPO on vLLM, evaluation, service."""

from __future__ import annotations

import base64
import io
import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import torch
from safetensors.torch import load_file

from hatch_ray.config import load_config
from hatch_ray.run_folder import RunFolder
from tests.support.pictures import photo
from tests.support.runs import ALONE, ROOMS, SHORT, hatch_here, metrics, rows_of
from tests.support.taught import TASKS

pytestmark = pytest.mark.rest
STEPS = 2


@pytest.fixture(scope="module")
def run(ray_cluster: Any, tiny_qwen3: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """PaStA, QA SFT and two steps of GRPO of a Qwen3-VL with a tied head, grouped keys and two levels of DeepStack.

    Each start of GRPO asks engine and learner the same (the parity gate), and each new version again.
    """
    run = tmp_path_factory.mktemp("qwen3") / "run"
    hatch_here(
        "train", "configs/tiny.yaml", f"run_dir={run}", f"model.base={tiny_qwen3}", *SHORT, *ROOMS, *ALONE,
        "stages=[pasta,qa_sft,grpo]", f"data.tasks=[{','.join(TASKS)}]", "pasta.max_steps=2", "pasta.lr=1e-3",
        "qa_sft.max_steps=16", "qa_sft.lr=3e-3", "qa_sft.batch_size=8", "qa_sft.save_every=100",
        f"grpo.max_steps={STEPS}", "grpo.lr=1e-3", "grpo.group_size=8", "grpo.save_every=100",
    )  # fmt: skip
    return run


def test_every_stage_trains_it_and_vllm_computes_the_same(run: Path, tiny_qwen3: Path) -> None:
    rows = metrics(run, "grpo")
    assert len(rows) == STEPS and all(row["sampler_gap"] < 1e-4 for row in rows)
    assert any(row["grad_norm"] > 0 for row in rows)
    models = [tiny_qwen3, *(run / stage / "model" for stage in ("pasta", "qa_sft", "grpo"))]
    stages = [load_file(model / "model.safetensors") for model in models]
    changed = [
        {name for name in before if not torch.equal(before[name], after[name])} for before, after in pairwise(stages)
    ]
    assert changed[0] and all("visual" in name for name in changed[0])
    for level in ("merger.", "deepstack_merger_list.0.", "deepstack_merger_list.1.", "pos_embed"):
        assert all(any(f"visual.{level}" in name for name in names) for names in changed), level
    assert changed[2] == set(stages[0])  # GRPO, through every level


def test_it_is_evaluated(run: Path) -> None:
    output = hatch_here("eval", str(run))
    assert "final" in output
    assert json.loads((run / "qa_sft" / "model" / "config.json").read_text())["model_type"] == "qwen3_vl"


def test_it_is_served(run: Path, service: str, tmp_path: Path) -> None:
    import httpx

    from serve.launch import start_service, stop_service

    served = tmp_path / "served"
    shutil.copytree(run, served, symlinks=True)
    config = load_config(served / "config.yaml", [f"run_dir={served}", "serve.cpus=0.5"])
    url = start_service(config, RunFolder(served), port=urlsplit(service).port, name="qwen3")
    try:
        pictures = []
        for number in range(2):
            photo(number).save(picture := io.BytesIO(), format="PNG")
            pictures.append(base64.b64encode(picture.getvalue()).decode())
        body = {"images": pictures, "question": "How deep is the chair?", "answer_form": "number"}
        reply = httpx.post(f"{url}/reason", json=body, timeout=60)
        assert reply.status_code == 200, reply.text
        assert float(reply.json()["answer"]) == float(reply.json()["answer"])
    finally:
        stop_service("qwen3")
    assert rows_of(run / "ledger.jsonl")
