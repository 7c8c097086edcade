"""What a run of wide-baseline matching has measured: python -m hatch_ray.systems.matching.tables RUN

A line for each evaluation of RUN/eval (models, blind replies, other photos) and level, and the way of the curriculum.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hatch_ray.config import load_config
from hatch_ray.data.store import built_root, read_dataset
from hatch_ray.evaluation.heldout import read_rows
from hatch_ray.run_folder import RunFolder, read_jsonl
from hatch_ray.systems.matching.curriculum import Curriculum, make_sampler
from hatch_ray.systems.matching.ladder import State
from hatch_ray.systems.matching.metrics import table
from hatch_ray.systems.matching.questions import LEVELS, SPREADS
from hatch_ray.systems.matching.reply import NONE, NONE_TEXT
from hatch_ray.systems.matching.settings import MatchingConfig


def measured(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """The measures (`metrics.table`) of an evaluation's rows, of all and by level."""
    parts: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        parts["all"].append(row)
        parts[row["id"].split("-")[-2]].append(row)
    return {
        part: table([_pairs(row["parsed_answer"]) for row in found], [_pairs(row["gold_answer"]) for row in found])
        | {"questions": len(found)}
        for part, found in sorted(parts.items(), reverse=True)
    }


def way(run: RunFolder, config: MatchingConfig) -> Iterator[tuple[int, State]]:
    """The steps after which the curriculum asks for other questions, and its state then; none in another order."""
    built = built_root(config.data.root)
    sampler = make_sampler(config, read_dataset(run.data("train") if built is None else built / "train"))
    steps: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for row in read_jsonl(run.ledger):
        if row["status"] != "set aside":
            steps[row["step"]].append(row)
    before = None
    for step in sorted(steps):
        sampler.observe(step, steps[step])
        if isinstance(sampler, Curriculum) and _asks(sampler.state) != before:
            before = _asks(sampler.state)
            yield step + 1, sampler.state


def _asks(state: State) -> tuple[Any, ...]:
    return state.bin, state.mastered, state.stage.rung, tuple(one.rung for one in state.spreads)


def _pairs(answer: str | None) -> dict[int, int]:
    found = json.loads(answer or "{}")
    return {int(key): NONE if value == NONE_TEXT else int(value) for key, value in found.items()}


def main(folder: Path) -> None:
    run, config = RunFolder(folder), load_config(folder / "config.yaml")
    if not isinstance(config, MatchingConfig):
        raise SystemExit(f"{folder} is a run of the system {config.system}, not of matching")
    first = True
    for path in sorted(folder.glob("eval/*.jsonl")):
        for part, figures in measured(read_rows(run, path.stem)).items():
            if first:
                print("evaluation".ljust(22), "marks", *(name.rjust(15) for name in figures))
            first = False
            print(path.stem.ljust(22), part.ljust(5), *(f"{value:15.4g}" for value in figures.values()))
    for step, state in way(run, config):
        kinds = ", ".join(
            f"{level} {list(SPREADS)[one.rung]}" for level, one in zip(LEVELS, state.spreads, strict=True)
        )
        place = "all bins" if state.mastered else f"bin {state.bin + 1} of {config.curriculum.bins}"
        print(f"after step {step}: {place}, stage {state.stage.rung + 1} of 3, {kinds}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    main(parser.parse_args().run)
