"""The configuration of a run: YAML file, dotted overrides, every field documented beside itself.

Unknown keys are refused with the nearest known name; every mistake is a ConfigError of one line.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    ValidationError,
    model_validator,
)

from hatch_ray.config_sections import (
    CheckpointsConfig,
    DataConfig,
    DeadlinesConfig,
    EvalConfig,
    GrpoConfig,
    LearnerConfig,
    ModelConfig,
    PastaConfig,
    RecoveryConfig,
    RewardActorsConfig,
    RewardConfig,
    RolloutConfig,
    Section,
    ServeConfig,
    SftConfig,
    Stage,
    StorageConfig,
)
from hatch_ray.run_folder import STAGES, bucket_address, write_atomic


class ConfigError(ValueError):
    """A mistake in a config file, an override or the machine it asks for: one line that says what to change."""


def _place(path: object) -> object:
    """A bucket's address stays text; anything else is a path."""
    if not isinstance(path, str | Path) or "://" not in str(path):
        return Path(path) if isinstance(path, str) else path
    return bucket_address(str(path))


class Config(Section):
    run_dir: Annotated[Path | str, BeforeValidator(_place)] = Path("runs/default")
    """The run folder; an existing one is resumed. Or its home in a bucket, s3://BUCKET/FOLDER or gs://BUCKET/FOLDER
    (docs/cluster.md#shared-storage)."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of data, order, sampling and weights."""
    stages: list[Stage] = ["pasta", "qa_sft", "cold_start", "grpo"]  # noqa: RUF012 - pydantic copies it
    """Stages to run, in order."""
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    pasta: PastaConfig = PastaConfig()
    qa_sft: SftConfig = SftConfig()
    cold_start: SftConfig = SftConfig(fraction=0.1)
    grpo: GrpoConfig = GrpoConfig()
    reward: RewardConfig = RewardConfig()
    rollout: RolloutConfig = RolloutConfig()
    reward_actors: RewardActorsConfig = RewardActorsConfig()
    learner: LearnerConfig = LearnerConfig()
    recovery: RecoveryConfig = RecoveryConfig()
    checkpoints: CheckpointsConfig = CheckpointsConfig()
    deadlines: DeadlinesConfig = DeadlinesConfig()
    storage: StorageConfig = StorageConfig()
    eval: EvalConfig = EvalConfig()
    serve: ServeConfig = ServeConfig()
    colocated: bool = False
    """GRPO's engines share the learner's nodes, one beside each worker, and with GPUs its GPUs: they take turns
    (docs/cluster.md)."""
    tensorboard: bool = True
    """Write a stage's scalars to RUN/tensorboard when it is done."""

    @model_validator(mode="after")
    def _check(self) -> Config:
        if not self.stages:
            raise ValueError(f"stages is empty; name at least one of {', '.join(STAGES)}")
        if len(set(self.stages)) != len(self.stages):
            raise ValueError("stages names a stage twice")
        if self.stages != [stage for stage in STAGES if stage in self.stages]:
            raise ValueError(f"stages must keep the order {', '.join(STAGES)}")
        if self.grpo.prompts_per_step % self.learner.workers:
            raise ValueError(
                f"grpo.prompts_per_step={self.grpo.prompts_per_step} must be a multiple of "
                f"learner.workers={self.learner.workers}"
            )
        if self.colocated:
            self._check_colocated()
        return self

    def _check_colocated(self) -> None:
        learner, rollout = self.learner, self.rollout
        if rollout.actors != learner.workers:
            raise ValueError(
                f"colocated puts one engine beside each learner worker: set rollout.actors={rollout.actors} and "
                f"learner.workers={learner.workers} to one number"
            )
        if self.grpo.max_staleness:
            raise ValueError(
                "colocated engines and learner take turns: set grpo.max_staleness=0, or give each nodes of its own"
            )
        if rollout.resources:
            raise ValueError("colocated engines go where the learner is: set learner.resources, not rollout.resources")
        if bool(learner.gpus) != bool(rollout.gpus):
            raise ValueError("colocated roles both have a share of a GPU (learner.gpus, rollout.gpus), or none")
        if not learner.gpus:
            return
        if learner.gpus <= 0.5 or learner.gpus + rollout.gpus > 1:
            raise ValueError(
                f"colocated: learner.gpus={learner.gpus:g} must be above 0.5, so that no two workers have one GPU, and "
                f"with rollout.gpus={rollout.gpus:g} at most 1"
            )
        if rollout.gpu_memory_utilization > rollout.gpus:
            raise ValueError(
                f"colocated: rollout.gpu_memory_utilization={rollout.gpu_memory_utilization:g} is more than the "
                f"engine's share of the GPU; set it to at most rollout.gpus={rollout.gpus:g}"
            )


def known_keys(section: type[BaseModel] = Config, prefix: str = "") -> list[str]:
    """Every dotted key of the schema."""
    keys: list[str] = []
    for name, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            keys += known_keys(kind, f"{prefix}{name}.")
        else:
            keys.append(prefix + name)
    return keys


def parse_override(text: str) -> tuple[str, Any]:
    """ "grpo.beta=0.02" -> ("grpo.beta", 0.02). The value is read as YAML (so 1e-4, true, [a, b] and text work)."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ConfigError(f"override {text!r} is not KEY=VALUE (for example grpo.beta=0.02)")
    try:
        parsed = yaml.safe_load(value) if value else ""
    except yaml.YAMLError:
        raise ConfigError(f"override {text!r}: the value is not readable as YAML") from None
    return key.strip(), parsed


def set_dotted(tree: dict[str, Any], key: str, value: Any) -> None:
    """Set tree["a"]["b"] for "a.b"; ConfigError when a part of the path holds a plain value."""
    *parents, last = key.split(".")
    for part in parents:
        tree = tree.setdefault(part, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"{key}: {part} is a value, not a section")
    tree[last] = value


def load_config(path: str | Path, overrides: list[str] | None = None) -> Config:
    """Read a YAML config, apply dotted overrides, validate.

    Raises ConfigError with one line: the first mistake, where it is and what to do.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"config file {path} does not exist")
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not readable as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} must hold a mapping of sections")
    for override in overrides or []:
        set_dotted(tree, *parse_override(override))
    return make_config(tree, where=str(path))


def make_config(tree: dict[str, Any], where: str = "config") -> Config:
    """Validate a nested dictionary."""
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(f"{where}: {_first_mistake(error)}") from None


REPLACED = {"grpo.micro_batch": "grpo.token_budget"}
"""Keys of earlier versions, and what to set now."""


def _first_mistake(error: ValidationError) -> str:
    mistake = error.errors()[0]
    key = ".".join(str(part) for part in mistake["loc"])
    if key in REPLACED:
        return f"{key} was replaced by {REPLACED[key]} (docs/configuration.md)"
    if mistake["type"] == "extra_forbidden":
        known = known_keys()
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
        by_name = [k for k in known if k.split(".")[-1] == key.split(".")[-1]]
        hint = near[0] if near else (by_name[0] if by_name else "")
        return f"unknown key {key!r}" + (f"; did you mean {hint!r}?" if hint else "; see docs/configuration.md")
    message = mistake["msg"].removeprefix("Value error, ")
    return f"{key}: {message}, got {mistake['input']!r}" if key and mistake["type"] != "value_error" else message


def save_config(config: Config, path: Path) -> None:
    """Write the resolved config as YAML, atomically."""
    write_atomic(path, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
