"""Multiple choice in the published files of BLINK, 3DSRBench, SAT-Real and OmniSpatial, on which Actial was evaluated.

blink        BLINK-Benchmark/BLINK, val: Multi-view_Reasoning, Relative_Depth and Spatial_Relation; answer "(A)"
3dsrbench    ccvl/3DSRBench, 3dsrbench_v1_vlmevalkit_circular.tsv: base64 images, circular and flipped forms by qid
sat_real     array/SAT, SAT_test.parquet: 150 real photos; the choices are lettered as they are stored
omnispatial  qizekun/OmniSpatial, OmniSpatial-test.zip: data.json (answer: the option's place) and TASK/NUMBER.png
"""

from __future__ import annotations

import base64
import binascii
import csv
import json
from collections.abc import Iterator
from pathlib import Path
from string import ascii_uppercase

from hatch_ray.benchmarks.files import read_member, zip_folder
from hatch_ray.benchmarks.item import BadRowError, Item
from hatch_ray.benchmarks.paper import PARTS
from hatch_ray.benchmarks.reading import item_of, items_of, letter_of, text_of
from hatch_ray.data.parquet import Row, columns_of, parquet_rows

Found = Iterator[Item | BadRowError]
BLINK_IMAGES = ("image_1", "image_2", "image_3", "image_4")
TSV_COLUMNS = ("index", "question", "A", "B", "answer", "category", "image", "qid")
MAX_CELL = 1 << 28
SHORT_CELL = 64
"""An image shorter than this is no image: VLMEvalKit's form of "that of the row with this index"."""
OMNI_FOLDER = "OmniSpatial-test"
OMNI_FILE = "data.json"


def with_options(question: str, options: list[str]) -> str:
    """The question, and below it "A. left" and so on."""
    return "\n".join([question, *(f"{letter}. {text}" for letter, text in zip(ascii_uppercase, options, strict=False))])


# --- BLINK ------------------------------------------------------------------------------------------------------


def _blink_row(row: Row, name: str) -> Item | None:
    if row.get("sub_task") not in PARTS["blink"].groups:
        return None
    gold = text_of(row, "answer").strip().strip("()")
    if len(gold) != 1 or gold not in "ABCD":
        raise BadRowError("gold_is_no_letter")
    images = [row[column] for column in BLINK_IMAGES if row.get(column)]
    return item_of(name, row["sub_task"], row["sub_task"], text_of(row, "prompt"), gold, images)


def read_blink(paths: tuple[Path, ...]) -> Found:
    """The val files of the three tasks of Actial's table; `prompt` is the question with its options. Others are passed
    over. Raises ValueError: one is missing.
    """
    groups = PARTS["blink"].groups
    chosen = [path for path in paths if path.parent.name in groups]
    if missing := [name for name in groups if name not in {path.parent.name for path in chosen}]:
        raise ValueError(f"{paths[0].parent.parent} lacks {', '.join(missing)}/val-*.parquet; download it again")
    return items_of(parquet_rows(chosen, ("idx", "prompt", "answer", "sub_task", *BLINK_IMAGES)), _blink_row)


# --- 3DSRBench --------------------------------------------------------------------------------------------------


def _tsv(path: Path) -> Iterator[Row]:
    csv.field_size_limit(MAX_CELL)
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = csv.DictReader(file, delimiter="\t")
            if missing := [name for name in TSV_COLUMNS if name not in (rows.fieldnames or ())]:
                raise ValueError(f"{path} lacks the column(s) {', '.join(missing)}; it has {rows.fieldnames}")
            yield from rows
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no readable table ({error}); download it again") from None


def read_3dsrbench(paths: tuple[Path, ...]) -> Found:
    """The circular file as VLMEvalKit reads it: an image is base64, or the index of the row whose image it is. All
    forms of a question (qid up to the first dash) are one cluster.
    """
    asked_for = {row["image"] for row in _tsv(paths[0]) if row["image"] and len(row["image"]) < SHORT_CELL}
    seen: dict[str, bytes] = {}

    def parse(row: Row, name: str) -> Item:
        category = str(row["category"])
        group = next((group for group in PARTS["3dsrbench"].groups if category.startswith(group)), None)
        if group is None:
            raise BadRowError("unknown_category")
        options = [row[letter] for letter in "ABCD" if row.get(letter) and row[letter].lower() != "nan"]
        if len(options) < 2:
            raise BadRowError("no_options")
        gold = letter_of(row, "answer", ascii_uppercase[: len(options)]).upper()
        cell = row["image"] or ""
        try:
            image = seen.get(cell) if len(cell) < SHORT_CELL else base64.b64decode(cell, validate=True)
        except binascii.Error:
            raise BadRowError("image_is_no_base64") from None
        if row["index"] in asked_for and image:
            seen[row["index"]] = image
        question = with_options(text_of(row, "question"), options)
        cluster = text_of(row, "qid").partition("-")[0]
        return item_of(name, category, group, question, gold, [image] if image else None, cluster=cluster)

    return items_of(({**row, "id": row["qid"]} for row in _tsv(paths[0])), parse)


# --- SAT-Real ---------------------------------------------------------------------------------------------------


def _sat_row(row: Row, name: str) -> Item:
    choices, right = row["answers"], row["correct_answer"]
    if not isinstance(choices, list) or len(choices) < 2 or choices.count(right) != 1:
        raise BadRowError("right_answer_is_not_one_choice")
    question = with_options(text_of(row, "question"), [str(choice) for choice in choices])
    gold = ascii_uppercase[choices.index(right)]
    return item_of(name, text_of(row, "question_type"), "SAT-Real", question, gold, row["pictures"])


def read_sat_real(paths: tuple[Path, ...]) -> Found:
    """SAT's test file (the images' column is image_bytes, in SAT-v2 images)."""
    picture = "images" if "images" in columns_of(paths[0])[0] else "image_bytes"
    rows = parquet_rows(paths, ("question", "answers", "correct_answer", "question_type", picture))
    return items_of((row | {"pictures": row[picture]} for row in rows), _sat_row)


# --- OmniSpatial ------------------------------------------------------------------------------------------------


def read_omnispatial(paths: tuple[Path, ...]) -> Found:
    """The test set, zipped as published or unpacked. Raises ValueError: data.json is missing or no list."""
    zipped = paths[0].suffix == ".zip"
    place = zip_folder(paths[0], OMNI_FOLDER) if zipped else paths[0].parent
    if zipped and not (place / OMNI_FILE).is_file():
        raise ValueError(f"{paths[0]} holds no {OMNI_FOLDER}/{OMNI_FILE}; download it again")
    try:
        rows = json.loads(read_member(place / OMNI_FILE, f"{OMNI_FILE} of {paths[0]}"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{OMNI_FILE} of {paths[0]} is no JSON ({error}); download it again") from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{OMNI_FILE} of {paths[0]} must hold a list of questions; download it again")

    def parse(row: Row, name: str) -> Item:
        if row.get("task_type") not in PARTS["omnispatial"].groups:
            raise BadRowError("unknown_task_type")
        options, right = row.get("options"), row.get("answer", row.get("gt"))
        if not isinstance(options, list) or not 2 <= len(options) <= 8:
            raise BadRowError("no_options")
        letters = ascii_uppercase[: len(options)]
        right = letters.find(right) if isinstance(right, str) and len(right) == 1 else right
        if type(right) is not int or not 0 <= right < len(options):
            raise BadRowError("gold_is_no_option")
        picture = place / row["task_type"] / f"{str(row.get('id')).partition('_')[0]}.png"
        if not picture.is_file():
            raise BadRowError("image_file_missing")
        question = with_options(text_of(row, "question"), [str(option) for option in options])
        task, data = text_of(row, "sub_task_type"), read_member(picture, str(picture))
        return item_of(name, task, row["task_type"], question, letters[right], [data])

    return items_of(iter(rows), parse)
