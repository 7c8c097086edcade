"""One GRPO update of the learner: prompt shared by a group, prompt again for every completion, and TRL's GRPOTrainer.

    python -m bench.learner                                       # CPU: 6 M and 30 M, 2 to 8 images; about 6 minutes
    python -m bench.learner --device cuda --shape qwen2.5-vl-3b --images 8 --pixels 448 --reply 256 --checkpointing

An update is: log-probabilities of the reference, of the policy, the loss, the backward pass, AdamW. The same batch for
every way, fp32 on CPU and bf16 on a GPU; ways take turns (on a GPU one after the other); medians after a warm-up, or
the first round where that took `--seconds`. TRL is given the old log-probabilities, which it need not compute then, and
processed images. rho is the ceiling of what sharing can give, by tokens alone. MFU counts the products that unique
tokens need (nothing twice, no recomputation) over the machine's peak: on a CPU the best of large matrix products in the
same run, on a GPU the maker's figure for dense bf16.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from bench.measure import in_turn, write_results
from bench.shapes import SHAPES, Load, ceiling, make_model, parameters, replies
from hatch_ray.learning.grpo import grpo_loss
from hatch_ray.model.kept_prompts import Unit
from hatch_ray.model.logprobs import ReplyScorer
from hatch_ray.model.packing import PackedBatch, pack
from hatch_ray.model.prompt_tokens import ImagePatches, Prompt

SETTINGS = {"clip": 0.2, "beta": 0.01, "importance_cap": 2.0}
GPU_PEAK = {"H100": 989e12, "H200": 989e12, "A100": 312e12}
"""Dense bf16 products a second, by the maker."""
TEXT_TOKENS = 40
"""Words of a prompt beside its images."""
ROWS = 8
"""Completions that the ways without sharing put into one pass."""
PARTS = 4
"""Passes of a group's replies, as where it is longer than `grpo.token_budget` (the way "parts")."""


def make_prompts(model: Any, load: Load) -> list[Prompt]:
    """Prompts of random words with their images as patches, cut as Qwen2.5-VL's processor cuts them."""
    config = model.config
    side = load.pixels // 14
    random = torch.Generator().manual_seed(0)
    prompts = []
    for number in range(load.prompts):
        ids: list[int] = torch.randint(20, 1000, (TEXT_TOKENS // 2,), generator=random).tolist()
        images = []
        for view in range(load.images):
            ids += [config.vision_start_token_id, *[config.image_token_id] * (side // 2) ** 2]
            patches = torch.randn(side * side, 3 * 2 * 14 * 14, generator=random)
            images.append(ImagePatches(patches, (1, side, side), key=f"{number}-{view}"))
        ids += torch.randint(20, 1000, (TEXT_TOKENS // 2,), generator=random).tolist()
        prompts.append(Prompt(tuple(ids), tuple(images)))
    return prompts


class Update:
    """Our learner's update: batches of whole groups, of ROWS completions with a prompt each, or of so many completions
    that a group passes in `parts`, after its prompt."""

    def __init__(
        self, model: Any, reference: Any, prompts: list[Prompt], load: Load, shared: bool, parts: int = 1
    ) -> None:
        self.model = model
        self.policy, self.reference = ReplyScorer(model), ReplyScorer(reference)
        # The encoder of the reference is frozen and would be run once for a whole training; here, every time.
        self.reference.encoder.kept_bytes = 0
        # Fused: one kernel over all weights, or the optimizer would be a large part of a small model's update.
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)
        device = next(model.parameters()).device
        pairs = list(zip(prompts, replies(load), strict=True))
        if parts > 1 or not shared:
            rows = load.group // parts if shared else ROWS
            pairs = [(p, g[i : i + rows]) for p, g in pairs for i in range(0, len(g), rows)]
        self.batches: list[PackedBatch] = [pack(model, [p], [g], shared).to(device) for p, g in pairs]
        self.units = [Unit(tuple(range(i, i + parts)), parts) for i in range(0, len(pairs), parts)]
        self.tokens = load.prompts * load.group * load.reply

    def __call__(self) -> None:
        with torch.no_grad():
            reference = {number: found for number, found, _ in self.reference.each(self.units, self.batches)}
        for number, logprobs, _ in self.policy.each(self.units, self.batches):
            assert number is not None
            old = logprobs.detach()
            advantages = torch.cos(self.batches[number].reply.float())
            terms = grpo_loss(logprobs, old, old, advantages, reference[number], **SETTINGS)
            (terms.loss.sum() / self.tokens).backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def trl_update(model: Any, reference: Any, prompts: list[Prompt], load: Load, tokenizer: Any) -> Callable[[], None]:
    """TRL's own loss on ROWS completions at a time, with gradient accumulation, and the same optimizer."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer
    from trl.trainer.utils import add_fused_lm_head

    config = GRPOConfig(
        output_dir=tempfile.mkdtemp(), use_cpu=True, report_to=[], loss_type="dapo", beta=0.0,
        epsilon=SETTINGS["clip"], num_generations=load.group, per_device_train_batch_size=load.group,
        gradient_accumulation_steps=1, max_completion_length=load.reply, bf16=False,
    )  # fmt: skip
    trainer = GRPOTrainer(
        model=model, reward_funcs=lambda completions, **_: [0.0] * len(completions), args=config,
        train_dataset=Dataset.from_list([{"prompt": "x"}] * load.group), processing_class=copy.deepcopy(tokenizer),
    )  # fmt: skip
    trainer.use_vllm, trainer.vllm_importance_sampling_correction = True, True
    trainer.current_gradient_accumulation_steps = 1
    trainer.beta = SETTINGS["beta"]  # set now: with beta from the start it would load a reference of its own by name
    add_fused_lm_head(reference, temperature=1.0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)
    total = load.prompts * load.group * load.reply
    batches = []
    for prompt, group in zip(prompts, replies(load), strict=True):
        for start in range(0, load.group, ROWS):
            completion = torch.tensor(group[start : start + ROWS])
            rows = len(completion)
            ids = torch.tensor([prompt.token_ids] * rows)
            types = (ids == model.config.image_token_id).long()
            batches.append({
                "prompt_ids": ids, "prompt_mask": torch.ones_like(ids), "completion_ids": completion,
                "completion_mask": torch.ones_like(completion), "advantages": torch.cos(torch.arange(rows).float()),
                "old_per_token_logps": torch.zeros(completion.shape),
                "importance_sampling_ratio": torch.ones(completion.shape), "num_items_in_batch": torch.tensor(total),
                "pixel_values": torch.cat([image.pixels for image in prompt.images] * rows),
                "image_grid_thw": torch.tensor([image.grid for image in prompt.images] * rows),
                "num_images": [len(prompt.images)] * rows,
                "mm_token_type_ids": torch.cat([types, torch.zeros_like(completion)], 1),
            })  # fmt: skip
    vision = ("pixel_values", "image_grid_thw", "num_images", "mm_token_type_ids")

    def update() -> None:
        for batch in batches:
            ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
            images = {name: batch[name] for name in vision}
            with torch.no_grad():
                found = trainer._get_per_token_logps_and_entropies(
                    reference, ids, torch.ones_like(ids), load.reply, **images
                )[0]
            trainer._compute_loss(model, batch | {"ref_per_token_logps": found}).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return update


def products(model: Any, prompts: list[Prompt], load: Load) -> float:
    """Floating-point operations of an update that unique tokens need: 3 forward passes' worth, the reference's one."""
    return 4 * forward_products(model, prompts, [[load.reply] * load.group] * len(prompts))


def forward_products(model: Any, prompts: Sequence[Prompt], lengths: Sequence[Sequence[int]]) -> float:
    """Floating-point operations of one forward pass over prompts and the replies of these lengths, nothing twice.

    2 operations a weight and token; attention by the pairs that see each other; the head on reply tokens alone.
    """
    text, vision = model.config.text_config, model.config.vision_config
    layers = sum(p.numel() for p in model.model.language_model.layers.parameters())
    seen, tokens, scored = 0.0, 0, 0
    for prompt, group in zip(prompts, lengths, strict=True):
        count = len(prompt.token_ids)
        seen += count * count / 2 + sum(r * (count + r / 2) for r in group)
        tokens += count + sum(group)
        scored += sum(group)
    language = 2 * layers * tokens + 4 * text.hidden_size * text.num_hidden_layers * seen
    head = 2 * text.hidden_size * text.vocab_size * scored
    sizes = [len(image.pixels) for prompt in prompts for image in prompt.images]
    full = len(vision.fullatt_block_indexes)
    window = (vision.window_size // 14) ** 2
    pairs = sum(n * (full * n + (vision.depth - full) * min(n, window)) for n in sizes)
    encoder = sum(p.numel() for p in model.model.visual.blocks.parameters()) * 2 * sum(sizes)
    encoder += 4 * vision.hidden_size * pairs
    merger = sum(p.numel() for p in model.model.visual.merger.parameters()) * 2 * sum(sizes) / 4
    return language + head + encoder + merger


def peak(device: str) -> float:
    """Products a second: the maker's figure of a GPU, the best large matrix product of this CPU."""
    if device == "cuda":
        name = torch.cuda.get_device_name()
        known = [value for key, value in GPU_PEAK.items() if key in name]
        if not known:
            raise SystemExit(f"no peak known for {name}; add it to GPU_PEAK")
        return known[0]
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    best = 0.0
    for _ in range(8):
        start = time.perf_counter()
        a @ b
        best = max(best, 2 * 2048**3 / (time.perf_counter() - start))
    return best


def measure(shape: str, load: Load, options: argparse.Namespace) -> dict[str, Any]:
    """All ways on one model and load."""
    dtype = torch.bfloat16 if options.device == "cuda" else torch.float32

    def prepare(name: str) -> Callable[[], None]:
        model, tokenizer = make_model(shape, options.device, dtype)
        reference = copy.deepcopy(model).requires_grad_(False)
        if options.checkpointing:
            model.gradient_checkpointing_enable()
        prompts = make_prompts(model, load)
        if name == "trl":
            return trl_update(model, reference, prompts, load, tokenizer)
        return Update(model, reference, prompts, load, name != "naive", PARTS if name == "parts" else 1)

    memory: dict[str, float] = {}
    if options.device == "cuda":  # two such models side by side would not fit: each way alone
        seconds: dict[str, dict[str, float]] = {}
        for name in options.ways:
            torch.cuda.reset_peak_memory_stats()
            seconds |= in_turn({name: prepare(name)}, options.rounds)
            memory[name] = torch.cuda.max_memory_allocated() / 2**30
            torch.cuda.empty_cache()
    else:
        seconds = in_turn({name: prepare(name) for name in options.ways}, options.rounds, enough=options.seconds)
    bare = make_model(shape, "meta", dtype)[0]
    prompts = make_prompts(bare, load)
    work, top = products(bare, prompts, load), peak(options.device)
    prompt = len(prompts[0].token_ids)
    ways = {
        name: {
            "seconds": {key: round(value, 4) for key, value in timed.items()},
            "samples_per_s": round(load.prompts * load.group / timed["median"], 2),
            "mfu_unique": round(work / timed["median"] / top, 4),
        }
        | ({"peak_gib": round(memory[name], 1)} if memory else {})
        for name, timed in seconds.items()
    }
    return {
        "shape": shape, "parameters": parameters(bare), "load": load.name, "images": load.images,
        "pixels": load.pixels, "prompt_tokens": prompt, "peak_products_per_s": top,
        "rho": round(ceiling(prompt, load.group, load.reply), 2), "ways": ways,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--shape", nargs="+", choices=SHAPES, default=["6m", "30m"])
    parser.add_argument("--images", nargs="+", type=int, default=[2, 3, 8])
    parser.add_argument("--pixels", nargs="+", type=int, default=[112, 224])
    parser.add_argument("--reply", type=int, default=128)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--prompts", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10.0, help="of a row on a CPU, after which no round begins")
    parser.add_argument("--ways", nargs="+", choices=("shared", "parts", "naive", "trl"), default=None)
    parser.add_argument("--checkpointing", action="store_true", help="recompute activations in the backward pass")
    options = parser.parse_args()
    if options.device == "cuda" and "trl" in (options.ways or []):
        parser.error("TRL is measured on the CPU alone; leave it out of --ways")
    options.ways = options.ways or (["shared", "naive"] if options.device == "cuda" else ["shared", "naive", "trl"])
    rows = []
    for shape, images, pixels in itertools.product(options.shape, options.images, options.pixels):
        load = Load(options.prompts, images, pixels, options.group, options.reply)
        rows.append(measure(shape, load, options))
        found = rows[-1]
        speeds = "  ".join(
            f"{name} {way['samples_per_s']:.1f}/s (MFU {way['mfu_unique']:.1%})" for name, way in found["ways"].items()
        )
        print(f"{shape} {load.name}: P {found['prompt_tokens']}, rho {found['rho']}: {speeds}", flush=True)
    name = "learner" if options.device == "cpu" else "learner_gpu"
    print(f"written: {write_results(name, {'command': vars(options) | {'ways': options.ways}, 'rows': rows})}")


if __name__ == "__main__":
    main()
