"""A made-up system with stages, terms, a measure and data of its own: compared, tabled, claimed, reported."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from rich.console import Console

from actors.stages.dry_run import describe
from hatch_ray.config import Config, load_config, make_config, save_config
from hatch_ray.config_sections import DataConfig, SftConfig
from hatch_ray.data.store import read_dataset
from hatch_ray.data.writer import DatasetWriter
from hatch_ray.evaluation.findings import write_findings
from hatch_ray.evaluation.heldout import read_rows, read_table, score_rows, write_evaluation
from hatch_ray.evaluation.tables import print_evaluation
from hatch_ray.report.data_page import show_dataset
from hatch_ray.report.run_report import write_report
from hatch_ray.rewards.score import Score
from hatch_ray.run_folder import RunFolder
from hatch_ray.sample import Sample
from hatch_ray.systems import system_of
from hatch_ray.systems.base import Messages, Progress, Split, Stage, System
from tests.support.pictures import photo


class Clips(DataConfig):
    kind: Literal["clips"] = "clips"  # type: ignore[assignment]


class CountingConfig(Config):
    data: Clips = Clips()
    harder: Clips = Clips(samples=77)
    lesson: SftConfig = SftConfig()


class Counting(System):
    name = "counting"
    Config = CountingConfig
    answer_forms = ("count",)
    stages = (Stage("lesson", "sft", "Lesson: numbers"), Stage("grpo", "grpo", "GRPO: right ones", "harder"))

    def weights(self) -> dict[str, float]:
        return {"count": 1.0, "manners": 0.5}

    def build(self, section: str, split: Split, out: Path, report: Progress | None = None) -> None:
        with DatasetWriter(out) as writer:
            for index in range(24):
                hall, answer = f"hall{index // 2}", str(index % 5)
                views = tuple(writer.add_photo(f"{hall}-{index}", place, np.array(photo(index))) for place in (0, 1))
                task = ("chairs", "lamps")[index % 2]
                writer.add(Sample(f"q{index}", hall, task, "count", "How many?", answer, views))
            writer.summary = {"source": {"clips_found": 24}}

    def prompt(self, sample: Sample, stage: str) -> Messages:
        return [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": sample.question}]}]

    def gold(self, sample: Sample, stage: str) -> str:
        return f"{sample.answer}, please"

    def target(self, sample: Sample, stage: str) -> int:
        return int(sample.answer)

    def score(self, text: str, target: int) -> Score:
        """Without a number there is nothing to measure, and manners are not due."""
        found = re.search(r"\d+", text)
        if found is None:
            return Score({"count": 0.0, "manners": None}, reasons=("count:none",), detail={"plans": ["to guess"]})
        number = int(found[0])
        return Score({"count": float(number == target), "manners": float("please" in text)},
                     {"off_by": float(abs(number - target))}, answer=found[0])  # fmt: skip


SYSTEM = f"{__name__}:Counting"


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run whose lesson taught the form, and whose GRPO taught to look."""
    run = RunFolder(tmp_path / "run")
    save_config(make_config({"system": SYSTEM, "run_dir": str(run.path)}), run.config_path)
    system = system_of(load_config(run.config_path))
    system.build("harder", "heldout", tmp_path / "built")
    samples = read_dataset(tmp_path / "built")

    def say(reply: Callable[[int], str]) -> list[str]:
        return [reply(int(sample.answer)) for sample in samples]

    texts = {
        "base": ["who knows"] * len(samples),
        "lesson": say(lambda count: f"{count + count % 2}, please"),
        "final": say(lambda count: f"{count}, please" if count < 4 else "many"),
        "final_swapped": say(lambda count: f"{count + 1}, please"),
        **system.blind_replies(samples),
    }
    for name, replies in texts.items():
        write_evaluation(run, name, score_rows(system, "grpo", samples, replies), 200, 0)
    for step in (1, 2, 3):
        run.log("lesson", step, {"loss": 1 / step})
        run.log("grpo", step, {"reward_count": 0.5, "reward_manners": 0.9, "reward_total": 0.95, "off_by": 1.5})
    for stage in ("lesson", "grpo"):
        run.set_progress(stage, step=3, done=True)
    write_findings(system, run, 200, 0)
    return run


def test_what_it_measures_is_summed_up_and_compared(run):
    summary = read_table(run, "final")
    assert list(summary["overall"]) == ["count", "manners", "total", "off_by"]
    assert summary["overall"]["count"]["value"] == pytest.approx(20 / 24)
    assert summary["overall"]["manners"]["n"] == summary["overall"]["off_by"]["n"] == 20
    assert summary["tasks"]["lamps"]["off_by"]["value"] == 0.0
    assert read_table(run, "base")["overall"].get("off_by") is None
    found = json.loads(run.evaluation("comparison").read_text())
    assert found["models"] == ["base", "lesson", "final", "final_swapped", "constant"]
    assert found["labels"]["lesson"] == "after Lesson"
    before, after = read_rows(run, "lesson"), read_rows(run, "final")
    change = sum(b["terms"]["count"] - a["terms"]["count"] for a, b in zip(before, after, strict=True)) / 24
    assert found["grpo"]["overall"]["count"]["value"] == pytest.approx(change, abs=1e-6)


def test_it_claims_a_gain_and_a_look_for_every_term(run):
    claims = json.loads(run.evaluation("comparison").read_text())["claims"]
    assert [(claim["claim"], claim["holds"]) for claim in claims] == [
        ("GRPO raises the mean count reward", "yes"),
        ("GRPO raises the mean manners reward", "no"),
        ("It looks: another sample's images cost count reward", "yes"),
        ("It looks: another sample's images cost manners reward", "no"),
    ]
    assert claims[0]["measured"].endswith("final with another question's images: 0.000 (0.000 to 0.000)")
    assert claims[2]["interval"]["value"] == pytest.approx(20 / 24)


def test_the_terminal_shows_its_names(run):
    console = Console(width=100, record=True)
    print_evaluation(system_of(load_config(run.config_path)), run, console)
    text = console.export_text()
    for wanted in ("count", "manners", "off_by", "after Lesson", "best constant", "count reward", "chairs",
                   "means (measures: medians of replies that have them)", "It looks: another sample's"):  # fmt: skip
        assert wanted in text
    assert max(map(len, text.splitlines())) <= 100
    assert not re.search(r"action|format|PaStA|cold start|d_t", text)


def test_the_page_shows_its_names(run):
    page = write_report(run).read_text().partition("<h2>Configuration")[0]
    for wanted in ("<h3>Lesson", "after Lesson", "<th>off_by</th>", "manners reward", "reward terms", "off_by 0",
                   "count: none", "clips; 77 training", "the held-out part of clips",
                   "measures are medians of the replies that have them"):  # fmt: skip
        assert wanted in page, wanted
    assert not re.search(r"PaStA|>action|cold start|d_t|error, m|One image|cameras from above|to guess", page)


def test_data_of_an_unknown_kind_are_called_by_their_name(run, tmp_path):
    console = Console(width=200, record=True)
    describe(load_config(run.config_path), console)
    said = console.export_text()
    assert "data: clips, 1500 training and 300 held-out samples" in said
    assert "harder: clips, 77 training" in said and "Lesson: numbers" in said
    assert "How many?" in show_dataset(tmp_path / "built", tmp_path / "page.html").read_text()


def old(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows as versions before this one wrote them: measures behind the total."""
    return [
        {key: value for key, value in row.items() if key != "measures"}
        | {"terms": row["terms"] | {"off_by": row["measures"].get("off_by")}}
        for row in rows
    ]


def test_rows_of_an_older_version_are_read_as_they_were_meant(run):
    before = json.loads(run.evaluation("comparison").read_text())
    page = write_report(run).read_text()
    for path in run.evaluation("").parent.glob("*.jsonl"):
        rows = read_rows(run, path.stem)
        path.write_text("".join(json.dumps(row) + "\n" for row in old(rows)))
    assert write_findings(system_of(load_config(run.config_path)), run, 200, 0) == before
    assert re.sub("Written.*", "", write_report(run).read_text()) == re.sub("Written.*", "", page)
