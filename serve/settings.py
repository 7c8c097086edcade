"""What a replica needs to know of a run."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from hatch_ray.config import Config
from hatch_ray.protocol.prompt import Mode, Template, stage_mode
from hatch_ray.run_folder import RunFolder


@dataclass(frozen=True)
class Settings:
    """What a replica needs of a run; small and picklable."""

    model: str
    version: str
    mode: Mode
    template: Template
    dtype: str
    max_images: int
    max_pixels: int
    max_length: int
    max_new_tokens: int
    gpu: bool
    kv_cache_mb: int
    gpu_memory_utilization: float
    seed: int

    @classmethod
    def of(cls, config: Config, run: RunFolder) -> Settings:
        folder = run.model.resolve()
        return cls(
            model=str(folder),
            version=model_version(folder),
            mode=stage_mode(folder.parent.name, config.model.reasoning),
            template=config.model.template,
            dtype=config.model.dtype,
            max_images=config.model.max_images,
            max_pixels=config.model.max_pixels,
            max_length=config.model.max_length,
            max_new_tokens=config.serve.max_new_tokens,
            gpu=config.serve.gpus > 0,
            kv_cache_mb=config.rollout.kv_cache_mb,
            gpu_memory_utilization=config.rollout.gpu_memory_utilization,
            seed=config.seed,
        )


def model_version(folder: Path) -> str:
    """The stage that made the model and a hash of its weight files: "grpo-1f0c2a9b3d4e"."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return f"{folder.parent.name}-{digest.hexdigest()[:12]}"
