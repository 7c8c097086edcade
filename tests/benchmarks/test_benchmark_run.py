"""`hatch eval --benchmark`: kept predictions, tables and mistakes without a model; then all of it on real vLLM."""

import io
import json

import numpy as np
import pytest
from rich.console import Console

from actors.commands import benchmark as runner
from actors.commands.benchmark import Asker, Engines, ask, check_names, evaluate_benchmarks, open_source
from hatch_ray.benchmarks.kept import Kept
from hatch_ray.benchmarks.registry import BENCHMARKS, FORMS
from hatch_ray.benchmarks.report import report_benchmarks
from hatch_ray.benchmarks.results import predict_row
from hatch_ray.benchmarks.rooms import build_rooms, read_rooms
from hatch_ray.benchmarks.spar_scorers import KINDS, check_gold
from hatch_ray.config import ConfigError, make_config
from hatch_ray.model.prompt_tokens import process_image, prompt_length, tokenize_prompt
from hatch_ray.model.source import model_source
from hatch_ray.run_folder import RunFolder
from tests.support import benchmark_files as files
from tests.support.pictures import photo

SETTINGS = {
    "model": {"template": "compact-v1", "max_pixels": 112 * 112, "max_length": 512, "max_images": 2},
    "eval": {"max_new_tokens": 24, "bootstrap": 100, "samples": 40},
    "rollout": {"cpus": 0.5, "kv_cache_mb": 64},
}


def make_run(path):
    """A run whose last stage left hatch-tiny."""
    run = RunFolder(path)
    (run.path / "grpo").mkdir(parents=True)
    (run.stage_model("grpo")).symlink_to(model_source("hatch-tiny"))
    run.set_progress("grpo", step=7, done=True)
    return run, make_config(SETTINGS | {"run_dir": str(path)})


def keep(run, name, items, reply, rows=None):
    """Predictions of a made-up model."""
    kept = Kept(run, name)
    kept.append([predict_row(item, "prompt", reply(item), BENCHMARKS[name].scorers) for item in items])
    rows = rows or len(items)
    kept.finish({"rows": rows, "asked": len(items), "unusable": {}, "left_out": {"longer": rows - len(items)}})


def mmsi_items(tmp_path, times):
    root = files.write_mmsi(tmp_path / "mmsi", files.mmsi_rows() * times)
    return list(BENCHMARKS["mmsi"].read((root / "MMSI_Bench.parquet",)))


def report(run, names, scorer="spld"):
    out = io.StringIO()
    console = Console(file=out, width=120, soft_wrap=True, highlight=False)
    report_benchmarks(run, names, scorer, 100, 0, console)
    return out.getvalue()


# --- without a model --------------------------------------------------------------------------------------------


def test_tables_hold_our_row_under_the_published_ones(tmp_path):
    run = RunFolder(tmp_path / "mine")
    keep(run, "mmsi", mmsi_items(tmp_path, 60), lambda item: f"<answer>{item.gold}</answer>")
    printed = report(run, ["mmsi"])
    assert printed.index("HATCH") < printed.index("mine")
    assert " 100 " in printed and "MMSI-Bench: 240 of 240 rows asked" in printed
    page = (run.path / "benchmarks" / "tables.md").read_text()
    assert "| **mine** | - | - | - | - | - | - | - | - | **100** ±0.0 |" in page
    assert "| HATCH | 41.3 | 47.4 | 67.1 | 53.6 | 65.6 | 31.0 | 50.2 | 50.2 | 30.5▲ |" in page
    assert "## Table 4" not in page
    results = json.loads((run.path / "benchmarks" / "results.json").read_text())
    assert results["summaries"]["mmsi"]["mmsi"]["mmsi"]["columns"]["Avg"]["n"] == 240
    assert {entry["beyond_noise"] for entry in results["comparison"]} == {1}


def test_a_benchmark_asked_in_part_is_compared_with_nothing(tmp_path):
    run = RunFolder(tmp_path / "mine")
    keep(run, "mmsi", mmsi_items(tmp_path, 5), lambda item: "A", rows=40)
    printed = report(run, ["mmsi"])
    assert "20 of 40 rows asked" in printed and "20 longer" in printed and "not compared" in printed
    assert "▲: ours" in printed and "30.5▲" not in printed and "30.5▼" not in printed


def test_every_spar_scorer_is_kept_and_the_chosen_one_makes_the_table(tmp_path):
    run = RunFolder(tmp_path / "mine")
    root = files.write_spar(tmp_path / "spar", files.spar_rows() * 3)
    paths = tuple(sorted((root / "data").iterdir()))
    for name in ("spar_mv", "spar_si"):
        keep(run, name, list(BENCHMARKS[name].read(paths)), lambda item: "<answer></answer>")
    averages = {}
    for scorer in ("spld", "official", "fixed"):
        printed = report(run, ["spar_mv", "spar_si"], scorer)
        assert "Table 1" in printed and "Table 4" in printed
        found = json.loads((run.path / "benchmarks" / "results.json").read_text())["summaries"]["spar_mv"]["spar_mv"]
        assert set(found) == {"spld", "official", "fixed"}
        averages[scorer] = found[scorer]["columns"]["Avg"]["value"]
    # An empty answer block: right on both choice tasks of four by `spld`, on nothing by the others.
    assert averages == {"spld": 50.0, "official": 0.0, "fixed": 0.0}


def test_rescoring_needs_no_model_and_follows_the_completions(tmp_path):
    run, config = make_run(tmp_path / "run")
    items = mmsi_items(tmp_path, 2)
    keep(run, "mmsi", items, lambda item: "A")
    kept = Kept(run, "mmsi")
    kept.replace([row | {"completion": f"<answer>{row['gold']}</answer>", "scores": {}} for row in kept.predictions()])
    evaluate_benchmarks(config, ["mmsi"], [], "spld", True, Console(file=io.StringIO()))
    assert [row["scores"] for row in kept.predictions()] == [{"mmsi": 1.0}] * 8
    assert [row["answer"] for row in kept.predictions()] == list("ABCD") * 2
    with pytest.raises(ValueError, match="holds no finished predictions"):
        evaluate_benchmarks(config, ["cvbench"], [], "spld", True, Console(file=io.StringIO()))


def test_a_line_cut_by_a_stop_is_asked_again_and_a_damaged_one_is_named(tmp_path):
    run = RunFolder(tmp_path / "run")
    kept = Kept(run, "mmsi")
    kept.append([{"id": "a"}, {"id": "b"}])
    with kept.predictions_path.open("a") as file:
        file.write('{"id": "c", "comp')
    assert [row["id"] for row in kept.predictions()] == ["a", "b"]
    kept.append([{"id": "c"}])
    assert [row["id"] for row in kept.predictions()] == ["a", "b", "c"]
    kept.predictions_path.write_text('{"id": "a"}\n{"id"\n{"id": "c"}\n')
    with pytest.raises(ValueError, match=r"line 2 is not JSON .* delete the line to have it asked again"):
        kept.predictions()


def test_predictions_of_another_model_are_not_gone_on_with(tmp_path):
    kept = Kept(RunFolder(tmp_path / "run"), "mmsi")
    kept.check_settings({"step": 80, "mode": "actions"})
    kept.check_settings({"step": 90, "mode": "actions"})  # nothing was predicted yet
    kept.append([{"id": "a"}])
    kept.check_settings({"step": 90, "mode": "actions"})
    with pytest.raises(ValueError, match="step: 90 then, 120 now"):
        kept.check_settings({"step": 120, "mode": "actions"})


@pytest.mark.parametrize(
    ("names", "roots", "scorer", "said"),
    [
        (["mmsy"], [], "spld", "unknown benchmark 'mmsy'; known: spar_mv"),
        ([], [], "spld", "--benchmark is empty"),
        (["mmsi"], [], "best", "unknown scorer 'best'; known: spld, official, fixed"),
        (["mmsi"], ["cvbench=x"], "spld", "--root cvbench=x is for a benchmark that"),
        (["mmsi"], ["x", "y"], "spld", "write --root NAME=FOLDER"),
    ],
)
def test_mistakes_of_the_command(names, roots, scorer, said):
    with pytest.raises(ConfigError, match=said):
        check_names(names, roots, scorer)


def test_prompt_length_is_counted_as_the_learner_does(tmp_path):
    run, config = make_run(tmp_path / "run")
    asker = Asker(config, run.stage_model("grpo"), "grpo")
    images = [photo(1), photo(2, 300, 200), photo(3, 40, 60)]
    text = "Image: " + "<|vision_start|><|image_pad|><|vision_end|>" * 3 + " How far is it? 2.5"
    prompt = tokenize_prompt(asker.processor, text, [process_image(asker.processor, image) for image in images])
    assert prompt_length(asker.processor, text, [image.size for image in images]) == len(prompt.token_ids)


def test_rooms_ask_every_task_of_spar_bench_in_its_form(tmp_path):
    data = make_config(SETTINGS | {"data": {"max_views": 2, "rooms": {"heldout_scenes": 6}}}).data
    paths = build_rooms(data, 0, 40, tmp_path / "data")
    items = list(read_rooms(paths))
    assert len(items) >= 30
    assert all(item.form == FORMS[KINDS[item.task]] and check_gold(item.gold, item.task) is None for item in items)
    assert {item.n_images for item in items} == {1, 2} and len({item.cluster for item in items}) > 1
    (image,) = next(item for item in items if item.n_images == 1).images(50 * 50)
    assert image.width * image.height <= 2500
    assert build_rooms(data, 0, 40, tmp_path / "data") == paths
    with pytest.raises(ValueError, match=r"eval\.samples=80"):
        build_rooms(data, 0, 80, tmp_path / "data")


# --- on vLLM ----------------------------------------------------------------------------------------------------


def test_two_benchmarks_are_asked_stopped_resumed_and_scored_again(ray_cluster, tmp_path, monkeypatch):
    run, config = make_run(tmp_path / "run")
    long = "And a chair. " * 400
    rows = [files.spar_row(k, "position_matching", "ABCD"[k % 4], 2) for k in range(5)]
    rows += [
        files.spar_row(5, "position_matching", "A", 2, question=long),
        files.spar_row(6, "depth_prediction_oc_mv", "2", 3),
    ]
    rows += [files.spar_row(7, "view_change_infer", files.VIEW_CHANGE, 2)]
    files.write_spar(tmp_path / "data" / "SPAR-Bench", rows)
    files.write_cvbench(tmp_path / "data" / "CV-Bench", files.cvbench_rows())
    roots, console = [str(tmp_path / "data")], Console(file=io.StringIO(), width=140)
    monkeypatch.setattr(runner, "PART", 2)

    engines = Engines(run.stage_model("grpo"), config, console)
    asker = Asker(config, run.stage_model("grpo"), "grpo")
    source = open_source("spar_mv", config, run, roots, console)
    kept = Kept(run, "spar_mv")
    asked = []
    answer = engines.answer

    def watched(requests):
        if len(asked) == 4:
            raise KeyboardInterrupt
        asked.extend(request.id for request in requests)
        return answer(requests)

    engines.answer = watched
    try:
        with pytest.raises(KeyboardInterrupt):
            ask(source, kept, asker, engines, lambda done, total: None)
        first = kept.predictions()
        assert [row["id"] for row in first] == asked and len(asked) == 4
        assert not kept.counts_path.exists()
        engines.answer = answer
        ask(source, kept, asker, engines, lambda done, total: None)
        ask(open_source("cvbench", config, run, roots, console), Kept(run, "cvbench"), asker, engines, print)
    finally:
        engines.stop()
    predictions = kept.predictions()
    assert predictions[:4] == first and len(predictions) == 6
    assert len({row["id"] for row in predictions}) == 6
    assert kept.counts() == {
        "rows": 8, "asked": 6, "unusable": {},
        "left_out": {"longer_than_model.max_length": 1, "more_images_than_model.max_images": 1},
    }  # fmt: skip
    assert all("Actions 0-1" in row["prompt"] for row in predictions)
    assert all("Actions" not in row["prompt"] for row in Kept(run, "cvbench").predictions())
    assert all({"official", "spld", "fixed"} == set(row["scores"]) for row in predictions)

    # Nothing is left to ask: the whole command needs no engine, and makes the tables.
    monkeypatch.setattr(runner, "started_engines", None)
    evaluate_benchmarks(config, ["spar_mv", "cvbench"], roots, "spld", False, console)
    tables = (run.path / "benchmarks" / "tables.md").read_text()
    assert "6 of 8 rows asked" in tables and "## Table 1" in tables and "## Table 4" in tables
    before = kept.predictions_path.read_text()
    evaluate_benchmarks(config, ["spar_mv", "cvbench"], [], "fixed", True, console)
    assert kept.predictions_path.read_text() == before
    assert kept.predictions() == predictions
    assert np.isfinite([score for row in predictions for score in row["scores"].values()]).all()
