"""What a replica needs to know of a run."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from hatch_ray.config import Config
from hatch_ray.run_folder import RunFolder
from hatch_ray.systems import system_of
from hatch_ray.systems.base import System


@dataclass(frozen=True)
class Settings:
    """What a replica needs of a run; small and picklable. stage: the one that made the model, and how it is asked."""

    model: str
    version: str
    stage: str
    run: str
    config: Config

    @classmethod
    def of(cls, config: Config, run: RunFolder, folder: Path | None = None) -> Settings:
        """Of a run's model, or of another model folder of the run."""
        folder = folder or run.model.resolve()
        return cls(str(folder), model_version(folder), stage_of(folder), str(run.path), config)

    @cached_property
    def system(self) -> System:
        """The run's system."""
        system: System = system_of(self.config)
        return system

    def with_model(self, folder: Path) -> Settings:
        """These settings with another model of the run."""
        return Settings.of(self.config, RunFolder(self.run), folder)


def stage_of(folder: Path) -> str:
    """The stage that made a model: RUN/grpo/model and RUN/grpo/checkpoints/step-000050/model are of grpo."""
    parent = folder.parent
    return parent.parent.parent.name if parent.name.startswith("step-") else parent.name


def model_version(folder: Path) -> str:
    """The stage that made the model and a hash of its weight files: "grpo-1f0c2a9b3d4e"."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return f"{stage_of(folder)}-{digest.hexdigest()[:12]}"
