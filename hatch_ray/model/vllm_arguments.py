"""The arguments of every vLLM engine: rollouts and the service answer with the same one, so with the same words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatch_ray.config import Config
from hatch_ray.model.base import load_processor, pixel_size
from hatch_ray.model.source import model_source

BLOCK_SIZE = 32
"""Tokens of a key-value block on CPU: vLLM's default of 128 finds no shared prefix in short prompts."""


def engine_arguments(model: str | Path, config: Config, gpu: bool) -> dict[str, Any]:
    """Keyword arguments of `vllm.LLM` and `vllm.AsyncEngineArgs` for a model of `config`, on a GPU or on CPUs."""
    source = model_source(model)
    arguments: dict[str, Any] = {
        "model": source,
        "dtype": config.rollout.dtype,
        "seed": config.seed,
        "max_model_len": config.model.max_length,
        "limit_mm_per_prompt": {"image": config.model.max_images, "video": 0},
        "mm_processor_kwargs": {"size": pixel_size(load_processor(source, config.model.max_pixels))},
        "mm_processor_cache_gb": config.rollout.image_cache_mb / 1024,
        "logprobs_mode": "processed_logprobs",
        "generation_config": "vllm",
        "load_format": "safetensors",
        "enable_prefix_caching": True,
        "use_tqdm_on_load": False,
        "disable_log_stats": True,
    }
    if gpu:
        return arguments | {"gpu_memory_utilization": config.rollout.gpu_memory_utilization}
    return arguments | {
        "enforce_eager": True,
        "block_size": BLOCK_SIZE,
        "kv_cache_memory_bytes": config.rollout.kv_cache_mb * 2**20,
    }
