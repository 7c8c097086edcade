"""The benchmarks that `hatch eval --benchmark` knows: where the files are, how a row is read and scored.

A new benchmark is one entry in BENCHMARKS with a function that reads its rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from hatch_ray.benchmarks import letter_scorers, spar_scorers
from hatch_ray.benchmarks.columns import CVBENCH, MINDCUBE, MMSI, SPAR_MV, SPAR_SI, Part
from hatch_ray.benchmarks.files import Archive, Row, check_image, decode_image, json_lines, parquet_rows
from hatch_ray.benchmarks.item import BadRowError, Item
from hatch_ray.data.bad_share import MAX_BAD_SHARE, reasons_to_stop
from hatch_ray.protocol.prompt import check_text
from hatch_ray.sample import AnswerForm

Read = Callable[[tuple[Path, ...]], Iterator[Item | BadRowError]]
Score = Callable[[str, str, str], float]


@dataclass(frozen=True)
class Benchmark:
    """A published benchmark.

    hub       its dataset on the Hugging Face hub; also the folder's name below a common --root.
    patterns  the files to read, relative to the root; the first pattern that matches is used.
    read      files -> items, or what is wrong with a row.
    scorers   name -> (completion, gold, task) -> score in [0, 1]; the first is the default.
    """

    name: str
    part: Part
    hub: str
    patterns: tuple[str, ...]
    read: Read
    scorers: dict[str, Score]


def choose_root(benchmark: Benchmark, roots: Sequence[str]) -> str:
    """The root for one benchmark: NAME=ROOT, else the common one (its subfolder named as on the hub), else the hub."""
    common = benchmark.hub
    for root in roots:
        name, equals, value = root.partition("=")
        if equals and name == benchmark.name:
            return value
        if not equals:
            below = Path(root).expanduser() / benchmark.hub.split("/")[1]
            common = str(below) if below.is_dir() else root
    return common


def survey(benchmark: Benchmark, paths: tuple[Path, ...]) -> tuple[int, Counter[str]]:
    """(usable rows, unusable ones by reason). Raises ValueError when more than 5 % are unusable, or there is no row."""
    usable, bad = 0, Counter[str]()
    for item in benchmark.read(paths):
        if isinstance(item, BadRowError):
            bad[str(item)] += 1
        else:
            usable += 1
    check_bad_rows(benchmark.part.title, usable + bad.total(), bad)
    return usable, bad


def check_bad_rows(title: str, rows: int, bad: Counter[str]) -> None:
    """Raise ValueError with the ten commonest reasons when more than 5 % of the rows are unusable, or there is none."""
    if not rows:
        raise ValueError(f"{title}: the files hold no row; download them again")
    if worst := reasons_to_stop(bad, rows):
        reasons = ", ".join(f"{count} {reason}" for reason, count in worst)
        raise ValueError(
            f"{title}: {bad.total()} of {rows} rows cannot be used ({reasons}), more than {MAX_BAD_SHARE:.0%}; "
            "check that the files are the published ones and whole"
        )


def _text(row: Row, *names: str) -> str:
    """The first of the fields that holds text. Raises BadRowError."""
    for name in names:
        value = row.get(name)
        if isinstance(value, str) and value.strip():
            try:
                check_text(value)
            except ValueError:
                raise BadRowError("reserved_token") from None
            return value
    raise BadRowError(f"no_{names[-1]}")


def _from_bytes(data: Sequence[Any] | None) -> tuple[int, Callable[[int], list[Image.Image]]]:
    if not data:
        raise BadRowError("no_images")
    checked = [check_image(image) for image in data]
    return len(checked), lambda max_pixels: [decode_image(image, max_pixels) for image in checked]


def _each(rows: Iterator[Row], parse: Callable[[Row, str], Item | None]) -> Iterator[Item | BadRowError]:
    """Items and faults; rows for which `parse` gives None belong to another part. Ids carry the row's number, since
    those of the files need not be unique.
    """
    for number, row in enumerate(rows):
        name = row.get("id", row.get("idx"))
        try:
            item = parse(row, f"{number:05d}" + ("" if name is None else f":{name}"))
        except BadRowError as fault:
            yield fault
            continue
        if item is not None:
            yield item


FORMS: dict[spar_scorers.Kind, AnswerForm] = {"choice": "letter", "number": "number", "view_change": "view_change"}


def _spar_row(row: Row, name: str, img_type: str) -> Item | None:
    if row.get("img_type") not in ("single_view", "multi_view"):
        raise BadRowError("unknown_img_type")
    if row["img_type"] != img_type:
        return None
    task, gold = row.get("task"), row.get("answer")
    if task not in spar_scorers.KINDS:
        raise BadRowError("unknown_task")
    if gold is None or not str(gold).strip():
        raise BadRowError("no_answer")
    if (fault := spar_scorers.check_gold(str(gold), task)) is not None:
        raise BadRowError(fault)
    n_images, images = _from_bytes(row.get("image"))
    form = FORMS[spar_scorers.KINDS[task]]
    return Item(name, task, task, form, _text(row, "question"), str(gold), name, n_images, images)


def read_spar(paths: tuple[Path, ...], img_type: str) -> Iterator[Item | BadRowError]:
    """SPAR-Bench's parquet files (also -Tiny and -RGBD), one kind. The images carry their marks already."""
    rows = parquet_rows(paths, ("id", "image", "question", "answer", "task", "img_type"))
    return _each(rows, partial(_spar_row, img_type=img_type))


MINDCUBE_FILE = "raw/MindCube_tinybench.jsonl"


def _mindcube_archive(path: Path) -> tuple[Archive, str]:
    """The archive and the prefix of the data folder in it, from data.zip or from the JSONL in an unpacked folder."""
    if path.suffix == ".zip":
        return Archive(path), "data/"
    return Archive(path.parent.parent), ""


def read_mindcube(paths: tuple[Path, ...]) -> Iterator[Item | BadRowError]:
    """MindCube-Tiny: data.zip as published, or unpacked. Raises ValueError when the zip lacks the tiny benchmark."""
    archive, prefix = _mindcube_archive(paths[0])
    if not archive.has(prefix + MINDCUBE_FILE):
        raise ValueError(f"{paths[0]} holds no {prefix}{MINDCUBE_FILE}; download MindCube's data.zip again")

    def load(names: list[str], max_pixels: int) -> list[Image.Image]:
        try:
            return [decode_image(archive.read(name), max_pixels) for name in names]
        except BadRowError:
            raise
        except ValueError:
            raise BadRowError("unreadable_image") from None

    def parse(row: Row, name: str) -> Item:
        if not row:
            raise BadRowError("no_json_object")
        setting = letter_scorers.mindcube_setting(str(row.get("id", "")))
        if setting == "other":
            raise BadRowError("id_names_no_setting")
        images = row.get("images")
        if not isinstance(images, list) or not images:
            raise BadRowError("no_images")
        names = [prefix + str(image) for image in images]
        if not all(archive.has(image) for image in names):
            raise BadRowError("image_file_missing")
        gold = _text(row, "gt_answer").strip().upper()
        if gold not in ("A", "B", "C", "D", "E"):
            raise BadRowError("gold_is_no_letter")
        question = _text(row, "question")
        return Item(name, setting, setting, "letter", question, gold, name, len(names), partial(load, names))

    return _each((row or {} for row in json_lines(archive.read(prefix + MINDCUBE_FILE))), parse)


def _mmsi_row(row: Row, name: str) -> Item:
    kind = letter_scorers.mmsi_type(str(row.get("question_type")))
    group = letter_scorers.mmsi_group(kind)
    if group is None:
        raise BadRowError("unknown_question_type")
    gold = _text(row, "answer").strip()
    if gold.upper() not in ("A", "B", "C", "D"):
        raise BadRowError("gold_is_no_letter")
    n_images, images = _from_bytes(row.get("images"))
    return Item(name, kind, group, "letter", _text(row, "question"), gold, name, n_images, images)


def read_mmsi(paths: tuple[Path, ...]) -> Iterator[Item | BadRowError]:
    """MMSI-Bench's parquet file; `images` is a list of encoded images."""
    return _each(parquet_rows(paths, ("id", "images", "question_type", "question", "answer")), _mmsi_row)


CVBENCH_FILES = ("test_2d.parquet", "test_3d.parquet")


def _cvbench_row(row: Row, name: str) -> Item:
    if row.get("source") not in CVBENCH.groups:
        raise BadRowError("unknown_source")
    gold = _text(row, "answer")
    if spar_scorers.check_gold(gold, "position_matching"):
        raise BadRowError("gold_is_no_letter")
    n_images, images = _from_bytes([row["image"]] if row.get("image") else None)
    task = _text(row, "task")
    return Item(name, task, row["source"], "letter", _text(row, "prompt"), gold, name, n_images, images)


def read_cvbench(paths: tuple[Path, ...]) -> Iterator[Item | BadRowError]:
    """CV-Bench's two parquet files; `prompt` is the question with its choices. Raises ValueError: one is missing."""
    if len(paths) < len(CVBENCH_FILES):
        found = ", ".join(path.name for path in paths)
        raise ValueError(f"{paths[0].parent} is not CV-Bench: expected {' and '.join(CVBENCH_FILES)}, found {found}")
    return _each(parquet_rows(paths, ("idx", "task", "image", "answer", "prompt", "source")), _cvbench_row)


def _spar(part: Part, img_type: str) -> Benchmark:
    patterns = ("data/test-*.parquet", "test-*.parquet")
    read = partial(read_spar, img_type=img_type)
    return Benchmark(part.name, part, "jasonzhango/SPAR-Bench", patterns, read, spar_scorers.SCORERS)


BENCHMARKS: dict[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (
        _spar(SPAR_MV, "multi_view"),
        _spar(SPAR_SI, "single_view"),
        Benchmark(
            MINDCUBE.name, MINDCUBE, "MLL-Lab/MindCube", ("data.zip", f"data/{MINDCUBE_FILE}", MINDCUBE_FILE),
            read_mindcube, {"mindcube": letter_scorers.mindcube},
        ),
        Benchmark(
            MMSI.name, MMSI, "RunsenXu/MMSI-Bench", ("*.parquet", "data/*.parquet"),
            read_mmsi, {"mmsi": letter_scorers.mmsi},
        ),
        Benchmark(
            CVBENCH.name, CVBENCH, "nyu-visionx/CV-Bench", ("test_[23]d.parquet",),
            read_cvbench, {"cvbench": letter_scorers.cvbench},
        ),
    )
}  # fmt: skip
ROOMS = "rooms"
NAMES = (*BENCHMARKS, ROOMS)
