"""ReasonMatch-Bench and its like: files read, both metrics, tables; questions made on rooms and on real frames."""

from __future__ import annotations

import io
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from actors.commands.benchmark import open_source
from hatch_ray.benchmarks.files import find_files
from hatch_ray.benchmarks.item import BadRowError, Item
from hatch_ray.benchmarks.kept import Kept
from hatch_ray.benchmarks.matching_report import report_matching
from hatch_ray.benchmarks.matching_scenes import build_scenes, read_scenes
from hatch_ray.benchmarks.reasonmatch import case_of_gold
from hatch_ray.benchmarks.registry import MATCHING, survey
from hatch_ray.benchmarks.results import predict_row
from hatch_ray.config import Config, load_config, make_config
from hatch_ray.run_folder import RunFolder
from hatch_ray.systems import system_of
from hatch_ray.systems.matching.measures import Case, Measured, score
from hatch_ray.systems.matching.metrics import Counts
from hatch_ray.systems.matching.official import official
from hatch_ray.systems.matching.overlaps import BINS, bin_of
from hatch_ray.systems.matching.reply import write_reply
from hatch_ray.systems.matching.settings import MatchingConfig
from tests.support import benchmark_files as files

BENCHMARK = MATCHING["reasonmatch"]
VECTOR = Case.of((2, 0, 1, 0), 4, "a", {})
REPLY = '<answer>{"1": "2", "2": "none", "3": "4", "4": "3"}</answer>'


def shares(text: str, case: Case = VECTOR) -> dict[str, float]:
    return {name: part / whole if whole else 0.0 for name, (part, whole) in score(text, case).items()}


# --- the metrics ------------------------------------------------------------------------------------------------


def test_the_vector_of_the_definition() -> None:
    """n = 4, gold 1-2 and 3-1; said 1-2, 2-none, 3-4, 4-3."""
    found = shares(REPLY)
    assert found["precision"] == found["micro_precision"] == pytest.approx(1 / 3)
    assert found["recall"] == found["micro_recall"] == 0.5 and found["f1"] == pytest.approx(0.4)
    assert found["accuracy"] == 0.5 and found["none_precision"] == 1.0 and found["none_recall"] == 0.5
    assert found["exact"] == 0 and found["one_to_one"] == found["parsed"] == 1
    every_mark = replace(VECTOR, answer={"1": "2", "2": "none", "3": "1", "4": "none"})
    assert shares(REPLY, every_mark)["recall"] == 0.25, "the wrong reading: gold of all marks"


@pytest.mark.parametrize(
    ("text", "precision", "recall", "parsed"),
    [
        ('<answer>{"1": 2, "3": 1}</answer>', 1, 1, 1),  # numbers are compared as text
        ('<answer>{"1": "2", "3": "1", "2": "3", "9": "1"}</answer>', 0.5, 1, 1),  # a mark that is not there costs too
        ('<answer>{"1": "None", "2": null}</answer>', 0, 0, 1),
        ("<answer>{}</answer>", 0, 0, 1),
        ("<answer>[1, 2]</answer>", 0, 0, 0),
        ('It is {"1": "2", "3": "1"}.', 1, 1, 0),  # without a block the leaderboard reads it, the reward does not
        ('<thinking>```json\n{"1": "1"}\n```</thinking><answer>{"1": "2", "3": "1"}</answer>', 0, 0, 1),  # a draft
        ("<answer>```JSON\n{\"1\": \"2\"}\n```</answer>", 1, 0.5, 1),
        ("", 0, 0, 0),
    ],
)  # fmt: skip
def test_replies_as_the_authors_script_reads_them(text: str, precision: float, recall: float, parsed: float) -> None:
    found = shares(text)
    assert (found["precision"], found["recall"], found["parsed"]) == (precision, recall, parsed)


@given(st.text(alphabet='{}[]":,0123456789none`json</>aw', max_size=200) | st.text(max_size=80))
def test_no_text_is_too_much(text: str) -> None:
    found = score(text, VECTOR)
    assert all(0 <= part <= whole for part, whole in found.values())


@pytest.mark.parametrize(
    "text",
    ["```json" * 30_000, "<answer>" * 30_000, '{"1":' * 30_000, "{" + "[" * 900 + "]" * 900 + "}",
     '{"1":' + "9" * 5000 + "}", '{"1":' + "[" * 980 + "]" * 980 + "}", "```json{" * 20_000 + "}```"],
)  # fmt: skip
def test_hostile_replies_score_in_no_time(text: str) -> None:
    start = time.process_time()
    assert score(text, VECTOR)["f1"][0] == 0
    assert time.process_time() - start < 0.05


@given(st.data())
def test_of_whole_replies_both_readings_say_the_same(data: st.DataObject) -> None:
    n, m = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9))
    gold, said = (data.draw(st.lists(st.integers(0, m), min_size=n, max_size=n)) for _ in range(2))
    case = Case.of(gold, m, "a", {})
    counts = Counts.of(dict(enumerate(said, 1)), dict(enumerate(gold, 1)))
    found = official(write_reply(dict(enumerate(said, 1))), case.answer)
    assert (found.precision, found.recall) == (counts.precision, counts.recall)
    assert found.f1 == pytest.approx(counts.f1) and found.read


def test_figures_are_means_over_questions_and_sums_over_pairs() -> None:
    measured = Measured([VECTOR, Case.of((1,), 2, "b", {})], 50, 0)
    measured.add("it", [REPLY, write_reply({1: 1})])
    whole = {name: each and each["value"] for name, each in measured.whole("it").items()}
    assert whole["f1"] == pytest.approx(70) and whole["micro_f1"] == pytest.approx(100 * 4 / 7)
    assert whole["accuracy"] == 75 and whole["none_recall"] == 50
    with pytest.raises(ValueError, match="longer"):
        measured.add("another", [REPLY])


def test_bins_of_overlap() -> None:
    assert [bin_of(omega) for omega in (0.0, 0.1, 0.24, 0.25, 0.7, 1.0)] == [BINS[k] for k in (0, 1, 1, 2, 4, 4)]


# --- the published files ----------------------------------------------------------------------------------------


def read(root: Path) -> tuple[list[Item], list[BadRowError]]:
    found = list(BENCHMARK.read(find_files(root, BENCHMARK.part.patterns, "reasonmatch")))
    items = [one for one in found if not isinstance(one, BadRowError)]
    return items, [one for one in found if isinstance(one, BadRowError)]


def test_questions_are_read_with_their_parts(tmp_path: Path) -> None:
    root = files.write_reasonmatch(tmp_path / "bench", files.reasonmatch_rows())
    items, faults = read(root)
    assert not faults and len({item.id for item in items}) == 3
    assert [dict(item.parts) for item in items] == [
        {"source": "uco3d", "level": "L1", "overlap": "low", "scene": "object"},
        {"source": "scannet", "level": "L2", "overlap": "medium", "scene": "indoor"},
        {"source": "re10k", "level": "L3", "overlap": "high", "scene": "unknown"},
    ]
    assert items[1].question == "Match marks 1-2 of the first photo to marks 1-5 of the second."
    third = case_of_gold(items[2].gold)
    assert third.gold == (2, 0, 1, 0) and third.second == 4 and third.answer == {"1": "2", "3": "1"}
    first, second = items[0].images(50 * 50)
    assert first.width * first.height <= 2500 and first.tobytes() != second.tobytes()
    (root / "scene_labels.json").write_text(json.dumps({"re10k_000009": {"scene": "outdoor", "source": "manual"}}))
    assert [item.parts["scene"] for item in read(root)[0]] == ["object", "indoor", "outdoor"]
    (tmp_path / "above").mkdir()
    root.rename(tmp_path / "above" / "testset")
    assert len(read(tmp_path / "above")[0]) == 3


def test_what_is_missing_or_otherwise_is_named_and_counted(tmp_path: Path) -> None:
    def made(number: int, **changes: Any) -> files.Row:
        row = files.reasonmatch_row(number, "uco3d", "one_to_one", {"1": "2"}, (2, 2))
        return row | {"held": {name: value for name, value in (row["held"] | changes).items() if value != "gone"}}

    rows = [
        made(0), made(1, answer={"A": "B"}), made(2, answer={"3": "1"}), made(3, answer={}), made(4, answer="gone"),
        made(5, viewB={"image_points": []}), made(6, image2="testset/uco3d/none.png"),
        made(7), made(8) | {"stage": None}, made(9),
    ]  # fmt: skip
    root = files.write_reasonmatch(tmp_path / "bench", rows)
    (root / rows[9]["viewA"]).write_bytes(b"no picture")
    (root / rows[7]["metadata"]).unlink()
    items, faults = read(root)
    assert [item.id for item in items] == ["00000:uco3d_000000"]
    assert [str(fault) for fault in faults] == [
        "labels_are_no_numbers", "answer_names_no_mark", "no_answer", "metadata_without_answer", "view_without_points",
        "image_file_missing", "metadata_file_missing", "index_row_without_columns", "unreadable_image",
    ]  # fmt: skip
    assert all(fault.example for fault in faults) and faults[5].example == "testset/uco3d/none.png"


def test_missing_pictures_stop_it_by_name_and_a_few_are_told(tmp_path: Path) -> None:
    rows = [files.reasonmatch_row(k, "scannet", "one_to_one", {"1": "1"}, (1, 1)) for k in range(40)]
    root = files.write_reasonmatch(tmp_path / "bench", rows)
    paths = (root / "annotation_index.json",)
    (root / rows[3]["viewB"]).unlink()
    usable, bad, first = survey(BENCHMARK, paths)
    assert (usable, dict(bad)) == (39, {"image_file_missing": 1}) and "scannet_000003/viewB.png" in str(first)
    for row in rows[10:14]:
        (root / row["viewA"]).unlink()
    with pytest.raises(ValueError, match=r"5 of 40 rows cannot be used \(5 image_file_missing \(first: \S+_000003/vie"):
        survey(BENCHMARK, paths)


def test_other_files_are_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "reasonmatch_bench.tar.gz").write_bytes(b"")
    with pytest.raises(ValueError, match=r"is packed: unpack it \(tar xzf reasonmatch_bench"):
        read(tmp_path)
    index = tmp_path / "annotation_index.json"
    for text, told in (
        ("{", "is no JSON"),
        ('{"a": 1}', "is no list of questions"),
        ('[{"image": "a.png", "stage": "L1"}]', r"lacks the column\(s\) metadata, dataset_key; it has image, stage"),
    ):
        index.write_text(text)
        with pytest.raises(ValueError, match=told):
            read(tmp_path)


# --- tables -----------------------------------------------------------------------------------------------------


def keep(run: RunFolder, name: str, items: list[Item], reply: Any, rows: int = 0) -> Kept:
    kept = Kept(run, name)
    kept.append([predict_row(item, "prompt", reply(item), MATCHING[name].scorers) for item in items])
    rows = rows or len(items)
    kept.finish({"rows": rows, "asked": len(items), "unusable": {}, "left_out": {"longer": rows - len(items)}})
    return kept


def right(item: Item) -> str:
    return write_reply(dict(enumerate(case_of_gold(item.gold).gold, start=1)))


def printed(run: RunFolder, name: str) -> tuple[str, str, dict[str, Any]]:
    out = io.StringIO()
    report_matching(run, [name], 100, 0, Console(file=out, width=120, soft_wrap=True, highlight=False))
    folder = run.path / "benchmarks" / name
    return out.getvalue(), (folder / "tables.md").read_text(), json.loads((folder / "results.json").read_text())


def test_published_rows_and_blind_replies_stand_beside_ours(tmp_path: Path) -> None:
    rows = [one for k in range(20) for one in files.reasonmatch_rows()]
    items, _ = read(files.write_reasonmatch(tmp_path / "bench", rows))
    run = RunFolder(tmp_path / "mine")
    keep(run, "reasonmatch", items, right)
    text, page, results = printed(run, "reasonmatch")
    assert text.index("DCRL-8B") < text.index("mine") and "ReasonMatch-Bench: 60 of 60 rows asked" in text
    assert "| DCRL-8B | 70.5▲ | 70.3▲ | 71.1▲ | 84.6 | 75.1▲ |" in page
    assert "| mine | 100.0 | 100.0 | 100.0 | - | 100.0 |" in page
    assert (
        results["lines"]["all none"]["f1"]["value"] == 0 and results["lines"]["all none"]["none_recall"]["value"] == 100
    )
    assert set(results["lines"]) == {"mine", "best constant", "all none", "1 to 1, 2 to 2", "at random"}
    assert set(results["parts"]) == {"source", "level", "scene", "overlap", "scene and level"}
    assert results["parts"]["overlap"]["low"]["f1"]["n"] == 20
    beyond = {
        (one["model"], one["part"]): one["beyond_noise"] for one in results["comparison"] if one["measure"] == "f1"
    }
    assert beyond["GPT-5-mini", "all"] == 1 and ("GPT-5-mini", "indoor L1") not in beyond


def test_asked_in_part_it_is_compared_with_nothing(tmp_path: Path) -> None:
    items, _ = read(files.write_reasonmatch(tmp_path / "bench", files.reasonmatch_rows()))
    run = RunFolder(tmp_path / "mine")
    kept = keep(run, "reasonmatch", items, lambda item: "no idea", rows=30)
    text, _, results = printed(run, "reasonmatch")
    assert "3 of 30 rows asked" in text and "70.5▼" not in text and results["comparison"] == []
    assert results["lines"]["mine"]["parsed"]["value"] == 0
    assert [row["scores"] for row in kept.predictions()] == [
        dict.fromkeys(("f1", "precision", "recall", "accuracy"), 0)
    ] * 3


# --- questions made here ----------------------------------------------------------------------------------------


def matching(run: Path, **data: Any) -> Config:
    model = {"template": "compact-v1", "max_pixels": 640 * 480, "max_images": 2}
    tree = {"system": "matching", "run_dir": str(run), "model": model, "eval": {"samples": 9, "bootstrap": 50}}
    rooms = {"train_scenes": 1, "heldout_scenes": 2, "image_size": 224}
    return make_config(tree | {"data": {"min_overlap": 0.05, "rooms": rooms} | data})


def test_rooms_need_no_download(tmp_path: Path) -> None:
    config = matching(tmp_path / "run")
    run, console = RunFolder(tmp_path / "run"), Console(file=io.StringIO())
    source = open_source("matching_rooms", config, run, [], console)
    items = [item for item in read_scenes(source.paths) if isinstance(item, Item)]
    assert (source.usable, len(items)) == (9, 9) and {item.parts["level"] for item in items} == {"L1", "L2", "L3"}
    assert items[0].images(224 * 224)[0].size == (224, 224)
    keep(run, "matching_rooms", items, right)
    text, _, results = printed(run, "matching_rooms")
    assert "GPT-5-mini" not in text and results["lines"]["run"]["exact"]["value"] == 100
    assert {value for found in results["parts"].values() for value in found} >= {"rooms", "L1", "sparse"}
    more = make_config(config.model_dump(mode="json") | {"eval": {"samples": 18}})
    with pytest.raises(ValueError, match=r"built for eval\.samples=9 .* now they are 18"):
        build_scenes("matching_rooms", more, [], source.paths[0])


def test_a_run_that_cannot_be_asked_is_told_so(tmp_path: Path) -> None:
    run, console = RunFolder(tmp_path), Console(file=io.StringIO())
    hatch = make_config({"run_dir": str(tmp_path)})
    assert "matching" not in system_of(hatch).answer_forms
    with pytest.raises(ValueError, match="reasonmatch asks which marks match, which a model of the system hatch"):
        open_source("reasonmatch", hatch, run, [], console)
    with pytest.raises(ValueError, match="give --root matching_rgbd=FOLDER"):
        open_source("matching_rgbd", matching(tmp_path), run, [], console)


@pytest.mark.rest
def test_real_frames_as_a_benchmark(redkitchen: Path, tmp_path: Path) -> None:
    config = matching(tmp_path / "run", kind="rgbd", frame_step=5, check_geometry=False)
    source = open_source(
        "matching_rgbd",
        config,
        RunFolder(tmp_path / "run"),
        [f"matching_rgbd={redkitchen}"],
        Console(file=io.StringIO()),
    )
    items = [item for item in read_scenes(source.paths) if isinstance(item, Item)]
    assert len(items) == 9 and {item.parts["source"] for item in items} == {"rgbd"}


def test_the_papers_run_has_the_papers_numbers(repository: Path) -> None:
    """arXiv 2606.03577, section 4.1 and its code: docs/wide-baseline.md's run on 8 GPUs."""
    config = load_config(repository / "configs" / "wbm_8b.yaml")
    assert isinstance(config, MatchingConfig) and config.model.base == "Qwen/Qwen3-VL-8B-Instruct"
    grpo, rules = config.grpo, config.curriculum
    assert (grpo.group_size, grpo.prompts_per_step, grpo.beta, grpo.lr, grpo.warmup_steps) == (32, 16, 0.005, 1e-6, 10)
    assert (grpo.max_new_tokens, grpo.temperature, grpo.schedule, grpo.trainable) == (5120, 1.0, "constant", "language")
    assert (rules.bins, rules.window, rules.master, rules.promote, rules.demote) == (10, 20, 0.8, 0.7, 0.2)
    assert config.stages == ["grpo"] and config.thinking and system_of(config).weights()["mapping"] == 1.0
    assert config.rollout.actors + config.learner.workers == 8 and config.rollout.gpus == config.learner.gpus == 1
    assert config.model.max_length >= 2 * config.model.max_pixels // 32**2 + grpo.max_new_tokens + 500
    assert load_config(repository / "configs" / "wbm_redkitchen.yaml").data.kind == "rgbd"
