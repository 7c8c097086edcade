"""What both pretrainings of hatch-tiny share: numbers of the recipe, patches of images, updates, what is written."""

from __future__ import annotations

import json
import logging
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLForConditionalGeneration

from hatch_ray.run_folder import append_jsonl
from tools.tiny import IMAGE_MEAN, IMAGE_STD, MERGE, PATCH, save_processor

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recipe:
    """Numbers of both, as the first has them. minutes are wall time on the machine that runs it."""

    minutes: float = 75.0
    encoder_minutes: float = 5.0
    rooms: int = 1600
    heldout_rooms: int = 100
    views: int = 10
    batch: int = 16
    encoder_batch: int = 96
    questions: int = 12
    lr: float = 1e-3
    encoder_lr: float = 2e-3
    weight_decay: float = 0.05
    warmup: float = 0.03
    comparing: float = 0.6
    """Share of the questions that compare two images."""
    three_views: float = 0.25
    """Share of the batches with three images."""
    dense_weight: float = 0.3
    relation_weight: float = 0.5
    chat: float = 0.6
    """Share of the batches that are chats of fewer questions and one for all pairs of cameras, as JSON."""
    eval_minutes: float = 8.0


def begin(out: Path, seed: int, options: Recipe, more: dict[str, Any]) -> None:
    """Write `out`/options.json, and set torch."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "options.json").write_text(json.dumps({"seed": seed, **more, **asdict(options)}, indent=2))
    torch.manual_seed(seed)
    # Matrix products in bfloat16 inside float32 training: 4 times as fast on CPUs with AMX.
    torch.set_float32_matmul_precision("medium")


def patchify(rgb: np.ndarray, rng: np.random.Generator | None = None) -> torch.Tensor:
    """(B, H, W, 3) uint8 -> (B * patches, 1176): what Qwen2.5-VL's processor gives; light colour changes with rng."""
    x = torch.from_numpy(np.ascontiguousarray(rgb)).float().permute(0, 3, 1, 2) / 255
    n, _, height, width = x.shape
    if rng is not None:
        gain = torch.tensor(rng.uniform(0.85, 1.15, (n, 1, 1, 1)) * rng.uniform(0.95, 1.05, (n, 3, 1, 1)))
        x = (x * gain.float() + torch.tensor(rng.uniform(-0.04, 0.04, (n, 1, 1, 1))).float()).clamp(0, 1)
    x = (x - torch.tensor(IMAGE_MEAN).view(1, 3, 1, 1)) / torch.tensor(IMAGE_STD).view(1, 3, 1, 1)
    rows, columns = height // (PATCH * MERGE), width // (PATCH * MERGE)
    x = x.view(n, 3, rows, MERGE, PATCH, columns, MERGE, PATCH).permute(0, 2, 5, 3, 6, 1, 4, 7)
    x = x.reshape(n, rows * columns * MERGE**2, 3, 1, PATCH, PATCH).expand(-1, -1, -1, 2, -1, -1)
    return x.reshape(n * rows * columns * MERGE**2, -1)


def image_grid(n: int, size: int) -> torch.Tensor:
    """(n, 3): time, rows and columns of patches of square images."""
    return torch.tensor([[1, size // PATCH, size // PATCH]] * n)


def learning_rate(done: float, peak: float, warmup: float) -> float:
    """Linear warm-up, then cosine to a twentieth, by the share of the time that is done."""
    if done < warmup:
        return peak * done / warmup + 1e-6
    return peak * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(1.0, (done - warmup) / (1 - warmup)))))


def optimizer_for(modules: list[nn.Module], weight_decay: float) -> torch.optim.AdamW:
    """AdamW; matrices decay, vectors do not."""
    parameters = [p for module in modules for p in module.parameters()]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.98))


def step(loss: torch.Tensor, optimizer: torch.optim.AdamW, lr: float) -> None:
    """One clipped update."""
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1.0)
    optimizer.step()


def text_loss(model: Qwen2_5_VLForConditionalGeneration, last: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross entropy of the answers, from the last hidden state (B, T, d) and the labels (B, T)."""
    keep = labels[:, 1:] != -100
    return nn.functional.cross_entropy(model.lm_head(last[:, :-1][keep]), labels[:, 1:][keep])


def report(out: Path, row: dict[str, Any]) -> None:
    """A line in metrics.jsonl and in the log."""
    append_jsonl(out / "metrics.jsonl", [row])
    log.info(json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}))


def save(model: Qwen2_5_VLForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """The folder `out`/model in bfloat16, written beside and then renamed."""
    fresh, final, old = out / "model.tmp", out / "model", out / "model.old"
    state = {name: value.to(torch.bfloat16) for name, value in model.state_dict().items()}
    model.save_pretrained(fresh, state_dict=state)
    save_processor(tokenizer, fresh)
    if final.exists():
        final.rename(old)
    fresh.rename(final)
    if old.exists():
        for file in old.iterdir():
            file.unlink()
        old.rmdir()
