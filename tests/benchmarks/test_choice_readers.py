"""BLINK, 3DSRBench, SAT-Real and OmniSpatial in their published form; Actial's tables and their averages."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from hatch_ray.benchmarks.item import Item
from hatch_ray.benchmarks.kept import Kept
from hatch_ray.benchmarks.letter_scorers import omnispatial_letter
from hatch_ray.benchmarks.paper import LAYOUT, PARTS, published_rows
from hatch_ray.benchmarks.registry import BENCHMARKS, survey
from hatch_ray.benchmarks.report import report_benchmarks
from hatch_ray.benchmarks.results import predict_row, summarise
from hatch_ray.run_folder import RunFolder
from tests.benchmarks.test_benchmark_readers import open_all, read
from tests.support import choice_files as files


def test_blink_reads_its_three_tasks_and_passes_over_others(tmp_path: Path) -> None:
    items, faults = read("blink", files.write_blink(tmp_path / "BLINK"))
    assert not faults
    assert [(item.task, item.n_images, item.gold) for item in items] == [
        ("Multi-view_Reasoning", 2, "B"), ("Relative_Depth", 1, "B"), ("Spatial_Relation", 1, "B"),
    ]  # fmt: skip
    assert items[0].question.endswith("(A) left\n(B) right")
    open_all(items)
    with pytest.raises(ValueError, match=r"lacks Relative_Depth, Spatial_Relation/val"):
        read("blink", files.write_blink(tmp_path / "part", ("Multi-view_Reasoning",)))
    assert read("blink", files.write_blink(tmp_path / "odd", answer="hidden"))[1] == ["gold_is_no_letter"] * 3


def test_3dsrbench_reads_forms_and_shared_images(tmp_path: Path) -> None:
    rows = files.threedsr_rows()
    items, faults = read("3dsrbench", files.write_3dsrbench(tmp_path / "a", rows))
    assert not faults and len(items) == 6
    assert [item.cluster for item in items] == ["AAAA1111"] * 4 + ["BBBB2222"] * 2
    assert [item.group for item in items] == ["location"] * 4 + ["multi_object"] * 2
    assert items[0].question == "Which is above?\nA. the chair\nB. the lamp"
    open_all(items)
    first, second, other = (np.asarray(items[k].images(10**6)[0]) for k in (0, 1, 3))
    assert (first == second).all() and not (first == other).all()
    bad = [rows[0] | {"category": "colour"}, rows[0] | {"answer": "C"}, rows[0] | {"image": "7"},
           rows[0] | {"image": "#" * 70}, rows[0] | {"B": "nan"}]  # fmt: skip
    assert read("3dsrbench", files.write_3dsrbench(tmp_path / "b", bad))[1] == [
        "unknown_category", "gold_is_no_letter", "no_images", "image_is_no_base64", "no_options",
    ]  # fmt: skip
    with pytest.raises(ValueError, match=r"lacks the column\(s\) qid; it has"):
        read("3dsrbench", files.write_3dsrbench(tmp_path / "c", [{k: v for k, v in rows[0].items() if k != "qid"}]))


def predictions(name: str, items: list[Item], right: set[int]) -> list[dict[str, object]]:
    texts = [f"<answer>{item.gold if k in right else 'Z'}</answer>" for k, item in enumerate(items)]
    return [predict_row(item, "", text, BENCHMARKS[name].scorers) for item, text in zip(items, texts, strict=True)]


def test_a_question_of_3dsrbench_is_right_when_all_its_forms_are(tmp_path: Path) -> None:
    items, _ = read("3dsrbench", files.write_3dsrbench(tmp_path / "a", files.threedsr_rows()))
    for right, expected in (({0, 1, 2, 3}, (100, 0, 50)), ({0, 1, 2, 4, 5}, (0, 100, 50)), (set(range(6)), (100,) * 3)):
        found = summarise(PARTS["3dsrbench"], predictions("3dsrbench", items, right), "letter", 100, 0)
        assert found is not None and found["rows"] == 2
        assert tuple(found["columns"][name]["value"] for name in ("Loc", "Mul", "Avg")) == expected


def test_sat_real_letters_choices_as_they_are_stored(tmp_path: Path) -> None:
    rows = files.sat_rows()
    items, faults = read("sat_real", files.write_sat(tmp_path / "a", rows))
    assert not faults
    assert [(item.gold, item.n_images, item.task) for item in items] == [
        ("A", 2, "ego_movement"), ("B", 2, "obj_movement"), ("A", 1, "goal_aim"), ("B", 1, "perspective"),
    ]  # fmt: skip
    assert items[0].question.endswith("?\nA. rotated left\nB. rotated right")
    open_all(items)
    bad = [rows[0] | {"correct_answer": "up"}, rows[0] | {"image_bytes": []}]
    assert read("sat_real", files.write_sat(tmp_path / "b", bad))[1] == ["right_answer_is_not_one_choice", "no_images"]


@pytest.mark.parametrize("unpacked", [False, True])
def test_omnispatial_zipped_or_unpacked(unpacked: bool, tmp_path: Path) -> None:
    rows = files.omnispatial_rows()
    root = files.write_omnispatial(tmp_path / "a", rows, unpacked)
    items, faults = read("omnispatial", root)
    assert not faults and [item.gold for item in items] == ["A", "B", "C", "C"]
    assert [item.task for item in items][-1] == "Egocentric" and items[0].question.endswith("C. above")
    open_all(items)
    bad = [rows[0] | {"answer": 3}, rows[1] | {"options": []}, rows[2] | {"task_type": "Colour"}]
    found = read("omnispatial", files.write_omnispatial(tmp_path / "b", bad, unpacked))[1]
    assert found == ["gold_is_no_option", "no_options", "unknown_task_type"]
    with pytest.raises(ValueError, match=r"OmniSpatial: 3 of 3 rows cannot be used"):
        survey(BENCHMARKS["omnispatial"], tuple((tmp_path / "b").rglob("data.json" if unpacked else "*.zip")))


@pytest.mark.parametrize(
    ("text", "letter"),
    [("<answer>(c) above</answer>", "C"), ("because.\nAnswer: B\nAnswer: d", "D"), ("no idea at all", "A"), ("B", "B")],
)
def test_omnispatials_rule_falls_back_to_a(text: str, letter: str) -> None:
    assert omnispatial_letter(text) == letter


def test_published_averages_follow_the_columns() -> None:
    """CV-Bench's average is the mean of its four tasks, BLINK's of its three; so are the parts."""
    for row in published_rows(101):
        figure = dict(zip(LAYOUT[101], row.figures, strict=True))
        for part, names in (("cvbench_tasks", ("Rel", "Cnt", "Dist", "Dep")), ("blink", ("MV", "Dep", "Rel"))):
            mean = np.mean([figure[part, name] for name in names])
            assert abs(figure[part, "Avg"] - mean) < 0.11, (row.model, part)
    assert [row.model for row in published_rows(102)] == ["Qwen2.5-VL-7B", "Actial-7B"]
    for table in (101, 102):
        assert all(len(row.figures) == len(LAYOUT[table]) for row in published_rows(table))
        assert all(name in {c.name for c in PARTS[part].columns} for part, name in LAYOUT[table])


def test_our_row_stands_under_actials(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "mine")
    sat = files.write_sat(tmp_path / "SAT", files.sat_rows())
    made = {"blink": files.write_blink(tmp_path / "BLINK"), "sat_real": sat}
    for name, root in made.items():
        items, _ = read(name, root)
        kept = Kept(run, name)
        kept.append(predictions(name, items, {0}))
        kept.finish({"rows": len(items), "asked": len(items), "unusable": {}, "left_out": {}})
    out = io.StringIO()
    console = Console(file=out, width=120, soft_wrap=True, highlight=False)
    report_benchmarks(run, list(made), "spld", 100, 0, console)
    printed = out.getvalue()
    assert printed.index("Actial, Table 1") < printed.index("Actial-7B") < printed.index("mine")
    assert "Actial (arXiv 2511.01618), Table 1" in printed and "Table 4" not in printed
    assert "SAT-Real: average" in printed and all(len(line) <= 92 for line in printed.split("\n") if "Qwen2.5" in line)
    columns = json.loads((run.path / "benchmarks" / "results.json").read_text())["summaries"]["blink"]["blink"]
    assert columns["letter"]["columns"]["Avg"]["value"] == pytest.approx(100 / 3)
