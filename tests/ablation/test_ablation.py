"""The ablations: variants of a file, who trains which stage, figures on made-up runs, and the command, in small."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from typer.testing import CliRunner

from actors.commands.ablate import Ablation
from hatch_ray.ablation.page import print_ablation, write_page
from hatch_ray.ablation.results import column_masks, summarise, verdict
from hatch_ray.ablation.shared import link_stage, stage_key
from hatch_ray.ablation.variants import Variant, Variants, read_variants
from hatch_ray.cli import CONFIGS, app
from hatch_ray.config import ConfigError, load_config, make_config, save_config
from hatch_ray.config_sections import RewardConfig
from hatch_ray.evaluation.heldout import write_evaluation
from hatch_ray.evaluation.intervals import Bootstrap
from hatch_ray.protocol.prompt import gold_reply
from hatch_ray.run_folder import RunFolder, append_jsonl
from hatch_ray.sample import PairPlan, Sample, View
from tests.support.hatch import judged
from tests.support.runs import ALONE, ROOMS, SHORT, finish, kill, metrics, start, wait_for_step

TASKS = ("depth_prediction_oc_mv", "position_matching", "obj_spatial_relation_oc_mv")
ANSWERS = {"depth_prediction_oc_mv": ("number", "2.5"), "position_matching": ("box", "[100,100,500,500]"),
           "obj_spatial_relation_oc_mv": ("letter", "B")}  # fmt: skip
BASE = make_config({"eval": {"bootstrap": 200}})
PAPER = read_variants(CONFIGS / "ablations" / "hatch.yaml")
NAMES = ["no_pasta", "no_actor", "no_both", "language", "grid2", "grid4"]


# --- the file of variants -------------------------------------------------------------------------------------------


def test_the_papers_ablations_are_in_the_file() -> None:
    assert [variant.name for variant in PAPER.variants[:5]] == ["full", "no_pasta", "no_actor", "no_both", "language"]
    assert [variant.name for variant in PAPER.variants[5:]] == [f"grid{n}" for n in range(2, 7)]
    paper = {variant.name: variant.paper for variant in PAPER.variants}
    assert paper["full"] == {"Low": 41.3, "Mid": 47.4, "High": 67.1, "Avg": 53.6}
    assert paper["language"]["Avg"] == 52.8 and paper["grid2"] == {}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("variants: [{name: a, title: A}, {name: a, title: B}]", "two variants are named a"),
        ("variants: [{name: ../a, title: A}]", r"variants\.0\.name: String should match"),
        ("variants: [{name: a, title: A, overides: []}]", r"variants\.0\.overides: Extra inputs"),
        (
            "variants: [{name: a, title: A}, {name: b, title: B, against: c}]",
            "b is compared with 'c', which is no variant",
        ),
        ("variants: [{name: a, title: A, against: a}]", "a is compared with 'a', which is no variant before it"),
        ("{variants: [{name: a, title: A}], curves: [a, b]}", "curves: b is no variant"),
        (
            "variants: [{name: a, title: A}, {name: b, title: B}, {name: c, title: C, against: b}]",
            "variants of 'Variants' are compared with more than one",
        ),
        ("variants: []", "variants: "),
        ("variants: [", "is not a file of variants"),
    ],
)
def test_a_wrong_file_is_named_with_its_first_mistake(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(ConfigError, match=rf"mine\.yaml.*{words}"):
        read_variants(tmp_path / "mine.yaml")


def test_a_variant_that_the_config_does_not_take_is_named(tmp_path: Path) -> None:
    wrong = Variant(name="hot", title="hot", overrides=("grpo.temprature=2",))
    with pytest.raises(ConfigError, match=r"variant hot: unknown key 'grpo\.temprature'; did you mean"):
        Ablation(BASE, Variants(variants=(wrong,)), tmp_path, 1)
    other = Variant(name="more", title="more data", overrides=("data.samples=9",))
    with pytest.raises(ConfigError, match=r"variant more: data\.samples is one for all variants"):
        Ablation(BASE, Variants(variants=(other,)), tmp_path, 1)


def test_some_variants_come_with_what_they_are_compared_with() -> None:
    def names(*only: str) -> list[str]:
        return [variant.name for variant in PAPER.only(list(only)).variants]

    assert names() == [variant.name for variant in PAPER.variants]
    assert names("language") == ["full", "language"]
    assert names("grid6", "no_both") == ["full", "no_pasta", "no_both", "grid6"]
    assert PAPER.only(["language"]).curves == () and PAPER.only(["grid2"]).curves == ("full", "no_pasta")
    with pytest.raises(ConfigError, match="no variant 'no_grpo'; the variants are full, no_pasta"):
        PAPER.only(["no_grpo"])


# --- which stages are shared --------------------------------------------------------------------------------------


def test_each_stage_is_trained_by_the_first_run_that_has_it(tmp_path: Path) -> None:
    plan = Ablation(BASE, PAPER.only(NAMES), tmp_path, 1)
    table = {
        name: {stage: Path(plan.owners[config.run_dir, stage].run_dir).name for stage in config.stages}
        for (_, name), config in plan.configs.items()
    }
    full = dict.fromkeys(("pasta", "qa_sft", "cold_start", "grpo"), "full")
    assert table == {
        "full": full,
        "no_pasta": dict.fromkeys(("qa_sft", "cold_start", "grpo"), "no_pasta"),
        "no_actor": {"pasta": "full", "qa_sft": "full"},
        "no_both": {"qa_sft": "no_pasta"},
        "language": {"pasta": "full", "qa_sft": "full", "cold_start": "language", "grpo": "language"},
        "grid2": dict.fromkeys(("pasta", "qa_sft", "cold_start", "grpo"), "grid2"),
        "grid4": full,
    }
    assert plan.configs[0, "grid4"] is plan.configs[0, "full"], "equal configs are one run"
    assert [Path(config.run_dir).name for config in plan.runs] == ["full", *NAMES[:-1]]


def test_seeds_share_nothing(tmp_path: Path) -> None:
    plan = Ablation(BASE, PAPER, tmp_path, 2)
    second = plan.configs[1, "full"]
    assert {plan.owners[second.run_dir, stage].seed for stage in second.stages} == {1}


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


def test_the_command_line_plans_variants_of_a_file(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("variants: [{name: usual, title: as it is}, {name: far, title: a step, overrides: [grpo.lr=1e-3]}]")
    words = ["ablate", "configs/tiny.yaml", "--dry-run", "--out", str(tmp_path / "out")]
    planned = CliRunner().invoke(app, [*words, "--variants", str(mine), "--seeds", "2"])
    assert planned.exit_code == 0, planned.output
    (row,) = (line for line in planned.output.splitlines() if "a step" in line)
    assert row.count("from usual") == 3 and "120 steps" in row
    config = load_config(Path("configs/tiny.yaml"))
    steps = 2 * sum(getattr(config, stage).max_steps for stage in ("pasta", "qa_sft", "cold_start", "grpo", "grpo"))
    assert f"{steps} optimizer steps in all" in planned.output
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
    for name in ("patch_retrieval", "patch_matches", "kept"):
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


def make_runs(
    folder: Path, seeds: int, wrong: dict[str, float], names: list[str] = NAMES
) -> dict[str, list[RunFolder]]:
    """Evaluated runs of variants: the given share of a variant's answers is wrong, swapped ones all are."""
    samples, runs = make_samples(), {}
    for (_, name), config in Ablation(BASE, PAPER.only(names), folder, 1).configs.items():
        runs[name] = []
        for seed in range(seeds):
            run = RunFolder(folder / f"seed{seed}" / Path(config.run_dir).name)
            runs[name].append(run)
            if run.path.exists():
                continue
            bad = round(len(samples) * wrong.get(name, 0.0))
            order = np.random.default_rng(seed).permutation(len(samples))
            mode = "direct" if config.stages[-1] == "qa_sft" else config.model.reasoning
            spoilt = {samples[index].id for index in order[:bad]}
            texts = [gold_reply(replace(s, answer="?") if s.id in spoilt else s, mode) for s in samples]
            write_evaluation(run, "final", judged(samples, texts, RewardConfig(), mode), 50, 0)
            blind = [gold_reply(replace(s, answer="?"), mode) for s in samples]
            write_evaluation(run, "final_swapped", judged(samples, blind, RewardConfig(), mode), 50, 0)
            rewards = {"reward_action": 0.5 + 0.1 * (name == "full"), "reward_answer": 0.25}
            append_jsonl(run.metrics_path, [{"stage": "grpo", "step": step} | rewards for step in (1, 2, 3)])
    return runs


def figures(runs: dict[str, list[RunFolder]], names: list[str] = NAMES) -> dict[str, Any]:
    found = summarise(PAPER.only(names), runs, list(range(len(runs["full"]))), 200, 0)
    return json.loads(json.dumps(found, allow_nan=False))


def test_figures_of_runs_whose_faults_are_known(tmp_path: Path) -> None:
    found = figures(make_runs(tmp_path, 2, {"no_pasta": 0.5, "language": 0.2}))
    variants, tables = found["variants"], {title.split(":")[0]: names for title, names in found["tables"].items()}
    assert tables == {
        "Table 2": ["full", "no_pasta", "no_actor", "no_both"], "Table 3": ["full", "language"],
        "Figure 4": ["no_pasta", "grid2", "grid4"],
    }  # fmt: skip
    assert found["columns"] == ["Low", "Mid", "High", "Avg"]
    assert variants["full"]["columns"]["Avg"] == {"value": 100.0, "low": 100.0, "high": 100.0, "n": 120}
    assert variants["no_pasta"]["columns"]["Avg"]["value"] == pytest.approx(50)
    assert variants["no_pasta"]["by_seed"] == [50.0, 50.0]
    no_pasta = variants["no_pasta"]
    difference = no_pasta["difference"]
    assert variants["full"]["difference"] == {} and set(difference) == set(found["columns"])
    assert sum(difference[name]["value"] for name in ("Low", "Mid", "High")) == pytest.approx(-150)
    assert variants["language"]["action"] is None and variants["full"]["action"]["value"] == 1
    assert variants["language"]["answer_fall"]["value"] == pytest.approx(80)
    change = {name: curve["change"] for name, curve in found["curves"].items()}
    assert change == {"action": {"no_pasta": [0.1, 0.1]}, "answer": {"no_pasta": [0.0, 0.0]}}
    assert all(variants[name]["difference"]["Avg"]["value"] == pytest.approx(50) for name in ("grid2", "grid4"))
    assert no_pasta["paper_difference"] == {"Low": -2.0, "Mid": -3.9, "High": 0.3, "Avg": -1.6}
    assert no_pasta["verdicts"]["Avg"] == "agrees" and no_pasta["verdicts"]["High"] == "contradicts"
    assert variants["no_actor"]["verdicts"]["Avg"] == "within noise"
    assert sum(len(variant["verdicts"]) for variant in variants.values()) == 16


def test_tasks_that_spar_bench_does_not_have_are_averaged() -> None:
    masks = column_masks(["cooking", "cleaning"])
    assert {name: mask.tolist() for name, mask in masks.items()} == {"Avg": [True, True]}
    assert column_masks([TASKS[0], "cooking"])["Avg"].tolist() == [True, False]


def test_runs_that_answered_other_samples_are_refused(tmp_path: Path) -> None:
    runs = make_runs(tmp_path, 1, {})
    samples = make_samples()[:30]
    texts = [gold_reply(sample, "actions") for sample in samples]
    write_evaluation(runs["no_pasta"][0], "final", judged(samples, texts), 50, 0)
    with pytest.raises(ValueError, match=r"no_pasta.*does not answer the samples that the other runs answer"):
        figures(runs)


def test_page_and_print_hold_every_variant_and_need_no_network(tmp_path: Path) -> None:
    found = figures(make_runs(tmp_path, 2, {"no_pasta": 0.5}))
    titles = [variant["title"] for variant in found["variants"].values()]
    save_config(BASE, RunFolder(tmp_path).config_path)
    page = write_page(found, tmp_path).read_text()
    assert all(title in page for title in titles)
    assert "+50.0 (" in page and "paper 52.0 (-1.6)" in page
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "") and "<script" not in page
    console = Console(width=100, record=True, file=(tmp_path / "out").open("w"))
    print_ablation(found, console)
    text = console.export_text()
    assert all(title in text for title in titles) and "+50.0 ±" in text
    assert max(map(len, text.split("Answer reward in percent")[0].splitlines())) <= 100


@pytest.mark.parametrize("only", [["language"], ["no_both"], ["no_pasta", "grid2"]])
def test_some_variants_alone(tmp_path: Path, only: list[str]) -> None:
    runs = make_runs(tmp_path, 1, {"language": 0.2}, only)
    assert set(runs) == {"full", *only}
    found = figures(runs, only)
    save_config(BASE, RunFolder(tmp_path).config_path)
    page = write_page(found, tmp_path).read_text()
    print_ablation(found, Console(width=100, file=(tmp_path / "out").open("w")))
    for variant in PAPER.variants[1:]:
        assert (f"<td>{variant.title}<" in page) == (variant.name in only)
    assert ("<h2>Rewards while GRPO trains" in page) == ("no_pasta" in only)
    assert "Agreement with the paper" in page


def test_variants_without_a_papers_figures_have_no_part_of_agreement(tmp_path: Path) -> None:
    variants = tuple(variant.model_copy(update={"paper": {}}) for variant in PAPER.only(["no_pasta"]).variants)
    found = summarise(Variants(variants=variants), make_runs(tmp_path, 1, {}, ["no_pasta"]), [0], 200, 0)
    save_config(BASE, RunFolder(tmp_path).config_path)
    page = write_page(found, tmp_path).read_text()
    assert "Agreement" not in page and "<h2>Rewards" not in page and "without PaStA" in page
    console = Console(record=True, file=(tmp_path / "out").open("w"))
    print_ablation(found, console)
    assert "of the paper's differences" not in console.export_text()


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
    runs = make_runs(tmp_path, 2, {}, ["no_pasta"])
    for run in [*runs["full"], *runs["no_pasta"]]:
        append_jsonl(run.metrics_path, [{"stage": "grpo", "step": 4, "reward_answer": 0.5}])
    found = figures(runs, ["no_pasta"])
    assert found["curves"]["action"]["steps"]["full"] == [0.6, 0.6, 0.6, None]
    assert found["curves"]["action"]["change"] == {"no_pasta": [0.1, 0.1]}
    save_config(BASE, RunFolder(tmp_path).config_path)
    write_page(found, tmp_path)


def test_a_variant_without_a_reward_has_no_curve_of_it(tmp_path: Path) -> None:
    runs = make_runs(tmp_path, 1, {}, ["no_both", "language"])
    for name in ("no_both", "language"):
        runs[name][0].metrics_path.unlink()
    append_jsonl(runs["language"][0].metrics_path, [{"stage": "grpo", "step": 1, "reward_answer": 0.5}])
    some = PAPER.only(["no_both", "language"]).model_copy(update={"curves": ("full", "no_both", "language")})
    found = summarise(some, runs, [0], 200, 0)["curves"]
    assert list(found["action"]["steps"]) == ["full"] and list(found["answer"]["steps"]) == ["full", "language"]
    assert found["action"]["change"] == {} and found["answer"]["change"] == {"language": [-0.25]}


# --- the command --------------------------------------------------------------------------------------------------


@pytest.mark.rest
def test_ablate_trains_shares_resumes_and_compares(tiny_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "ablation"
    words = ["ablate", "configs/tiny.yaml", "--seeds", "1", "--out", str(out),
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
    assert replies and all(reply["terms"]["action"] is None for reply in replies), "words cannot be verified"
    assert "reasoning: language" in (out / "seed0" / "language" / "config.yaml").read_text()
