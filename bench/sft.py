"""Supervised steps of the demo's model: our packed rows against TRL's SFTTrainer, one process of one thread.

python -m bench.sft [--rounds 5] [--steps 12]
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from bench.measure import in_turn, write_results
from hatch_ray.config import load_config, make_config
from hatch_ray.config_sections import ModelConfig
from hatch_ray.data.build import build_dataset
from hatch_ray.data.store import SampleOrder, read_dataset
from hatch_ray.learning.sft import SampleEncoder, pack_samples, reply_loss
from hatch_ray.model.base import load_model, load_processor
from hatch_ray.model.fast_vision import speed_up_vision
from hatch_ray.model.logprobs import ReplyScorer
from hatch_ray.protocol.prompt import Mode
from hatch_ray.sample import Sample
from hatch_ray.systems.hatch.system import Hatch

BATCH = 8
"""A worker's share of the demo's batches."""
LR = 1e-6


def ours(model: Any, encoder: SampleEncoder, batches: Sequence[Sequence[Sample]]) -> Callable[[], None]:
    """The steps as `actors.stages.sft` takes them."""
    speed_up_vision(model)
    scorer = ReplyScorer(model.train())
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR)

    def run() -> None:
        for batch in batches:
            packed = pack_samples(model, encoder, batch)
            optimizer.zero_grad()
            reply_loss(scorer(packed)[0], len(packed.target)).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()

    return run


def trl(model: Any, encoder: SampleEncoder, batches: Sequence[Sequence[Sample]]) -> Callable[[], None]:
    """The same batches by TRL's SFTTrainer, with the faster image encoder that our stages use."""
    from tests.support.trl_sft import trl_history

    speed_up_vision(model)

    def run() -> None:
        with tempfile.TemporaryDirectory() as folder:
            trl_history(model, encoder, batches, Path(folder), learning_rate=LR, lr_scheduler_type="constant")

    return run


def padding(encoder: SampleEncoder, batches: Sequence[Sequence[Sample]]) -> float:
    """The share of padding in rows of one length a batch."""
    lengths = [[encoder.length(sample) for sample in batch] for batch in batches]
    padded = sum(len(batch) * max(batch) for batch in lengths)
    return 1 - sum(map(sum, lengths)) / padded


def shared(encoder: SampleEncoder, batches: Sequence[Sequence[Sample]]) -> float:
    """The share of a batch's tokens that stand behind images which another question of it shows too, unmarked."""
    saved = total = 0
    for batch in batches:
        seen: set[tuple[Path, ...]] = set()
        for sample in batch:
            views = tuple(view.image_path for view in sample.views)
            total += encoder.length(sample)
            if not sample.marks and views in seen:
                saved += encoder.prompt(sample).token_ids.count(encoder.processor.image_token_id)
            if not sample.marks:
                seen.add(views)
    return saved / total


def measure(mode: Mode, config: ModelConfig, samples: Sequence[Sample], steps: int, rounds: int) -> dict[str, Any]:
    """Samples a second of both ways."""
    system = Hatch(make_config({"model": config.model_dump()}))
    stage = "qa_sft" if mode == "direct" else "cold_start"
    encoder = SampleEncoder(load_processor(config.base, config.max_pixels), system, stage)
    order = SampleOrder(len(samples), BATCH, 0)
    batches = [[samples[index] for index in order.indices(step)] for step in range(steps)]
    ways = {
        "ours": ours(load_model(config.base), encoder, batches),
        "trl": trl(load_model(config.base), encoder, batches),
    }
    found = in_turn(ways, rounds)
    speeds = {name: steps * BATCH / seconds["median"] for name, seconds in found.items()}
    return {"mode": mode, **speeds, "padding": padding(encoder, batches), "shared": shared(encoder, batches)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=12)
    words = parser.parse_args()
    torch.set_num_threads(1)
    config = load_config(Path("configs/tiny.yaml"), ["data.samples=600", "data.rooms.train_scenes=20"])
    with tempfile.TemporaryDirectory() as folder:
        build_dataset(config.data, config.seed, "train", Path(folder) / "train")
        samples = read_dataset(Path(folder) / "train")
        modes: tuple[Mode, ...] = ("direct", "actions")
        rows = [measure(mode, config.model, samples, words.steps, words.rounds) for mode in modes]
    for row in rows:
        print(
            ", ".join(f"{name} {value:.3g}" if isinstance(value, float) else str(value) for name, value in row.items())
        )
    write_results("sft", {"rows": rows})


if __name__ == "__main__":
    main()
