"""The ablations: who trains which stage, links, figures on made-up runs, and the whole command for real, in small."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from typer.testing import CliRunner

from hatch_ray.ablation.page import write_page
from hatch_ray.ablation.results import summarise, verdict
from hatch_ray.ablation.shared import link_stage
from hatch_ray.ablation.tables import print_ablation
from hatch_ray.ablation.variants import COLUMNS, FULL, PAPER, make_variants, stage_key, stage_owners
from hatch_ray.cli import app
from hatch_ray.config import Config, ConfigError, make_config, save_config
from hatch_ray.config_sections import RewardConfig
from hatch_ray.evaluation.heldout import score_rows, write_evaluation
from hatch_ray.evaluation.intervals import Bootstrap
from hatch_ray.protocol.prompt import gold_reply
from hatch_ray.run_folder import RunFolder, append_jsonl
from hatch_ray.sample import PairPlan, Sample, View
from tests.support.runs import ALONE, ROOMS, SHORT, finish, kill, metrics, start, wait_for_step

TASKS = ("depth_prediction_oc_mv", "position_matching", "obj_spatial_relation_oc_mv")
ANSWERS = {"depth_prediction_oc_mv": ("number", "2.5"), "position_matching": ("box", "[100,100,500,500]"),
           "obj_spatial_relation_oc_mv": ("letter", "B")}  # fmt: skip
GRIDS = [2, 4]
BASE = make_config({"eval": {"bootstrap": 200}})


def plan(folder: Path, seed: int = 0, grids: list[int] = GRIDS) -> dict[str, Config]:
    return {v.name: v.config(BASE, folder, seed, folder / "data") for v in make_variants(BASE, grids)}


# --- which stages are shared --------------------------------------------------------------------------------------


def test_each_stage_is_trained_by_the_first_run_that_has_it(tmp_path: Path) -> None:
    configs = plan(tmp_path)
    owners = stage_owners(list(configs.values()))
    table = {
        name: {stage: owners[config.run_dir, stage].run_dir.name for stage in config.stages}
        for name, config in configs.items()
    }
    assert table == {
        "full": dict.fromkeys(("pasta", "qa_sft", "cold_start", "grpo"), "full"),
        "no_pasta": dict.fromkeys(("qa_sft", "cold_start", "grpo"), "no_pasta"),
        "no_actor": {"pasta": "full", "qa_sft": "full"},
        "no_both": {"qa_sft": "no_pasta"},
        "language": {"pasta": "full", "qa_sft": "full", "cold_start": "language", "grpo": "language"},
        "grid2": dict.fromkeys(("pasta", "qa_sft", "cold_start", "grpo"), "grid2"),
    }


def test_seeds_share_nothing(tmp_path: Path) -> None:
    first, second = plan(tmp_path, 0), plan(tmp_path, 1)
    owners = stage_owners([*first.values(), *second.values()])
    assert {owners[second["full"].run_dir, stage].seed for stage in second["full"].stages} == {1}


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        ({"run_dir": "elsewhere", "rollout": {"actors": 2}, "eval": {"samples": 7}}, []),
        ({"qa_sft": {"lr": 1e-3}}, ["qa_sft", "cold_start", "grpo"]),
        ({"reward": {"tau_t": 2.0}}, ["grpo"]),
        ({"model": {"reasoning": "language"}}, ["cold_start", "grpo"]),
        ({"learner": {"compute": "bfloat16"}}, ["pasta", "qa_sft", "cold_start", "grpo"]),
    ],
)
def test_a_stage_is_shared_only_when_nothing_it_rests_on_differs(change: dict, differs: list[str]) -> None:
    one, other = make_config({}), make_config(change)
    assert [stage for stage in one.stages if stage_key(one, stage) != stage_key(other, stage)] == differs


@pytest.mark.parametrize(
    ("tree", "grids", "words"),
    [
        ({"stages": ["qa_sft"]}, [4], "stages must be"),
        ({"model": {"reasoning": "language"}}, [4], "leave model.reasoning=actions"),
        ({}, [0], "at least 1 patch"),
    ],
)
def test_a_config_that_cannot_be_ablated_is_refused(tree: dict, grids: list[int], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make_variants(make_config(tree), grids)


def test_the_command_line_refuses_and_plans(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["ablate", "configs/tiny.yaml", "--grids", "2,x"])
    assert result.exit_code and "'2,x' is not a list" in str(result.exception)
    words = ["ablate", "configs/tiny.yaml", "--dry-run", "--grids", "4", "--out", str(tmp_path / "out")]
    assert CliRunner().invoke(app, words).exit_code == 0
    assert not (tmp_path / "out").exists()


# --- links --------------------------------------------------------------------------------------------------------


def finished_run(path: Path, stages: tuple[str, ...] = ("pasta", "qa_sft")) -> RunFolder:
    run = RunFolder(path)
    for stage in stages:
        run.stage_model(stage).mkdir(parents=True)
        (run.stage_model(stage) / "weights").write_text(stage)
        append_jsonl(run.metrics_path, [{"stage": stage, "step": step, "loss": 1.0} for step in (1, 2)])
        run.set_progress(stage, step=2, done=True)
    for name in ("patch_retrieval", "patch_matches"):
        run.evaluation(name).parent.mkdir(exist_ok=True)
        run.evaluation(name).write_text("{}")
    return run


def test_a_linked_stage_is_a_stage_of_the_run(tmp_path: Path) -> None:
    owner, run = finished_run(tmp_path / "a" / "full"), RunFolder(tmp_path / "a" / "no_actor")
    for _ in range(2):  # a command that was stopped in between does it again
        link_stage(run, "pasta", owner)
        link_stage(run, "qa_sft", owner)
    assert (run.model / "weights").read_text() == "qa_sft"
    assert run.progress() == owner.progress()
    run.set_progress("cold_start", step=2, done=True)  # a stage of its own, which a resumed command leaves as it is
    run.stage_model("cold_start").mkdir(parents=True)
    run.link_model("cold_start")
    link_stage(run, "qa_sft", owner)
    assert run.model.resolve().parent.name == "cold_start"
    run.link_model("qa_sft")
    assert [(row["stage"], row["step"]) for row in metrics(run.path, "qa_sft")] == [("qa_sft", 1), ("qa_sft", 2)]
    assert len(metrics(run.path, "pasta")) == 2 and run.evaluation("patch_retrieval").exists()
    (tmp_path / "a").rename(tmp_path / "b")  # links are relative: the whole folder can be moved
    assert (tmp_path / "b" / "no_actor" / "model" / "weights").read_text() == "qa_sft"


def test_only_a_finished_stage_is_linked_and_nothing_is_overwritten(tmp_path: Path) -> None:
    owner = finished_run(tmp_path / "full")
    with pytest.raises(ValueError, match="has not finished cold_start"):
        link_stage(RunFolder(tmp_path / "x"), "cold_start", owner)
    own = finished_run(tmp_path / "own", ("qa_sft",))
    with pytest.raises(ValueError, match="exists and is not a link"):
        link_stage(own, "qa_sft", owner)
    assert (own.stage_model("qa_sft") / "weights").read_text() == "qa_sft"


# --- figures ------------------------------------------------------------------------------------------------------


def make_samples() -> list[Sample]:
    samples = []
    for index in range(60):
        task = TASKS[index % 3]
        form, answer = ANSWERS[task]
        views = (View(Path("a.png")), View(Path("b.png")))
        plan = PairPlan(0, 1, (("turn_right_deg", 30.0),))
        samples.append(Sample(f"q{index}", f"room{index // 3}", task, form, "?", answer, views, plans=(plan,)))
    return samples


def make_runs(folder: Path, seeds: int, wrong: dict[str, float]) -> dict[str, list[RunFolder]]:
    """Evaluated runs of every variant: the given share of a variant's answers is wrong, swapped ones all are."""
    samples, runs = make_samples(), {}
    for name, config in plan(folder).items():
        runs[name] = []
        for seed in range(seeds):
            run = RunFolder(folder / f"seed{seed}" / name)
            bad = round(len(samples) * wrong.get(name, 0.0))
            order = np.random.default_rng(seed).permutation(len(samples))
            mode = "direct" if config.stages[-1] == "qa_sft" else config.model.reasoning
            spoilt = {samples[index].id for index in order[:bad]}
            texts = [gold_reply(replace(s, answer="?") if s.id in spoilt else s, mode) for s in samples]
            write_evaluation(run, "final", score_rows(samples, texts, RewardConfig(), mode), 50, 0)
            blind = [gold_reply(replace(s, answer="?"), mode) for s in samples]
            write_evaluation(run, "final_swapped", score_rows(samples, blind, RewardConfig(), mode), 50, 0)
            rewards = {"reward_action": 0.5 + 0.1 * (name == FULL), "reward_answer": 0.25}
            append_jsonl(run.metrics_path, [{"stage": "grpo", "step": step} | rewards for step in (1, 2, 3)])
            runs[name].append(run)
    return runs


def test_figures_of_runs_whose_faults_are_known(tmp_path: Path) -> None:
    runs = make_runs(tmp_path, 2, {"no_pasta": 0.5, "language": 0.2})
    found = summarise(BASE, make_variants(BASE, GRIDS), runs, [0, 1], GRIDS)
    json.dumps(found, allow_nan=False)
    assert found["variants"][FULL]["columns"]["Avg"] == {"value": 100.0, "low": 100.0, "high": 100.0, "n": 120}
    assert found["variants"]["no_pasta"]["columns"]["Avg"]["value"] == pytest.approx(50)
    assert found["variants"]["no_pasta"]["by_seed"] == [50.0, 50.0]
    difference = found["variants"]["no_pasta"]["difference"]
    assert set(difference) == set(COLUMNS)
    assert sum(difference[name]["value"] for name in COLUMNS[:3]) == pytest.approx(3 * difference["Avg"]["value"])
    assert found["variants"]["language"]["action"] is None and found["variants"][FULL]["action"]["value"] == 1
    assert found["variants"]["language"]["answer_fall"]["value"] == pytest.approx(80)
    assert found["curve_change"] == {"action": [0.1, 0.1], "answer": [0.0, 0.0]}
    assert [one["grid"] for one in found["grids"]] == [2, 4]
    assert all(one["over_no_pasta"]["value"] == pytest.approx(50) for one in found["grids"])
    verdicts = {(one["variant"], one["column"]): one["verdict"] for one in found["agreement"]}
    assert verdicts["no_pasta", "Avg"] == "agrees" and verdicts["no_pasta", "High"] == "contradicts"
    assert verdicts["no_actor", "Avg"] == "within noise"
    assert len(verdicts) == 4 * (len(PAPER) - 1)


def test_runs_that_answered_other_samples_are_refused(tmp_path: Path) -> None:
    runs = make_runs(tmp_path, 1, {})
    samples = make_samples()[:30]
    texts = [gold_reply(sample, "actions") for sample in samples]
    write_evaluation(runs["no_pasta"][0], "final", score_rows(samples, texts, RewardConfig()), 50, 0)
    with pytest.raises(ValueError, match=r"no_pasta.*does not answer the samples that the other runs answer"):
        summarise(BASE, make_variants(BASE, GRIDS), runs, [0], GRIDS)


def test_page_and_print_hold_every_variant_and_need_no_network(tmp_path: Path) -> None:
    runs = make_runs(tmp_path, 2, {"no_pasta": 0.5})
    variants = make_variants(BASE, GRIDS)
    found = summarise(BASE, variants, runs, [0, 1], GRIDS)
    save_config(BASE, RunFolder(tmp_path).config_path)
    page = write_page(found, tmp_path).read_text()
    assert all(variant.label in page for variant in variants)
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "") and "<script" not in page
    console = Console(width=100, record=True, file=(tmp_path / "out").open("w"))
    print_ablation(found, console)
    text = console.export_text()
    assert all(variant.label in text for variant in variants) and "+50.0 ±" in text
    assert max(map(len, text.split("Answer reward in percent")[0].splitlines())) <= 100


@pytest.mark.parametrize("only", [["language"], ["no_both", "grid2"], ["no_pasta"]])
def test_some_variants_alone(tmp_path: Path, only: list[str]) -> None:
    runs = make_runs(tmp_path, 1, {"language": 0.2})
    variants = make_variants(BASE, GRIDS, only)
    assert {variant.name for variant in variants} == {FULL, *only}
    trained = {variant.name: runs[variant.name] for variant in variants}
    found = summarise(BASE, variants, trained, [0], GRIDS if "grid2" in only else [4])
    save_config(BASE, RunFolder(tmp_path).config_path)
    page = write_page(found, tmp_path).read_text()
    print_ablation(found, Console(width=100, file=(tmp_path / "out").open("w")))
    for name in ("language", "no_both", "no_pasta"):
        label = next(variant.label for variant in make_variants(BASE, GRIDS) if variant.name == name)
        assert (f"<td>{label}" in page) == (name in only)
    assert ("Figure 3" in page) == ("Figure 4" in page) == ("no_pasta" in only)


def test_an_unknown_variant_is_named() -> None:
    with pytest.raises(ConfigError, match="no variant 'no_grpo'; the variants are full, no_pasta"):
        make_variants(BASE, GRIDS, ["no_grpo"])


@given(st.floats(-9, 9), st.floats(-9, 9), st.floats(0.1, 9))
def test_a_verdict_needs_an_interval_without_zero(paper: float, value: float, half: float) -> None:
    ours = {"value": value, "low": value - half, "high": value + half, "n": 1}
    word = verdict(paper, ours)
    assert (word == "within noise") == (abs(value) <= half)
    assert word != "agrees" or value * paper > 0


def test_intervals_cover_the_luck_of_training() -> None:
    """Two runs that answer alike within themselves, and differ: only drawing runs shows that the mean is uncertain."""
    scenes = [f"room{index}" for index in range(20)] * 2
    values = np.repeat([0.0, 1.0], 20)
    over_scenes = Bootstrap(scenes, 400, 0).mean(values)
    ids = [f"q{index}" for index in range(20)] * 2
    over_both = Bootstrap(scenes, 400, 0, [0] * 20 + [1] * 20, ids).mean(values)
    assert over_scenes["low"] == over_scenes["high"] == 0.5
    assert (over_both["low"], over_both["high"]) == (0.0, 1.0)


def test_a_run_that_is_repeated_makes_no_interval_narrower() -> None:
    """One recording: samples are drawn, and three equal runs are no more than one."""
    values = np.random.default_rng(0).random(40)
    alone = Bootstrap(["room"] * 40, 2000, 0).mean(values)
    ids = [f"q{index}" for index in range(40)] * 3
    repeated = Bootstrap(["room"] * 120, 2000, 0, [run for run in range(3) for _ in range(40)], ids).mean(
        np.tile(values, 3)
    )
    width, wider = (found["high"] - found["low"] for found in (alone, repeated))
    assert wider > 0.9 * width


def test_a_step_without_actions_leaves_a_gap_in_the_curve(tmp_path: Path) -> None:
    runs = make_runs(tmp_path, 2, {})
    for name in ("full", "no_pasta"):
        for run in runs[name]:
            append_jsonl(run.metrics_path, [{"stage": "grpo", "step": 4, "reward_answer": 0.5}])
    found = summarise(BASE, make_variants(BASE, GRIDS), runs, [0, 1], GRIDS)
    assert found["curves"][FULL]["action"] == [0.6, 0.6, 0.6, None]
    assert found["curve_change"]["action"] == [0.1, 0.1]
    save_config(BASE, RunFolder(tmp_path).config_path)
    write_page(json.loads(json.dumps(found, allow_nan=False)), tmp_path)


# --- the command --------------------------------------------------------------------------------------------------


@pytest.mark.rest
def test_ablate_trains_shares_resumes_and_compares(tiny_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "ablation"
    words = ["ablate", "configs/tiny.yaml", "--seeds", "1", "--grids", "4", "--out", str(out),
             "--only", "language", f"model.base={tiny_model}", *SHORT, *ROOMS, *ALONE,
             "grpo.max_steps=2"]  # fmt: skip
    process = start(words)
    wait_for_step(process, out / "seed0" / "full", "qa_sft", 2, timeout=240)
    kill(process)
    process = start(words)
    output = finish(process, 500)
    assert process.returncode == 0, output
    found = json.loads((out / "ablation.json").read_text())
    assert set(found["variants"]) == {"full", "language"}
    assert found["samples"] == 12 and found["variants"]["full"]["columns"]["Avg"]["n"] == 12
    assert (out / "ablation.html").stat().st_size > 10_000
    assert (out / "seed0" / "language" / "qa_sft").resolve() == out.resolve() / "seed0" / "full" / "qa_sft"
    replies = [json.loads(line) for line in (out / "seed0/language/samples/grpo.jsonl").read_text().splitlines()]
    assert all("Think 0-1" in reply["prompt"] and reply["terms"]["action"] is None for reply in replies)
