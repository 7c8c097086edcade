"""`hatch data think CONFIG DATASET`: a teacher, model.base in vLLM, writes the thoughts of a viewpoint dataset."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from actors.commands.evaluate import started_engines
from actors.rollout.engines import EnginePool
from actors.rollout.prompts import PromptMaker
from actors.runtime.messages import Sampling
from actors.runtime.progress import Report, progress_bar
from hatch_ray.config import Config, ConfigError
from hatch_ray.data.store import read_dataset
from hatch_ray.model.source import model_source
from hatch_ray.sample import Sample
from hatch_ray.systems.viewpoint.config import ViewpointConfig
from hatch_ray.systems.viewpoint.teacher import asked_of_teacher, pool_of, write_thoughts

TEMPERATURE = 0.8
STAGE = "view_sft"


def teacher_replies(
    engines: EnginePool, config: Config, model: Path, pool: dict[str, Sample], count: int, report: Report
) -> dict[str, list[str]]:
    """`count` replies to every sample of the pool. Raises ConfigError: one is too long for model.max_length."""
    asked = [asked_of_teacher(sample) for sample in pool.values()]
    maker = PromptMaker(config, model, STAGE)
    maker.check_length(asked, config.eval.max_new_tokens)
    sampling = Sampling(n=count, temperature=TEMPERATURE, max_new_tokens=config.eval.max_new_tokens)
    rollouts = engines.generate([maker.request(sample, place) for place, sample in enumerate(asked)], sampling, report)
    return {name: [reply.text for reply in found.replies] for name, found in zip(pool, rollouts, strict=True)}


def think(config: Config, dataset: Path, count: int, console: Console) -> None:
    """Ask the teacher, keep what may be kept, and say what was refused and why."""
    if not isinstance(config, ViewpointConfig) or config.reward.kind != "letter":
        raise ConfigError("hatch data think writes the thoughts of viewpoint (system: viewpoint, reward.kind: letter)")
    pool = pool_of(read_dataset(dataset))
    teacher = Path(model_source(config.model.base))
    with started_engines(teacher, config, console) as engines, progress_bar(console, "thinking") as report:
        replies = teacher_replies(engines, config, teacher, pool, count, report)
    told = write_thoughts(dataset.expanduser(), replies, config.model.base)
    console.print(
        f"{dataset}: {told['kept']} of {told['replies']} thoughts kept, in {told['samples']} samples; the others keep "
        f"theirs from geometry (refused: {', '.join(f'{n} {why}' for why, n in told['refused'].items()) or 'none'})",
        markup=False,
    )
