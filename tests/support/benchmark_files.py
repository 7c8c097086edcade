"""Small files in the form in which each benchmark is published: names, columns, types and nesting."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.support.pictures import photo

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
TEXT = pa.string()
Row = dict[str, Any]
VIEW_CHANGE = "move_right:0.5,move_down:0.1,move_forward:1.2,rotate_up:4,rotate_left:20"


def encoded(seed: int, form: str = "PNG") -> bytes:
    """An image file's bytes."""
    out = io.BytesIO()
    photo(seed).save(out, format=form)
    return out.getvalue()


def spar_row(number: int, task: str, answer: str, images: int, **changes: Any) -> dict[str, Any]:
    """A row of SPAR-Bench."""
    row = {
        "id": f"scene0{number % 3:03d}_00_{number}",
        "image": [{"bytes": encoded(10 * number + k, "JPEG"), "path": f"{number}_{k}.jpg"} for k in range(images)],
        "question": f"Question {number} about the red box?",
        "answer": answer,
        "task": task,
        "img_type": "single_view" if images == 1 else "multi_view",
        "format_type": "select" if answer.isalpha() else "fill",
        "source": "scannet",
    }
    return row | changes


def spar_rows() -> list[dict[str, Any]]:
    """Both kinds, all three answer kinds."""
    return [
        spar_row(0, "depth_prediction_oc_mv", "2.4", 3),
        spar_row(1, "position_matching", "C", 2),
        spar_row(2, "view_change_infer", VIEW_CHANGE, 2),
        spar_row(3, "obj_spatial_relation_oo_mv", "A", 3),
        spar_row(4, "depth_prediction_oo", "1", 1),
        spar_row(5, "spatial_imagination_oc", "D", 1),
    ]


def write_spar(root: Path, rows: list[dict[str, Any]], files: int = 2) -> Path:
    """data/test-*.parquet."""
    names = ("id", "question", "answer", "task", "img_type", "format_type", "source")
    schema = pa.schema([("image", pa.list_(IMAGE)), *((name, TEXT) for name in names)])
    (root / "data").mkdir(parents=True)
    for index in range(files):
        table = pa.Table.from_pylist(rows[index::files], schema=schema)
        pq.write_table(table, root / "data" / f"test-{index:05d}-of-{files:05d}.parquet")
    return root


def mindcube_rows() -> list[dict[str, Any]]:
    """One row of each setting."""
    ids = ("around_group001_q0", "rotation_group002_q1", "among_group003_q2", "translation_group004_q1")
    return [
        {
            "id": name, "question": "What is left of view 1? A. Chair B. Table C. Bed D. Lamp", "gt_answer": "ABCD"[k],
            "images": [f"other_all_image/{name}/front_{view}.jpg" for view in range(2 + k % 2)],
            "meta_info": [[["front"], "chair"]], "category": ["P-P"], "type": "four_view",
        }
        for k, name in enumerate(ids)
    ]  # fmt: skip


def write_mindcube(root: Path, rows: list[dict[str, Any]], unpacked: bool = False, images: bool = True) -> Path:
    """data.zip, or what lies in it."""
    root.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(root / "data.zip", "w") as archive:
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        archive.writestr("data/raw/MindCube_tinybench.jsonl", lines)
        archive.writestr("data/raw/MindCube_train.jsonl", "")
        for number, name in enumerate(name for row in rows for name in row["images"] if images):
            archive.writestr(f"data/{name}", encoded(number, "JPEG"))
    if unpacked:
        with zipfile.ZipFile(root / "data.zip") as archive:
            archive.extractall(root)
        (root / "data.zip").unlink()
    return root


def mmsi_rows() -> list[dict[str, Any]]:
    """Types with the en dash of the data."""
    types = ("Positional Relationship (Cam.–Obj.)", "Attribute (Meas.)", "Motion (Cam.)", "MSR")
    return [
        {
            "id": k, "images": [encoded(100 + 2 * k + view, "JPEG") for view in range(2)], "question_type": name,
            "question": "Where is the lamp? Options: A: left, B: right, C: above, D: below", "answer": "ABCD"[k],
            "thought": "because",
        }
        for k, name in enumerate(types)
    ]  # fmt: skip


def write_mmsi(root: Path, rows: list[dict[str, Any]]) -> Path:
    """One parquet file with a list of encoded images in each row."""
    names = ("question_type", "question", "answer", "thought")
    schema = pa.schema([("id", pa.int64()), ("images", pa.list_(pa.binary())), *((name, TEXT) for name in names)])
    root.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), root / "MMSI_Bench.parquet")
    return root


def cvbench_rows() -> list[dict[str, Any]]:
    """Two rows of each source."""
    kinds = [
        ("2D", "Count", "ADE20K"),
        ("2D", "Relation", "COCO"),
        ("3D", "Depth", "Omni3D"),
        ("3D", "Distance", "Omni3D"),
    ]
    return [
        {
            "idx": k, "type": kind, "task": task, "image": {"bytes": encoded(200 + k), "path": None},
            "question": "How many chairs?", "choices": ["1", "2"], "answer": "(B)",
            "prompt": "How many chairs? Select from the following choices.\n(A) 1\n(B) 2",
            "filename": f"img/{task}/{k}.png", "source": source,
        }
        for k, (kind, task, source) in enumerate(kinds)
    ]  # fmt: skip


def write_cvbench(root: Path, rows: list[dict[str, Any]]) -> Path:
    """test_2d.parquet and test_3d.parquet."""
    names = ("type", "task", "question", "answer", "prompt", "filename", "source")
    schema = pa.schema([
        ("idx", pa.int64()), ("image", IMAGE), ("choices", pa.list_(TEXT)), *((name, TEXT) for name in names)
    ])  # fmt: skip
    root.mkdir(parents=True)
    for kind in ("2D", "3D"):
        table = pa.Table.from_pylist([row for row in rows if row["type"] == kind], schema=schema)
        pq.write_table(table, root / f"test_{kind.lower()}.parquet")
    return root


def reasonmatch_row(number: int, source: str, stage: str, answer: dict[str, str], marks: tuple[int, int]) -> Row:
    """An entry of the index with its metadata file, under "held"."""
    name = f"{source}_{number:06d}"
    folder = f"{source}/{stage}/{name}"
    points = [[{"x": 40 * k, "y": 30 * k, "label": str(k + 1)} for k in range(count)] for count in marks]
    held = {
        "image1": f"/data/wbm/testset/{folder}/viewA.png", "image2": f"/data/wbm/testset/{folder}/viewB.png",
        "answer": answer, "assignment": {"stage_id": stage},
        "viewA": {"image_points": points[0], "text_points": []},
        "viewB": {"image_points": points[1][1:], "text_points": points[1][:1]},
        "meta": {
            "stage": stage, "difficulty": "mid", "overlap": 0.2, "overlap_rank": (number % 10) / 10, "dataset": source,
            "dataset_key": source, "sample_id": name, "label_scheme": "number",
        },
    }  # fmt: skip
    return {
        "metadata": f"{folder}/metadata.json", "dataset": source, "dataset_key": source, "stage": stage,
        "difficulty": "mid", "sample_id": name, "viewA": f"{folder}/viewA.png", "viewB": f"{folder}/viewB.png",
        "held": held,
    }  # fmt: skip


def reasonmatch_rows() -> list[Row]:
    """The three stages, from three sources."""
    return [
        reasonmatch_row(0, "uco3d", "one_to_one", {"1": "3", "2": "1", "3": "2"}, (3, 3)),
        reasonmatch_row(5, "scannet", "one_to_multi", {"1": "4", "2": "1"}, (2, 5)),
        reasonmatch_row(9, "re10k", "multi_to_multi", {"1": "2", "3": "1"}, (4, 4)),
    ]


def write_reasonmatch(root: Path, rows: list[Row], pictures: bool = True) -> Path:
    """annotation_index.json and, below it, each question's metadata and pictures with their marks."""
    root.mkdir(parents=True)
    index = [{name: value for name, value in row.items() if name != "held"} for row in rows]
    (root / "annotation_index.json").write_text(json.dumps(index))
    drawn = [encoded(300 + place) for place in range(2)] if pictures else []
    for row in rows:
        file = root / row["metadata"]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(row["held"]))
        for name, picture in zip(("viewA", "viewB"), drawn, strict=False):
            (root / row[name]).write_bytes(picture)
    return root
