"""The benchmarks that `hatch eval --benchmark` knows: where the files are, how a row is read and scored.

A new benchmark is one entry in BENCHMARKS with a function that reads its rows, and one in parts.yaml.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from PIL import Image

from hatch_ray.benchmarks import letter_scorers, spar_scorers
from hatch_ray.benchmarks.choice_readers import read_3dsrbench, read_blink, read_omnispatial, read_sat_real
from hatch_ray.benchmarks.files import decode_image, json_lines, read_member, zip_folder
from hatch_ray.benchmarks.item import BadRowError, Item
from hatch_ray.benchmarks.matching_scenes import read_scenes
from hatch_ray.benchmarks.paper import PARTS, Part
from hatch_ray.benchmarks.reading import item_of, items_of, letter_of, text_of
from hatch_ray.benchmarks.reasonmatch import ARCHIVE, INDEX, case_of_gold, read_reasonmatch
from hatch_ray.benchmarks.rooms import read_rooms
from hatch_ray.benchmarks.spar_scorers import SCORERS as SPAR_SCORERS
from hatch_ray.data.parquet import Row, parquet_rows
from hatch_ray.data.refusals import MAX_BAD_SHARE, reasons_to_stop
from hatch_ray.sample import AnswerForm
from hatch_ray.systems.matching.data import FORM
from hatch_ray.systems.matching.measures import score

Read = Callable[[tuple[Path, ...]], Iterator[Item | BadRowError]]
Score = Callable[[str, str, str], float]


@dataclass(frozen=True)
class Benchmark:
    """A benchmark.

    parts     the blocks of the papers' tables that it fills; the first names its files.
    read      files -> items, or what is wrong with a row.
    scorers   name -> (completion, gold, task) -> score in [0, 1]; the first is the default.
    form      what every answer looks like, where only systems with that answer form can be asked.
    titled    its name in print, where that is not its first part's.
    """

    parts: tuple[Part, ...]
    read: Read
    scorers: dict[str, Score]
    form: str = ""
    titled: str = ""

    @property
    def part(self) -> Part:
        """Of a published one."""
        return self.parts[0]

    @property
    def title(self) -> str:
        """Its name in print."""
        return self.titled or self.part.title


def survey(benchmark: Benchmark, paths: tuple[Path, ...]) -> tuple[int, Counter[str], dict[str, str]]:
    """(usable rows, unusable ones by reason, the first of each reason where its name is known).

    Raises ValueError when more than 5 % are unusable, or there is no row.
    """
    bad, first, rows = Counter[str](), dict[str, str](), 0
    for item in benchmark.read(paths):
        rows += 1
        if isinstance(item, BadRowError):
            bad[str(item)] += 1
            if item.example:
                first.setdefault(str(item), item.example)
    check_bad_rows(benchmark.title, rows, bad, first)
    return rows - bad.total(), bad, first


def check_bad_rows(title: str, rows: int, bad: Counter[str], first: Mapping[str, str]) -> None:
    """Raise ValueError with the ten commonest reasons when more than 5 % of the rows are unusable, or there is none."""
    if not rows:
        raise ValueError(f"{title}: the files hold no row; download them again")
    if worst := reasons_to_stop(bad, rows):
        reasons = ", ".join(with_first(f"{count} {reason}", first.get(reason)) for reason, count in worst)
        raise ValueError(
            f"{title}: {bad.total()} of {rows} rows cannot be used ({reasons}), more than {MAX_BAD_SHARE:.0%}; "
            "check that the files are the published ones and whole"
        )


def with_first(words: str, example: str | None) -> str:
    """The words, with the first example where there is one."""
    return f"{words} (first: {example})" if example else words


FORMS: dict[spar_scorers.Kind, AnswerForm] = {"choice": "letter", "number": "number", "view_change": "view_change"}


def _spar_row(row: Row, name: str, img_type: str) -> Item | None:
    if row.get("img_type") not in ("single_view", "multi_view"):
        raise BadRowError("unknown_img_type")
    if row["img_type"] != img_type:
        return None
    task, gold = row.get("task"), "" if row.get("answer") is None else str(row["answer"])
    if task not in spar_scorers.KINDS:
        raise BadRowError("unknown_task")
    if not gold.strip():
        raise BadRowError("no_answer")
    if (fault := spar_scorers.check_gold(gold, task)) is not None:
        raise BadRowError(fault)
    return item_of(name, task, task, text_of(row, "question"), gold, row.get("image"), FORMS[spar_scorers.KINDS[task]])


def read_spar(paths: tuple[Path, ...], img_type: str) -> Iterator[Item | BadRowError]:
    """SPAR-Bench's parquet files (also -Tiny and -RGBD), one kind. The images carry their marks already."""
    rows = parquet_rows(paths, ("id", "image", "question", "answer", "task", "img_type"))
    return items_of(rows, partial(_spar_row, img_type=img_type))


MINDCUBE_FILE = "raw/MindCube_tinybench.jsonl"


def read_mindcube(paths: tuple[Path, ...]) -> Iterator[Item | BadRowError]:
    """MindCube-Tiny: data.zip as published, or unpacked. Raises ValueError when the zip lacks the tiny benchmark."""
    place = zip_folder(paths[0], "data") if paths[0].suffix == ".zip" else paths[0].parent.parent
    if not (place / MINDCUBE_FILE).is_file():
        raise ValueError(f"{paths[0]} holds no data/{MINDCUBE_FILE}; download MindCube's data.zip again")

    def load(names: list[str], max_pixels: int) -> list[Image.Image]:
        try:
            return [decode_image(read_member(place / name, f"{name} of {paths[0]}"), max_pixels) for name in names]
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
        names = [str(image) for image in images]
        if not all((place / image).is_file() for image in names):
            raise BadRowError("image_file_missing")
        gold = letter_of(row, "gt_answer", "ABCDE").upper()
        question = text_of(row, "question")
        return Item(name, setting, setting, "letter", question, gold, name, len(names), partial(load, names))

    lines = read_member(place / MINDCUBE_FILE, f"{MINDCUBE_FILE} of {paths[0]}")
    return items_of((row or {} for row in json_lines(lines)), parse)


def _mmsi_row(row: Row, name: str) -> Item:
    kind = letter_scorers.mmsi_type(str(row.get("question_type")))
    group = letter_scorers.mmsi_group(kind)
    if group is None:
        raise BadRowError("unknown_question_type")
    gold = letter_of(row, "answer", "ABCD")
    return item_of(name, kind, group, text_of(row, "question"), gold, row.get("images"))


def read_mmsi(paths: tuple[Path, ...]) -> Iterator[Item | BadRowError]:
    """MMSI-Bench's parquet file; `images` is a list of encoded images."""
    return items_of(parquet_rows(paths, ("id", "images", "question_type", "question", "answer")), _mmsi_row)


CVBENCH_FILES = ("test_2d.parquet", "test_3d.parquet")


def _cvbench_row(row: Row, name: str) -> Item:
    if row.get("source") not in PARTS["cvbench"].groups:
        raise BadRowError("unknown_source")
    gold = text_of(row, "answer")
    if spar_scorers.check_gold(gold, "position_matching"):
        raise BadRowError("gold_is_no_letter")
    images = [row["image"]] if row.get("image") else None
    return item_of(name, text_of(row, "task"), row["source"], text_of(row, "prompt"), gold, images)


def read_cvbench(paths: tuple[Path, ...]) -> Iterator[Item | BadRowError]:
    """CV-Bench's two parquet files; `prompt` is the question with its choices. Raises ValueError: one is missing."""
    if len(paths) < len(CVBENCH_FILES):
        found = ", ".join(path.name for path in paths)
        raise ValueError(f"{paths[0].parent} is not CV-Bench: expected {' and '.join(CVBENCH_FILES)}, found {found}")
    return items_of(parquet_rows(paths, ("idx", "task", "image", "answer", "prompt", "source")), _cvbench_row)


BENCHMARKS = {
    "spar_mv": Benchmark((PARTS["spar_mv"],), partial(read_spar, img_type="multi_view"), SPAR_SCORERS),
    "spar_si": Benchmark((PARTS["spar_si"],), partial(read_spar, img_type="single_view"), SPAR_SCORERS),
    "mindcube_tiny": Benchmark((PARTS["mindcube_tiny"],), read_mindcube, {"mindcube": letter_scorers.mindcube}),
    "mmsi": Benchmark((PARTS["mmsi"], PARTS["mmsi_types"]), read_mmsi, {"mmsi": letter_scorers.mmsi}),
    "cvbench": Benchmark((PARTS["cvbench"], PARTS["cvbench_tasks"]), read_cvbench, {"cvbench": letter_scorers.cvbench}),
    "blink": Benchmark((PARTS["blink"],), read_blink, {"letter": letter_scorers.cvbench}),
    "3dsrbench": Benchmark((PARTS["3dsrbench"],), read_3dsrbench, {"letter": letter_scorers.cvbench}),
    "sat_real": Benchmark((PARTS["sat_real"],), read_sat_real, {"letter": letter_scorers.cvbench}),
    "omnispatial": Benchmark((PARTS["omnispatial"],), read_omnispatial, {"omnispatial": letter_scorers.omnispatial}),
}
"""The published ones."""
ROOMS = "rooms"


def _matching_score(measure: str) -> Score:
    def scorer(completion: str, gold: str, _: str) -> float:
        return score(completion, case_of_gold(gold))[measure][0]

    return scorer


def _matching(name: str, title: str, read: Read, hub: str = "", patterns: tuple[str, ...] = ()) -> Benchmark:
    scorers = {measure: _matching_score(measure) for measure in ("f1", "precision", "recall", "accuracy")}
    return Benchmark((Part(name, title, 0, hub, patterns, ()),), read, scorers, FORM)


MATCHING = {
    "reasonmatch": _matching(
        "reasonmatch", "ReasonMatch-Bench", read_reasonmatch, "ReasonMatch/ReasonMatch",
        (INDEX, f"*/{INDEX}", ARCHIVE),
    ),
    "matching_rooms": _matching("matching_rooms", "matching in rooms", read_scenes),
    "matching_rgbd": _matching("matching_rgbd", "matching in RGB-D", read_scenes),
}  # fmt: skip
"""Wide-baseline matching, with tables of its own (`matching_report`)."""
ROOMS_BENCHMARK = Benchmark((PARTS["spar_mv"], PARTS["spar_si"]), read_rooms, SPAR_SCORERS, titled=ROOMS)
KNOWN = BENCHMARKS | {ROOMS: ROOMS_BENCHMARK} | MATCHING
