"""What a GRPO run says of itself when it ends."""

from __future__ import annotations

from pathlib import Path

from actors.stages.grpo_record import Record
from hatch_ray.config import make_config
from hatch_ray.run_folder import RunFolder
from hatch_ray.systems import system_of
from tests.support.wall_scene import wall_sample


def test_the_rise_is_told_of_terms_that_weigh_something(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    config = make_config({"run_dir": str(run.path), "reward": {"format_weight": 0.0}})
    system = system_of(config)
    samples = [wall_sample(tmp_path, seed, [(0.0, 0.0), (1.0, 0.0)]) for seed in range(2)]
    for step in range(1, 21):
        terms = {"reward_action": 0.1 * step, "reward_answer": None, "reward_format": 1.0}
        run.log("grpo", step, {name: value for name, value in terms.items() if value is not None})
    record = Record(config, run, system, system.sampler(samples), 20, None)
    assert record.rise() == "action 0.150 -> 1.950"
