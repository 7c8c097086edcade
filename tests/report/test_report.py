"""The run report: whole, partial, and with broken parts."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hatch_ray.config import load_config, make_config, save_config
from hatch_ray.evaluation.findings import write_findings
from hatch_ray.evaluation.heldout import score_rows, write_evaluation
from hatch_ray.protocol.prompt import gold_reply
from hatch_ray.report.charts import Series, interval_chart, line_chart, match_svg, smooth, ticks
from hatch_ray.report.run_report import write_report
from hatch_ray.run_folder import RunFolder, write_atomic
from hatch_ray.sample import ActionFrame, Mark, PairPlan, Sample, View
from hatch_ray.systems import system_of
from tests.support.pictures import photo


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "my run")
    save_config(make_config({"run_dir": str(folder.path)}), folder.config_path)
    return folder


TILTED = ActionFrame(-10, 1)


def make_samples(folder: Path, count: int = 12, frame: ActionFrame | None = TILTED) -> list[Sample]:
    samples = []
    for index in range(count):
        views = []
        for view in range(2):
            path = folder / f"{index}-{view}.png"
            photo(2 * index + view).save(path)
            views.append(View(path, intrinsics=np.array([[56.0, 0, 55.5], [0, 56, 55.5], [0, 0, 1]])))
        plan = PairPlan(0, 1, (("turn_right_deg", 30.0), ("move_forward_m", 0.5 + index / 10)), frame)
        samples.append(
            Sample(
                id=f"q{index}",
                scene=f"room-{index}",
                task="depth_prediction_oc_mv",
                answer_form="number",
                question="How deep is the <b>red</b> chair & co?",
                answer="2.5",
                views=tuple(views),
                marks=(Mark(0, "red", (500, 500)),),
                plans=(plan,),
            )
        )
    return samples


def fill(run: RunFolder, samples: list[Sample], names: tuple[str, ...]) -> None:
    system = system_of(load_config(run.config_path))
    gold = [gold_reply(sample, "actions") for sample in samples]
    worse = [
        gold_reply(
            replace(s, answer="9", plans=tuple(replace(p, atoms=(("turn_left_deg", 20.0),)) for p in s.plans)),
            "actions",
        )
        for s in samples
    ]
    texts = {"base": ["<script>alert(1)</script>"] * len(samples), "cold_start": worse, "final": gold}
    for name in names:
        write_evaluation(run, name, score_rows(system, "grpo", samples, texts.get(name, worse)), 50, 0)
    write_findings(system, run, 50, 0)


def log_stages(run: RunFolder) -> None:
    for stage in load_config(run.config_path).stages:
        for step in range(1, 21):
            terms = {"reward_action": 0.3, "reward_answer": 0.2, "reward_format": 1.0, "reward_total": 1.5, "kl": 0.01}
            run.log(stage, step, terms if stage == "grpo" else {"loss": 1 / step, "lr": 1e-4})
        run.set_progress(stage, step=20, done=True)


def test_whole_run(run, tmp_path):
    samples = make_samples(tmp_path)
    fill(run, samples, ("base", "cold_start", "final", "final_swapped", "constant", "still"))
    log_stages(run)
    found = {"mean": 0.4, "low": 0.3, "high": 0.5}
    write_atomic(run.evaluation("patch_retrieval"), json.dumps({"before": found, "after": found, "n": 99}))
    share = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 64}
    gain = {"value": -0.2, "low": -0.3, "high": -0.1, "n": 64}
    rows = [{"name": "match", "unit": "right", "before": share, "after": share, "gain": gain}]
    kept = {"stage": "pasta", "kept": rows, "warnings": ["match got <worse>"]}
    write_atomic(run.evaluation("kept"), json.dumps(kept))
    match = {
        "images": [str(view.image_path) for view in samples[0].views],
        "grid": 2, "target": [0, 1, 2, 3], "before": [1, 1, 0, 0], "after": [0, 1, 2, 0], "kept": [True] * 3 + [False],
    }  # fmt: skip
    write_atomic(run.evaluation("patch_matches"), json.dumps([match]))
    path = write_report(run)
    page = path.read_text()
    assert path == run.path / "report.html"
    assert path.stat().st_size < 5e6
    for wanted in (
        "after cold start",
        "final, swapped",
        "best constant",
        "reward terms",
        "turn right 30°",
        "99 patches",
        "match (worse)",
        "<b>-20 %</b><small>-30 % to -10 %</small>",
        "Warning: match got &lt;worse&gt;",
    ):
        assert wanted in page
    assert "before: 1 of 3 right" in page
    assert "after: 3 of 3 right" in page
    assert "Not on this page" not in page
    # Offline: nothing is fetched; what a model or a dataset says is text, never markup.
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert "<script" not in page
    assert "&lt;b&gt;red&lt;/b&gt;" in page
    for svg in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        ET.fromstring(svg)


def test_a_run_that_has_only_begun_says_what_is_missing(run):
    run.log("pasta", 1, {"loss": 2.0})
    run.set_progress("pasta", step=1, done=False)
    page = write_report(run).read_text()
    assert "PaStA is not finished (step 1)" in page
    assert "GRPO has not started" in page
    assert "were not evaluated" in page
    assert "Held-out samples" not in page


def test_one_evaluation_without_controls(run, tmp_path):
    fill(run, make_samples(tmp_path, 3, frame=None), ("base",))
    page = write_report(run).read_text()
    assert "blind control (swapped images) was not made" in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "no action block" in page


def test_lost_images_are_named_and_the_rest_is_shown(run, tmp_path):
    samples = make_samples(tmp_path, 3)
    fill(run, samples, ("cold_start", "final"))
    samples[0].views[0].image_path.unlink()
    page = write_report(run).read_text()
    assert "0-0.png does not exist" in page
    assert "turn right 30°" in page


def test_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(ValueError, match="not a run folder"):
        write_report(RunFolder(tmp_path))


def test_metrics_that_are_not_finite_leave_a_gap(run):
    run.log("pasta", 1, {"loss": float("nan")})
    run.log("pasta", 2, {"loss": 1.0})
    assert 'aria-label="loss by step"' in write_report(run).read_text()


def test_warnings_stand_with_their_stage_and_step(run):
    run.log("grpo", 1, {"reward_total": 1.0})
    run.log("grpo", 2, {"reward_total": 0.5}, ["reward collapse since step 2: <b>0.5</b>"])
    page = write_report(run).read_text()
    assert "Step 2: reward collapse since step 2: &lt;b&gt;0.5&lt;/b&gt;" in page
    assert "Step 1:" not in page


def test_charts_are_drawn_inside_their_frame():
    for values in ([0.5], [1, 1, 1], list(np.linspace(-3, 9, 5000))):
        svg = ET.fromstring(line_chart([Series("a", range(1, len(values) + 1), values)], "a & b"))
        for line in svg.iter("{http://www.w3.org/2000/svg}polyline"):
            points = [tuple(map(float, pair.split(","))) for pair in line.get("points", "").split()]
            assert len(points) <= 300
            assert all(0 <= x <= 460 and 0 <= y <= 220 for x, y in points)
    assert interval_chart([("x", None)], "nothing") == ""
    assert ticks(0, 1) == [0, 0.25, 0.5, 0.75, 1.0]
    assert np.allclose(smooth(np.ones(50)), 1)


def test_matches_count_only_judged_patches():
    views = [photo(0), photo(1, 200, 100)]
    svg, right, judged = match_svg(
        views, ["data:,", "data:,"], 2, [0, 1, 2, 3], [0, 1, 0, 0], [True, True, True, False]
    )
    assert (right, judged) == (2, 3)
    assert svg.count("#1f9d55") == 4
    ET.fromstring(svg)
