"""How large a model is, and how much memory training it takes, before anything is loaded."""

from __future__ import annotations

import math
from pathlib import Path

from hatch_ray.config import Config
from hatch_ray.model.folder_check import check_model_folder
from hatch_ray.model.source import model_source
from hatch_ray.model.tensors import tensor_shapes

PUBLISHED = {
    "Qwen/Qwen2.5-VL-3B-Instruct": 3_754_622_976,
    "Qwen/Qwen2.5-VL-7B-Instruct": 8_292_166_656,
    "Qwen/Qwen2.5-VL-32B-Instruct": 33_452_718_336,
    "Qwen/Qwen2.5-VL-72B-Instruct": 73_410_777_344,
}
"""Parameters of the published models, from the sizes of their bfloat16 files: known without a download."""

BYTES = {"float32": 4, "bfloat16": 2}
ADAM_MOMENTS = 2


def count_parameters(base: str) -> int:
    """Parameters of a model folder (from the headers of its files) or of a published name.

    Raises ValueError for a name that is neither published nor on this disk, and for a folder that is not whole
    (`check_model_folder`).
    """
    if base in PUBLISHED:
        return PUBLISHED[base]
    source = Path(model_source(base))
    if not source.is_dir():
        raise ValueError(
            f"model.base={base} is not a folder and its size is not known before it is downloaded; "
            f"known names: {', '.join(PUBLISHED)}"
        )
    check_model_folder(source)
    shapes = tensor_shapes(source)
    return sum(math.prod(shape) for shape in shapes.values())


LIVE_VERSIONS = 2
"""Copies that a learner which sends by NIXL holds: the version that engines may still read, and the next one."""


def learner_gib(config: Config, parameters: int) -> float:
    """Weights, gradients, Adam's moments and the GRPO reference of one worker, GiB; activations come on
    top.

    With LoRA only the adapters have gradients and moments (small, counted as nothing here), and the reference is the
    base model with the adapters off.
    """
    learner = config.learner
    if config.model.lora_rank:
        each = BYTES[learner.compute]
    else:
        each = (2 + ADAM_MOMENTS) * BYTES[learner.master] + (BYTES[learner.compute] if config.grpo.beta > 0 else 0)
    each += LIVE_VERSIONS * BYTES[config.rollout.dtype] if config.rollout.weights == "nixl" else 0
    return each * parameters / 2**30


def engine_gib(config: Config, parameters: int) -> float:
    """Weights (with nixl also the version that arrives) and, on CPU, the key-value cache of one vLLM engine, GiB."""
    cache = 0.0 if config.rollout.gpus else config.rollout.kv_cache_mb / 1024
    copies = 2 if config.rollout.weights == "nixl" else 1
    return copies * parameters * BYTES[config.rollout.dtype] / 2**30 + cache
