"""SAT and Viewpoint-100K as datasets: in the form in which they are published, and refused in another."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from hatch_ray.config import make_config
from hatch_ray.data.images import load_image
from hatch_ray.data.store import Split, read_dataset
from hatch_ray.evaluation.heldout import score_rows, swap_images
from hatch_ray.sample import Sample
from hatch_ray.systems import system_of
from tests.support.benchmark_files import encoded
from tests.support.choice_files import sat_rows, write_sat


def built(out: Path, kind: str, root: Path, split: Split = "train", section: str = "data", **data: Any) -> list[Sample]:
    tree = {"kind": kind, "root": str(root), "samples": 30, "heldout_samples": 8} | data
    system_of(make_config({"system": "viewpoint", section: tree})).build(section, split, out)
    return read_dataset(out)


def summary_of(out: Path) -> dict[str, Any]:
    return dict(json.loads((out / "summary.json").read_text()))


@pytest.fixture
def sat(tmp_path: Path) -> Path:
    rows = sat_rows(40)
    rows[3] |= {"correct_answer": "up"}
    write_sat(tmp_path / "SAT", rows[:24], "SAT_train.parquet")
    return write_sat(tmp_path / "SAT", sat_rows(12), "SAT_val.parquet")


def test_sat_asks_for_letters_in_random_order(sat: Path, tmp_path: Path) -> None:
    samples = built(tmp_path / "t", "sat", sat)
    assert len(samples) == 23 and {sample.task for sample in samples} == {
        "ego_movement", "obj_movement", "goal_aim", "perspective",
    }  # fmt: skip
    for sample in samples:
        number = int(sample.id.split("-")[-1])
        right = ("rotated left", "rotated right")[number % 2]
        assert sample.meta["options"]["AB".index(sample.answer)] == right
        assert f"{sample.answer}. {right}" in sample.question and f"move, {number}?" in sample.question
        assert len(sample.views) == (2 if number % 4 < 2 else 1)
        assert load_image(sample.views[0].image_path).size == load_image(sample.views[-1].image_path).size
    assert {sample.answer for sample in samples} == {"A", "B"}
    summary = summary_of(tmp_path / "t")
    assert summary["rows_refused"] == {"right_answer_is_no_choice": 1} and summary["rows_read"] == 24
    assert [s.id for s in built(tmp_path / "again", "sat", sat)] == [s.id for s in samples]
    heldout = built(tmp_path / "h", "sat", sat, "heldout", tasks=["ego_movement"])
    assert len(heldout) == 3 and {sample.task for sample in heldout} == {"ego_movement"}


def test_sat_is_rewarded_and_its_controls_need_no_side(sat: Path, tmp_path: Path) -> None:
    samples = built(tmp_path / "t", "sat", sat, "heldout")
    system = system_of(make_config({"system": "viewpoint", "data": {"kind": "sat", "root": str(sat)}}))
    assert system.evaluated() == "views" and system.controls(samples) == {}
    replies = [f"<think>x</think><answer>({s.answer})</answer>" if len(s.views) > 1 else system.gold(s, "grpo")
               for s in samples]  # fmt: skip
    assert all(row["terms"]["total"] == 1 for row in score_rows(system, "grpo", samples, replies))
    assert len(system.blind_replies(samples)["one_side"]) == len(samples)
    assert len(swap_images(samples, 0)) == len(samples)


def test_sat_of_other_files_or_columns_is_refused(tmp_path: Path) -> None:
    root = write_sat(tmp_path / "a", sat_rows(), "SAT_train.parquet")
    with pytest.raises(ValueError, match=r"heldout needs SAT_val\*.parquet or data/val\*.parquet, found SAT_train"):
        built(tmp_path / "h", "sat", root, "heldout")
    pq.write_table(pa.table({"prompt": ["x"], "images": [[b""]]}), tmp_path / "a" / "SAT_val.parquet")
    with pytest.raises(ValueError, match=r"lacks the column\(s\) question, answers, .*; it has prompt, images"):
        built(tmp_path / "h", "sat", root, "heldout")
    rows = [row | {"answers": ["one"]} for row in sat_rows(2)] + sat_rows(2)
    bad = write_sat(tmp_path / "bad", rows, "SAT_train.parquet")
    with pytest.raises(ValueError, match=r"2 of 4 rows of .* cannot be used, more than 5%: 2 bad_answers"):
        built(tmp_path / "b", "sat", bad)
    with pytest.raises(ValueError, match=r"data.kind=sat needs data.root=PATH"):
        system_of(make_config({"system": "viewpoint", "data": {"kind": "sat"}})).check("data")
    assert not any((tmp_path / name).exists() for name in ("h", "b"))


def talk(number: int, answer: str = "B") -> dict[str, Any]:
    """A row as LLaMA-Factory reads it."""
    folder = f"images/thing{number % 10}"
    return {
        "messages": [
            {"role": "user", "content": f"<image><image>\nWhich way, {number}? A. left B. right C. none"},
            {"role": "assistant", "content": answer},
        ],
        "images": [f"{folder}/{number}_{view}.jpg" for view in range(2)],
    }


def write_talks(root: Path, rows: list[dict[str, Any]], name: str = "train.json") -> Path:
    for row in rows:
        for number, place in enumerate(row.get("images", ())):
            (root / place).parent.mkdir(parents=True, exist_ok=True)
            (root / place).write_bytes(encoded(number, "JPEG"))
    lines = json.dumps(rows) if name.endswith(".json") else "".join(json.dumps(row) + "\n" for row in rows)
    root.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(lines)
    return root


@pytest.mark.parametrize("name", ["train.json", "train.jsonl"])
def test_viewpoint_100k_in_llama_factorys_form(name: str, tmp_path: Path) -> None:
    thought = talk(40, "<think>It went left, so left.</think><answer>A</answer>")
    root = write_talks(tmp_path / "v", [*(talk(number) for number in range(40)), thought], name)
    data = {"samples": 99, "heldout_samples": 99, "heldout_fraction": 0.4}
    splits: tuple[Split, ...] = ("train", "heldout")
    both = [built(tmp_path / split, "viewpoint_100k", root, split, "views", **data) for split in splits]
    assert len(both[0]) + len(both[1]) == 41
    things = [{sample.meta["thing"] for sample in samples} for samples in both]
    assert things[0] and things[1] and not things[0] & things[1]
    system = system_of(make_config({"system": "viewpoint"}))
    sample = next(sample for sample in both[0] if "thought" not in sample.meta)
    assert sample.question.startswith("Which way,") and "<image>" not in sample.question and len(sample.views) == 2
    assert system.gold(sample, "view_sft") == "<answer>B</answer>"
    (thinking,) = [sample for samples in both for sample in samples if "thought" in sample.meta]
    assert system.gold(thinking, "view_sft") == "<think>It went left, so left.</think><answer>A</answer>"


def test_viewpoint_100k_of_another_form_is_refused(tmp_path: Path) -> None:
    root = write_talks(tmp_path / "a", [{"question": "left?", "answer": "A", "image_1": "x"}])
    told = "expected messages or conversations, and images, found answer, image_1, question"
    with pytest.raises(ValueError, match=told):
        built(tmp_path / "t", "viewpoint_100k", root)
    rows = [talk(0, "to the left"), talk(1) | {"images": ["../a.jpg", "b.jpg"]}, talk(2)]
    rows[2]["messages"][0]["content"] = "<image> one place for two images"
    root = write_talks(tmp_path / "b", [talk(3)])
    (root / "train.json").write_text(json.dumps(rows))
    with pytest.raises(ValueError, match=r"3 of 3 rows of .* cannot be used") as told_of:
        built(tmp_path / "t", "viewpoint_100k", root, heldout_fraction=1e-9)
    for reason in ("answer_is_no_letter", "image_missing", "placeholders"):
        assert f"1 {reason} (first: train.json " in str(told_of.value)
    with pytest.raises(ValueError, match=r"holds no .json, .jsonl or .parquet file"):
        built(tmp_path / "t", "viewpoint_100k", tmp_path / "b" / "images")


def test_a_photo_that_is_stored_turned_is_turned(tmp_path: Path) -> None:
    image = Image.new("RGB", (40, 30), "red")
    exif = Image.Exif()
    exif[0x0112] = 6
    out = io.BytesIO()
    image.save(out, "JPEG", exif=exif)
    rows = [row | {"image_bytes": [out.getvalue(), encoded(1)]} for row in sat_rows(2)]
    (sample, _) = built(tmp_path / "t", "sat", write_sat(tmp_path / "s", rows, "SAT_train.parquet"))
    assert load_image(sample.views[0].image_path).size == (30, 40)
