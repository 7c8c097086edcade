"""What a run of wide-baseline matching has measured: python -m hatch_ray.systems.matching.tables RUN

A line for each evaluation of RUN/eval (models, blind replies, other photos) and level, and the way of the curriculum.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hatch_ray.config import load_config
from hatch_ray.evaluation.heldout import read_rows
from hatch_ray.run_folder import RunFolder, read_jsonl
from hatch_ray.systems.matching.curriculum import ladders_of
from hatch_ray.systems.matching.measures import LEGEND, MEASURES, Case, Measured, figure, text_table
from hatch_ray.systems.matching.reply import NONE, NONE_TEXT
from hatch_ray.systems.matching.settings import MatchingConfig
from hatch_ray.systems.words import standing_in_words


def measured(name: str, rows: Sequence[dict[str, Any]], bootstrap: int, seed: int) -> Measured:
    """The replies of an evaluation's rows."""
    found = Measured([_case(row) for row in rows], bootstrap, seed)
    found.add(name, [row["completion"] for row in rows])
    return found


def by_level(measured: Measured) -> Iterator[list[str]]:
    """The cells of its lines: of all questions, and of each level's."""
    (name,) = measured.lines
    for level, part in {"all": None, **measured.parts("level")}.items():
        n = len(measured.cases) if part is None else int(part.sum())
        yield [name, level, str(n), *(figure(measured.of(name, measure, part)) for measure in MEASURES)]


def way(run: RunFolder, config: MatchingConfig) -> Iterator[tuple[int, dict[str, str]]]:
    """The steps at which the curriculum asked for other questions than before, and which; none in another order."""
    ladders = {name: rungs for name, rungs in ladders_of(config.curriculum).items() if rungs}
    before: dict[str, str] = {}
    for row in read_jsonl(run.metrics_path):
        if (now := standing_in_words(ladders, row)) and now != before:
            yield row["step"], now
            before = now


def _case(row: dict[str, Any]) -> Case:
    answer = json.loads(row["gold_answer"]).items()
    gold = {int(mark): NONE if partner == NONE_TEXT else int(partner) for mark, partner in answer}
    second = sum(mark["view"] == 1 for mark in row["marks"])
    level = row["id"].split("-")[-2]
    return Case.of([gold[mark] for mark in sorted(gold)], second, row["scene"], {"level": level})


def main(folder: Path) -> None:
    run, config = RunFolder(folder), load_config(folder / "config.yaml")
    if not isinstance(config, MatchingConfig):
        raise SystemExit(f"{folder} is a run of the system {config.system}, not of matching")
    rows: list[list[str]] = []
    for path in sorted(folder.glob("eval/*.jsonl")):
        rows += by_level(measured(path.stem, read_rows(run, path.stem), config.eval.bootstrap, config.seed))
    if rows:
        print(text_table(["evaluation", "level", "n", *MEASURES.values()], rows), LEGEND, sep="\n")
    for step, asked in way(run, config):
        print(f"step {step}: " + ", ".join(f"{name} {value}" for name, value in asked.items()))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    main(parser.parse_args().run)
