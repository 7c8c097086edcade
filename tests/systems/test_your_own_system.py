"""A system that lies in one file of its own: trained, killed and resumed to the bit, evaluated, reported and served."""

from __future__ import annotations

import base64
import io
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from examples.brighter import Brighter, BrighterConfig, EasyFirst
from hatch_ray.config import ConfigError, load_config, make_config
from hatch_ray.data.store import read_dataset
from hatch_ray.evaluation.heldout import read_rows
from hatch_ray.run_folder import RunFolder
from tests.support.runs import ALONE, REPOSITORY, differences, hatch_here, kill_and_go_on, rows_of

CONFIG = "examples/brighter.yaml"
SHORT = [
    "data.samples=24", "data.heldout_samples=6", "teach.max_steps=12", "teach.lr=3e-3", "teach.save_every=6",
    "grpo.max_steps=6", "grpo.prompts_per_step=2", "grpo.group_size=4", "grpo.save_every=2", "grpo.lr=1e-3",
    "eval.samples=6", "eval.bootstrap=100", *ALONE,
]  # fmt: skip


def words(run: Path, model: Path) -> list[str]:
    return ["train", CONFIG, f"run_dir={run}", f"model.base={model}", *SHORT]


@pytest.fixture(scope="module")
def run(ray_cluster: Any, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbed."""
    run = tmp_path_factory.mktemp("runs") / "brighter"
    hatch_here(*words(run, tiny_model))
    return run


def test_its_file_is_short() -> None:
    assert len((REPOSITORY / "examples" / "brighter.py").read_text().splitlines()) < 80


def test_its_config_has_its_own_sections() -> None:
    config = load_config(REPOSITORY / CONFIG, ["easy_gap=50"])
    assert isinstance(config, BrighterConfig) and config.easy_gap == 50.0
    assert config.stages == ["teach", "grpo"] and not hasattr(config, "qa_sft")
    with pytest.raises(ConfigError, match=r"unknown key 'qa_sft'"):
        load_config(REPOSITORY / CONFIG, ["qa_sft.lr=1e-3"])
    with pytest.raises(ConfigError, match=r"stages names .cold_start.; the system .* has teach, grpo"):
        load_config(REPOSITORY / CONFIG, ["stages=[cold_start]"])


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("actial", "system 'actial' is not known: use one of hatch, matching, viewpoint, or module:CLASS for your own"),
        ("no_such_module:It", "there is no module no_such_module in .* or on PYTHONPATH"),
        ("examples.brighter:Darker", "examples.brighter has no class Darker that is a hatch_ray System"),
        ("examples.brighter:EasyFirst", "has no class EasyFirst that is a hatch_ray System"),
    ],
)
def test_a_system_that_is_not_there(name: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        make_config({"system": name})


def test_its_sampler_changes_its_mind_by_what_the_ledger_says(tmp_path: Path) -> None:
    config = load_config(REPOSITORY / CONFIG, ["data.samples=40"])
    assert isinstance(config, BrighterConfig)
    Brighter(config).build("data", "train", tmp_path / "train")
    sampler = EasyFirst(config, read_dataset(tmp_path / "train"))
    assert all(sample.meta["gap"] >= 100 for sample in sampler.samples(0))
    sampler.observe(0, [{"terms": {"choice": 0.85}}])
    assert len(sampler.pool) < 40
    sampler.observe(1, [{"terms": {"choice": 0.9}}])
    assert len(sampler.pool) == 40


def test_named_terms_go_through_metrics_ledger_samples_and_evaluation(run: Path) -> None:
    rows = [row for row in rows_of(run / "metrics.jsonl") if row["stage"] == "grpo"]
    assert len(rows) == 6 and all({"reward_choice", "reward_form", "reward_total"} <= set(row) for row in rows)
    ledger = rows_of(run / "ledger.jsonl")
    assert [row["step"] for row in ledger] == [step for step in range(6) for _ in range(2)]
    assert all(set(row["terms"]) == {"choice", "form", "total"} for row in ledger)
    for sample in rows_of(run / "samples" / "grpo.jsonl"):
        assert sample["terms"]["total"] == sample["terms"]["choice"] + 0.5 * sample["terms"]["form"]


@pytest.mark.rest
def test_killed_and_resumed_it_is_the_same_to_the_last_bit(run: Path, tiny_model: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    output = kill_and_go_on(words(again, tiny_model), again, 3)
    assert "Teach: the form: already done" in output
    assert differences(run, again) == []
    ours, theirs = (rows_of(folder / "ledger.jsonl") for folder in (run, again))
    assert ours == theirs, "the sampler has asked the same questions"


def test_it_is_evaluated_and_reported(run: Path) -> None:
    output = hatch_here("eval", str(run))
    assert "choice" in output and "form" in output
    rows = read_rows(RunFolder(run), "final")
    assert len(rows) == 6 and set(rows[0]["terms"]) == {"choice", "form", "total"}
    hatch_here("report", str(run))
    page = (run / "report.html").read_text()
    assert "choice" in page and "Teach" in page


def in_base64(image: Any) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def test_it_is_served(run: Path, service: str, tmp_path: Path) -> None:
    import httpx

    from hatch_ray.config import load_config
    from serve.launch import start_service, stop_service
    from tests.support.pictures import photo

    served = tmp_path / "served"
    shutil.copytree(run, served, symlinks=True)
    config = load_config(served / "config.yaml", [f"run_dir={served}"])
    url = start_service(config, RunFolder(served), port=urlsplit(service).port, name="brighter")
    try:
        body = {"images": [in_base64(photo(0)), in_base64(photo(1))], "question": "Which is brighter?"}
        reply = httpx.post(f"{url}/reason", json=body | {"answer_form": "photo"}, timeout=60)
        assert reply.status_code == 200, reply.text
        assert reply.json()["answer"] == reply.json()["text"].strip() and reply.json()["actions"] == []
        refused = httpx.post(f"{url}/reason", json=body | {"answer_form": "box"}, timeout=60)
        assert refused.status_code == 422 and "photo" in refused.text
    finally:
        stop_service("brighter")
