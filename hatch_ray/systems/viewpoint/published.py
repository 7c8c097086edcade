"""Published questions as datasets: SAT, the paper's data for GRPO, and Viewpoint-100K, its data for SFT.

sat             array/SAT (arXiv 2412.07755): SAT_train.parquet and SAT_val.parquet with the columns image_bytes,
                question, answers, correct_answer, question_type; of SAT-v2, data/*.parquet with images. A letter is
                asked for; choices stand in a random order.
viewpoint_100k  INno0o/Viewpoint-100K, whose form its authors do not describe: rows as LLaMA-Factory reads them,
                messages (role, content) or conversations (from, value), and images. Split by the images' folder (an
                object).

A row that cannot be used is counted by reason; more than 5 % of them stop the build.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from hatch_ray.data.images import ImageRefused, load_stored, upright
from hatch_ray.data.parquet import Row, columns_of, parquet_rows
from hatch_ray.data.questions.choices import listed
from hatch_ray.data.refusals import BadRows, Refusal
from hatch_ray.data.spar.layout import heldout
from hatch_ray.data.store import SPLITS, Split
from hatch_ray.data.writer import DatasetWriter
from hatch_ray.protocol.prompt import check_text
from hatch_ray.protocol.response import parse_response
from hatch_ray.protocol.values import LETTER
from hatch_ray.sample import Sample, View
from hatch_ray.systems.viewpoint.config import ViewpointData

LETTERS = "ABCDEFGH"
SPARE = 1.05
"""Rows that are drawn for each that is wanted: some cannot be used."""
SAT_FILES: dict[Split, tuple[str, ...]] = {
    "train": ("SAT_train*.parquet", "data/train-*.parquet"),
    "heldout": ("SAT_val*.parquet", "data/val*.parquet"),
}
SAT_COLUMNS = ("question", "answers", "correct_answer", "question_type")
PICTURES = ("image_bytes", "images")
PLACEHOLDER = re.compile(r"\s*<image>\s*")
ENDINGS = {b"\xff\xd8\xff": "jpg", b"\x89PNG": "png"}


def build_published(
    data: ViewpointData, seed: int, split: Split, out: Path, report: Callable[[int, int], None] | None = None,
    mixed: bool = False,
) -> None:  # fmt: skip
    """Write a split's dataset at `out`; mixed: it teaches bare answers, but where a row holds its own thought.

    Raises ValueError: no such files, other columns, or too many rows that cannot be used.
    """
    if data.root is None or not data.root.is_dir():
        raise ValueError(f"kind {data.kind}: the root {data.root} is not a folder; name that of the published files")
    wanted = data.samples if split == "train" else data.heldout_samples
    rows = (_sat_rows if data.kind == "sat" else _viewpoint_rows)(data, seed, split, wanted)
    bad = BadRows(str(data.root), "Check that the files are the published ones and whole")
    with DatasetWriter(out) as writer:
        for where, row in rows:
            if len(writer) == wanted:
                break
            bad.read += 1
            try:
                sample = (
                    _sat_sample(row, where, seed, writer, data) if data.kind == "sat" else _sample(row, where, writer)
                )
            except Refusal as refusal:
                bad.add(refusal, where)
                continue
            if sample is not None:
                direct = {"direct": True} if mixed and "thought" not in sample.meta else {}
                sample.meta.update(direct)
                writer.add(sample)
            if report:
                report(len(writer), wanted)
        bad.check()
        if not len(writer):
            raise ValueError(f"{data.root} has no question for {split} (data.tasks: {data.tasks or 'all'})")
        writer.summary = {
            "samples": len(writer), "asked_for": wanted, "by_task": dict(writer.by_task), **bad.summary(),
            "split": split, "seed": seed, "data": data.model_dump(mode="json"),
        }  # fmt: skip


# --- SAT --------------------------------------------------------------------------------------------------------


def _sat_rows(data: ViewpointData, seed: int, split: Split, wanted: int) -> Iterator[tuple[str, Row]]:
    """Rows drawn from a split's files, in their order."""
    assert data.root is not None
    files = next((found for name in SAT_FILES[split] if (found := sorted(data.root.glob(name)))), [])
    if not files:
        there = ", ".join(sorted(path.name for path in data.root.iterdir())[:8]) or "nothing"
        raise ValueError(f"{data.root} is not SAT: {split} needs {' or '.join(SAT_FILES[split])}, found {there}")
    names, _ = columns_of(files[0])
    picture = next((name for name in PICTURES if name in names), PICTURES[0])
    total = sum(columns_of(file)[1] for file in files)
    count = total if data.tasks else min(total, int(np.ceil(SPARE * wanted)))
    drawn = set(np.random.default_rng([seed, SPLITS.index(split)]).permutation(total)[:count].tolist())
    rows = parquet_rows(files, (picture, *SAT_COLUMNS), drawn)
    for number, row in zip(sorted(drawn), rows, strict=True):
        yield f"{split} {number}", row | {"pictures": row[picture]}


def _sat_sample(row: Row, where: str, seed: int, writer: DatasetWriter, data: ViewpointData) -> Sample | None:
    task = str(row["question_type"])
    if data.tasks and task not in data.tasks:
        return None
    choices, gold = row["answers"], row["correct_answer"]
    if not isinstance(choices, list) or not 2 <= len(choices) <= len(LETTERS) or len(set(choices)) < len(choices):
        raise Refusal("bad_answers", f"answers are {choices!r}")
    if gold not in choices:
        raise Refusal("right_answer_is_no_choice", f"{gold!r} is not among {choices!r}")
    number = int(where.split()[-1])
    order = np.random.default_rng([seed, number, 5]).permutation(len(choices))
    options = [str(choices[place]) for place in order]
    question = _checked(f"{_text(row['question'])} {listed(options)}")
    scene = f"sat-{where.replace(' ', '-')}"
    views = _views(row["pictures"], scene, writer)
    answer = LETTERS[options.index(str(gold))]
    return Sample(scene, scene, task, "letter", question, answer, views, meta={"options": options})


# --- Viewpoint-100K ---------------------------------------------------------------------------------------------


def _viewpoint_rows(data: ViewpointData, seed: int, split: Split, wanted: int) -> Iterator[tuple[str, Row]]:
    """Rows of all files of the root, shuffled, of the objects that are the split's."""
    assert data.root is not None
    files = sorted(path for ending in ("parquet", "jsonl", "json") for path in data.root.glob(f"*.{ending}"))
    if not files:
        raise ValueError(f"{data.root} holds no .json, .jsonl or .parquet file of questions")
    found: list[tuple[str, Row]] = []
    for file in files:
        for number, row in enumerate(_file_rows(file)):
            names = row.keys()
            talk = next((name for name in ("messages", "conversations") if name in names), "")
            if not talk or "images" not in names:
                raise ValueError(
                    f"{file} is not of the form that is read: expected messages or conversations, and images, found "
                    f"{', '.join(sorted(map(str, names)))}; give rows as LLaMA-Factory reads them (docs/viewpoint.md)"
                )
            pictures = row["images"]
            first = pictures[0] if isinstance(pictures, list) and pictures else ""
            path = first.get("path") or "" if isinstance(first, dict) else str(first)
            thing = str(Path(path).parent) if Path(path).parent.name else f"{file.name}-{number}"
            if heldout(thing, seed, data.heldout_fraction) == (split == "heldout"):
                row = {"talk": row[talk], "images": pictures, "root": data.root, "thing": thing}
                found.append((f"{file.name} {number}", row))
    order = np.random.default_rng([seed, SPLITS.index(split)]).permutation(len(found))
    return iter([found[place] for place in order])


def _file_rows(file: Path) -> Iterator[Row]:
    if file.suffix == ".parquet":
        yield from parquet_rows([file], columns_of(file)[0])
        return
    try:
        text = file.read_text(encoding="utf-8-sig")
        rows = json.loads(text) if file.suffix == ".json" else [json.loads(s) for s in text.splitlines() if s.strip()]
    except ValueError as error:
        raise ValueError(f"{file} is no JSON ({error}); download it again") from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{file} must hold a list of objects, one a question")
    yield from rows


def _sample(row: Row, where: str, writer: DatasetWriter) -> Sample:
    said: list[tuple[str, str]] = []
    for part in row["talk"] if isinstance(row["talk"], list) else []:
        who, what = part.get("role", part.get("from")), part.get("content", part.get("value"))
        said.append((str(who), what if isinstance(what, str) else ""))
    asked = [what for who, what in said if who in ("user", "human")]
    told = [what for who, what in said if who in ("assistant", "gpt")]
    if len(asked) != 1 or len(told) != 1:
        raise Refusal("not_one_question_and_answer", f"it has {len(asked)} questions and {len(told)} answers")
    pictures = row["images"] if isinstance(row["images"], list) else []
    if (count := asked[0].count("<image>")) not in (0, len(pictures)):
        raise Refusal("placeholders", f"{count} places for {len(pictures)} images")
    question = _checked(PLACEHOLDER.sub("\n", asked[0]).strip())
    reply = parse_response(told[0], 2, "language")
    letter = LETTER.match(reply.answer or told[0])
    if not letter:
        raise Refusal("answer_is_no_letter", f"the answer is {told[0][:60]!r}")
    meta: dict[str, Any] = {"thing": row["thing"]}
    if "<think>" in told[0]:
        if not reply.format_ok:
            raise Refusal("bad_thought", f"the answer has {', '.join(reply.problems)}")
        meta["thought"] = told[0].partition("<think>")[2].partition("</think>")[0].strip()
    name = re.sub(r"[^\w.-]+", "-", where)
    views = _views([_bytes(picture, row["root"]) for picture in pictures], name, writer)
    return Sample(name, name, "viewpoint_100k", "letter", question, letter.group(1).upper(), views, meta=meta)


# --- parts of a row ---------------------------------------------------------------------------------------------


def _text(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise Refusal("no_question", f"the question is {value!r}")
    return value.strip()


def _checked(question: str) -> str:
    try:
        check_text(_text(question))
    except ValueError as error:
        raise Refusal("reserved_token", str(error)) from None
    return question


def _bytes(picture: object, root: Path) -> object:
    """A picture's bytes: they are in the row, or in a file below the root."""
    path = picture.get("path") if isinstance(picture, dict) and not picture.get("bytes") else picture
    if not isinstance(path, str):
        return picture
    file = (root / path).resolve()
    if not file.is_relative_to(root.resolve()) or not file.is_file():
        raise Refusal("image_missing", f"{path} is no file below {root}")
    return file.read_bytes()


def _views(pictures: object, scene: str, writer: DatasetWriter) -> tuple[View, ...]:
    """Every picture is decoded once, and kept as its file is, unless it is stored turned."""
    if not isinstance(pictures, list) or not pictures:
        raise Refusal("no_images", f"the images are {str(pictures)[:60]}")
    views = []
    for number, picture in enumerate(pictures):
        data = picture.get("bytes") if isinstance(picture, dict) else picture
        if not isinstance(data, bytes) or not data:
            raise Refusal("image_without_bytes", f"image {number} holds none")
        try:
            image, orientation = load_stored(data, f"image {number}")
        except ImageRefused as refusal:
            raise Refusal(refusal.fault, str(refusal)) from None
        ending = next((ending for start, ending in ENDINGS.items() if data.startswith(start)), "")
        if ending and orientation == 1:
            views.append(writer.add_photo_file(scene, number, data, ending))
        else:
            views.append(writer.add_photo(scene, number, np.asarray(upright(image, orientation))))
    return tuple(views)
