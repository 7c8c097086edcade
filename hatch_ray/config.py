"""The configuration of a run: YAML file, dotted overrides, every field documented beside itself.

Unknown keys are refused with the nearest known name; every mistake is a ConfigError of one line.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Self

import yaml
from pydantic import BaseModel, BeforeValidator, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo

from hatch_ray import config_sections as sections
from hatch_ray.config_sections import Precision, Section
from hatch_ray.run_folder import bucket_address, write_atomic
from hatch_ray.systems import load_system


class ConfigError(ValueError):
    """A mistake in a config file, an override or the machine it asks for: one line that says what to change."""


def _place(path: object) -> object:
    """A bucket's address stays text; anything else is a path."""
    if not isinstance(path, str | Path) or "://" not in str(path):
        return Path(path) if isinstance(path, str) else path
    return bucket_address(str(path))


Project = Annotated[str, Field(pattern=r"^[\w.-]*$", max_length=128)]


class Config(Section):
    """What every system's config has; `systems.base.System.Config` adds its own sections (HATCH: `HatchConfig`)."""

    system: str = "hatch"
    """What is taught: hatch, matching (docs/wide-baseline.md), viewpoint (docs/viewpoint.md), or a system of your own
    as module:CLASS (docs/your-own-system.md)."""
    run_dir: Annotated[Path | str, BeforeValidator(_place)] = Path("runs/default")
    """The run folder; an existing one is resumed. Or its home in a bucket, s3://BUCKET/FOLDER or gs://BUCKET/FOLDER
    (docs/cluster.md#shared-storage)."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of data, order, sampling and weights."""
    stages: list[str] = []  # noqa: RUF012 - pydantic copies it
    """Stages to run, in order; all of the system's where they are not named."""
    model: sections.ModelConfig = sections.ModelConfig()
    data: sections.DataConfig = sections.DataConfig()
    grpo: sections.GrpoConfig = sections.GrpoConfig()
    rollout: sections.RolloutConfig = sections.RolloutConfig()
    reward_actors: sections.RewardActorsConfig = sections.RewardActorsConfig()
    learner: sections.LearnerConfig = sections.LearnerConfig()
    recovery: sections.RecoveryConfig = sections.RecoveryConfig()
    checkpoints: sections.CheckpointsConfig = sections.CheckpointsConfig()
    deadlines: sections.DeadlinesConfig = sections.DeadlinesConfig()
    storage: sections.StorageConfig = sections.StorageConfig()
    eval: sections.EvalConfig = sections.EvalConfig()
    serve: sections.ServeConfig = sections.ServeConfig()
    colocated: bool = False
    """GRPO's engines share the learner's nodes, one beside each worker, and with GPUs its GPUs: they take turns
    (docs/cluster.md)."""
    environment: tuple[str, ...] = ()
    """Environment variables of the driver that the workers of a cluster get too, by name or with * for any text:
    [NCCL_*, GLOO_SOCKET_IFNAME]. * stands for no name of a key, token, secret or password. Values are kept nowhere. On
    this machine workers get all."""
    tensorboard: bool = True
    """Write the metrics to RUN/tensorboard while a stage trains."""
    wandb: Project = ""
    """Project of Weights & Biases that gets the metrics too (docs/observability.md#elsewhere); empty: none."""
    trackio: Project = ""
    """Project of trackio that gets the metrics too; empty: none."""

    @property
    def precision(self) -> Precision:
        """The coarsest that learner or engines compute with: how closely they can agree."""
        kinds = (self.learner.master, self.learner.compute, self.rollout.dtype)
        return "bfloat16" if "bfloat16" in kinds else "float32"

    def settings(self, stage: str) -> Any:
        """The section of a stage (`config_sections.Trained`)."""
        return getattr(self, stage)

    @model_validator(mode="after")
    def _check(self) -> Self:
        names = [stage.name for stage in load_system(self.system).stages]
        if not self.stages:
            raise ValueError(f"stages is empty; name at least one of {', '.join(names)}")
        if unknown := [stage for stage in self.stages if stage not in names]:
            raise ValueError(f"stages names {unknown[0]!r}; the system {self.system} has {', '.join(names)}")
        if len(set(self.stages)) != len(self.stages):
            raise ValueError("stages names a stage twice")
        if self.stages != [stage for stage in names if stage in self.stages]:
            raise ValueError(f"stages must keep the order {', '.join(names)}")
        if self.grpo.prompts_per_step % self.learner.workers:
            raise ValueError(
                f"grpo.prompts_per_step={self.grpo.prompts_per_step} must be a multiple of "
                f"learner.workers={self.learner.workers}"
            )
        for stage in load_system(self.system).stages:
            if stage.name in self.stages:
                self._check_trainable(stage.name, stage.kind)
        if self.colocated:
            self._check_colocated()
        return self

    def _check_trainable(self, stage: str, kind: str) -> None:
        part = self.settings(stage).trainable
        if part == "all":
            return
        if kind == "pasta":
            raise ValueError(f"{stage}.trainable={part}: this stage trains the image encoder alone; leave it out")
        if self.model.lora_rank:
            raise ValueError(
                f"{stage}.trainable={part}: LoRA trains its adapters alone; set {stage}.trainable=all, or "
                "model.lora_rank=0"
            )

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


def config_class(system: str) -> type[Config]:
    """The config of a system, with its own sections. Raises ConfigError when there is no such system."""
    try:
        return load_system(system).Config
    except ValueError as error:
        raise ConfigError(str(error)) from None


def known_fields(section: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every dotted key of the schema, with its field."""
    for name, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from known_fields(kind, f"{prefix}{name}.")
        else:
            yield prefix + name, field


def parse_override(text: str) -> tuple[str, Any]:
    """ "grpo.beta=0.02" -> ("grpo.beta", "0.02"): text, which the schema reads as what the field is.

    Lists, mappings and quoted text are read as YAML ("[a, b]", "{rollout: 1}"); what they hold is text again.
    """
    key, equals, value = text.partition("=")
    key, value = key.strip(), value.strip()
    if not equals or not key:
        raise ConfigError(f"override {text!r} is not KEY=VALUE (for example grpo.beta=0.02)")
    try:
        return key, _read_yaml(value) if value.startswith(("[", "{", "'", '"')) else value
    except yaml.YAMLError:
        raise ConfigError(f"override {text!r}: the value is not readable as YAML") from None


def _read_yaml(text: str) -> Any:
    """Lists and mappings of text: YAML's own guesses (dates, octal and sexagesimal numbers) are nobody's meaning."""
    return yaml.BaseLoader(text).get_single_data()


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
        tree = _read_yaml(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not readable as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} must hold a mapping of sections")
    for override in overrides or []:
        set_dotted(tree, *parse_override(override))
    return make_config(tree, where=str(path))


def make_config(tree: dict[str, Any], where: str = "config") -> Config:
    """Validate a nested dictionary with the class of its system."""
    system = str(tree.get("system", "hatch"))
    section = config_class(system)
    try:
        return section.model_validate({"stages": [stage.name for stage in load_system(system).stages]} | tree)
    except ValidationError as error:
        raise ConfigError(f"{where}: {_first_mistake(error, section)}") from None


REPLACED = {
    "grpo.micro_batch": "grpo.token_budget",
    "model.dtype": "learner.master, learner.compute and rollout.dtype",
}
"""Keys of earlier versions, and what to set now."""
PRECISION = ("learner.master", "learner.compute", "rollout.dtype")
"""Keys that change results, although their sections say only what runs where."""


def _first_mistake(error: ValidationError, section: type[Config]) -> str:
    mistake = error.errors()[0]
    key, known = ".".join(str(part) for part in mistake["loc"]), [name for name, _ in known_fields(section)]
    if key in REPLACED:
        return f"{key} was replaced by {REPLACED[key]} (docs/configuration.md)"
    if mistake["type"] == "extra_forbidden":
        by_name = [name for name in known if name.split(".")[-1] == key.split(".")[-1]]
        near = [*difflib.get_close_matches(key, known, n=1, cutoff=0.5), *by_name]
        return f"unknown key {key!r}" + (f"; did you mean {near[0]!r}?" if near else "; see docs/configuration.md")
    message = mistake["msg"].removeprefix("Value error, ")
    if mistake["type"] != "value_error":
        return f"{key}: {message}, got {mistake['input']!r}" if key else message
    of_section = not key or any(name.startswith(f"{key}.") for name in known)
    return message if of_section else f"{key}: {message}"  # what a section refuses names its keys itself


def save_config(config: Config, path: Path) -> None:
    """Write the resolved config as YAML, atomically."""
    write_atomic(path, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
