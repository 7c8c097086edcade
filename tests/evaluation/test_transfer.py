"""`hatch eval RUN --on WHERE`: which set is asked, and the table of what each stage changed there."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from actors.commands.transfer import rooms_of, samples_of
from actors.stages.recipe import check_sample
from hatch_ray.config import ConfigError, make_config
from hatch_ray.data.questions import TASKS
from hatch_ray.evaluation.heldout import score_rows, write_evaluation
from hatch_ray.evaluation.transfer import transfer, transfer_table
from hatch_ray.run_folder import RunFolder
from hatch_ray.systems import system_of

SMALL = {"train_scenes": 2, "heldout_scenes": 6, "image_size": 28}
TREE = {
    "system": "viewpoint", "model": {"max_images": 2}, "eval": {"samples": 30},
    "views": {"samples": 8, "heldout_samples": 12, "rooms": SMALL}, "data": {"rooms": SMALL},
}  # fmt: skip


def test_rooms_sections_and_folders(tmp_path: Path) -> None:
    config = make_config(TREE | {"run_dir": str(tmp_path / "run")})
    run, console = RunFolder(config.run_dir), Console(file=io.StringIO())
    name, rooms = samples_of("rooms", config, run, console)
    assert name == "rooms" and {"camera_motion_infer", "view_change_infer"} <= {sample.task for sample in rooms}
    assert all(len(sample.views) == 2 and sample.task in TASKS for sample in rooms)
    assert rooms_of(config).rooms == config.data.rooms
    system = system_of(config)
    for sample in rooms:
        check_sample(sample, config, system.answer_forms)
    rows = score_rows(system, "grpo", rooms, [f"<think>x</think><answer>{s.answer}</answer>" for s in rooms])
    assert all(row["terms"]["exact"] == 1 for row in rows)

    name, views = samples_of("views", config, run, console)
    assert name == "views" and len(views) == 12
    name, again = samples_of(str(run.data("heldout", "views")), config, run, console)
    assert name == "views-heldout" and [s.id for s in again] == [s.id for s in views]
    with pytest.raises(ConfigError, match=r"--on nowhere: give rooms, a section of the config \(data, views\)"):
        samples_of("nowhere", config, run, console)


def test_the_table_tells_what_each_stage_changed(tmp_path: Path) -> None:
    config = make_config(TREE | {"run_dir": str(tmp_path / "run")})
    system, run = system_of(config), RunFolder(config.run_dir)
    _, samples = samples_of("views", config, run, Console(file=io.StringIO()))
    for name, right in (("base", 6), ("view_sft", 0), ("final", 12)):
        replies = [system.gold(s, "grpo") if k < right else "<think>x</think><answer>Z</answer>"
                   for k, s in enumerate(samples)]  # fmt: skip
        write_evaluation(run, f"on_views/{name}", score_rows(system, "grpo", samples, replies), 200, 0)
    found = transfer(system, run, "on_views", ["base", "view_sft", "final"], 200, 0)
    assert found["measure"] == "exact"
    assert found["changes"]["view_sft"]["overall"]["exact"]["value"] == -0.5
    assert found["changes"]["final"]["overall"]["exact"]["value"] == 1
    out = io.StringIO()
    Console(file=out, width=140).print(transfer_table(system, found))
    assert "after view SFT" in out.getvalue() and "-0.500*" in out.getvalue() and "+1.000*" in out.getvalue()
