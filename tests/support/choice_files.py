"""Small files in the published form of BLINK, 3DSRBench, SAT and OmniSpatial."""

from __future__ import annotations

import base64
import csv
import json
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.support.benchmark_files import IMAGE, TEXT, encoded

SPLITS = ("Multi-view_Reasoning", "Relative_Depth", "Spatial_Relation", "Relative_Reflectance")


def write_blink(root: Path, splits: tuple[str, ...] = SPLITS, answer: str = "(B)") -> Path:
    """A val file of each task: two photos, or one; image_3 and image_4 are null."""
    schema = pa.schema([
        *((name, TEXT) for name in ("idx", "question", "prompt", "answer", "sub_task", "explanation")),
        ("choices", pa.list_(TEXT)), *((f"image_{k}", IMAGE) for k in range(1, 5)),
    ])  # fmt: skip
    asked = "The video shows a static scene. Is the camera moving left or right?\n(A) left\n(B) right"
    for number, task in enumerate(splits):
        two = task == "Multi-view_Reasoning"
        row = {
            "idx": f"val_{task}_1", "question": "Is the camera moving left or right?", "sub_task": task,
            "answer": answer, "prompt": asked,
            "explanation": None, "choices": ["left", "right"], "image_3": None, "image_4": None,
            "image_1": {"bytes": encoded(number, "JPEG"), "path": None},
            "image_2": {"bytes": encoded(50 + number, "JPEG"), "path": None} if two else None,
        }  # fmt: skip
        (root / task).mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist([row], schema=schema), root / task / "val-00000-of-00001.parquet")
    return root


def threedsr_rows() -> list[dict[str, Any]]:
    """Two questions: one in four forms, circular and flipped, of which two share an image by index; one in two."""
    image = [base64.b64encode(encoded(number, "JPEG")).decode() for number in range(2)]
    base = {"A": "the chair", "B": "the lamp", "C": "", "D": "", "hint": "", "image_url": "x"}
    forms = [
        ("AAAA1111", "A", image[0], "location_above"), ("AAAA1111-1", "B", "0", "location_above"),
        ("AAAA1111-flip", "B", "0", "location_above"), ("AAAA1111-flip-1", "A", image[1], "location_above"),
        ("BBBB2222", "A", image[1], "multi_object_facing"), ("BBBB2222-1", "B", image[1], "multi_object_facing"),
    ]  # fmt: skip
    names = ("qid", "answer", "image", "category")
    rows = [base | {"index": k, "question": "Which is above?"} for k in range(len(forms))]
    return [row | dict(zip(names, form, strict=True)) for row, form in zip(rows, forms, strict=True)]


def write_3dsrbench(root: Path, rows: list[dict[str, Any]]) -> Path:
    """The circular table."""
    root.mkdir(parents=True, exist_ok=True)
    with (root / "3dsrbench_v1_vlmevalkit_circular.tsv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t")
        writer.writeheader()
        writer.writerows(rows)
    return root


def sat_rows(count: int = 4) -> list[dict[str, Any]]:
    """SAT's columns; the right answer is the second choice of every other row."""
    kinds = ("ego_movement", "obj_movement", "goal_aim", "perspective")
    return [
        {
            "image_bytes": [encoded(300 + 2 * k + view) for view in range(1 + (k % 4 < 2))],
            "question": f"How did the camera move, {k}?", "answers": ["rotated left", "rotated right"],
            "question_type": kinds[k % 4], "correct_answer": ("rotated left", "rotated right")[k % 2],
        }
        for k in range(count)
    ]  # fmt: skip


def write_sat(root: Path, rows: list[dict[str, Any]], name: str = "SAT_test.parquet") -> Path:
    """One parquet file, images as bytes."""
    names = ("question", "question_type", "correct_answer")
    schema = pa.schema([
        ("image_bytes", pa.list_(pa.binary())), ("answers", pa.list_(TEXT)), *((each, TEXT) for each in names)
    ])  # fmt: skip
    root.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), root / name)
    return root


def omnispatial_rows() -> list[dict[str, Any]]:
    """A row of each dimension; the last one has a letter as its answer."""
    kinds = [("Dynamic_Reasoning", "Manipulation"), ("Spatial_Interaction", "Localization"),
             ("Complex_Logic", "Geometric_Reasoning"), ("Perspective_Taking", "Egocentric")]  # fmt: skip
    rows = [
        {"id": f"{k}_0", "question": "Where is it?", "options": ["left", "right", "above"], "answer": k % 3,
         "task_type": task, "sub_task_type": sub}
        for k, (task, sub) in enumerate(kinds)
    ]  # fmt: skip
    rows[3]["gt"] = "C"
    del rows[3]["answer"]
    return rows


def write_omnispatial(root: Path, rows: list[dict[str, Any]], unpacked: bool = False) -> Path:
    """OmniSpatial-test.zip, or what lies in it."""
    root.mkdir(parents=True, exist_ok=True)
    file = root / "OmniSpatial-test.zip"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("OmniSpatial-test/data.json", json.dumps(rows))
        for number, row in enumerate(rows):
            name = f"OmniSpatial-test/{row['task_type']}/{row['id'].partition('_')[0]}.png"
            archive.writestr(name, encoded(400 + number))
    if unpacked:
        with zipfile.ZipFile(file) as archive:
            archive.extractall(root)
        file.unlink()
    return root
