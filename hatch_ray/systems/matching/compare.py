"""`hatch match baseline`: matchers, poses and blind replies on the questions that a model is asked, by overlap."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hatch_ray.config import load_config
from hatch_ray.data.images import load_image
from hatch_ray.data.markers import mark_pixels
from hatch_ray.data.store import built_root, is_dataset, read_dataset
from hatch_ray.evaluation.findings import FINAL
from hatch_ray.evaluation.heldout import SWAPPED, read_rows
from hatch_ray.evaluation.intervals import MIN_SCENES
from hatch_ray.run_folder import RunFolder, read_jsonl
from hatch_ray.sample import Sample
from hatch_ray.systems.matching.baselines import by_matches, by_pose
from hatch_ray.systems.matching.matchers import MATCHERS, check_matchers
from hatch_ray.systems.matching.measures import LEGEND, MEASURES, Case, Measured, figure, text_table
from hatch_ray.systems.matching.overlaps import BINS, bin_of
from hatch_ray.systems.matching.reply import write_reply
from hatch_ray.systems.matching.settings import MatchingConfig

ORACLE = "oracle pose"
Progress = Callable[[int, int], None]
"""Called with (questions answered, questions in all)."""


@dataclass
class Questions:
    """The samples asked about, and the replies to each of models that were asked before, by their names."""

    samples: list[Sample]
    models: dict[str, list[str]] = field(default_factory=dict)

    def cases(self) -> list[Case]:
        """Scenes are drawn for intervals where there are enough, else view pairs."""
        scenes = len({sample.scene for sample in self.samples}) >= MIN_SCENES
        return [case_of(sample, sample.scene if scenes else str(sample.meta["pair"])) for sample in self.samples]


def case_of(sample: Sample, cluster: str) -> Case:
    """A sample of the system matching as it is measured."""
    parts = {
        "source": str(sample.meta["source"]), "level": str(sample.meta["level"]),
        "spread": str(sample.meta["spread"]), "overlap": bin_of(float(sample.meta["omega"])),
    }  # fmt: skip
    return Case.of(sample.meta["gold"], int(sample.meta["second"]), cluster, parts)


def questions_of(folder: Path, samples: int = 0) -> Questions:
    """The questions of a dataset, or of a run: those of its evaluation, with what its final model replied.

    samples: at most so many, in order; 0: all. Beside a benchmark's dataset (RUN/benchmarks/NAME/data) lie the model's
    predictions. Raises ValueError where the folder is neither, or holds other questions.
    """
    if (folder / "config.yaml").is_file():
        found = _of_run(folder)
    elif is_dataset(folder):
        found = Questions(read_dataset(folder if (folder / "index.jsonl").is_file() else folder / "heldout"))
        kept = {row["id"]: row["completion"] for row in read_jsonl(folder.parent / "predictions.jsonl")}
        if all(sample.id in kept for sample in found.samples):
            found.models["model"] = [kept[sample.id] for sample in found.samples]
    else:
        raise ValueError(
            f"{folder} is neither a run nor a dataset; make one with `hatch data build CONFIG --out {folder}`"
        )
    if any("omega" not in sample.meta for sample in found.samples):
        raise ValueError(f"{folder} holds no questions of wide-baseline matching; build them with system: matching")
    if samples:
        found.samples = found.samples[:samples]
        found.models = {name: texts[:samples] for name, texts in found.models.items()}
    return found


def _of_run(folder: Path) -> Questions:
    run, config = RunFolder(folder), load_config(folder / "config.yaml")
    if not isinstance(config, MatchingConfig):
        raise ValueError(f"{folder} is a run of the system {config.system}, not of matching")
    built = built_root(config.data.root)
    heldout = read_dataset(run.data("heldout") if built is None else built / "heldout")
    found = Questions(heldout[: config.eval.samples])
    for name in (FINAL, FINAL + SWAPPED):
        if (folder / "eval" / f"{name}.jsonl").is_file():
            replies = {row["id"]: row["completion"] for row in read_rows(run, name)}
            if all(sample.id in replies for sample in found.samples):
                found.models[name.replace("_", " ")] = [replies[sample.id] for sample in found.samples]
    return found


def compare(questions: Questions, matchers: Sequence[str], bootstrap: int, seed: int, progress: Progress) -> Compared:
    """Let all answer. Raises ValueError for a matcher that cannot be used, and for a photo that cannot be read."""
    check_matchers(list(matchers))
    samples = questions.samples
    measured = Measured(questions.cases(), bootstrap, seed)
    said: dict[str, list[str]] = {name: [] for name in (ORACLE, *matchers)}
    seconds = dict.fromkeys(matchers, 0.0)
    matched: dict[str, Any] = {}
    pair: tuple[Path, ...] = ()
    photos: list[np.ndarray] = []
    pairs = 0
    for number, sample in enumerate(samples, start=1):
        if pair != (pair := tuple(view.image_path for view in sample.views)):
            pairs += 1
            photos = [np.asarray(load_image(path)) for path in pair]
            for name in matchers:
                start = time.perf_counter()
                matched[name] = MATCHERS[name](photos[0], photos[1])
                seconds[name] += time.perf_counter() - start
        first, second = (_marks(sample, place, photo) for place, photo in enumerate(photos))
        width = photos[0].shape[1]
        for name in matchers:
            said[name].append(write_reply(by_matches(matched[name], first, second, width)))
        if "fundamental" in sample.meta:
            known = np.array(sample.meta["fundamental"], dtype=float)
            said[ORACLE].append(write_reply(by_pose(known, first, second, width)))
        progress(number, len(samples))
    for name, texts in (said | questions.models).items():
        if len(texts) == len(samples):
            measured.add(name, texts)
    measured.add_blind()
    return Compared(measured, pairs, {name: spent / pairs for name, spent in seconds.items()})


def _marks(sample: Sample, view: int, photo: np.ndarray) -> np.ndarray:
    """(n, 2) pixels of the marks 1, 2, .. of one photo."""
    height, width = photo.shape[:2]
    marks = sorted((mark for mark in sample.marks if mark.view == view), key=lambda mark: int(mark.label))
    return np.array([mark_pixels(mark, width, height) for mark in marks], dtype=float).reshape(-1, 2)


@dataclass(frozen=True)
class Compared:
    """pairs: view pairs that the questions are about; seconds: of each matcher for one of them."""

    measured: Measured
    pairs: int
    seconds: dict[str, float]

    def bins(self) -> dict[str, np.ndarray]:
        """The bins of overlap that have questions, widest baseline first."""
        found = self.measured.parts("overlap")
        return {name: found[name] for name in BINS if name in found}

    def text(self) -> str:
        """Two tables: the share of marks told rightly and F1 by overlap; all measures."""
        measured, bins = self.measured, self.bins()
        said = [f"{len(measured.cases)} questions of {self.pairs} view pairs"]
        for name, spent in self.seconds.items():
            said.append(f"{name}: {spent:.2f} s a pair")
        blocks = ["; ".join(said), ""]
        counts = ["questions", str(len(measured.cases)), *(str(int(part.sum())) for part in bins.values())]
        for measure, title in (("accuracy", "marks told rightly"), ("f1", "F1 of matched pairs")):
            rows = [counts]
            for name in measured.lines:
                cells = (figure(measured.of(name, measure, part), True) for part in bins.values())
                rows.append([name, figure(measured.of(name, measure), True), *cells])
            blocks += [text_table([title, "all", *bins], rows), ""]
        blocks += [text_table(["all questions", *MEASURES.values()], measured.rows()), ""]
        blocks.append(f"Columns: overlap of the pair. ±: half of the 95 % interval. {LEGEND}")
        return "\n".join(blocks)

    def figures(self) -> dict[str, Any]:
        """All of it as plain values."""
        return {
            "questions": len(self.measured.cases), "view_pairs": self.pairs, "seconds_a_pair": self.seconds,
            "lines": {
                name: {"all": self.measured.whole(name)}
                | {
                    label: {measure: self.measured.of(name, measure, part) for measure in MEASURES}
                    for label, part in self.bins().items()
                }
                for name in self.measured.lines
            },
        }  # fmt: skip

    def json(self) -> str:
        return json.dumps(self.figures(), indent=2, allow_nan=False)
